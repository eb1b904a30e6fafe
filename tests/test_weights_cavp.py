"""CAVP's public weights: whole checkpoints there and back, the encoders' own files, what refuses which file."""

import functools
import math

import jax
import numpy as np
import pytest
from goldens import detweights, manifest
from test_weights import equal_trees, same, section
from torch_writer import T, legacy_bytes, zip_bytes

import avs_jax
from avs_jax.errors import InputError
from avs_jax.weights import conversion, inspection, matching
from avs_jax.weights.__main__ import main
from avs_jax.weights.convert import fill, initial, table_of
from avs_jax.weights.files import read_file
from avs_jax.weights.pretrained import load_pretrained
from avs_jax.weights.public import HUB_IDS, KNOWN
from avs_jax.weights.writing import save_state_dict

SMALL = {"backbone": "resnet10", "width": 4, "channels": 4, "low": 4, "projector": 4, "audio_encoder": "resnet10",
         "audio_width": 2, "num_classes": 3}  # fmt: skip
VGG = {**SMALL, "audio_encoder": "vggish", "audio_hidden": 4}
HIGH = {"width": 2, "projector": 4, "audio_width": 2, "num_classes": 3, "heads": 2}
KINDS = {
    "deeplab": SMALL,
    "stereo": {**SMALL, "audio_channels": 2},
    "vggish": VGG,
    "hrnet": {**HIGH, "architecture": "hrnet"},
    "ocr": {**HIGH, "architecture": "ocr", "channels": 4},
    "sum": {**SMALL, "fusion": "sum"},
    "concat": {**SMALL, "fusion": "concat"},
    "none": {**SMALL, "fusion": "none"},
    "resnet50": {**SMALL, "backbone": "resnet50", "audio_encoder": "resnet18"},
}
OF_NO_USE = {
    "resnet50_deepstem": {"fc"},
    "resnet18": {"conv1", "fc"},
    "vggish": {"embeddings"},
    "hrnet_w48": {"incre_modules", "downsamp_modules", "final_layer", "classifier"},
}
HEAD = {"fc.weight": np.zeros((10, 8), np.float32), "fc.bias": np.zeros(10, np.float32)}  # of ImageNet's classes
NEVER_USED = ("cross_att.pos_embed_v", "cross_att.pos_embed_a", "audio_backbone.cls_head.weight",
              "audio_backbone.cls_head.bias")  # fmt: skip


@functools.cache
def small(kind):
    """(method, its variables as shapes, a public state dict of it, the variables that this makes); read only."""
    method = avs_jax.create("cavp", **KINDS[kind])
    table, variables = table_of(method), jax.eval_shape(lambda: initial(method))
    rules = {rule.key: rule for rule in table.rules}
    state_dict = detweights.state_dict({k: matching.expected_shape(r, rules, variables) for k, r in rules.items()})
    counted = {k: np.array(i) if k.endswith("tracked") else v for i, (k, v) in enumerate(state_dict.items())}
    return method, variables, counted, fill(variables, table, counted)


def part(state_dict, prefix):
    """What is behind a prefix, without it."""
    return {key.removeprefix(prefix): value for key, value in state_dict.items() if key.startswith(prefix)}


def filled(tree):
    """The paths of what a file has replaced in `abstract` variables."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path) for path, leaf in leaves if isinstance(leaf, np.ndarray)}


def assert_filled(loaded, truth, *parts, fresh=()):
    """Exactly the parts' variables are the file's, without the audio encoder's fresh layers."""
    for collection in ("params", "batch_stats"):
        for name, tree in loaded[collection].items():
            if name not in parts:
                assert not filled(tree), name
                continue
            layers = {k: v for k, v in tree.items() if name != "audio" or k not in fresh}
            equal_trees(layers, {k: truth[collection][name][k] for k in layers})
            assert not any(filled(tree[k]) for k in tree if k not in layers)


