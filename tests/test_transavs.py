"""TransAVS as a method: attention, options, symmetries, what counts in the loss, training, weights there and back."""

import dataclasses
import importlib.util
import inspect
import json
import shutil
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import avs_jax
from avs_jax.errors import InputError
from avs_jax.losses.query_set import QueryLoss, dot_masks
from avs_jax.methods import transavs
from avs_jax.models import query_decoder
from avs_jax.models.encoders import create_encoder
from avs_jax.models.initialise import initialise
from avs_jax.models.query_decoder import Style
from avs_jax.train import train
from avs_jax.training import build

ROOT = Path(__file__).parent.parent
SMALL = {"backbone": "resnet10", "width": 4, "num_queries": 8, "dim": 16, "heads": 4, "ffn": 8, "encoder_layers": 1,
         "decoder_layers": 2, "audio_width": 2, "audio_hidden": 8, "pixel_options": {"groups": 4},
         "max_iter": 100}  # fmt: skip


def make_batch(b=2, t=3, size=(32, 32), classes=2, seed=0):
    r = np.random.default_rng(seed)
    labels = np.zeros((b, t, *size), np.uint8)
    labels[:, :, 4:20, 8:24] = r.integers(1, classes, (b, t, 1, 1))
    labels[:, :, :, -2:] = 255
    return {
        "frames": r.integers(0, 256, (b, t, *size, 3), dtype=np.uint8),
        "audio_embedding": np.abs(r.normal(size=(b, t, 128))).astype(np.float32),
        "labels": labels,
        "labelled": np.ones((b, t), bool),
        "present": np.ones((b, t), bool),
        "valid": np.ones(b, bool),
    }


def confident(variables):
    """The variables with heads that find objects, as trained ones do: fresh ones find none."""
    transformer = dict(variables["params"]["transformer"])
    head = transformer["class_head"]
    drawn = 0.1 * jax.random.normal(jax.random.key(5), head["kernel"].shape)
    transformer["class_head"] = {"kernel": drawn, "bias": jnp.zeros_like(head["bias"]).at[0].set(2.0)}
    drawn = jax.random.normal(jax.random.key(6), transformer["mask_features"]["kernel"].shape)
    transformer["mask_features"] = {**transformer["mask_features"], "kernel": drawn}
    return {**variables, "params": {**variables["params"], "transformer": transformer}}


@pytest.fixture(scope="module")
def small():
    method = avs_jax.create("transavs", **SMALL)
    return method, confident(method.init(jax.random.key(0), make_batch()))


def losses_of(method):
    """The method's loss and gradients, compiled once: (variables, batch, step) -> ((loss, (state, metrics)), grads)."""
    run = jax.jit(jax.value_and_grad(method.loss, has_aux=True))

    def call(variables, batch, step=0, seed=0):
        state = {k: v for k, v in variables.items() if k != "params"}
        return run(variables["params"], state, batch, jax.random.key(seed), step)

    return call


@pytest.fixture(scope="module")
def small_loss(small):
    return losses_of(small[0])


def assert_same_gradients(found, wanted):
    """Up to rounding; some, of keys' biases, are zero but for it."""
    atol = 1e-5 * max(np.abs(g).max() for g in jax.tree.leaves(wanted))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=atol), found, wanted)


# ---- Attention and layers


def projected(rng, shape):
    return jnp.asarray(rng.normal(size=shape), jnp.float32)


def test_attention_as_defined_both_ways():
    r = np.random.default_rng(0)
    q, k, v = projected(r, (2, 5, 3, 4)), projected(r, (2, 7, 3, 4)), projected(r, (2, 7, 3, 4))
    mask = r.random((2, 5, 7)) < 0.5
    mask[..., 0] = True
    for allowed in (None, mask):
        scores = np.einsum("fnhc,fphc->fhnp", q, k) / 2
        scores = scores if allowed is None else np.where(allowed[:, None], scores, -np.inf)
        weights = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
        want = np.einsum("fhnp,fphc->fnhc", weights, v)
        for how in query_decoder.ATTENTIONS:
            np.testing.assert_allclose(query_decoder.attend(q, k, v, allowed, how), want, atol=1e-5)


