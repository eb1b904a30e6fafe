"""The whole TPAVI network and its training steps against the public code's numbers."""

import jax
import numpy as np
import optax
import pytest
from goldens import error, image, load
from tpavi_networks import inputs, masks, step_in_float64
from tpavi_networks import load as load_network

import avs_jax
from avs_jax.methods import tpavi as method_file

EXACT, NETWORK = 2e-5, 2e-4  # relative to the largest value of the golden array

OPTIONS = {
    "va": {},
    "vv": {"fusion": "vv"},
    "vv_va": {"fusion": "both"},
    "stages34": {"tpavi_stages": [2, 3]},
    "notpavi": {"fusion": "none"},
}


def taps(method, variables, batch):
    """The network's output and what its parts make on the way, by the golden files' names."""
    network = method_file.build_network(method.options)
    parts = {"encoder", "norm", *(f"{p}{i}" for p in ("neck", "path") for i in range(1, 5))}

    @jax.jit
    def run(variables, *given):
        keep = lambda module, name: name == "__call__" and module.name in parts  # noqa: E731
        return network.apply(variables, *given, capture_intermediates=keep, mutable=["intermediates"])

    arrays = {k: variables[k] for k in ("params", "batch_stats")}
    output, state = run(arrays, *method_file.inputs_of(batch, network))
    made = {**state["intermediates"], **state["intermediates"]["decoder"]}
    found = {f"backbone{i + 1}": x for i, x in enumerate(made["encoder"]["__call__"][0])}
    for i in range(1, 5):
        found[f"aspp{i}"] = made[f"neck{i}"]["__call__"][0]
        found[f"path{i}"] = made[f"path{i}"]["__call__"][0]
        found[f"vmap{i}"] = output.visual[i - 1].reshape(-1, *output.visual[i - 1].shape[2:])
        if f"tpavi{i}" in made:
            # the block's last call: with "both", whose mean shows in vmap, that is "va"
            found[f"tpavi{i}"] = made[f"tpavi{i}"]["norm"]["__call__"][-1]
            found[f"afea{i}"] = output.audio[i - 1]
    return output, found


def check_network(name, options, file="tpavi_resnet50", classes=slice(None), **fields):
    g = load(name)
    method = avs_jax.create("tpavi", **options)
    variables = load_network(method, file)
    output, found = taps(method, variables, {**inputs(g), **fields})
    step = g["pred_stride"]
    logits = np.asarray(output.logits, np.float64)
    logits = logits.reshape(-1, *logits.shape[2:])
    assert error(logits[:, ::step, ::step, classes], np.moveaxis(g["pred_sub"], 1, -1)) < NETWORK
    assert error(logits.mean((1, 2, 3)), g["pred_mean_per_frame"]) < NETWORK
    assert error(logits.std((1, 2, 3)), g["pred_std_per_frame"]) < NETWORK
    checked = 0
    for key, want in g.items():
        tap, _, kind = key.partition("_")
        if kind == "chanstat":
            x = np.asarray(found[tap], np.float64).reshape(-1, want.shape[1])
            assert error(np.stack([x.mean(0), x.std(0)]), want) < NETWORK, key
        elif key.startswith("afea"):
            assert error(np.reshape(found[key], want.shape), want) < EXACT, key
        elif kind == "sub" and tap.startswith("vmap"):
            st = g[f"{tap}_stride"]
            assert error(found[tap][:, ::st, ::st, ::32], np.moveaxis(want, 1, -1)) < NETWORK, key
        else:
            continue
        checked += 1
    assert checked >= 16
    assert {k for k in found if k.startswith("tpavi")} == {k[:6] for k in g if k.startswith("tpavi")}


@pytest.mark.parametrize("variant", [  # "both" runs the two kinds of fusion in each block
    "va", "vv_va", *(pytest.param(v, marks=pytest.mark.slow) for v in ("vv", "stages34", "notpavi")),
])  # fmt: skip
def test_network(variant):
    check_network(f"tpavi_resnet50_small_{variant}", OPTIONS[variant])


@pytest.mark.slow
def test_network_at_full_size():
    check_network("tpavi_resnet50_eval", {})


@pytest.mark.slow
def test_pvt_network():
    check_network("tpavi_pvt_v2_b5_small_va", {"backbone": "pvt_v2_b5"}, "tpavi_pvt_v2_b5")


@pytest.mark.slow
def test_pvt_network_at_full_size():
    check_network("tpavi_pvt_v2_b5_eval", {"backbone": "pvt_v2_b5"}, "tpavi_pvt_v2_b5")


@pytest.mark.slow
def test_semantic_network():
    """Ten frames, of which the first clip has five; the public regrouping makes two halves of five of every clip."""
    present = np.arange(10) < np.array([[5], [10]])
    audio = inputs(load("tpavi_resnet50_avss_small"))["audio_embedding"] * present[..., None].astype(np.float32)
    check_network("tpavi_resnet50_avss_small", {"setting": "avss"}, "tpavi_resnet50_avss", slice(None, None, 10),
                  present=present, audio_embedding=audio)  # fmt: skip


