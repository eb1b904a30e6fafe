"""TransAVS's weights as `python -m avs_jax.weights` sees them: whole state dicts told by keys and shapes, and the files
of image encoders."""

import functools
import shlex

import jax
import numpy as np
import pytest
from goldens import manifest
from test_weights import same
from torch_writer import T, zip_bytes

import avs_jax
from avs_jax.weights import inspection, matching, recognition
from avs_jax.weights.__main__ import main, options_of
from avs_jax.weights.convert import initial, table_of
from avs_jax.weights.files import read_state_dict
from avs_jax.weights.writing import save_state_dict

SMALL = {"backbone": "resnet10", "width": 4, "num_queries": 6, "dim": 16, "ffn": 12, "encoder_layers": 1,
         "decoder_layers": 2, "audio_width": 2, "audio_hidden": 8, "pixel_options": {"groups": 16}}  # fmt: skip
DEFORMABLE = {"layers": 1, "heads": 2, "hidden": 12}
KINDS = {
    "resnet": SMALL,
    "swin": SMALL | dict(setting="avss", backbone="swin_t", width=8, depths=[1, 1, 2, 1], query_init="shared",
                         pixel_decoder="msdeform", pixel_options={**DEFORMABLE, "groups": 16}, mask_mlp=True),
    "wide_windows": SMALL | dict(backbone="swin_b_384", width=8, depths=[1, 1, 1, 1], num_queries=7,
                                 num_classes=5, decoder_self_attention=False),
    "pvt": {k: v for k, v in SMALL.items() if k not in ("ffn", "pixel_options")} | dict(
        backbone="pvt_v2_b0", width=8, query_init="clip", num_frames=3, pixel_decoder="none", literal_attention=True),
}  # fmt: skip


def shapes_of(model):
    """{public key: shape} of a state dict."""
    table, variables = table_of(model), jax.eval_shape(lambda: initial(model))
    rules = {rule.key: rule for rule in table.rules}
    return {key: matching.expected_shape(rule, rules, variables) for key, rule in rules.items()}


@functools.cache
def small(kind):
    """(method, {public key: shape}); read only."""
    method = avs_jax.create("transavs", **KINDS[kind])
    return method, shapes_of(method)


def zeros(shapes):
    """A state dict that takes no memory."""
    return {key: np.broadcast_to(np.float32(0), shape) for key, shape in shapes.items()}


# --- whole state dicts -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_options_are_read_off_keys_and_shapes(kind):
    candidate, match = inspection.best_fit(zeros(small(kind)[1]))
    assert not match.faults and not match.ignored, match.text()
    found, wanted = options_of(shlex.split(candidate.flags)[-1]), KINDS[kind]
    assert found == {"setting": "ms3", **wanted}
    assert candidate.name.startswith("method transavs with setting=")


def test_settings_with_the_same_network_are_named():
    shapes = {"transformer.query_positions": (300, 256), "transformer.class_head.weight": (2, 256)}
    clip = {**shapes, "queries.mix.weight": (300, 5)}
    for given, classes, setting, others in (
        (shapes, 2, "ms3", ["s4", "salient"]), (clip, 2, "ms3", ["s4"]), (shapes, 22, "vpo_ss", ["vpo_ms", "vpo_msmi"]),
        (shapes, 71, "avss", []), (shapes, 24, "single_plus", []), (shapes, 9, "ms3", []),
    ):  # fmt: skip
        options, found = recognition.transavs_options({**given, "transformer.class_head.weight": (classes, 256)})
        assert (options["setting"], found, options["num_queries"]) == (setting, others, 300)
        assert options.get("num_classes") == (9 if classes == 9 else None)


def test_the_papers_networks_are_told_by_backbone_and_queries():
    shapes = shapes_of(avs_jax.create("transavs", setting="s4", num_queries=100))
    words = "setting=ms3,backbone=resnet101,num_queries=100 (or setting=s4 or salient: the same network)"
    assert inspection.fit_text(zeros(shapes)) == f"fits: method transavs with {words}"
    for part in ("features.", "embeddings."):  # the sound has a file of its own
        shapes = {key: shape for key, shape in shapes.items() if not key.startswith(part)}
    usual = {"setting": "ms3", "backbone": "resnet101", "num_queries": 100}
    assert recognition.transavs_options(shapes)[0] == usual
    swin = {f"encoder.{key}": shape for key, shape in manifest("swin_base_patch4_window7_224").items()}
    others = {key: shape for key, shape in shapes.items() if not key.startswith("encoder.")}
    assert recognition.transavs_options(swin | others)[0] == usual | {"backbone": "swin_b"}