def test_cudnns_kernel_is_asked_for_only_where_it_runs(monkeypatch):
    asked, device = [], types.SimpleNamespace(client=types.SimpleNamespace(platform_version="cuda 13"))

    def implementation(dtype=jnp.bfloat16, n=6, p=8, c=16, mask=None, capability="8.0", how="cudnn"):
        device.compute_capability = capability
        q, k = jnp.zeros((2, n, 1, c), dtype), jnp.zeros((2, p, 1, c), dtype)
        query_decoder.attend(q, k, k, mask, how)
        return asked.pop()

    assert not query_decoder._cudnn_runs(*[jnp.zeros((2, 6, 1, 16), jnp.bfloat16)] * 2)  # on a CPU
    monkeypatch.setattr(jax.nn, "dot_product_attention", lambda *_, **options: asked.append(options["implementation"]))
    monkeypatch.setattr(jax, "devices", lambda: [device])
    assert implementation() == implementation(jnp.float16, capability="9.0", c=128) == "cudnn"
    for no in (dict(dtype=jnp.float32), dict(c=12), dict(c=256), dict(n=5), dict(p=49), dict(capability="7.5"),
               dict(mask=jnp.ones((2, 6, 8), bool)), dict(how="dot_product")):  # fmt: skip
        assert implementation(**no) == "xla", no
    device.client.platform_version = "rocm 7"
    assert implementation(capability="gfx90a") == "xla"


def test_literal_layers_are_equations_3_and_6():
    r = np.random.default_rng(0)
    style = Style(heads=2, ffn=8, literal=True)
    x, positions = projected(r, (2, 5, 8)), projected(r, (5, 8))
    memory, places = projected(r, (2, 6, 8)), projected(r, (6, 8))

    def attention(p, queries, keys, values):
        q, k, v = queries @ p["q"]["kernel"], keys @ p["k"]["kernel"], values @ p["v"]["kernel"]
        scores = np.einsum("fnd,fpd->fnp", q, k) / np.sqrt(8)
        weights = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
        return np.einsum("fnp,fpd->fnd", weights, v)

    y, v = query_decoder.EncoderLayer(style).init_with_output(jax.random.key(0), x, positions)
    assert set(v["params"]) == {"self_attention"} and set(v["params"]["self_attention"]) == {"q", "k", "v"}
    p = v["params"]["self_attention"]
    np.testing.assert_allclose(y, x + attention(p, x + positions, x + positions, x), atol=1e-5)
    y, v = query_decoder.DecoderLayer(style).init_with_output(jax.random.key(0), x, positions, memory, places)
    p = v["params"].pop("cross_attention")
    assert not v["params"]
    np.testing.assert_allclose(y, x + attention(p, x + positions, memory + places, memory), atol=1e-5)


def transformer_inputs(n=6, d=8, seed=0):
    r = np.random.default_rng(seed)
    levels = [projected(r, (2, side, side + 1, d)) for side in (1, 2, 4)]
    return projected(r, (2, n, d)), levels, projected(r, (2, 8, 9, 12))


def transformer(**options):
    style = Style(heads=2, ffn=8, **{k: options.pop(k) for k in Style._fields if k in options})
    module = query_decoder.QueryTransformer(3, style, **{"encoder_layers": 1, "decoder_layers": 3, **options})
    return module, initialise(module, jax.random.key(0), *transformer_inputs())


TRANSFORMERS = {
    "default": {},
    "dot_product": {"attention": "dot_product", "masked_attention": True},
    "masked, mlp": {"masked_attention": True, "mask_mlp": True},
    "literal, paper": {"literal": True, "round_robin": "paper"},
    "no self-attention": {"decoder_self_attention": False, "encoder_layers": 0},
}


