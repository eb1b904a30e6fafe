"""TPAVI's options beyond the paper's default: fusions, the semantic setting, the mapping loss by name, PVT encoders."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from goldens import manifest

import avs_jax
from avs_jax.errors import InputError
from avs_jax.losses.avm import avm_av, avm_vv
from avs_jax.losses.cross_entropy import masked_cross_entropy
from avs_jax.methods import tpavi
from avs_jax.models.fusion.tpavi import TPAVI

SMALL = {"backbone": "resnet10", "width": 4, "channels": 8, "neck_dilations": (1,), "head_channels": (4, 4),
         "audio_width": 2, "audio_hidden": 8}  # fmt: skip
SEMANTIC = {**SMALL, "setting": "avss", "num_classes": 5}


def make_batch(t=2, classes=2, seed=0):
    r = np.random.default_rng(seed)
    return {
        "frames": r.integers(0, 256, (2, t, 32, 32, 3), dtype=np.uint8),
        "audio_embedding": r.normal(size=(2, t, 128)).astype(np.float32),
        "labels": r.integers(0, classes, (2, t, 32, 32), dtype=np.uint8),
        "labelled": np.ones((2, t), bool),
    }


def made(**options):
    method = avs_jax.create("tpavi", **options)
    variables = method.init(jax.random.key(0))
    for name, block in variables["params"].items():  # fresh blocks ignore the sound: let it in
        if name.startswith("tpavi") and "bn" in block:
            block["bn"]["scale"] += 1
    return method, variables


def loss_of(method, variables, batch, rng=None):
    state = {"batch_stats": variables["batch_stats"]}
    return jax.jit(method.loss)(variables["params"], state, batch, rng, 0)


# --- fusions ---------------------------------------------------------------------------------------------------------


def pixels(seed=0, shape=(2, 3, 4, 5, 6)):
    r = np.random.default_rng(seed)
    return r.normal(size=shape).astype(np.float32), r.normal(size=(2, 3, 128)).astype(np.float32)


def test_adding_the_sound():
    visual, sound = pixels()
    block = TPAVI("add")
    variables = block.init(jax.random.key(0), visual, sound)
    assert set(variables) == {"params"} and set(variables["params"]) == {"align"}
    fused, heard, attention = block.apply(variables, visual, sound)
    align = variables["params"]["align"]
    np.testing.assert_allclose(heard, sound @ align["kernel"] + align["bias"], atol=1e-5)
    np.testing.assert_allclose(fused, visual + np.asarray(heard)[:, :, None, None], atol=1e-6)
    assert attention is None


def test_without_projections_it_is_the_plain_quadratic_formula():
    """z = LayerNorm(V + BN((V A^T / N) V)), A repeated over the pixels of its frame: equation 1 without theta, phi, g
    and W, by the N x N matrix."""
    visual, sound = pixels()
    block = TPAVI("no_projection")
    variables = block.init(jax.random.key(0), visual, sound)
    assert set(variables["params"]) == {"align", "bn", "norm"}
    variables["params"]["bn"]["scale"] += 1.5
    fused, heard, attention = block.apply(variables, visual, sound)
    b, t, h, w, c = visual.shape
    v = visual.reshape(b, -1, c).astype(np.float64)
    a = np.repeat(np.asarray(heard, np.float64), h * w, axis=1)
    similarity = v @ a.swapaxes(1, 2) / (t * h * w)
    z = v + 1.5 * (similarity @ v) / np.sqrt(1 + 1e-5)
    z = (z - z.mean(-1, keepdims=True)) / np.sqrt(z.var(-1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(np.reshape(fused, z.shape), z, atol=1e-5)
    np.testing.assert_allclose(np.reshape(attention, (b, -1, t)), similarity[..., :: h * w], atol=1e-5)


@pytest.mark.parametrize("fusion, parts", [
    ("add", {"align_channel"}),
    pytest.param("no_projection", {"align_channel", "norm_layer", "W_z"}, marks=pytest.mark.slow),
    pytest.param("va", {"align_channel", "norm_layer", "W_z", "g", "theta", "phi"}, marks=pytest.mark.slow),
])  # fmt: skip
def test_every_fusion_as_a_method(fusion, parts):
    method, variables = made(**SMALL, fusion=fusion)
    batch = make_batch()
    prediction = method.predict(variables, batch)
    other = method.predict(variables, {**batch, "audio_embedding": 3 * batch["audio_embedding"][::-1]})
    assert np.abs(prediction.logits - other.logits).max() > 1e-4  # the sound is heard
    public = avs_jax.to_torch(method, variables)
    assert {k.split(".")[1] for k in public if k.startswith("tpavi_b2.")} == parts
    again = avs_jax.load_torch(method, public)
    np.testing.assert_array_equal(method.predict(again, batch).logits, prediction.logits)
    _, (_, metrics) = loss_of(method, variables, batch)
    assert {"loss", "bce", "avm_av"} == set(metrics)


# --- the mapping loss ------------------------------------------------------------------------------------------------


LOSSES = [
    ({"setting": "s4"}, {"bce"}),
    ({"setting": "ms3"}, {"bce", "avm_av"}),
    ({"setting": "ms3", "fusion": "none"}, {"bce"}),
    ({"setting": "ms3", "fusion": "vv"}, {"bce"}),
    ({"setting": "s4", "avm": "cosine"}, {"bce", "avm_cosine"}),
    ({"avm": "vv", "avm_distance": "euclid", "avm_norm": True}, {"bce", "avm_vv"}),
]


@pytest.mark.parametrize("options, names", LOSSES)
def test_which_losses_a_setting_has(options, names):
    method = avs_jax.create("tpavi", **{**SMALL, "tpavi_stages": (1, 3), **options})
    variables = jax.eval_shape(method.init, jax.random.key(0))
    state = {"batch_stats": variables["batch_stats"]}
    _, (_, metrics) = jax.eval_shape(method.loss, variables["params"], state, make_batch(), None, 0)
    assert set(metrics) == {"loss", *names}


@pytest.mark.parametrize("options", [
    pytest.param(options, marks=[pytest.mark.slow] * (options != LOSSES[4][0])) for options, _ in LOSSES
])  # fmt: skip
def test_the_loss_is_the_weighted_sum_of_what_it_logs(options):
    method, variables = made(**{**SMALL, "tpavi_stages": (1, 3), **options})
    value, (_, metrics) = loss_of(method, variables, make_batch())
    weight = method.options["avm_weight"]
    want = sum(v * (weight if k.startswith("avm") else 1) for k, v in metrics.items() if k != "loss")
    np.testing.assert_allclose(value, want, rtol=1e-6)


def test_options_reach_the_mapping_loss():
    batch = make_batch()
    method, variables = made(**SMALL, avm_stages=(1,), avm_distance="euclid", avm_threshold=True, avm_pool="max",
                             avm_weight=2.0)  # fmt: skip
    network = tpavi.build_network(method.options)
    frames = tpavi.normalise(jnp.asarray(batch["frames"]))
    run = jax.jit(lambda v, f, a: network.apply(v, f, a, None, True, mutable=["batch_stats"])[0])
    output = run({k: variables[k] for k in ("params", "batch_stats")}, frames, batch["audio_embedding"])
    want = avm_av(*output[:3], measure="euclid", threshold=True, pooling="max", stages=(1,))
    value, (_, metrics) = loss_of(method, variables, batch)
    np.testing.assert_allclose(metrics["avm_av"], want, rtol=1e-4)
    np.testing.assert_allclose(value, metrics["bce"] + 2 * metrics["avm_av"], rtol=1e-5)
    partner = avs_jax.create("tpavi", **{**SMALL, "avm": "vv", "avm_norm": True})
    _, (_, metrics) = loss_of(partner, variables, batch)
    np.testing.assert_allclose(metrics["avm_vv"], avm_vv(*output[:3], normalise=True), rtol=1e-3)


@pytest.mark.parametrize("options, words", [
    ({"avm": "va"}, ["method.avm", "vv"]),
    ({"avm": "av", "fusion": "none"}, ["method.avm", "hears"]),
    ({"avm": "av", "fusion": "vv"}, ["method.avm", "hears"]),
    ({"avm_stages": (0, 1), "tpavi_stages": (1, 2)}, ["method.avm", "[0, 1]", "[1, 2]"]),
    ({"avm_stages": (5,)}, ["method.avm_stages", "0..3"]),
    ({"avm_distance": "kll"}, ["method.avm_distance", "'kl'"]),
    ({"avm_pool": "mean"}, ["method.avm_pool", "avg"]),
    ({"avm": "vv", "avm_threshold": True}, ["method.avm_threshold"]),
    ({"avm": "cosine", "setting": "avss"}, ["method.avm", "avss"]),
    ({"num_classes": 3}, ["method.num_classes", "'ms3'", "3"]),
    ({"num_classes": 2, "setting": "avss"}, ["method.num_classes", "above 2"]),
    ({"width": 0}, ["method.width", "positive"]),
    ({"drop_path": 1.0, "backbone": "pvt_v2_b0"}, ["drop_path"]),
])  # fmt: skip
def test_bad_options(options, words):
    with pytest.raises(InputError) as e:
        avs_jax.create("tpavi", **options)
    assert all(word in str(e.value) for word in words), str(e.value)


# --- the semantic setting --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def semantic():
    return made(**SEMANTIC)


def test_absent_frames_are_background_and_change_nothing_they_hold(semantic):
    method, variables = semantic
    batch = make_batch(10, 5)
    batch["present"] = np.arange(10) < np.array([[5], [10]])
    prediction = method.predict(variables, batch)
    assert prediction.scores.shape == (2, 10, 32, 32, 5) and method.num_classes == 5
    np.testing.assert_allclose(np.asarray(prediction.scores).sum(-1), 1, atol=1e-5)
    np.testing.assert_array_equal(prediction.labels, np.argmax(prediction.logits, -1))
    assert not np.any(prediction.logits[0, 5:]) and not np.any(prediction.labels[0, 5:])
    changed = {**batch, "frames": batch["frames"].copy(), "audio_embedding": batch["audio_embedding"].copy()}
    changed["frames"][0, 5:], changed["audio_embedding"][0, 5:] = 200, 9
    np.testing.assert_array_equal(method.predict(variables, changed).logits, prediction.logits)


def test_halves_do_not_hear_each_other(semantic):
    method, variables = semantic
    batch = make_batch(10, 5)
    logits = method.predict(variables, batch).logits
    changed = {**batch, "audio_embedding": batch["audio_embedding"].copy()}
    changed["audio_embedding"][:, 7] += 1
    moved = np.abs(method.predict(variables, changed).logits - logits).max((0, 2, 3, 4))
    assert not moved[:5].any() and (moved[5:] > 0).all()
    shapes = {k: v.shape for k, v in method.attention(variables, batch).items()}
    assert shapes["stage1"] == (2, 10, 8, 8, 5)


def test_semantic_loss(semantic):
    """Both terms count labelled frames alone."""
    method, variables = semantic
    batch = make_batch(10, 5)
    batch["present"] = np.arange(10) < np.array([[5], [10]])
    batch["labelled"] = np.arange(10) < np.array([[1], [10]])
    value, (_, metrics) = loss_of(method, variables, batch)
    assert set(metrics) == {"loss", "ce", "avm_av"}
    np.testing.assert_allclose(value, metrics["ce"] + 0.5 * metrics["avm_av"], rtol=1e-6)
    other = {**batch, "labels": np.where(batch["labelled"][..., None, None], batch["labels"], 4)}
    np.testing.assert_array_equal(loss_of(method, variables, other)[0], value)
    everything = {**batch, "labelled": batch["present"]}
    assert loss_of(method, variables, everything)[1][1]["avm_av"] != metrics["avm_av"]


def test_cross_entropy():
    r = np.random.default_rng(0)
    logits, labels = r.normal(size=(2, 3, 4, 4, 6)), r.integers(0, 6, (2, 3, 4, 4))
    mask = r.random((2, 3, 4, 4)) < 0.5
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    want = -np.log(np.take_along_axis(p, labels[..., None], -1))[..., 0][mask].mean()
    np.testing.assert_allclose(masked_cross_entropy(logits, np.where(mask, labels, 255), mask), want, rtol=1e-5)
    assert masked_cross_entropy(logits, labels, np.zeros_like(mask)) == 0
    assert masked_cross_entropy(1e4 * logits, labels, mask) < np.inf


def test_semantic_manifests():
    for backbone in ("resnet50", "pvt_v2_b5"):
        method = avs_jax.create("tpavi", setting="avss", backbone=backbone)
        assert [r.key for r in method.torch_keys.rules] == [*manifest(f"tpavi_{backbone}_avss"), *manifest("vggish")]


@pytest.mark.parametrize("change, words", [
    (lambda b: b.update(present=np.ones((2, 3), bool)), ["'present'", "(2, 5)"]),
    (lambda b: b.update(frames=b["frames"][:, :3]), ["'frames'", "multiple of 5"]),
])  # fmt: skip
def test_bad_semantic_batches(semantic, change, words):
    batch = make_batch(5, 5)
    change(batch)
    with pytest.raises(InputError) as e:
        semantic[0].predict(semantic[1], batch)
    assert all(word in str(e.value) for word in words), str(e.value)


# --- PVT encoders ----------------------------------------------------------------------------------------------------


def test_pvt_inside_the_method():
    method, variables = made(**{**SMALL, "backbone": "pvt_v2_b0", "drop_path": 0.5})
    batch = make_batch()
    one, two = (loss_of(method, variables, batch, jax.random.key(i))[0] for i in (0, 1))
    again = loss_of(method, variables, batch, jax.random.key(0))[0]
    assert one != two and one == again  # stochastic depth, from the key alone
    public = avs_jax.to_torch(method, variables)
    assert next(iter(public)) == "encoder_backbone.patch_embed1.proj.weight"
    np.testing.assert_array_equal(
        method.predict(avs_jax.load_torch(method, public), batch).logits, method.predict(variables, batch).logits
    )
    encoder = avs_jax.create_encoder("pvt_v2_b0", width=4)  # its ImageNet file, in timm's names and the official ones
    for keys in ("timm", "official"):
        part = {"params": variables["params"]["encoder"]}
        imagenet = avs_jax.to_torch(encoder.clone(keys=keys), jax.tree.map(lambda x: x + 1, part))
        loaded = avs_jax.load_torch(method, {**imagenet, "head.weight": np.zeros((2, 2))}, partial=True)
        assert jax.tree.all(
            jax.tree.map(lambda a, b: np.array_equal(a, b + 1), loaded["params"]["encoder"], part["params"])
        )


def test_a_pvt_without_fusion_keeps_no_statistics():
    method, variables = made(**{**SMALL, "backbone": "pvt_v2_b0", "fusion": "none"})
    assert set(variables) == {"params"}
    batch = make_batch()
    _, (state, metrics) = jax.jit(method.loss)(variables["params"], {}, batch, jax.random.key(0), 0)
    assert state == {} and np.isfinite(metrics["loss"])
    again = avs_jax.load_torch(method, avs_jax.to_torch(method, variables))
    np.testing.assert_array_equal(method.predict(again, batch).logits, method.predict(variables, batch).logits)


def test_the_pvt_manifest_is_complete_and_in_order():
    method = avs_jax.create("tpavi", backbone="pvt_v2_b5")
    assert [r.key for r in method.torch_keys.rules] == [*manifest("tpavi_pvt_v2_b5"), *manifest("vggish")]


# --- canvases --------------------------------------------------------------------------------------------------------


def test_pictures_on_canvases_are_refused():
    method, variables = made(**SMALL)
    batch = {**make_batch(), "size": np.full((2, 2), 20, np.int32)}
    with pytest.raises(InputError, match=r"data\.pad.*data\.fit=crop"):
        method.predict(variables, batch)
    with pytest.raises(InputError, match=r"data\.pad.*data\.fit=crop"):
        loss_of(method, variables, batch)
