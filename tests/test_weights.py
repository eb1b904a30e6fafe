"""Public weights: where they are found, what fits, what a run starts from, and the way back to a file."""

import sys
import types

import jax
import ml_dtypes
import numpy as np
import pytest
from goldens import detweights, manifest

import avs_jax
from avs_jax import config as configs
from avs_jax.errors import InputError
from avs_jax.training import build
from avs_jax.weights import inspection, matching, public
from avs_jax.weights.convert import initial, table_of
from avs_jax.weights.files import read_file, read_state_dict
from avs_jax.weights.pretrained import describe, load_pretrained
from avs_jax.weights.writing import save_state_dict

SMALL = {"backbone": "resnet10", "width": 4, "channels": 4, "neck_dilations": (1, 2), "head_channels": (4, 4),
         "audio_width": 2, "audio_hidden": 8}  # fmt: skip
PVT = {**SMALL, "backbone": "pvt_v2_b0"}


def shapes_of(model):
    """Public key -> shape."""
    table, variables = table_of(model), jax.eval_shape(lambda: initial(model))
    rules = {rule.key: rule for rule in table.rules}
    return {key: matching.expected_shape(rule, rules, variables) for key, rule in rules.items()}


def made_up(model):
    """A public state dict of the model with telling values, counters and dead branches included."""
    state_dict = detweights.state_dict(shapes_of(model))
    return {k: np.array(i) if k.endswith("num_batches_tracked") else v for i, (k, v) in enumerate(state_dict.items())}


def split(state_dict):
    """(all but the audio encoder, the audio encoder): the two files of AVSBench."""
    audio = {k: v for k, v in state_dict.items() if k.startswith(("features.", "embeddings."))}
    return {k: v for k, v in state_dict.items() if k not in audio}, audio


def same(a, b):
    return list(a) == list(b) and all(
        a[k].dtype == b[k].dtype and a[k].shape == b[k].shape and a[k].tobytes() == b[k].tobytes() for k in a
    )


def equal_trees(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.fixture(scope="module")
def small():
    """(method, its variables, a public state dict with other values)."""
    method = avs_jax.create("tpavi", **SMALL)
    return method, jax.tree.map(np.asarray, method.init(jax.random.key(3))), made_up(method)


# --- there and back --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnet101", "vggish",
                                  *(f"pvt_v2_b{i}" for i in (0, 1, 2, 5))])  # fmt: skip
def test_every_encoder_there_and_back(name):
    options = {"width": 2, "hidden": 8} if name == "vggish" else {"width": 4}
    encoder = avs_jax.create_encoder(name, **options)
    state_dict = made_up(encoder)
    assert same(avs_jax.to_torch(encoder, avs_jax.load_torch(encoder, state_dict)), state_dict)


@pytest.mark.parametrize("options", [
    SMALL, {**SMALL, "backbone": "resnet50", "setting": "s4"}, {**SMALL, "setting": "avss"}, PVT,
    {**PVT, "setting": "avss", "tpavi_stages": (2, 3)}, {**SMALL, "fusion": "none"}, {**SMALL, "fusion": "add"},
    {**SMALL, "fusion": "no_projection"}, {**SMALL, "fusion": "both"},
])  # fmt: skip
def test_every_kind_of_method_there_and_back(options, tmp_path):
    method = avs_jax.create("tpavi", **options)
    state_dict = made_up(method)
    variables = avs_jax.load_torch(method, list(split(state_dict)))
    assert same(avs_jax.to_torch(method, variables), state_dict)
    save_state_dict(tmp_path / "a.pth", state_dict)
    equal_trees(avs_jax.load_torch(method, tmp_path / "a.pth"), variables)


@pytest.mark.parametrize("name, flags", [
    ("resnet18", "--encoder resnet18"), ("resnet50", "--encoder resnet50"), ("resnet101", "--encoder resnet101"),
    ("pvt_v2_b0", "--encoder pvt_v2_b0"), ("pvt_v2_b5", "--encoder pvt_v2_b5"), ("vggish", "--encoder vggish"),
    ("tpavi_resnet50", "--method tpavi --options setting=ms3,backbone=resnet50"),
    ("tpavi_resnet50_avss", "--method tpavi --options setting=avss,backbone=resnet50"),
    ("tpavi_pvt_v2_b5", "--method tpavi --options setting=ms3,backbone=pvt_v2_b5"),
    ("tpavi_pvt_v2_b5_avss", "--method tpavi --options setting=avss,backbone=pvt_v2_b5"),
])  # fmt: skip
def test_public_files_are_recognised_and_fit_exactly(name, flags):
    nothing = np.zeros((), np.float32)
    state_dict = {key: np.broadcast_to(nothing, shape) for key, shape in manifest(name).items()}
    candidate, match = inspection.best_fit(state_dict)
    assert candidate.flags == flags and not match.faults, match.text()
    assert set(match.used) | set(match.ignored) == set(state_dict)
    assert all(key.startswith(("fc.", "head.")) for key in match.ignored)