def mit(state_dict):
    """A deep-stem ResNet's file under the names of MIT's segmentation code."""
    names = {"conv1.0.": "conv1.", "conv1.1.": "bn1.", "conv1.3.": "conv2.", "conv1.4.": "bn2.", "conv1.6.": "conv3.",
             "bn1.": "bn3."}  # fmt: skip
    ours = {key: next((p for p in names if key.startswith(p)), "") for key in state_dict}
    return {names.get(p, "") + key.removeprefix(p): state_dict[key] for key, p in ours.items()}


def hrnet_heads(bias):
    """The keys of HRNet's classification network beside the branches, as its code makes them (values empty)."""
    keys = []
    for i in range(4):
        keys += [f"incre_modules.{i}.0.{part}" for part in ("conv1.weight", "bn1.weight", "bn1.running_var",
                                                            "downsample.0.weight", "downsample.1.bias")]  # fmt: skip
    for name in (*(f"downsamp_modules.{i}" for i in range(3)), "final_layer"):
        keys += [f"{name}.0.weight", f"{name}.1.running_mean", *([f"{name}.0.bias"] if bias else [])]
    return {key: np.zeros(1, np.float32) for key in (*keys, "classifier.weight", "classifier.bias")}


# --- whole checkpoints -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "resnet50"])
def test_every_kind_there_and_back(kind, tmp_path):
    method, _, state_dict, truth = small(kind)
    save_state_dict(tmp_path / "a.pth", state_dict)
    variables = avs_jax.load_torch(method, tmp_path / "a.pth")
    equal_trees(variables, truth)
    assert same(avs_jax.to_torch(method, variables), state_dict)
    assert (NEVER_USED[0] in variables.get("unused", {})) == (kind not in ("sum", "concat", "none"))


def test_tensors_that_are_never_used_may_be_absent():
    method, _, state_dict, _ = small("deeplab")
    live = {k: v for k, v in state_dict.items() if k not in NEVER_USED and not k.endswith("tracked")}
    back = avs_jax.to_torch(method, avs_jax.load_torch(method, live))
    assert list(back) == list(state_dict) and all(back[k].shape == v.shape for k, v in state_dict.items())
    assert same({k: back[k] for k in live}, live)
    assert not any(back[k].any() for k in back if k not in live)


@pytest.mark.parametrize("name", ["best_model.pth", "best_model.pth.tar"])
def test_checkpoints_as_the_public_code_saves_them(name, tmp_path):
    """Its model is wrapped for several devices, and both optimisers lie beside it."""
    method, variables, state_dict, truth = small("deeplab")
    moments = {"state": {0: {"step": 7, "exp_avg": T(np.ones(3, np.float32))}}, "param_groups": [{"lr": 1e-3}]}
    saved = {"model": {f"module.{k}": T(v) for k, v in state_dict.items()}, "audio_optimizer": moments,
             "visual_optimizer": moments, "epoch": 79, "iteration": 1}  # fmt: skip
    for write in (zip_bytes, legacy_bytes):
        (tmp_path / name).write_bytes(write(saved))
        assert set(read_file(tmp_path / name).ignored) == set(saved) - {"model"}
        assert same(avs_jax.to_torch(method, avs_jax.load_torch(method, tmp_path / name)), state_dict)
    started = load_pretrained(method, variables, section(tmp_path, method=name, encoder="no", audio="no"))
    assert jax.tree.structure(started) == jax.tree.structure(variables)  # without what is never used
    equal_trees(started, {k: truth[k] for k in started})