@pytest.mark.parametrize("options", TRANSFORMERS.values(), ids=TRANSFORMERS)
def test_permuted_queries_give_permuted_outputs(options):
    module, variables = transformer(**options)
    queries, levels, masks = transformer_inputs()
    order = np.random.default_rng(0).permutation(6)
    params = {**variables["params"], "query_positions": variables["params"]["query_positions"][order]}
    apply = jax.jit(module.apply)
    one, other = apply(variables, queries, levels, masks), apply({"params": params}, queries[:, order], levels, masks)
    assert one.class_logits.shape == (4, 2, 6, 3) and one.embeddings.shape == (4, 2, 6, 8)
    assert one.features.shape == (2, 8, 9, 8)
    for key in ("class_logits", "embeddings"):
        a, b = (np.asarray(getattr(x, key)) for x in (one, other))
        np.testing.assert_allclose(a[:, :, order], b, atol=1e-4)
        assert np.abs(a[1:] - a[:-1]).max((1, 2, 3)).min() > 1e-3  # every layer changes them
    assert np.abs(one.decoded - one.encoded).max() > 1e-3


def test_both_attentions_and_rematerialisation_agree():
    queries, levels, masks = transformer_inputs()
    _, variables = transformer()

    def run(**options):
        module, _ = transformer(**options)

        def total(params):
            out = module.apply({"params": params}, queries, levels, masks)
            return jnp.square(dot_masks(out.embeddings[-1], out.features)).sum() + jnp.square(out.class_logits).sum()

        return jax.jit(jax.value_and_grad(total))(variables["params"])

    value, grads = run()
    for options in ({"attention": "dot_product"}, {"remat": True}):
        other, found = run(**options)
        np.testing.assert_allclose(other, value, rtol=1e-5)
        assert_same_gradients(found, grads)
    module, _ = transformer(all_layers=False)
    last, full = (m.apply(variables, queries, levels, masks) for m in (module, transformer()[0]))
    np.testing.assert_array_equal(last.class_logits, full.class_logits[-1:])


def test_masked_attention_looks_into_its_masks():
    r = np.random.default_rng(0)
    embeddings, features = projected(r, (2, 6, 8)), projected(r, (2, 8, 8, 8))
    embeddings = embeddings.at[0, 0].set(0).at[1, 1].set(-features[1].mean((0, 1)) * 1e3)
    logits = dot_masks(embeddings, features)
    small = np.asarray(logits).reshape(2, 6, 4, 2, 4, 2).mean((3, 5)).reshape(2, 6, 16)  # half size, half-pixel centres
    want = (small >= 0) | (small < 0).all(-1, keepdims=True)
    found = query_decoder._allowed(embeddings, query_decoder._shrunk(features, (4, 4)))
    np.testing.assert_array_equal(found, want)
    assert found[0, 0].all() and not want.all()
    blocked = query_decoder._allowed(-jnp.ones((1, 1, 2)), jnp.ones((1, 2, 2, 2)))
    assert blocked.all()


def test_order_of_levels_and_prior():
    assert [query_decoder.level_of(i, "coarse_first") for i in range(4)] == [0, 1, 2, 0]
    assert [query_decoder.level_of(i, "paper") for i in range(4)] == [1, 2, 0, 1]
    for classes in (2, 71):
        logits = jnp.zeros(classes).at[-1].set(query_decoder.prior_bias(0.01, classes))
        assert float(jax.nn.softmax(logits)[:-1].sum()) == pytest.approx(0.01, rel=1e-4)


@pytest.mark.parametrize("kind", ["frame", "clip", "shared"])
def test_queries_from_sound(kind):
    module = query_decoder.AudioQueries(kind, 6, 8)
    audio = projected(np.random.default_rng(0), (2, 4, 128))
    queries, variables = module.init_with_output(jax.random.key(0), audio)
    assert queries.shape == (2, 4, 6, 8)
    np.testing.assert_allclose(np.square(queries).mean(-1), 1, atol=1e-2)
    changed = module.apply(variables, audio.at[0, 1].add(1.0))
    moved = np.abs(changed - queries).max((2, 3)) > 1e-6
    assert moved.tolist() == [[kind == "clip", True, kind == "clip", kind == "clip"], [False] * 4]
    silent = module.apply(variables, jnp.zeros((1, 4, 128)))
    apart = np.abs(silent[0, 0][:, None] - silent[0, 0][None]).max(-1) + np.eye(6)
    assert apart.min() > 1e-3 if kind != "clip" else np.isfinite(silent).all()