def test_the_commands_write_and_recognise_it(tmp_path, capsys):
    r = np.random.default_rng(0)
    state_dict = {key: r.normal(size=shape).astype(np.float32) for key, shape in small("swin")[1].items()}
    saved = {f"module.{k}": T(v) for k, v in state_dict.items()}
    (tmp_path / "last.pth").write_bytes(zip_bytes({"model": saved, "epoch": 3}))
    assert main(["inspect", "--brief", str(tmp_path / "last.pth")]) == 0
    out = capsys.readouterr().out
    told = ('setting=avss,backbone=swin_t,width=8,depths=[1,1,2,1],num_queries=6,query_init=shared,pixel_decoder='
            'msdeform,pixel_options={"groups":16,"layers":1,"heads":2,"hidden":12},dim=16,ffn=12,encoder_layers=1,'
            "decoder_layers=2,mask_mlp=True,audio_width=2,audio_hidden=8")  # fmt: skip
    assert f"fits: method transavs with {told}\n" in out
    arguments = ["--method", "transavs", "--options", told]
    assert main(["inspect", "--brief", str(tmp_path / "last.pth"), *arguments]) == 0
    assert f"{len(state_dict)} of its {len(state_dict)} keys fit" in capsys.readouterr().out
    assert main(["convert", str(tmp_path / "last.pth"), str(tmp_path / "out.safetensors"), *arguments]) == 0
    back = read_state_dict(tmp_path / "out.safetensors")
    assert same(dict(sorted(back.items())), dict(sorted(state_dict.items())))
    assert main(["inspect", "--brief", str(tmp_path / "out.safetensors")]) == 0
    assert f"fits: method transavs with {told}\n" in capsys.readouterr().out


def test_a_network_alone_has_its_sound_in_another_file(tmp_path, capsys):
    state_dict = {k: v for k, v in zeros(small("resnet")[1]).items() if not k.startswith(("features.", "embeddings."))}
    save_state_dict(tmp_path / "network.pth", state_dict)
    assert main(["inspect", "--brief", str(tmp_path / "network.pth")]) == 0
    out = capsys.readouterr().out
    assert "fits: method transavs with setting=ms3,backbone=resnet10,width=4,num_queries=6," in out
    assert "but for its audio encoder, which has a file of its own, e.g. vggish-10086976.pth" in out


@pytest.mark.parametrize("change, words", [
    (lambda d: d.pop("encoder.layer1.0.conv1.weight"), "backbone=resnet10,width=4,num_queries=6,"),
    (lambda d: d.pop("transformer.decoder1.ffn.linear2.bias"), "backbone=resnet10,width=4,num_queries=6,"),
    (lambda d: d.update({"transformer.query_positions": np.zeros(6)}), "fits: no known model"),
    (lambda d: d.update({"transformer.query_positions": np.zeros((6, 7))}), "fits: no known model"),
    (lambda d: d.update({"transformer.class_head.weight": np.zeros(())}), "fits: no known model"),
])  # fmt: skip
def test_what_fits_none_is_told_so(change, words):
    state_dict = zeros(small("resnet")[1])
    change(state_dict)
    text = inspection.fit_text(state_dict)
    assert text.startswith("fits: no known model") and words in text, text
    assert ("1 missing" in text) == ("backbone" in words)


# --- files of image encoders -----------------------------------------------------------------------------------------


def test_timms_swin_fits_transavs():
    file = zeros(manifest("swin_base_patch4_window7_224"))
    assert inspection.fit_text(file).splitlines()[0] == (
        "fits: encoder swin_base_patch4_window7_224 (the image encoder of transavs with backbone=swin_b)"
    )


def test_microsofts_swin_fits_transavs():
    encoder = avs_jax.create_encoder("swin_tiny_patch4_window7_224", keys="official")
    file = shapes_of(encoder)
    file |= {
        "norm.weight": (768,),
        "norm.bias": (768,),
        "head.weight": (21841, 768),
        "head.bias": (21841,),
        "layers.0.blocks.0.attn.relative_position_index": (49, 49),
        "layers.0.blocks.1.attn_mask": (64, 49, 49),
    }
    assert inspection.fit_text(zeros(file)).splitlines()[0] == (
        "fits: encoder swin_tiny_patch4_window7_224 (the image encoder of transavs with backbone=swin_t)"
    )


@pytest.mark.parametrize("encoder, words", [
    ("resnet50", " (the image encoder of tpavi or transavs with backbone=resnet50)"),
    ("pvt_v2_b5", " (the image encoder of tpavi or transavs with backbone=pvt_v2_b5)"),
    ("swin_large_patch4_window12_384", " (the image encoder of transavs with backbone=swin_l_384)"),
    ("hrnet_w48", ""), ("vggish", ""), ("audio_resnet18", ""),
])  # fmt: skip
def test_who_takes_an_encoders_file(encoder, words):
    names = [c.name for c in inspection.candidates({"norm0.weight": np.zeros(1)})]
    assert f"encoder {encoder}{words}" in names
    if encoder.startswith("swin"):
        assert f"encoder {encoder} with output_norms=True{words}" in names