@pytest.mark.parametrize("name, millions, flags", [
    ("cavp_deeplab_r50", 58.238, "setting=vpo_ss,architecture=deeplab,backbone=resnet50"),
    ("cavp_deeplab_r101", 77.230, "setting=vpo_ss,architecture=deeplab,backbone=resnet101"),
    ("cavp_deeplab_r50_vgg_os16", 119.775, "setting=single_plus,architecture=deeplab,backbone=resnet50"),
    pytest.param("cavp_hrnet", 100.984, "setting=vpo_ss,architecture=hrnet", marks=pytest.mark.slow),
    pytest.param("cavp_ocr", 98.289, "setting=vpo_ss,architecture=ocr", marks=pytest.mark.slow),
])  # fmt: skip
def test_public_checkpoints_are_recognised_and_fit_exactly(name, millions, flags):
    keys = manifest(name)
    state_dict = {key: np.broadcast_to(np.float32(0), shape) for key, shape in keys.items()}
    candidate, match = inspection.best_fit(state_dict)
    assert candidate.flags == f"--method cavp --options {flags}"
    assert not match.faults and not match.ignored, match.text()
    assert list(match.used) == list(keys)
    assert [rule.key for rule in match.table.rules] == list(keys)  # what is written, in the public order
    buffers = ("running_mean", "running_var", "num_batches_tracked")
    learnt = sum(math.prod(shape) for key, shape in keys.items() if not key.endswith(buffers))
    assert round(learnt / 1e6, 3) == millions
    assert candidate.name.endswith("(or setting=vpo_ms or vpo_msmi: the same network)") == ("vgg" not in name)


@pytest.mark.parametrize("options, flags", [
    (KINDS["stereo"], "architecture=deeplab,backbone=resnet50,num_classes=3,audio_channels=2"),
    (KINDS["sum"], "architecture=deeplab,backbone=resnet50,num_classes=3,fusion=sum"),
    (KINDS["concat"], "architecture=deeplab,backbone=resnet50,num_classes=3,fusion=concat"),
    (KINDS["none"], "architecture=deeplab,backbone=resnet50,num_classes=3,fusion=none"),
    ({**VGG, "num_classes": 22}, "architecture=deeplab,backbone=resnet50,audio_encoder=vggish"),
    ({**SMALL, "fusion": "none", "num_classes": 71}, "architecture=deeplab,backbone=resnet50,fusion=none"),
    ({**SMALL, "num_classes": 2}, "architecture=deeplab,backbone=resnet50,audio_encoder=resnet18"),
])  # fmt: skip
def test_variants_are_told_by_their_keys_and_shapes(options, flags):
    keys = {rule.key: np.zeros(1) for rule in table_of(avs_jax.create("cavp", **options)).rules}
    keys["segment.upsample.classifier.weight"] = np.zeros(options["num_classes"])
    first = "audio_backbone.backbone.conv1.weight"
    state_dict = {**keys, first: np.zeros((1, options.get("audio_channels", 1)))} if first in keys else keys
    setting = {71: "avss", 2: "salient"}.get(options["num_classes"], "vpo_ss")
    found = [c.flags for c in inspection.candidates(state_dict) if "--method" in c.flags]
    assert found == [f"--method cavp --options setting={setting},{flags}"]


# --- the encoders' own files -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("naming", ["timm", "wrapped", "mit"])
def test_deep_stems_start_from_imagenet(naming, tmp_path):
    method, variables, state_dict, truth = small("resnet50")
    file = {**part(state_dict, "backbone.backbone."), **HEAD}
    if naming == "wrapped":
        (tmp_path / "a.pth").write_bytes(zip_bytes({"model": {f"module.{k}": T(v) for k, v in file.items()}}))
    else:
        save_state_dict(tmp_path / "a.pth", mit(file) if naming == "mit" else file)
    loaded = load_pretrained(method, variables, section(tmp_path, encoder="a.pth"))
    assert_filled(loaded, truth, "encoder")
    assert jax.tree.structure(loaded) == jax.tree.structure(variables)
    encoder = avs_jax.create_encoder("resnet50", width=4, stem="deep")
    equal_trees(avs_jax.load_torch(encoder, tmp_path / "a.pth")["params"], truth["params"]["encoder"])