def test_learned_queries_hear_nothing():
    module = query_decoder.AudioQueries("learned", 6, 8)
    queries, variables = module.init_with_output(jax.random.key(0), jnp.zeros((2, 4, 0)))
    assert queries.shape == (2, 4, 6, 8) and set(variables["params"]) == {"embedding", "norm"}
    np.testing.assert_allclose(np.square(queries).mean(-1), 1, atol=1e-2)
    np.testing.assert_array_equal(queries, np.broadcast_to(queries[0, 0], queries.shape))
    assert np.linalg.matrix_rank(queries[0, 0]) == 6


# ---- The method


def test_options_of_the_objective_are_its_own():
    mine = {k: p.default for k, p in inspect.signature(transavs.create).parameters.items()}
    for field in dataclasses.fields(QueryLoss):
        assert mine[field.name] == field.default, field.name


def test_prediction(small):
    method, variables = small
    batch = make_batch()
    prediction = method.predict(variables, batch)
    scores = np.asarray(prediction.scores)
    assert prediction.logits is None and scores.shape == (2, 3, 32, 32, 1) and prediction.labels.shape == (2, 3, 32, 32)
    assert scores.min() >= 0 and scores.max() <= 1 and scores.std() > 0.01
    np.testing.assert_array_equal(prediction.labels, scores[..., 0] > 0.5)
    assert 0 < np.mean(prediction.labels) < 1
    order = np.array([2, 0, 1])
    frames = method.predict(variables, {k: v[:, order] if v.ndim > 1 else v for k, v in batch.items()})
    np.testing.assert_allclose(frames.scores, scores[:, order], atol=1e-5)
    clips = method.predict(variables, {k: v[::-1] for k, v in batch.items()})
    np.testing.assert_allclose(clips.scores, scores[::-1], atol=1e-5)
    other = method.predict(variables, {**batch, "audio_embedding": batch["audio_embedding"][::-1]})
    assert np.abs(other.scores - scores).max() > 1e-3
    batch["present"][1, 2] = False
    short = method.predict(variables, batch)
    assert not np.any(short.scores[1, 2]) and not np.any(short.labels[1, 2])
    np.testing.assert_allclose(short.scores[0], scores[0], atol=1e-5)


def test_views(small):
    method, variables = small
    batch = make_batch()
    found = method.instances(variables, batch, count=3)
    assert found.masks.shape == (2, 3, 3, 32, 32) and found.kept.any()
    best = (found.probabilities[..., None, None] * found.masks).max(2)
    scores = np.asarray(method.predict(variables, batch).scores)[..., 0]
    assert (best <= scores + 1e-5).all()
    attention = method.attention(variables, batch)
    assert {k: v.shape for k, v in attention.items()} == {"stage3": (2, 3, 2, 2, 1), "stage4": (2, 3, 1, 1, 1)}
    for looked in attention.values():
        np.testing.assert_allclose(looked.sum((2, 3, 4)), 1, atol=1e-5)
    features = method.features(variables, batch)
    assert [v.shape for v in features["visual"].values()] == [(2, 3, s, s, 16) for s in (8, 4, 2, 1)]
    np.testing.assert_array_equal(features["audio"]["embedding"], batch["audio_embedding"])


def test_loss_and_gradients(small, small_loss):
    method, variables = small
    batch = make_batch()
    (value, (state, metrics)), grads = small_loss(variables, batch)
    main = 5 * (metrics["focal"] + metrics["dice"] + metrics["aux_focal"] + metrics["aux_dice"])
    np.testing.assert_allclose(value, main + 2 * (metrics["aqdl"] + metrics["aqml"]), rtol=1e-5)
    assert metrics["n1"] > 1 and metrics["aqdl"] > 0 and metrics["aqml"] > 0
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))
    labels = method.param_groups(variables["params"])
    moved = jax.tree.map(lambda g, label: (label, bool(np.any(g))), grads, labels)
    for path, (label, any_) in jax.tree_util.tree_flatten_with_path(moved, is_leaf=lambda x: isinstance(x, tuple))[0]:
        # the first level has one pixel here: nothing to choose from, and a softmax does not see biases of keys
        blind = any(getattr(p, "key", "") in ("q", "k") for p in path)
        assert any_ == (label != "frozen") or blind, (jax.tree_util.keystr(path), label, any_)
    jax.tree.map(np.testing.assert_array_equal, state, {k: v for k, v in variables.items() if k != "params"})
    later = small_loss(variables, batch, step=100)[0][1][1]
    assert metrics["delta1"] == pytest.approx(0.55) and later["delta2"] == pytest.approx(0.65)


