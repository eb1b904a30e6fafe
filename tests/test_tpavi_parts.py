"""TPAVI's parts and cross-entropy against the public code's numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from goldens import audio, detweights, error, image, load, nhwc, weights

from avs_jax.losses.bce import masked_bce, pixel_bce
from avs_jax.models import torch_keys
from avs_jax.models.decoders import fpn
from avs_jax.models.fusion.tpavi import TPAVI, torch_rules
from avs_jax.models.layers import BatchNorm, adaptive_avg_pool, upsample2x
from avs_jax.weights.convert import to_ours, to_public

EXACT, NETWORK = 2e-5, 2e-4  # relative to the largest value of the golden array


def fill(rules, shapes, prefix=""):
    """Variables of a part from its bare public keys; `shapes`: {key: shape}."""
    variables = {}
    for rule in rules:
        if rule.collection != "unused":
            node = variables.setdefault(rule.collection, {})
            for name in rule.path[:-1]:
                node = node.setdefault(name, {})
            node[rule.path[-1]] = to_ours(detweights.tensor(prefix + rule.key, shapes[rule.key]), rule.layout)
    return variables


# --- parts -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def block():
    g = load("tpavi_module")
    c, b, t, h, w = (g[k] for k in "CBTHW")
    shapes = {"align_channel.weight": (c, 128)}
    for rule in torch_rules():
        if rule.layout == "pointwise":
            shapes[rule.key] = (c, c // 2, 1, 1, 1) if rule.key.startswith("W_z") else (c // 2, c, 1, 1, 1)
        elif rule.key not in shapes:
            shapes[rule.key] = (c // 2,) if rule.key.split(".")[0] in ("g", "theta", "phi") else (c,)
    x = image((b, c, t, h, w), g["seed"])
    return {"g": g, "variables": fill(torch_rules(), shapes), "x": nhwc(x),
            "audio": audio(b * t, g["seed"] + 1).reshape(b, t, 128),
            "r": nhwc(image((b, c, t, h, w), g["seed"] + 2))}  # fmt: skip


def test_block_in_evaluation(block):
    g, v, x, a = block["g"], block["variables"], block["x"], block["audio"]
    z, heard, attention = TPAVI("va").apply(v, x, a)
    assert error(z, nhwc(g["z_eval_va"])) < EXACT
    assert error(heard, g["afea_eval"]) < EXACT
    assert attention.shape == (*x.shape[:4], a.shape[1])
    z, heard, attention = TPAVI("vv").apply(v, x, a)
    assert error(z, nhwc(g["z_eval_vv"])) < EXACT
    assert heard is None and attention is None


def test_fresh_block_is_the_layer_norm_alone(block):
    v, g = block["variables"], block["g"]
    bn = jax.tree.map(jnp.zeros_like, v["params"]["bn"])
    fresh = {**v, "params": {**v["params"], "bn": bn}}
    assert error(TPAVI().apply(fresh, block["x"], block["audio"])[0], nhwc(g["z_eval_zeroinit"])) < EXACT
    initial = TPAVI().init(jax.random.key(0), block["x"], block["audio"])["params"]["bn"]
    assert not np.any(initial["scale"]) and not np.any(initial["bias"])


def test_block_gradients_and_running_statistics(block):
    g, v = block["g"], block["variables"]

    def loss(params, x, a):
        z, state = TPAVI().apply({**v, "params": params}, x, a, True, mutable=["batch_stats"])
        return (z[0] * block["r"]).sum(), (z[0], state)

    grad = jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))
    (value, (z, state)), (params, x, a) = grad(v["params"], block["x"], block["audio"])
    assert error(z, nhwc(g["z_train_va"])) < EXACT
    assert abs(value - g["loss_train_va"]) < 1e-5 * abs(g["loss_train_va"])
    assert error(x, nhwc(g["grad_x_train_va"])) < 1e-4
    assert error(a, g["grad_audio_train_va"]) < 1e-4
    floor = 1e-6 * max(np.abs(g[k]).max() for k in g if k.startswith("grad:"))
    for rule in torch_rules():
        if rule.collection == "params":
            got, want = params, g[f"grad:{rule.key}"]
            for name in rule.path:
                got = got[name]
            got = to_public(np.asarray(got), rule.layout)
            # W_z.0.bias stands before a BatchNorm: its true gradient is zero
            assert np.abs(got - want).max() < 1e-4 * np.abs(want).max() + floor, rule.key
    stats = state["batch_stats"]["bn"]
    assert error(stats["mean"], g["buffer_after:W_z.1.running_mean"]) < EXACT
    assert error(stats["var"], g["buffer_after:W_z.1.running_var"]) < EXACT


def test_block_training_pixels_to_pixels(block):
    x, a = block["x"], block["audio"]
    (z, _, _), state = TPAVI("vv").apply(block["variables"], x, a, True, mutable=["batch_stats"])
    assert error(z, nhwc(block["g"]["z_train_vv"])) < EXACT
    # "both" is the mean of the two and folds both batches into the running statistics, pixels first
    (both, _, _), after_both = TPAVI("both").apply(block["variables"], x, a, True, mutable=["batch_stats"])
    chained = {**block["variables"], **state}
    (va, _, _), after_chain = TPAVI("va").apply(chained, x, a, True, mutable=["batch_stats"])
    assert error(both, (np.asarray(z) + np.asarray(va)) / 2) < 1e-6
    assert jax.tree.all(jax.tree.map(lambda a, b: error(a, b) < 1e-6, after_both, after_chain))


def test_one_token_attention_hears_only_its_own_second(block):
    """Frames folded into the batch: changing the sound of one second changes that frame alone."""
    v, x, a = block["variables"], block["x"], block["audio"]
    b, t = x.shape[:2]
    frames = x.reshape(b * t, 1, *x.shape[2:])
    other = a.copy()
    other[0, 2] += 1
    one, two = (TPAVI().apply(v, frames, s.reshape(b * t, 1, 128))[0] for s in (a, other))
    changed = np.abs(np.asarray(one - two)).reshape(b * t, -1).max(1) > 1e-6
    assert changed.tolist() == [i == 2 for i in range(b * t)]


@pytest.fixture(scope="module")
def ops():
    g = load("tpavi_ops")
    shape = (g["N"], g["C"], g["H"], g["W"])
    return g, nhwc(image(shape, g["seed"])), nhwc(image(shape, g["seed"] + 1))


def test_neck(ops):
    g, x, _ = ops
    rules = fpn.neck_rules(4)
    shapes = {r.key: (8, 16, 3, 3) if r.layout == "conv" else (8,) for r in rules}
    assert error(fpn.Neck(8).apply(fill(rules, shapes), x), nhwc(g["aspp"])) < EXACT


def test_residual_unit_and_fusion_block(ops):
    g, x, y = ops
    rules = fpn.fusion_block_rules(True, 16)
    shapes = {r.key: (16, 16, 3, 3) if r.layout == "conv" else (16,) for r in rules}
    v = fill(rules, shapes)
    assert error(fpn.FusionBlock(16).apply(v, x), nhwc(g["ffb_one_input"])) < EXACT
    assert error(fpn.FusionBlock(16).apply(v, x, y), nhwc(g["ffb_two_inputs"])) < EXACT
    unit = [torch_keys.Rule(r.key.removeprefix("resConfUnit1."), "params", r.path[1:], r.layout) for r in rules[:4]]
    v = fill(unit, {r.key: (16, 16, 3, 3) if r.layout == "conv" else (16,) for r in unit})
    assert error(fpn.ResidualUnit(16).apply(v, x), nhwc(g["rcu"])) < EXACT
    assert error(jax.nn.relu(x), nhwc(g["rcu_input_after"])) < EXACT


def test_resizes_and_pooling(ops):
    g, x, _ = ops
    assert error(upsample2x(x, align_corners=True), nhwc(g["up2_align_corners_true"])) < EXACT
    assert error(upsample2x(x, align_corners=False), nhwc(g["up2_align_corners_false"])) < EXACT
    assert error(adaptive_avg_pool(x, (5, 3)), nhwc(g["adaptive_avg_5x3"])) < EXACT


def test_batch_norm_in_training(ops):
    g, x, _ = ops
    tensor = {k: detweights.tensor(k, (16,)) for k in ("weight", "bias", "running_mean", "running_var")}
    v = {"params": {"scale": tensor["weight"], "bias": tensor["bias"]},
         "batch_stats": {"mean": tensor["running_mean"], "var": tensor["running_var"]}}  # fmt: skip
    y, state = BatchNorm().apply(v, x, True, mutable=["batch_stats"])
    assert error(y, nhwc(g["bn_train"])) < EXACT
    assert error(state["batch_stats"]["mean"], g["bn_running_mean_after"]) < EXACT
    assert error(state["batch_stats"]["var"], g["bn_running_var_after"]) < EXACT


def test_epsilons():
    """Inputs so small that each epsilon decides the first digits."""
    g = load("tpavi_eps")
    h, w, s = g["H"], g["W"], g["seed"]
    shapes = {k.removeprefix("tpavi_b1."): x.shape for k, x in weights("tpavi_resnet50").items() if "tpavi_b1." in k}
    v = fill(torch_rules(), shapes, "tpavi_b1.")
    v["params"]["bn"] = jax.tree.map(jnp.zeros_like, v["params"]["bn"])
    x = 3e-3 * image((1, 256, 5, 2, 3), s + 2)
    z, _, _ = TPAVI().apply(v, nhwc(x), audio(5, s + 3).reshape(1, 5, 128))
    assert error(z, nhwc(g["tpavi_b1_zero_bn"])) < EXACT
    v = {"params": {"scale": detweights.tensor("weight", (16,)), "bias": detweights.tensor("bias", (16,))},
         "batch_stats": {"mean": detweights.tensor("running_mean", (16,)), "var": np.full(16, 1e-5)}}  # fmt: skip
    y = BatchNorm().apply(v, nhwc(3e-3 * image((2, 16, h, w), s + 4)))
    assert error(y, nhwc(g["bn_eval_var1e-5"])) < EXACT


# --- losses ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["bce_ms3", "bce_s4_first_frame"])
def test_cross_entropy(case):
    g = load("tpavi_losses")
    b, t, h, w, s = (g[k] for k in ("B", "T", "H", "W", "seed"))
    logits = 2 * image((b * t, 1, h, w), s).reshape(b, t, h, w)
    truth = (image((b * t, 1, h, w), s + 1) > 0.3).astype(np.float32)
    truth[-1] = 0
    truth = truth.reshape(b, t, h, w)
    mask = np.zeros((b, t, h, w), bool)
    mask[:, : 1 if "s4" in case else t] = True
    value, grad = jax.value_and_grad(masked_bce)(logits, truth, mask)
    assert abs(value - g[case]) < 1e-5 * g[case]
    assert error(np.reshape(grad, (b * t, 1, h, w)), g[f"{case}:d_logits"]) < 1e-4


def test_cross_entropy_where_probabilities_saturate():
    logits, truth = jnp.array([200.0, -200.0, 0.0, 30.0]), jnp.array([0.0, 1.0, 1.0, 1.0])
    assert abs(pixel_bce(logits, truth).mean() - load("tpavi_losses")["bce_saturated"]) < 1e-4
    grad = jax.grad(lambda x: pixel_bce(x, truth).sum())(logits)
    assert grad[0] == grad[1] == grad[3] == 0 and grad[2] == -0.5
    # below the floor of the division: p (1 - p) / 1e-12 of the usual slope
    p = jax.nn.sigmoid(jnp.float32(-30.0))
    np.testing.assert_allclose(jax.grad(pixel_bce)(-30.0, 1.0), -p / 1e-12, rtol=1e-5)
