"""CAVP as a method: options, batches, the pairs in training, fusions, prediction, weights there and back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import avs_jax
from avs_jax.errors import InputError
from avs_jax.methods import cavp

SMALL = {"backbone": "resnet10", "width": 4, "channels": 12, "low": 4, "projector": 8, "audio_width": 4,
         "audio_encoder": "resnet10", "num_classes": 4, "max_views": 8}  # fmt: skip
SAMPLES = 16000


def make_batch(b=2, size=(48, 40), seed=0, classes=4):
    r = np.random.default_rng(seed)
    labels = r.integers(0, classes, (b, 1, *size), dtype=np.uint8)
    labels[:, :, :, -3:] = 255
    return {
        "frames": r.integers(0, 256, (b, 1, *size, 3), dtype=np.uint8),
        "audio": (0.1 * r.normal(size=(b, 1, SAMPLES))).astype(np.float32),
        "audio_shuffled": (0.1 * r.normal(size=(b, 1, SAMPLES))).astype(np.float32),
        "match": r.random((b, classes)) < 0.5,
        "labels": labels,
        "labelled": np.ones((b, 1), bool),
    }


@pytest.fixture(scope="module")
def small():
    method = avs_jax.create("cavp", **SMALL)
    return method, method.init(jax.random.key(0), make_batch())


def loss_of(method, variables, batch, seed=0):
    state = {k: v for k, v in variables.items() if k != "params"}
    return jax.jit(method.loss)(variables["params"], state, batch, jax.random.key(seed), 0)


def test_prediction(small):
    method, variables = small
    batch = make_batch()
    prediction = method.predict(variables, batch)
    assert prediction.logits.shape == prediction.scores.shape == (2, 1, 48, 40, 4)
    np.testing.assert_allclose(np.asarray(prediction.scores).sum(-1), 1, atol=1e-5)
    np.testing.assert_array_equal(prediction.labels, np.argmax(prediction.logits, -1))
    other = method.predict(variables, {**batch, "audio": batch["audio_shuffled"]})
    assert np.abs(other.logits - prediction.logits).max() > 1e-6
    alone = method.predict(variables, {k: v[:1] for k, v in batch.items()})
    np.testing.assert_allclose(alone.logits, prediction.logits[:1], atol=1e-5)
    assert method.attention(variables, batch)["gate"].shape == (2, 1, 12, 10, 1)


def test_loss_and_gradients(small):
    method, variables = small
    batch = make_batch()
    value, (state, metrics) = loss_of(method, variables, batch)
    np.testing.assert_allclose(value, metrics["ce"] + metrics["pairing"], rtol=1e-6)
    assert metrics["anchors"] > 0 and jax.tree.structure(state) == jax.tree.structure(
        {k: v for k, v in variables.items() if k != "params"}
    )
    assert value == loss_of(method, variables, batch)[0] != loss_of(method, variables, batch, seed=1)[0]
    keyed = lambda p: method.loss(p, state, batch, jax.random.key(0), 0)[0]  # noqa: E731
    grads = jax.jit(jax.grad(keyed))(variables["params"])
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))
    assert set(grads) == {"encoder", "features", "projector", "fusion", "audio", "head"}
    assert all(any(np.any(g) for g in jax.tree.leaves(part)) for part in grads.values())


def test_ignored_pixels_count_nowhere(small):
    method, variables = small
    batch = make_batch()
    batch["labelled"][1] = False
    other = {**batch, "labels": batch["labels"].copy()}
    other["labels"][1] = 3
    assert loss_of(method, variables, batch)[0] == loss_of(method, variables, other)[0]


def test_both_halves_share_the_batch_statistics_but_only_true_pairs_the_cross_entropy(small):
    method, variables = small
    batch = make_batch()
    plain = avs_jax.create("cavp", **{**method.options, "contrastive": 0.0})
    _, (state, metrics) = loss_of(method, variables, batch)
    alone = {k: v for k, v in batch.items() if k not in ("audio_shuffled", "match")}
    _, (plain_state, plain_metrics) = loss_of(plain, variables, alone)
    assert set(plain_metrics) == {"loss", "ce"}
    np.testing.assert_array_equal(  # the image encoder sees every image once
        state["batch_stats"]["encoder"]["bn1"]["mean"], plain_state["batch_stats"]["encoder"]["bn1"]["mean"]
    )
    heads = [s["batch_stats"]["head"]["bn0"]["mean"] for s in (state, plain_state)]
    assert not np.array_equal(*heads) and metrics["ce"] != plain_metrics["ce"]


@pytest.mark.parametrize("fusion", ["sum", "concat", "none"])
def test_fusions_of_table_4(fusion):
    method = avs_jax.create("cavp", **SMALL, fusion=fusion)
    variables = method.init(jax.random.key(0))
    batch = make_batch()
    logits = method.predict(variables, batch).logits
    changed = np.abs(logits - method.predict(variables, {**batch, "audio": batch["audio_shuffled"]}).logits).max()
    assert (changed > 1e-6) == (fusion != "none") and method.attention is None
    value, (_, metrics) = loss_of(method, variables, batch)
    assert np.isfinite(value) and ("pairing" in metrics) == (fusion != "none")
    assert ("audio" in variables["params"]) == (fusion != "none")
    again = avs_jax.load_torch(method, avs_jax.to_torch(method, variables))
    np.testing.assert_array_equal(method.predict(again, batch).logits, logits)


def test_concatenation_is_a_linear_layer_over_both():
    from avs_jax.models.fusion.cross_attention import Broadcast

    r = np.random.default_rng(0)
    visual, audio = r.normal(size=(1, 2, 3, 4)).astype(np.float32), r.normal(size=(2, 4)).astype(np.float32)
    v = Broadcast("concat").init(jax.random.key(0), visual, audio)["params"]
    both = np.concatenate([np.repeat(visual, 2, 0), np.broadcast_to(audio[:, None, None], (2, 2, 3, 4))], -1)
    y = both @ np.concatenate([v["visual"]["kernel"], v["audio"]["kernel"]]) + v["audio"]["bias"]
    y = (y - y.mean(-1, keepdims=True)) / np.sqrt(y.var(-1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(Broadcast("concat").apply({"params": v}, visual, audio), y, atol=1e-5)


@pytest.mark.parametrize("architecture", ["hrnet", "ocr"])
@pytest.mark.slow
def test_high_resolution_architectures(architecture):
    options = {k: v for k, v in SMALL.items() if k not in ("backbone", "width", "channels")}
    method = avs_jax.create("cavp", **options, architecture=architecture, width=4, channels=8, ocr_aux_weight=0.4)
    variables = method.init(jax.random.key(0))
    batch = make_batch()
    value, (_, metrics) = loss_of(method, variables, batch)
    assert np.isfinite(value) and ("region_ce" in metrics) == (architecture == "ocr")
    assert method.predict(variables, batch).scores.shape == (2, 1, 48, 40, 4)


def test_binary_setting_scores_the_sounding_class():
    method = avs_jax.create("cavp", **{**SMALL, "num_classes": 2}, setting="salient", contrastive=0.0)
    prediction = method.predict(method.init(jax.random.key(0)), make_batch(classes=2))
    assert method.num_classes == 1 and prediction.scores.shape == (2, 1, 48, 40, 1)
    p = jax.nn.softmax(prediction.logits)[..., 1:]
    np.testing.assert_allclose(prediction.scores, p, atol=1e-6)


def test_stereo():
    method = avs_jax.create("cavp", **SMALL, audio_channels=2, contrastive=0.0)
    batch = make_batch()
    batch["audio"] = np.stack([batch["audio"], batch["audio_shuffled"]], 2)
    variables = method.init(jax.random.key(0), batch)
    logits = method.predict(variables, batch).logits
    swapped = method.predict(variables, {**batch, "audio": batch["audio"][:, :, ::-1]}).logits
    assert np.abs(logits - swapped).max() > 1e-6


def test_bfloat16_compute_keeps_float32_results(small):
    method, variables = small
    half = avs_jax.create("cavp", **{**method.options, "compute_dtype": "bfloat16"})
    batch = make_batch()
    got, want = half.predict(variables, batch), method.predict(variables, batch)
    assert got.logits.dtype == got.scores.dtype == jnp.float32
    assert 0 < np.abs(got.logits - want.logits).max() < 0.1 * np.abs(want.logits).max()


@pytest.mark.parametrize("options, words", [
    ({"setting": "vpo"}, ["method.setting", "Did you mean 'vpo_"]),
    ({"architecture": "deeplabv3"}, ["method.architecture", "'deeplab'"]),
    ({"architecture": "hrnet", "backbone": "resnet50"}, ["method.backbone", "hrnet_w48"]),
    ({"backbone": "resnet52"}, ["method.backbone", "resnet5"]),
    ({"output_stride": 32}, ["method.output_stride", "8 | 16"]),
    ({"fusion": "add"}, ["method.fusion", "sum"]),
    ({"attention_gate": "tanh"}, ["method.attention_gate", "softmax"]),
    ({"heads": 7}, ["method.heads", "304"]),
    ({"audio_channels": 2, "audio_encoder": "vggish"}, ["method.audio_channels"]),
    ({"num_classes": 1}, ["method.num_classes", "at least 2"]),
    ({"chanels": 3}, ["method.chanels", "Did you mean 'channels'"]),
])  # fmt: skip
def test_bad_options(options, words):
    with pytest.raises(InputError) as e:
        avs_jax.create("cavp", **options)
    assert all(word in str(e.value) for word in words), str(e.value)


@pytest.mark.parametrize("change, words", [
    (lambda b: b.pop("audio"), ["'audio'", "present"]),
    (lambda b: b.pop("match"), ["'match'", "present"]),
    (lambda b: b.pop("audio_shuffled"), ["'audio_shuffled'", "present"]),
    (lambda b: b.update(match=b["match"][:, :2]), ["'match'", "(2, 4)"]),
    (lambda b: b.update(audio=b["audio"][:, 0]), ["'audio'", "(2, 1, samples)"]),
    (lambda b: b.update(frames=b["frames"][0]), ["'frames'", "(B, T, H, W, 3)"]),
])  # fmt: skip
def test_bad_batches(small, change, words):
    batch = make_batch()
    change(batch)
    with pytest.raises(InputError) as e:
        small[0].loss(small[1]["params"], {"batch_stats": small[1]["batch_stats"]}, batch, None, 0)
    assert all(word in str(e.value) for word in words), str(e.value)


def test_front_end_and_example_inputs_touch_every_parameter(small):
    method, variables = small
    assert method.front_end == "waveform"
    network = cavp.build_network(method.options)
    shapes = jax.eval_shape(lambda: network.init(jax.random.key(0), jnp.zeros((1, 64, 64, 3)), jnp.zeros((1, 96, 64))))
    assert jax.tree.structure(dict(shapes)) == jax.tree.structure(variables)