def test_parameter_groups(small):
    method, variables = small
    flat = jax.tree_util.tree_flatten_with_path(method.param_groups(variables["params"]))[0]
    found = {".".join(k.key for k in path): label for path, label in flat}
    assert {found[k] for k in found if k.startswith("audio.")} == {"frozen"}
    assert found["encoder.conv1.kernel"] == "encoder" and found["encoder.bn1.scale"] == "frozen"
    assert found["transformer.decoder0.ffn.linear1.bias"] == "head"
    for name in ("transformer.query_positions", "transformer.level_embedding", "transformer.norm.bias",
                 "pixel_decoder.stride8.output.norm.scale"):  # fmt: skip
        assert found[name] == "head/no_decay", name
    free = avs_jax.create("transavs", **{**SMALL, "backbone": "swin_t", "width": 32, "depths": (1, 1, 1, 1)},
                          train_audio=True)  # fmt: skip
    shapes = jax.eval_shape(free.init, jax.random.key(0))
    labels = free.param_groups(shapes["params"])
    assert labels["encoder"]["block1_0"]["attn"]["bias_table"] == "encoder/no_decay"
    assert labels["encoder"]["block1_0"]["norm1"]["bias"] == "encoder/no_decay"
    assert labels["encoder"]["block1_0"]["mlp"]["fc1"]["bias"] == "encoder"
    assert labels["audio"]["conv0"]["kernel"] == "audio"
    still = avs_jax.create("transavs", **SMALL, freeze_encoder=True)
    assert set(jax.tree.leaves(still.param_groups(variables["params"])["encoder"])) == {"frozen"}


def test_what_does_not_count_changes_nothing(small, small_loss):
    """Clips that fill up a batch, frames without labels, and frames that are not there."""
    _, variables = small
    batch = make_batch()
    batch["valid"][1] = batch["labelled"][0, 1] = False
    batch["present"][0, 2] = False
    (value, _), grads = small_loss(variables, batch)
    other = {k: v.copy() for k, v in batch.items()}
    fresh = make_batch(seed=9)
    for key in ("frames", "audio_embedding"):
        other[key][1], other[key][0, 1:] = fresh[key][1], fresh[key][0, 1:]
    other["labels"][1], other["labels"][0, 1:] = 1, 1
    (changed, _), others = small_loss(variables, other)
    np.testing.assert_allclose(changed, value, rtol=1e-6)
    assert_same_gradients(others, grads)
    other["labels"][0, 0] = 1
    assert abs(small_loss(variables, other)[0][0] - value) > 1e-3


def test_the_control_without_sound():
    method = avs_jax.create("transavs", **{**SMALL, "encoder_layers": 0, "decoder_layers": 1}, query_init="learned")
    variables = confident(method.init(jax.random.key(0), make_batch()))
    assert "audio" not in variables["params"] and method.embed_audio is None
    assert set(avs_jax.to_torch(method, variables)) >= {"queries.embedding", "encoder.conv1.weight"}
    batch, deaf = make_batch(), make_batch()
    del deaf["audio_embedding"]
    state = {k: v for k, v in variables.items() if k != "params"}
    value, (_, metrics) = jax.jit(method.loss)(variables["params"], state, deaf, jax.random.key(0), 0)
    assert np.isfinite(value) and metrics["dice"] > 0
    assert method.param_groups(variables["params"])["queries"]["embedding"] == "head/no_decay"
    scores = method.predict(variables, deaf).scores
    assert np.std(scores) > 0.01
    batch["audio_embedding"] += 1
    np.testing.assert_array_equal(method.predict(variables, batch).scores, scores)
    assert method.attention(variables, deaf) == {} and method.features(variables, deaf)["audio"] == {}


