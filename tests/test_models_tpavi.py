"""TPAVI as a method: options, inputs, losses' masks, small variants, and its public weights there and back."""

from argparse import Namespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from goldens import detweights, manifest, weights

import avs_jax
from avs_jax.errors import InputError
from benchmarks import fusion

SMALL = {"backbone": "resnet10", "width": 8, "channels": 8, "neck_dilations": (1, 2), "head_channels": (8, 4),
         "audio_width": 2, "audio_hidden": 8}  # fmt: skip


def make_batch(b=2, t=3, size=32, seed=0):
    r = np.random.default_rng(seed)
    return {
        "frames": r.integers(0, 256, (b, t, size, size, 3), dtype=np.uint8),
        "audio": r.normal(size=(b, t, 96, 64)).astype(np.float32),
        "labels": r.integers(0, 2, (b, t, size, size), dtype=np.uint8),
        "labelled": np.ones((b, t), bool),
        "id": ["a", "b"][:b],
    }


@pytest.fixture(scope="module")
def small():
    method = avs_jax.create("tpavi", **SMALL, attend="frame", dice=0.5, output_bias=-2.5)
    variables = method.init(jax.random.key(0), make_batch())
    # fresh blocks ignore the sound: let it in
    for i in range(1, 5):
        variables["params"][f"tpavi{i}"]["bn"]["scale"] += 1
    return method, variables


def test_prediction(small):
    method, variables = small
    batch = make_batch()
    p = method.predict(variables, batch)
    assert p.logits.shape == p.scores.shape == (2, 3, 32, 32, 1) and p.labels.shape == (2, 3, 32, 32)
    assert p.scores.dtype == jnp.float32 and p.labels.dtype == jnp.int32
    np.testing.assert_array_equal(p.labels, p.scores[..., 0] > 0.5)
    pixels = (batch["frames"] / 255 - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])
    floats = method.predict(variables, {**batch, "frames": pixels.astype(np.float32)})
    np.testing.assert_allclose(floats.logits, p.logits, atol=1e-5)
    maps = method.attention(variables, batch)
    assert {k: v.shape for k, v in maps.items()} == {
        f"stage{i}": (2, 3, n, n, 1) for i, n in enumerate((8, 4, 2, 1), 1)
    }


def test_embedded_sound_is_the_frozen_encoders_output(small):
    method, variables = small
    batch = make_batch()
    vggish = avs_jax.create_encoder("vggish", width=2, hidden=8)
    embedding = vggish.apply({"params": variables["params"]["audio"]}, batch["audio"].reshape(-1, 96, 64))
    heard = {**batch, "audio_embedding": embedding.reshape(2, 3, 128)}
    heard.pop("audio")
    np.testing.assert_allclose(
        method.predict(variables, heard).logits, method.predict(variables, batch).logits, atol=1e-5
    )


def test_attending_by_frame_hears_only_its_own_second(small):
    method, variables = small
    batch = make_batch()
    other = {**batch, "audio": batch["audio"].copy()}
    other["audio"][1, 2] *= -1
    change = np.abs(method.predict(variables, other).logits - method.predict(variables, batch).logits).max((2, 3, 4))
    assert change[1, 2] > 0 and np.count_nonzero(change) == 1


@pytest.fixture(scope="module")
def step(small):
    return jax.jit(jax.value_and_grad(small[0].loss, has_aux=True))


def state_of(variables):
    return {k: v for k, v in variables.items() if k != "params"}


def test_loss_and_gradients(small, step):
    method, variables = small
    batch = {k: v for k, v in make_batch().items() if k != "id"}
    (value, (state, metrics)), grads = step(variables["params"], state_of(variables), batch, None, 0)
    assert set(metrics) == {"loss", "bce", "dice", "avm_av"} and metrics["loss"] == value
    parts = metrics["bce"] + 0.5 * metrics["dice"] + 0.5 * metrics["avm_av"]
    np.testing.assert_allclose(value, parts, rtol=1e-6)
    assert jax.tree.structure(state) == jax.tree.structure(state_of(variables))
    groups = method.param_groups(variables["params"])
    assert set(jax.tree.leaves(groups)) == {"encoder", "frozen", "head"}
    for (path, g), group in zip(jax.tree_util.tree_leaves_with_path(grads), jax.tree.leaves(groups), strict=True):
        # one pixel a map leaves stage 4 without a gradient behind its BatchNorm; the frozen part has none at all
        if group == "frozen":
            assert not g.any(), path
        assert np.isfinite(g).all(), path
    assert grads["tpavi1"]["phi"]["kernel"].any() and grads["encoder"]["conv1"]["kernel"].any()