@pytest.mark.parametrize("bias", [True, False])  # of the head's convolutions: the distilled files have none
def test_high_resolution_networks_start_from_imagenet(bias, tmp_path):
    method, variables, state_dict, truth = small("hrnet")
    backbone = part(state_dict, "backbone.")
    save_state_dict(tmp_path / "model.safetensors", {**backbone, **hrnet_heads(bias)})
    loaded = load_pretrained(method, variables, section(tmp_path, encoder="model.safetensors"))
    assert_filled(loaded, truth, "encoder")
    save_state_dict(tmp_path / "more.safetensors", {**backbone, "last_layer.0.weight": np.zeros(1, np.float32)})
    with pytest.raises(InputError, match=r"1 unexpected: last_layer\.0\.weight"):
        load_pretrained(method, variables, section(tmp_path, encoder="more.safetensors"))


@pytest.mark.parametrize("kind", ["deeplab", "stereo", "hrnet"])
def test_the_audio_resnet_starts_from_imagenet_but_for_its_ends(kind, tmp_path):
    """Also where the image encoder's file has keys of the same name."""
    method, variables, state_dict, truth = small(kind)
    prefix = "backbone." if kind == "hrnet" else "backbone.backbone."
    image = part(state_dict, prefix)
    sound = {**part(state_dict, "audio_backbone.backbone."), **HEAD, "conv1.weight": np.ones((2, 3, 7, 7), np.float32)}
    save_state_dict(tmp_path / "image.pth", {**image, **HEAD} if kind != "hrnet" else image)
    save_state_dict(tmp_path / "sound.pth", sound)
    loaded = load_pretrained(method, variables, section(tmp_path, encoder="image.pth", audio="sound.pth"))
    assert jax.tree.structure(loaded) == jax.tree.structure(variables)
    assert_filled(loaded, truth, "encoder", "audio", fresh=("conv1", "fc"))
    # Without a word on which file is whose:
    files = [read_file(tmp_path / name).tensors for name in ("sound.pth", "image.pth")]
    merged = matching.merge(files, table_of(method))
    match = matching.compare(merged, table_of(method), variables)
    assert match.text(partial=True) == "" and set(match.ignored) >= {"audio: fc.weight", "audio: conv1.weight"}
    assert {k.partition(".")[0] for k in match.used} == {"backbone", "audio_backbone"}
    assert all(merged[k] is files[not k.startswith("audio")][k.removeprefix(prefix).removeprefix(
        "audio_backbone.backbone.")] for k in match.used)  # fmt: skip


@pytest.mark.parametrize("options, files, fresh", [
    (dict(setting="vpo_ss"), dict(encoder="resnet50_deepstem", audio="resnet18"), ("conv1.weight", "fc.weight",
                                                                                   "fc.bias")),
    (dict(setting="single_plus", architecture="hrnet"), dict(encoder="hrnet_w48", audio="vggish"),
     ("embeddings.4.weight", "embeddings.4.bias")),
])  # fmt: skip
def test_published_keys_and_shapes_fit_exactly(options, files, fresh):
    """At full size: nothing is missing, nothing is left over but classifiers."""
    method = avs_jax.create("cavp", **options)
    variables, table = jax.eval_shape(lambda: initial(method)), table_of(method)
    for name, file in files.items():
        state_dict = {key: np.broadcast_to(np.float32(0), shape) for key, shape in manifest(file).items()}
        assert matching.part_of(state_dict, table) == name
        absent = {f"audio_backbone.backbone.{key}" for key in fresh} if name == "audio" else set()
        assert set(table.parts[name].fresh) == absent
        merged = matching.merge([state_dict], table)
        match = matching.compare(merged, table, variables, lambda r: r.path[0] == name and r.key not in absent)  # noqa: B023
        assert not match.faults, match.text()
        rest = {key.removeprefix(f"{name}: ").partition(".")[0] for key in match.ignored}
        assert rest == OF_NO_USE[file]
        assert set(table.parts[name].published.names) <= {*KNOWN, *HUB_IDS}