# ---- Options in company: each compiles a loss, so they come together

TOGETHER = {
    "semantic": dict(setting="vpo_ms", num_classes=5, max_targets=2, pixel_decoder="none", pixel_options=None,
                     query_init="shared", masked_attention=True, mask_mlp=True, aqdl_on="decoder", remat=True,
                     lambda_mask=1.0, inference_rule="semantic", aqdl_form="exp", dropout=0.1),
    "letter": dict(setting="s4", query_init="clip", num_frames=3, literal_attention=True, round_robin="paper",
                   aux_loss=False, frozen_norm=False, attention="dot_product", train_audio=True, dice="squared",
                   compare_at="mask", delta1=(0.6, 0.6)),
    "swin": dict(setting="avss", num_classes=4, max_targets=3, backbone="swin_t", width=32, depths=(1, 1, 1, 1),
                 pixel_decoder="msdeform", pixel_options={"layers": 1, "heads": 4, "hidden": 8, "groups": 4},
                 remat=True, decoder_self_attention=False, freeze_encoder=True, compute_dtype="bfloat16"),
}  # fmt: skip


@pytest.mark.parametrize("name", ["semantic", "letter", pytest.param("swin", marks=pytest.mark.slow)])
def test_options_together(name):
    options = {**SMALL, "decoder_layers": 1, **TOGETHER[name]}
    method = avs_jax.create("transavs", **options)
    assert json.loads(json.dumps(method.options)) == method.options
    classes = options.get("num_classes", 2)
    batch = make_batch(1 if name == "semantic" else 2, 1 if name == "semantic" else 3, (48, 40), classes=classes)
    if name == "letter":
        del batch["audio_embedding"]
        batch["audio"] = np.random.default_rng(0).normal(size=(2, 3, 96, 64)).astype(np.float32)
        batch["labelled"][:, 1:] = False
    variables = confident(method.init(jax.random.key(0), batch))
    loss = losses_of(method)
    (value, (state, metrics)), grads = loss(variables, batch)
    assert np.isfinite(value) and all(np.isfinite(g).all() for g in jax.tree.leaves(grads))
    assert any(np.any(g) for g in jax.tree.leaves(grads["encoder"])) == (name != "swin")
    assert any(np.any(g) for g in jax.tree.leaves(grads["audio"])) == (name == "letter")
    assert ("aux_dice" in metrics) == (name != "letter") and ("mask" in metrics) == (name == "semantic")
    assert jax.tree.structure(state) == jax.tree.structure({k: v for k, v in variables.items() if k != "params"})
    again = loss(variables, batch)[0][0]
    assert again == value and (loss(variables, batch, seed=1)[0][0] != value) == (name in ("semantic",))
    prediction = method.predict(variables, batch)
    b, t = batch["labelled"].shape
    assert prediction.scores.shape == (b, t, 48, 40, 1 if classes == 2 else classes)
    assert np.asarray(prediction.labels).max() < max(classes, 2) and np.any(prediction.labels)
    if classes > 2:
        np.testing.assert_array_equal(prediction.labels, np.argmax(prediction.scores, -1))
    if name == "letter":  # S4: the other frames are not even looked at
        other = {**batch, "frames": batch["frames"].copy(), "labels": batch["labels"].copy()}
        other["frames"][:, 1:], other["labels"][:, 1:] = 0, 1
        assert loss(variables, other)[0][0] == value
        sounds = {**batch, "audio": batch["audio"].copy()}
        sounds["audio"][:, 1:] = 0  # but all sounds are heard, which the queries mix
        assert loss(variables, sounds)[0][0] != value


# ---- Weights