def test_only_marked_pixels_are_trained_on(small, step):
    _, variables = small
    batch = {k: v for k, v in make_batch().items() if k != "id"}
    batch["labelled"][:, 1:] = False
    batch["labels"][0, 0, :16] = 255
    batch["valid"] = np.array([True, False])
    (value, (_, metrics)), _ = step(variables["params"], state_of(variables), batch, None, 0)
    changed = {**batch, "labels": batch["labels"].copy()}
    changed["labels"][:, 1:] ^= 1
    changed["labels"][1] ^= 1
    (same, _), _ = step(variables["params"], state_of(variables), changed, None, 0)
    assert same == value
    logits = _train_logits(small, batch)[0, 0, 16:, :, 0].astype(np.float64)
    p, y = 1 / (1 + np.exp(-logits)), batch["labels"][0, 0, 16:]
    np.testing.assert_allclose(metrics["bce"], -np.log(np.where(y == 1, p, 1 - p)).mean(), rtol=1e-4)
    dice = 1 - (2 * (p * y).sum() + 1) / (p.sum() + y.sum() + 1)
    np.testing.assert_allclose(metrics["dice"], dice, rtol=1e-4)


def _train_logits(small, batch):
    from avs_jax.methods import tpavi

    method, variables = small
    network = tpavi.build_network(method.options)
    frames, audio, _ = tpavi.inputs_of(batch, network)
    run = jax.jit(lambda v, f, a: network.apply(v, f, a, None, True, mutable=["batch_stats"])[0].logits)
    return np.asarray(run(variables, tpavi.normalise(jnp.asarray(frames)), audio))


def test_bfloat16_compute_keeps_float32_results(small):
    method, variables = small
    half = avs_jax.create("tpavi", **{**method.options, "compute_dtype": "bfloat16"})
    batch = make_batch()
    got, want = half.predict(variables, batch), method.predict(variables, batch)
    assert got.logits.dtype == got.scores.dtype == jnp.float32
    assert 0 < np.abs(got.logits - want.logits).max() < 0.1 * np.abs(want.logits).max()


def test_trained_audio_has_gradients_and_a_group():
    method = avs_jax.create("tpavi", **SMALL, train_audio=True, tpavi_stages=[0], fusion="both")
    variables = method.init(jax.random.key(1))
    variables["params"]["tpavi1"]["bn"]["scale"] += 1
    batch = {k: v for k, v in make_batch(1, 2).items() if k != "id"}
    grad = jax.jit(jax.grad(lambda p: method.loss(p, state_of(variables), batch, None, 0)[0]))(variables["params"])
    assert any(g.any() for g in jax.tree.leaves(grad["audio"]))
    assert set(jax.tree.leaves(method.param_groups(variables["params"])["audio"])) == {"audio"}
    assert [k for k in variables["params"] if k.startswith("tpavi")] == ["tpavi1"]


def test_without_fusion_no_sound_is_needed():
    method = avs_jax.create("tpavi", **SMALL, fusion="none")
    batch = make_batch(1, 1)
    batch.pop("audio")
    variables = method.init(jax.random.key(0), batch)
    assert "audio" not in variables["params"]
    assert method.predict(variables, batch).scores.shape == (1, 1, 32, 32, 1)
    assert method.attention(variables, batch) == {}


@pytest.mark.parametrize("options, words", [
    ({"setting": "ms_3"}, ["method.setting", "Did you mean 'ms3'"]),
    ({"backbone": "resnet51"}, ["resnet51", "Did you mean 'resnet5"]),
    ({"fusion": "av"}, ["method.fusion", "va | vv | both | add | no_projection | none"]),
    ({"attend": "clips"}, ["method.attend", "Did you mean 'clip'"]),
    ({"compute_dtype": "float16"}, ["method.compute_dtype", "bfloat16"]),
    ({"tpavi_stages": [1, 4]}, ["method.tpavi_stages", "[1, 4]"]),
    ({"tpavi_stages": [1, 1]}, ["method.tpavi_stages", "[1, 1]"]),
    ({"channels": 33}, ["method.channels", "even", "33"]),
    ({"neck_dilations": ()}, ["method.neck_dilations", "positive"]),
    ({"head_channels": (8,)}, ["method.head_channels", "two"]),
    ({"chanels": 32}, ["method.chanels", "Did you mean 'channels'"]),
])  # fmt: skip
def test_bad_options(options, words):
    with pytest.raises(InputError) as e:
        avs_jax.create("tpavi", **options)
    assert all(word in str(e.value) for word in words), str(e.value)