def test_both_files_fit_at_once(tmp_path):
    method, _, state_dict, truth = small("deeplab")
    image, sound = (part(state_dict, p) for p in ("backbone.backbone.", "audio_backbone.backbone."))
    loaded = avs_jax.load_torch(method, [{**sound, **HEAD}, {**image, **HEAD}], partial=True)
    fresh, start = loaded["params"]["audio"]["fc"]["kernel"], method.init(jax.random.key(0))["params"]["audio"]["fc"]
    np.testing.assert_array_equal(fresh, start["kernel"])
    equal_trees(loaded["params"]["encoder"], truth["params"]["encoder"])
    equal_trees(loaded["params"]["audio"]["layer2_0"], truth["params"]["audio"]["layer2_0"])


def test_vggish_starts_from_audioset_but_for_its_last_layer(tmp_path):
    method, variables, state_dict, truth = small("vggish")
    file = {**part(state_dict, "audio_backbone.backbone."), "embeddings.4.weight": np.ones((128, 4), np.float32),
            "embeddings.4.bias": np.ones(128, np.float32), "pproc.pca_means": np.ones((3, 1), np.float32)}  # fmt: skip
    save_state_dict(tmp_path / "vggish.pth", file)
    assert_filled(load_pretrained(method, variables, section(tmp_path, audio="vggish.pth")), truth, "audio",
                  fresh=("dense2",))  # fmt: skip


def test_a_methods_checkpoint_has_its_own_sound(tmp_path):
    """The audio encoder's part of a CAVP, under the method's keys, is asked for whole: nothing of it is fresh."""
    method, variables, state_dict, truth = small("deeplab")
    save_state_dict(tmp_path / "whole.pth", state_dict)
    for name in ("network", "audio"):
        conversion.to_file([tmp_path / "whole.pth"], tmp_path / f"{name}.pth", model=method, part=name)
    parts = {name: read_file(tmp_path / f"{name}.pth").tensors for name in ("network", "audio")}
    assert set(parts["audio"]) == {k for k in state_dict if k.startswith("audio_backbone.")}
    assert same({k: (parts["network"] | parts["audio"])[k] for k in state_dict}, state_dict)
    both = load_pretrained(method, variables, section(tmp_path, method="network.pth", audio="audio.pth"))
    equal_trees(both, {k: truth[k] for k in both})
    save_state_dict(tmp_path / "cut.pth", {k: v for k, v in parts["audio"].items() if ".backbone.fc." not in k})
    with pytest.raises(InputError, match=r"2 missing:\s+audio_backbone\.backbone\.fc\.weight"):
        load_pretrained(method, variables, section(tmp_path, audio="cut.pth"))