def test_weights_there_and_back(small):
    method, variables = small
    state_dict = avs_jax.to_torch(method, variables)
    assert state_dict["transformer.decoder0.cross_attention.q.weight"].shape == (16, 16)
    assert state_dict["queries.linear.weight"].shape == (128, 128)
    assert {"encoder.conv1.weight", "features.0.weight", "transformer.query_positions"} <= set(state_dict)
    again = avs_jax.load_torch(method, state_dict)
    jax.tree.map(np.testing.assert_array_equal, again["params"], jax.tree.map(np.asarray, variables["params"]))
    assert method.torch_keys.rules == tuple(dict.fromkeys(method.torch_keys.rules))
    shapes = jax.eval_shape(method.init, jax.random.key(0))
    paths = {tuple(k.key for k in path) for path, _ in jax.tree_util.tree_flatten_with_path(shapes["params"])[0]}
    assert paths == {rule.path for rule in method.torch_keys.rules if rule.collection == "params"}


@pytest.mark.parametrize("kind", ["timm", "official"])
def test_public_files_of_encoders(kind, tmp_path):
    from safetensors.numpy import save_file

    from avs_jax.config import defaults
    from avs_jax.weights.pretrained import load_pretrained

    sizes = {"width": 32, "depths": (1, 1, 1, 1)}
    method = avs_jax.create("transavs", **{**SMALL, "backbone": "swin_t", **sizes})
    variables = method.init(jax.random.key(1))
    swin = create_encoder("swin_tiny_patch4_window7_224", **sizes, keys=kind)
    vggish = create_encoder("vggish", width=2, hidden=8)
    section = defaults().pretrained
    made = {}
    for part, encoder in (("encoder", swin), ("audio", vggish)):
        made[part] = jax.tree.map(np.asarray, initialise(encoder, jax.random.key(2), encoder.example_input()))
        save_file(avs_jax.to_torch(encoder, made[part]), tmp_path / f"{part}.safetensors")
        section[part] = str(tmp_path / f"{part}.safetensors")
    loaded = load_pretrained(method, variables, section)
    for part in made:
        for path, value in jax.tree_util.tree_flatten_with_path(made[part]["params"])[0]:
            found = loaded["params"][part]
            for key in path:
                found = found[key.key]
            np.testing.assert_array_equal(found, value)
    head = ("pixel_decoder", "queries", "transformer")
    jax.tree.map(np.testing.assert_array_equal, *({k: v["params"][k] for k in head} for v in (loaded, variables)))


# ---- Recipe and training