@pytest.mark.parametrize("change, words", [
    (lambda b: b.pop("frames"), ["'frames'", "present"]),
    (lambda b: b.pop("audio"), ["'audio'", "audio_embedding"]),
    (lambda b: b.update(frames=b["frames"][:, :, :30]), ["'frames'", "multiples of 32", "30 x 32"]),
    (lambda b: b.update(frames=b["frames"][0]), ["'frames'", "(B, T, H, W, 3)"]),
    (lambda b: b.update(frames=b["frames"].astype(np.int32)), ["'frames'", "int32"]),
    (lambda b: b.update(audio=b["audio"][:, :2]), ["'audio'", "(2, 3, 96, 64)"]),
    (lambda b: b.update(audio_embedding=np.zeros((2, 3, 64), np.float32)), ["'audio_embedding'", "(2, 3, 128)"]),
])  # fmt: skip
def test_bad_batches(small, change, words):
    batch = make_batch()
    change(batch)
    with pytest.raises(InputError) as e:
        small[0].predict(small[1], batch)
    assert all(word in str(e.value) for word in words), str(e.value)


# --- public weights --------------------------------------------------------------------------------------------------


def equal(a, b):
    return list(a) == list(b) and all(
        a[k].dtype == b[k].dtype and a[k].shape == b[k].shape and np.array_equal(a[k], b[k]) for k in a
    )


@pytest.fixture(scope="module")
def public(small):
    """A public file for the small network, with other values than the initial ones."""
    shapes = {k: v.shape for k, v in avs_jax.to_torch(*small).items()}
    state_dict = detweights.state_dict(shapes)
    for key, value in state_dict.items():
        if key.endswith("num_batches_tracked"):
            value += 7
    return state_dict


def split(state_dict):
    vggish = {k: v for k, v in state_dict.items() if k.startswith(("features.", "embeddings."))}
    return {k: v for k, v in state_dict.items() if k not in vggish}, vggish


def test_public_weights_there_and_back(small, public):
    variables = avs_jax.load_torch(small[0], list(split(public)))
    assert equal(avs_jax.to_torch(small[0], variables), public)
    again = avs_jax.load_torch(small[0], avs_jax.to_torch(small[0], variables))
    assert jax.tree.all(jax.tree.map(np.array_equal, variables, again))
    assert jax.tree.structure({k: variables[k] for k in small[1]}) == jax.tree.structure(dict(small[1]))
    # what the public code stores and never runs is kept aside, and no function minds it
    assert (
        "path4.resConfUnit1.conv1.weight" in variables["unused"]
        and "resnet.layer4_2.0.conv1.weight" in variables["unused"]
    )
    assert small[0].predict(variables, make_batch()).scores.shape == (2, 3, 32, 32, 1)


def test_the_manifest_is_complete_and_in_order():
    method = avs_jax.create("tpavi")
    assert [r.key for r in method.torch_keys.rules] == [*manifest("tpavi_resnet50"), *manifest("vggish")]


@pytest.mark.slow
def test_full_size_public_weights_there_and_back():
    method = avs_jax.create("tpavi")
    files = [weights("tpavi_resnet50"), weights("vggish")]
    assert equal(avs_jax.to_torch(method, avs_jax.load_torch(method, files)), {**files[0], **files[1]})


def test_fresh_variables_make_a_complete_public_file(small):
    state_dict = avs_jax.to_torch(*small)
    np.testing.assert_array_equal(
        state_dict["resnet.layer3_2.0.conv1.weight"], state_dict["resnet.layer3_1.0.conv1.weight"]
    )
    assert not state_dict["path4.resConfUnit1.conv2.weight"].any()
    assert state_dict["tpavi_b1.W_z.1.num_batches_tracked"].dtype == np.int64