def test_the_deep_stem_is_recognised():
    shapes = shapes_of(avs_jax.create_encoder("resnet50", stem="deep"))
    candidate, match = inspection.best_fit({k: np.broadcast_to(np.float32(0), v) for k, v in shapes.items()})
    assert candidate.flags == "--encoder resnet50 --options stem=deep" and not match.faults


def test_parts_of_the_method_are_recognised():
    keys = manifest("tpavi_resnet50")
    some = {k: np.zeros(s) for k, s in keys.items() if not k.startswith(("tpavi_b1", "tpavi_b2", "resnet", "conv"))}
    names = {c.flags for c in inspection.candidates(some)}
    assert "--method tpavi --options setting=ms3,backbone=resnet50,tpavi_stages=[2,3]" in names
    none = {k: v for k, v in some.items() if not k.startswith("tpavi")}
    assert any("fusion=none" in c.flags for c in inspection.candidates(none))
    added = {k: v for k, v in some.items() if not k.startswith("tpavi") or "align" in k}
    assert any("fusion=add" in c.flags for c in inspection.candidates(added))
    assert inspection.best_fit({"some.weight": np.zeros(3), "other": np.zeros(2)}) is None


def test_a_newer_or_older_resnet_file_is_the_same_network():
    encoder = avs_jax.create_encoder("resnet18", width=4)
    state_dict = made_up(encoder)
    old = {k: v for k, v in state_dict.items() if not k.endswith("num_batches_tracked")}
    head = {"fc.weight": np.zeros((1000, 32), np.float32), "fc.bias": np.zeros(1000, np.float32)}
    back = avs_jax.to_torch(encoder, avs_jax.load_torch(encoder, {**old, **head}))
    assert list(back) == list(state_dict)
    for key, value in back.items():
        np.testing.assert_array_equal(value, old.get(key, 0), err_msg=key)


def test_the_ports_own_postprocessing_is_passed_over(small):
    method, _, state_dict = small
    network, audio = split(state_dict)
    pca = {"pproc.pca_eigen_vectors": np.eye(3, dtype=np.float32), "pproc.pca_means": np.zeros((3, 1), np.float32)}
    assert same(avs_jax.to_torch(method, avs_jax.load_torch(method, [network, {**audio, **pca}])), state_dict)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_every_width_of_floats_becomes_float32(dtype):
    encoder = avs_jax.create_encoder("resnet10", width=4)
    state_dict = {k: v if k.endswith("tracked") else v.astype(dtype) for k, v in made_up(encoder).items()}
    variables = avs_jax.load_torch(encoder, state_dict)
    assert {x.dtype for x in jax.tree.leaves(variables["params"])} == {np.dtype(np.float32)}
    found = avs_jax.to_torch(encoder, variables)
    np.testing.assert_array_equal(found["conv1.weight"], state_dict["conv1.weight"].astype(np.float32))


# --- the report ------------------------------------------------------------------------------------------------------


def test_the_report_names_everything_that_is_wrong(small):
    method, _, state_dict = small
    bad = dict(state_dict)
    for i in range(12):
        bad.pop(list(state_dict)[-1 - i])
    bad["resnet.layer1.0.conv1.weigth"] = bad.pop("resnet.layer1.0.conv1.weight")
    bad["somewhere.else"] = np.zeros((3, 7), np.float32)
    bad["output_conv.4.bias"] = np.zeros(71, np.float32)
    bad["output_conv.2.bias"] = np.zeros(4, np.int8)
    with pytest.raises(InputError) as caught:
        avs_jax.load_torch(method, bad)
    text = str(caught.value)
    lines = [line.strip() for line in text.splitlines()]
    assert "13 missing:" in lines and "... (5 more)" in lines and "2 unexpected:" in lines
    assert "resnet.layer1.0.conv1.weigth (nearest: 'resnet.layer1.0.conv1.weight')" in lines
    assert "somewhere.else" in lines
    assert "output_conv.4.bias (71,) in place of (1,)" in lines
    assert "output_conv.2.bias int8 in place of floating-point numbers" in lines
    whole = inspection.match(method, [bad]).text(limit=None)
    assert "more)" not in whole and "embeddings.4.bias" in whole