def recipe(arg=None):
    spec = importlib.util.spec_from_file_location("recipe", ROOT / "configs" / "transavs.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(arg)


def test_recipe():
    c = recipe("setting=s4,backbone=swin_b,queries=100,delta2=fixed")
    assert (
        c.steps == 90_000 and c.batch_size == 8 and c.optimizer.clip_norm == 0.01 and c.optimizer.groups.encoder == 0.1
    )
    assert c.method.num_queries == 100 and c.method.delta2 == (0.6, 0.6) and "22k" in c.pretrained.encoder
    c.steps = 500
    assert c.to_dict()["method"]["max_iter"] == 500
    assert build.identity(c) == build.identity(recipe("setting=s4,backbone=swin_b,queries=100,delta2=fixed")), "longer"
    assert recipe("setting=vpo_ss").data.source == "vpo"
    assert (c.method.lambda_aqdl, recipe("aqdl=0").method.lambda_aqdl, recipe("aqml=0").method.lambda_aqml) == (2, 0, 0)
    tiny = [recipe(f"scale=tiny,queries={n}").method.num_queries for n in (100, 300, 500, 7)]
    assert tiny == [6, 20, 33, 7]
    control = recipe("query_init=learned,dataset=synthetic,scale=tiny")
    assert control.tagging.steps == 0 and control.method.query_init == "learned"
    assert recipe("query_init=learned").pretrained.audio == "" != recipe().pretrained.audio
    with pytest.raises(InputError, match="dataset"):
        recipe("setting=s4,dataset=vpo")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    c = recipe("dataset=synthetic,scale=tiny")
    c.method.update({**SMALL, "frozen_norm": False, "decoder_layers": 1})
    c.method.max_iter = 2
    c.data.image_size = 32
    c.data.train.length = c.data.eval.length = c.data.test.length = 2
    c.steps, c.batch_size, c.tagging.steps = 2, 2, 0
    c.optimizer.warmup_steps = 1
    c.checkpoint.update(every_steps=1, keep=2)
    c.log.every_steps = 1
    c.eval.max_clips = 2
    c.loader.embeddings = str(tmp_path_factory.mktemp("embeddings"))
    workdir = tmp_path_factory.mktemp("run")
    return c, workdir, train(c, workdir)


def test_training_logs_every_term(run):
    _, workdir, result = run
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    terms = {"focal", "dice", "aux_focal", "aux_dice", "aqdl", "aqml", "n1", "n2", "delta1", "delta2", "loss"}
    assert terms <= {key.split("/")[-1] for row in rows for key in row}
    assert int(result.state.step) == 2 and 0 <= result.figures["miou"] <= 1


def test_resumed_run_ends_as_the_whole_one(run, tmp_path):
    c, workdir, result = run
    shutil.copytree(workdir, tmp_path / "half")
    shutil.rmtree(tmp_path / "half" / "checkpoints" / "2")
    resumed = train(c, tmp_path / "half")
    assert int(resumed.state.step) == 2
    jax.tree.map(np.testing.assert_array_equal, resumed.state, result.state)
    metrics = [(folder / "metrics.jsonl").read_bytes() for folder in (workdir, tmp_path / "half")]
    assert metrics[0] == metrics[1]


def test_checkpoint_there_and_back(run):
    _, workdir, result = run
    method, variables = avs_jax.load_checkpoint(workdir, which="latest")
    assert method.name == "transavs"
    jax.tree.map(np.testing.assert_array_equal, variables["params"], result.state.variables["params"])
    batch = make_batch(t=5)
    np.testing.assert_array_equal(
        method.predict(variables, batch).scores, method.predict(result.state.variables, batch).scores
    )


# ---- Refusals


@pytest.mark.parametrize("options, words", [
    ({"setting": "ms4"}, ["method.setting", "Did you mean 's4'"]),
    ({"backbone": "swin_xl"}, ["method.backbone", "swin_"]),
    ({"query_init": "second"}, ["method.query_init", "frame"]),
    ({"query_init": "clip", "setting": "vpo_ss"}, ["method.query_init", "one frame"]),
    ({"pixel_decoder": "fpm"}, ["method.pixel_decoder", "Did you mean 'fpn'"]),
    ({"pixel_options": {"layers": 2}}, ["pixel_decoder.layers"]),
    ({"dim": 6}, ["method.dim", "multiple of 4"]),
    ({"dim": 20}, ["method.heads", "divisor of the 20"]),
    ({"num_classes": 1}, ["method.num_classes", "at least 2"]),
    ({"num_queries": 0}, ["method.num_queries"]),
    ({"dropout": 1.0}, ["method.dropout", "[0, 1)"]),
    ({"drop_path": 1.0, "backbone": "swin_t"}, ["drop_path"]),
    ({"class_prior": 0}, ["method.class_prior"]),
    ({"delta1": (0.5, 1.5)}, ["delta1"]),
    ({"dice": "cubic"}, ["dice", "linear"]),
    ({"depths": (1, 1, 1, 1)}, ["method.depths", "Swin"]),
    ({"max_iter": 0}, ["method.max_iter"]),
    ({"querys": 3}, ["method.querys", "Did you mean"]),
])  # fmt: skip
def test_bad_options(options, words):
    with pytest.raises(InputError) as e:
        avs_jax.create("transavs", **options)
    assert all(word in str(e.value) for word in words), str(e.value)


@pytest.mark.parametrize("change, words", [
    (lambda b: b.pop("audio_embedding"), ["'audio'", "present"]),
    (lambda b: b.update(audio_embedding=b["audio_embedding"][:, :1]), ["'audio_embedding'", "(2, 3, 128)"]),
    (lambda b: b.update(frames=b["frames"][:, :, :16]), ["'frames'", "at least 32"]),
    (lambda b: b.update(present=np.ones((2, 2), bool)), ["'present'", "(2, 3)"]),
])  # fmt: skip
def test_bad_batches(small, change, words):
    batch = make_batch()
    change(batch)
    with pytest.raises(InputError) as e:
        small[0].predict(small[1], batch)
    assert all(word in str(e.value) for word in words), str(e.value)