def test_imagenet_weights_fill_the_encoder_alone(small):
    encoder = avs_jax.create_encoder("resnet10", width=8)
    shapes = {k: v.shape for k, v in avs_jax.to_torch(encoder, _initial(encoder)).items()}
    imagenet = {**detweights.state_dict(shapes), "fc.weight": np.zeros((1000, 64)), "fc.bias": np.zeros(1000)}
    variables = avs_jax.load_torch(small[0], imagenet, partial=True)
    alone = avs_jax.load_torch(encoder, imagenet)
    assert jax.tree.all(jax.tree.map(np.array_equal, variables["params"]["encoder"], alone["params"]))
    assert jax.tree.all(jax.tree.map(np.array_equal, variables["batch_stats"]["encoder"], alone["batch_stats"]))
    initial = small[0].init(jax.random.key(0))
    assert jax.tree.all(jax.tree.map(np.array_equal, variables["params"]["neck1"], initial["params"]["neck1"]))
    state_dict = avs_jax.to_torch(small[0], variables)  # both public copies of layers 3 and 4
    for copy in ("layer3_1", "layer3_2"):
        np.testing.assert_array_equal(state_dict[f"resnet.{copy}.0.conv2.weight"], imagenet["layer3.0.conv2.weight"])


def _initial(encoder):
    from avs_jax.models.initialise import initialise

    return initialise(encoder, jax.random.key(0), encoder.example_input())


def test_a_data_parallel_prefix_is_dropped(small, public):
    variables = avs_jax.load_torch(small[0], {f"module.{k}": v for k, v in public.items()})
    assert equal(avs_jax.to_torch(small[0], variables), public)


def test_batch_counters_may_be_missing(small, public):
    old = {k: v for k, v in public.items() if not k.endswith("num_batches_tracked")}
    state_dict = avs_jax.to_torch(small[0], avs_jax.load_torch(small[0], old))
    assert list(state_dict) == list(public) and state_dict["resnet.bn1.num_batches_tracked"] == 0


@pytest.mark.parametrize("change, partial, words", [
    (lambda d: d.pop("output_conv.4.bias"), False, ["1 missing: output_conv.4.bias", "partial=True"]),
    (lambda d: d.update({"conv1.conv2d_list.0.weigth": d["output_conv.4.bias"]}), True,
     ["1 unexpected: conv1.conv2d_list.0.weigth", "'conv1.conv2d_list.0.weight'"]),
    (lambda d: d.update({"conv5.weight": d["output_conv.4.bias"]}), False, ["1 unexpected: conv5.weight"]),
    (lambda d: d.update({"output_conv.4.bias": np.zeros(2, np.float32)}), True,
     ["output_conv.4.bias (2,) in place of (1,)"]),
    (lambda d: d.update({"resnet.layer3_2.0.conv1.weight": np.zeros((1, 1))}), False,
     ["resnet.layer3_2.0.conv1.weight (1, 1) in place of (32, 16, 3, 3)"]),
    (lambda d: d.clear(), True, ["no key of this model"]),
    (lambda d: d.update({"resnet.conv1.weight": d["resnet.conv1.weight"], "conv1.weight": d["resnet.conv1.weight"]}),
     False, ["given twice: resnet.conv1.weight"]),
])  # fmt: skip
def test_bad_weights(small, public, change, partial, words):
    state_dict = dict(public)
    change(state_dict)
    with pytest.raises(InputError) as e:
        avs_jax.load_torch(small[0], state_dict, partial=partial)
    assert all(word in str(e.value) for word in words), str(e.value)


def test_other_things_than_weights_are_refused(small):
    with pytest.raises(InputError, match="a path, or a list"):
        avs_jax.load_torch(small[0], 3)
    with pytest.raises(InputError, match="method or an encoder"):
        avs_jax.load_torch("tpavi", {})
    with pytest.raises(InputError, match="no such entry"):
        avs_jax.to_torch(small[0], {"params": {}, "batch_stats": {}})


def test_the_linear_form_equals_the_papers_quadratic_one():
    """Value and gradients, evaluation mode, sizes that the golden block does not have."""
    inputs = fusion.problem(Namespace(clips=2, frames=3, size=4, channels=6))
    for passes in fusion.PASSES:
        linear, quadratic = (fusion.function(form, passes)(*inputs) for form in ("linear", "quadratic"))
        for a, b in zip(jax.tree.leaves(linear), jax.tree.leaves(quadratic), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * float(np.abs(b).max() + 1))