# --- training steps --------------------------------------------------------------------------------------------------


def check_gradients(g, prefix, named, tolerance):
    norm = {k: np.linalg.norm(x.astype(np.float64)) for k, x in named.items()}
    floor = 1e-6 * g[f"{prefix}grad_norms"].max()
    for key, want in zip(g[f"{prefix}grad_names"], g[f"{prefix}grad_norms"], strict=True):
        assert abs(norm[key] - want) < tolerance * want + (want < floor) * floor, key
    for key, want in zip(g["buffer_names"], g["buffer_norms_after"], strict=True):
        if "_2." not in key:  # the branch that never runs
            assert abs(norm[key] - want) < tolerance * want, key


def binary_step(backbone, setting):
    g = load(f"tpavi_{backbone}_train")
    method = avs_jax.create("tpavi", setting=setting, backbone=backbone, drop_path=0.0)
    variables = load_network(method, f"tpavi_{backbone}")
    labelled = np.ones((g["B"], g["T"]), bool)
    labelled[:, 1 if setting == "s4" else g["T"] :] = False
    batch = {**inputs(g), "labels": masks(g), "labelled": labelled}
    return g, method, variables, batch


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["resnet50", "pvt_v2_b5"])
@pytest.mark.parametrize("setting", ["s4", "ms3"])
def test_first_training_step(backbone, setting):
    """Losses, gradient norm of every parameter, some gradients whole, running statistics; stochastic depth is off."""
    g, *step = binary_step(backbone, setting)
    value, metrics, named = step_in_float64(*step)
    assert abs(value - g[f"{setting}:loss"]) < 1e-6 * g[f"{setting}:loss"]
    if setting == "ms3":
        assert abs(metrics["bce"] - g["ms3:bce"]) < 1e-6 and abs(metrics["avm_av"] - g["ms3:avm_av"]) < 3e-6
        for key in (k for k in g if k.startswith("grad:")):
            assert error(named[key.removeprefix("grad:")], g[key]) < 1e-5, key
    check_gradients(g, f"{setting}:", named, 1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["resnet50", "pvt_v2_b5"])
def test_three_steps_of_adam(backbone):
    g, method, variables, batch = binary_step(backbone, "ms3")
    tx = optax.adam(1e-4)

    @jax.jit
    def step(params, stats, opt_state):
        loss = lambda p: method.loss(p, {"batch_stats": stats}, batch, None, 0)  # noqa: E731
        (value, (state, _)), grads = jax.value_and_grad(loss, has_aux=True)(params)
        updates, opt_state = tx.update(grads, opt_state)
        return value, optax.apply_updates(params, updates), state["batch_stats"], opt_state

    params, stats = variables["params"], variables["batch_stats"]
    opt_state, losses = tx.init(params), []
    for _ in range(4):
        before = params, stats
        value, params, stats, opt_state = step(params, stats, opt_state)
        losses.append(float(value))
    assert abs(losses[0] / g["adam:losses"][0] - 1) < 1e-4
    np.testing.assert_allclose(losses, g["adam:losses"], rtol=2e-2)
    after = avs_jax.to_torch(method, {"params": before[0], "batch_stats": before[1]})
    for key in (k for k in g if k.startswith("adam:param_probe_")):
        name = key.removeprefix("adam:param_probe_")
        start = avs_jax.to_torch(method, variables)[name]
        moved, want = after[name] - start, g[key] - start
        assert np.abs(moved).max() <= 3.1e-4  # three steps of 1e-4
        assert np.mean(np.abs(moved - want) < 3e-5) > 0.9, name  # where a gradient is noise, its sign is too


@pytest.mark.slow
def test_first_training_step_of_the_semantic_setting():
    g = load("tpavi_resnet50_avss_step")
    b, t, h, w, s = (g[k] for k in ("B", "T", "H", "W", "seed"))
    present, labelled = g["vid_flag"].reshape(b, t), g["gt_flag"].reshape(b, t) > 0
    labels = np.minimum(np.floor(np.abs(image((b * t, h, w), s + 2) * 20)), 70).reshape(b, t, h, w)
    batch = {**inputs(g), "labelled": labelled, "present": present > 0}
    batch["audio_embedding"] *= present[..., None].astype(np.float32)
    batch["labels"] = (labels * present[..., None, None]).astype(np.uint8)
    method = avs_jax.create("tpavi", setting="avss")
    value, metrics, named = step_in_float64(method, load_network(method, "tpavi_resnet50_avss"), batch)
    assert abs(metrics["ce"] - g["ce"]) < 1e-6 * g["ce"]
    assert abs(metrics["avm_av"] - g["avm_av"]) < 1e-6 * g["avm_av"]
    assert abs(value - g["total"]) < 1e-6 * g["total"]
    for name, want in zip(g["top_names"], g["top_grad_norms"], strict=True):
        statistics = ("running_mean", "running_var", "num_batches_tracked")
        live = (k for k in named if k.startswith(f"{name}.") and not k.endswith(statistics) and "_2." not in k)
        assert abs(np.sqrt(sum(np.square(named[k]).sum() for k in live)) - want) < 1e-5 * want, name