# --- files that do not fit -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fields, words", [
    (dict(encoder="torchvision.pth"), ["config.pretrained.encoder, ", "conv1.0.weight", "unexpected: conv1.weight",
                                       "Needed is an ImageNet ResNet-50 with a deep stem", "torchvision's 7x7",
                                       "timm/resnet50s.gluon_in1k", "backbone=resnet50, audio_encoder=resnet18"]),
    (dict(encoder="vggish.pth"), ["Needed is an ImageNet ResNet-50 with a deep stem"]),
    (dict(encoder="whole.pth"), ["of another part", "give a method's checkpoint as config.pretrained.method"]),
    (dict(audio="vggish.pth"), ["config.pretrained.audio, ", "Needed is an ImageNet ResNet-18", "resnet18-f37072fd"]),
    (dict(audio="torchvision.pth"), ["config.pretrained.audio, ", "in place of", "unexpected",
                                     "Needed is an ImageNet ResNet-18"]),
    (dict(method="torchvision.pth"), ["config.pretrained.method, ", "setting=vpo_ss"]),
    (dict(method="typo.pth"), ["1 unexpected: fc.weight", "config.pretrained.method"]),
])  # fmt: skip
def test_files_that_do_not_fit_are_refused(tmp_path, fields, words):
    method, variables, state_dict, _ = small("resnet50")
    plain = {"conv1.weight": np.zeros((4, 3, 7, 7), np.float32), **HEAD}
    for key, value in part(state_dict, "backbone.backbone.").items():
        narrow = key.startswith("bn1.") or key in ("layer1.0.conv1.weight", "layer1.0.downsample.0.weight")
        if narrow and value.ndim:
            value = value[:4] if value.ndim == 1 else value[:, :4]
        if not key.startswith("conv1."):
            plain[key] = value
    vggish = part(small("vggish")[2], "audio_backbone.backbone.")
    files = {"torchvision.pth": plain, "vggish.pth": vggish, "whole.pth": state_dict,
             "typo.pth": {**state_dict, "fc.weight": np.zeros(2, np.float32)}}  # fmt: skip
    name = next(iter(fields.values()))
    save_state_dict(tmp_path / name, files[name])
    with pytest.raises(InputError) as caught:
        load_pretrained(method, variables, section(tmp_path, **fields))
    assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.mark.parametrize("options, fields, words", [
    ({}, dict(encoder="resnet50_v1c.pth"), ["'resnet50_v1c.pth': no such file", "Needed is an ImageNet ResNet-50 with "
                                            "a deep stem", "timm/resnet50s.gluon_in1k or gluon_resnet50_v1s-"]),
    (dict(backbone="resnet101"), dict(encoder="resnet101-63fe2227.pth"), ["But needed is an ImageNet ResNet-101 with"]),
    ({}, dict(encoder="gluon_resnet50_v1s-1762acc0.pth"), ["v0.1/gluon_resnet50_v1s-1762acc0.pth and put it at "]),
    (dict(architecture="hrnet"), dict(encoder="hrnet.pth"), ["an ImageNet HRNetV2-W48: timm/hrnet_w48.ms_in1k or "]),
    ({}, dict(audio="sound.pth"), ["Needed is an ImageNet ResNet-18, of which conv1 and fc stay unused"]),
    (dict(setting="avss"), dict(audio="sound.pth"), ["Needed is AudioSet's VGGish: vggish-10086976.pth"]),
])  # fmt: skip
def test_a_missing_file_tells_what_is_needed(tmp_path, monkeypatch, options, fields, words):
    monkeypatch.chdir(tmp_path)
    method = avs_jax.create("cavp", **options)
    with pytest.raises(InputError) as caught:
        load_pretrained(method, {"params": {"audio": {}}}, section(tmp_path, **fields))
    assert all(word in str(caught.value) for word in words), str(caught.value)


# --- the command -----------------------------------------------------------------------------------------------------


def test_deep_stems_of_either_naming_are_recognised():
    shapes = {**manifest("resnet50_deepstem"), "fc.bias": (1000,)}
    file = {key: np.broadcast_to(np.float32(0), shape) for key, shape in shapes.items()}
    for state_dict in (file, mit(file)):
        text = inspection.fit_text(state_dict)
        assert text == "fits: encoder resnet50 with stem=deep\n      ignored: fc.weight, fc.bias"


def test_the_command_on_a_checkpoint(tmp_path, capsys):
    options = ",".join(f"{k}={v}" for k, v in SMALL.items())
    method, _, state_dict, _ = small("deeplab")
    save_state_dict(tmp_path / "whole.pth", state_dict)
    command = ["inspect", "--brief", str(tmp_path / "whole.pth"), "--method", "cavp", "--options", options]
    assert main(command) == 0
    count = len(table_of(method).rules)
    assert f"{count} of its {count} keys fit" in capsys.readouterr().out
    assert main([*command[:-1], options.replace("num_classes=3", "num_classes=4")]) == 1
    assert "segment.upsample.classifier.weight (3, 4, 1, 1) in place of (4, 4, 1, 1)" in capsys.readouterr().out
    out = str(tmp_path / "back.pth.tar")
    assert main(["convert", str(tmp_path / "whole.pth"), out, "--method", "cavp", "--options", options]) == 0
    assert same(read_file(out).tensors, state_dict)