def test_a_prefix_before_every_key_is_named():
    encoder = avs_jax.create_encoder("resnet10", width=4)
    wrapped = {f"backbone.body.{k}": v for k, v in made_up(encoder).items()}
    with pytest.raises(InputError, match=r"begins with 'backbone\.body\.'; without it they would fit"):
        avs_jax.load_torch(encoder, wrapped)


def test_a_forgotten_audio_encoder_is_named(small):
    network, _ = split(small[2])
    with pytest.raises(InputError, match=r"18 missing:[^$]*a file of its own \(vggish-10086976\.pth\)"):
        avs_jax.load_torch(small[0], network)


# --- where files are -------------------------------------------------------------------------------------------------


def find(text, folder="weights"):
    return public.locate(text, field="config.pretrained.encoder", folder=folder)


def test_files_are_found_here_and_in_the_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("weights/a.pth", "b.pth", "other/c.pth", "weights/timm/x.in1k/model.safetensors"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    for text, path in (
        ("a.pth", "weights/a.pth"), ("b.pth", "b.pth"), ("other/c.pth", "other/c.pth"), ("weights/a.pth",) * 2,
        ("timm/x.in1k", "weights/timm/x.in1k/model.safetensors"), (str(tmp_path / "b.pth"), str(tmp_path / "b.pth")),
        ("hf:timm/x.in1k/model.safetensors", "weights/timm/x.in1k/model.safetensors"),
    ):  # fmt: skip
        assert str(find(text)) == path
    assert find("c.pth", folder="other").samefile("other/c.pth")


@pytest.mark.parametrize("text, words", [
    ("resnet50-19c8e357.pth", ["Fetch https://download.pytorch.org/models/resnet50-19c8e357.pth and put it at "
                               "weights/resnet50-19c8e357.pth.", "here or in 'weights'"]),
    ("pvt_v2_b5.pth", ["https://github.com/whai362/PVT/releases/download/v2/pvt_v2_b5.pth", "weights/pvt_v2_b5.pth"]),
    ("data/vggish-10086976.pth", ["torchvggish/releases/download/v0.1/vggish-10086976.pth and put it at data/vggish"]),
    ("resnet50-0676ba16.pth", ["Did you mean 'resnet50-0676ba61.pth'?"]),
    ("pvt_v2_b5", ["Did you mean 'pvt_v2_b5.pth'?"]),
    ("my.pth", ["'my.pth'", "no such file", "hub id"]),
    ("runs/s4.pth", ["'runs/s4.pth'", "no such file"]),
    ("/nowhere/x.safetensors", ["no such file"]),
])  # fmt: skip
def test_a_missing_file_tells_where_to_fetch_it(tmp_path, monkeypatch, text, words):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as caught:
        find(text)
    assert str(caught.value).startswith("config.pretrained.encoder: ")
    assert all(word in str(caught.value) for word in words), str(caught.value)


def fake_hub(monkeypatch, download):
    monkeypatch.setitem(sys.modules, "huggingface_hub", types.SimpleNamespace(hf_hub_download=download))


def test_hub_ids_are_downloaded(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    asked = []
    fake_hub(monkeypatch, lambda repository, file: asked.append((repository, file)) or str(tmp_path / "cache"))
    for text in ("timm/resnet50.tv_in1k", "hf:timm/resnet50.tv_in1k", "timm/resnet50.tv_in1k/pytorch_model.bin",
                 "hf:a/b.pth"):  # fmt: skip
        assert find(text) == tmp_path / "cache"
    assert asked == [("timm/resnet50.tv_in1k", "model.safetensors")] * 2 + [
        ("timm/resnet50.tv_in1k", "pytorch_model.bin"), ("a/b.pth", "model.safetensors"),
    ]  # fmt: skip


@pytest.mark.parametrize("library", [True, False])
def test_without_network_or_library_the_hubs_file_is_named(tmp_path, monkeypatch, library):
    monkeypatch.chdir(tmp_path)

    def refuse(repository, file):
        raise ConnectionError("no route to host. More words.")

    fake_hub(monkeypatch, refuse)
    if not library:
        monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(InputError) as caught:
        find("timm/pvt_v2_b5.in1k")
    url = "https://huggingface.co/timm/pvt_v2_b5.in1k/resolve/main/model.safetensors"
    text = str(caught.value)
    assert f"Fetch {url} and put it at weights/timm/pvt_v2_b5.in1k/model.safetensors" in text
    assert ("no route to host" if library else "pip install huggingface_hub") in text
    assert text.startswith("config.pretrained.encoder: ") and "\n" not in text


# --- what a run starts from ------------------------------------------------------------------------------------------


def section(tmp_path, **fields):
    c = configs.defaults()
    with c.unlocked():
        c.pretrained.update(folder=str(tmp_path), **fields)
    return c.pretrained


def imagenet(backbone="resnet10", **options):
    encoder = avs_jax.create_encoder(backbone, width=4, **options)
    state_dict = detweights.state_dict(shapes_of(encoder), "imagenet")
    head = {"resnet10": ("fc", 32)}.get(backbone, ("head", 32))
    return encoder, {**state_dict, f"{head[0]}.weight": np.zeros((10, head[1]), np.float32)}


def test_encoders_start_from_their_own_files(small, tmp_path):
    method, variables, state_dict = small
    encoder, file = imagenet()
    save_state_dict(tmp_path / "encoder.pth", file)
    save_state_dict(tmp_path / "audio.safetensors", split(state_dict)[1])
    chosen = section(tmp_path, encoder="encoder.pth", audio="audio.safetensors")
    assert describe(chosen) == "encoder.pth and audio.safetensors"
    loaded = load_pretrained(method, variables, chosen)
    assert jax.tree.structure(loaded) == jax.tree.structure(variables)  # so that the run's checkpoints fit
    alone = avs_jax.load_torch(encoder, file)
    equal_trees(loaded["params"]["encoder"], alone["params"])
    equal_trees(loaded["batch_stats"]["encoder"], alone["batch_stats"])
    equal_trees(loaded["params"]["audio"], avs_jax.load_torch(method, state_dict)["params"]["audio"])
    for part in ("neck1", "tpavi2", "decoder", "head"):  # at the run's own initial values
        equal_trees(loaded["params"][part], variables["params"][part])
    only = load_pretrained(method, variables, section(tmp_path, audio="audio.safetensors"))
    equal_trees(only["params"]["encoder"], variables["params"]["encoder"])
    assert load_pretrained(method, variables, section(tmp_path)) is variables


@pytest.mark.parametrize("keys", ["timm", "official"])
def test_pyramids_start_from_either_naming(tmp_path, keys):
    method = avs_jax.create("tpavi", **PVT)
    variables = jax.eval_shape(method.init, jax.random.key(0))
    encoder, file = imagenet("pvt_v2_b0", keys=keys)
    save_state_dict(tmp_path / "encoder.pth", file)
    loaded = load_pretrained(method, variables, section(tmp_path, encoder="encoder.pth"))
    equal_trees(loaded["params"]["encoder"], avs_jax.load_torch(encoder, file)["params"])


def test_a_methods_file_wins_and_leaves_the_sound_to_its_own(small, tmp_path):
    method, variables, state_dict = small
    network, audio = split(state_dict)
    save_state_dict(tmp_path / "network.pth", {f"module.{k}": v for k, v in network.items()})
    save_state_dict(tmp_path / "whole.pth", state_dict)
    save_state_dict(tmp_path / "audio.pth", {k: v + 1 for k, v in audio.items()})
    truth = avs_jax.load_torch(method, state_dict)
    other = avs_jax.load_torch(method, [network, {k: v + 1 for k, v in audio.items()}])

    def start(**fields):
        loaded = load_pretrained(method, variables, section(tmp_path, **fields))
        equal_trees(loaded["batch_stats"], truth["batch_stats"])
        sound = loaded["params"].pop("audio")
        equal_trees(loaded["params"], {k: v for k, v in truth["params"].items() if k != "audio"})
        assert set(loaded) == set(variables)
        return sound

    equal_trees(start(method="network.pth"), variables["params"]["audio"])
    equal_trees(start(method="network.pth", encoder="nowhere.pth", audio="audio.pth"), other["params"]["audio"])
    equal_trees(start(method="whole.pth", audio="nowhere.pth"), truth["params"]["audio"])


def test_a_method_that_hears_nothing_leaves_the_audio_file_unread(tmp_path):
    method = avs_jax.create("tpavi", **{**SMALL, "fusion": "none"})
    variables = method.init(jax.random.key(0))
    assert load_pretrained(method, variables, section(tmp_path, audio="nowhere.pth")) is variables


@pytest.mark.parametrize("fields, words", [
    (dict(encoder="cut.pth"), ["config.pretrained.encoder, ", "2 missing", "resnet.bn1.weight", "backbone=resnet10"]),
    (dict(encoder="network.pth"), ["of another part", "give a method's checkpoint as config.pretrained.method"]),
    (dict(encoder="audio.pth"), ["config.pretrained.encoder, ", "of another part"]),
    (dict(audio="encoder.pth"), ["config.pretrained.audio, ", "18 missing"]),
    (dict(method="encoder.pth"), ["config.pretrained.method, ", "conv4.conv2d_list.0.weight"]),
    (dict(method="typo.pth"), ["1 unexpected: output_conv.4.bais (nearest: 'output_conv.4.bias')"]),
    (dict(method="avss.pth"), ["output_conv.4.weight (71, 4, 1, 1) in place of (1, 4, 1, 1)", "setting=ms3"]),
    (dict(encoder="folder"), ["a folder"]),
    (dict(encoder="resnet18-f37072fd.pth"), ["config.pretrained.encoder: ", "Fetch https://"]),
])  # fmt: skip
def test_files_that_do_not_fit_are_refused(small, tmp_path, fields, words):
    method, variables, state_dict = small
    network, audio = split(state_dict)
    encoder = imagenet()[1]
    files = {
        "cut.pth": {k: v for k, v in encoder.items() if k not in ("bn1.weight", "layer4.0.conv2.weight")},
        "encoder.pth": encoder, "network.pth": network, "audio.pth": audio,
        "typo.pth": {k.replace("output_conv.4.bias", "output_conv.4.bais"): v for k, v in network.items()},
        "avss.pth": {**network, "output_conv.4.weight": np.zeros((71, 4, 1, 1), np.float32)},
    }  # fmt: skip
    (tmp_path / "folder").mkdir()
    for name, tensors in files.items():
        if name in fields.values():
            save_state_dict(tmp_path / name, tensors)
    with pytest.raises(InputError) as caught:
        load_pretrained(method, variables, section(tmp_path, **fields))
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_recipes_lock_the_section():
    c = configs.defaults()
    c.lock()
    assert "weights" not in c
    with pytest.raises(AttributeError, match="encoder"):
        c.pretrained.encodr = "x"
    method = avs_jax.create("tpavi", **SMALL)
    assert build.load_pretrained(c, method, {"params": {}}) == {"params": {}}


# --- files -----------------------------------------------------------------------------------------------------------


def every_kind():
    kinds = (np.float32, np.float64, np.float16, ml_dtypes.bfloat16, np.int64, np.int32, np.int16, np.int8, np.uint8,
             np.bool_)  # fmt: skip
    values = {np.dtype(k).name: np.array([[0, 1, 1], [1, 0, 1]]).astype(k) for k in kinds}
    views = {"transposed": np.arange(6, dtype=np.float32).reshape(2, 3).T, "scalar": np.array(7), "ö.é": np.ones(1),
             "empty": np.zeros((0, 3), np.float32), "big": np.arange(3, dtype=">f4")}  # fmt: skip
    return values | views


@pytest.mark.parametrize("name", ["a.pth", "a.pth.tar", "a.pt", "a.safetensors"])
def test_what_is_written_is_read_back(tmp_path, name):
    truth = every_kind()
    save_state_dict(tmp_path / name, truth)
    contents = read_file(tmp_path / name)
    assert contents.container == ("safetensors" if name.endswith("safetensors") else "zip")
    assert set(contents.tensors) == set(truth)
    for key, value in truth.items():
        found = contents.tensors[key]
        assert found.dtype == value.dtype.newbyteorder("=") and found.shape == value.shape, key
        np.testing.assert_array_equal(found, value, err_msg=key)
    once = (tmp_path / name).read_bytes()
    save_state_dict(tmp_path / name, truth)
    assert (tmp_path / name).read_bytes() == once and [p.name for p in tmp_path.iterdir()] == [name]


def test_files_that_cannot_be_written(tmp_path):
    with pytest.raises(InputError, match=r"\.safetensors, \.pth"):
        save_state_dict(tmp_path / "a.npz", {})
    with pytest.raises(InputError, match=r"uint16 in 'x'.*\.safetensors"):
        save_state_dict(tmp_path / "a.pth", {"x": np.zeros(2, np.uint16)})
    with pytest.raises(InputError, match="a place to write to"):
        save_state_dict(tmp_path / "nowhere" / "a.pth", {})
    assert not list(tmp_path.iterdir())


def test_a_whole_file_is_described(tmp_path):
    path = tmp_path / "resnet18-f37072fd.pth"
    save_state_dict(path, {"a": np.array([1.0, np.inf]), "b": np.zeros((2, 3), np.float16)})
    contents = read_file(path)
    assert inspection.listing(contents.tensors).split() == ["a", "2", "float64", "b", "2x3", "float16"]
    text = inspection.summary(path, contents)
    assert "torch file (zip)" in text and "2 tensors, 8 numbers (float16, float64)" in text
    assert "1 tensors hold infinities or NaN, the first is a" in text
    assert "its name says f37072fd: not the published file" in text
    assert list(read_state_dict(path)) == ["a", "b"]
