"""The golden TPAVI networks: their weights, their inputs, and a training step in float64."""

import jax
import jax.numpy as jnp
import numpy as np
from goldens import audio, image, nhwc, weights

import avs_jax
from avs_jax.methods import tpavi as method_file
from avs_jax.weights.convert import to_public


def inputs(g):
    """The batch of golden file `g`, images normalised already."""
    b, t, h, w, s = (g[k] for k in ("B", "T", "H", "W", "seed"))
    frames = nhwc(image((b * t, 3, h, w), s)).reshape(b, t, h, w, 3)
    return {"frames": frames, "audio_embedding": audio(b * t, s + 1).reshape(b, t, 128)}


def masks(g):
    """Its truth (B, T, H, W) uint8: the last frame is empty."""
    b, t, h, w, s = (g[k] for k in ("B", "T", "H", "W", "seed"))
    truth = image((b * t, 1, h, w), s + 2) > 0.3
    truth[-1] = False
    return truth.reshape(b, t, h, w).astype(np.uint8)


def public_weights(method, name):
    """The golden weights of a variant of network `name`, and a VGGish of zeros, which embedded sound never reaches."""
    kept = {r.key for r in method.torch_keys.rules}
    network = {k: v for k, v in weights(name).items() if k in kept}
    shapes = jax.eval_shape(method.init, jax.random.key(0))["params"].get("audio", {})
    vggish = {}
    for rule in method.torch_keys.rules:
        if rule.path[0] == "audio":
            x = np.zeros(shapes[rule.path[1]][rule.path[2]].shape, np.float32)
            vggish[rule.key] = to_public(x, rule.layout)
    return [network, vggish]


def load(method, name):
    return avs_jax.load_torch(method, public_weights(method, name))


def step_in_float64(method, variables, batch):
    """(loss, metrics, {public key: gradient}, {public key: running statistic after it}) of one training step.

    In float32 some ReLU inputs are so near zero that rounding decides their sign, and a few gradient norms then move
    by 1 %: a coin toss that says nothing about the formulas.
    """
    with jax.enable_x64(True):
        double = lambda x: jnp.asarray(x, jnp.float64) if x.dtype == np.float32 else x  # noqa: E731
        variables, batch = jax.tree.map(double, ({k: variables[k] for k in ("params", "batch_stats")}, batch))
        network = method_file.build_network(method.options).clone(dtype=jnp.float64)
        wide = method_file._method(network, dict(method.options))
        state = {"batch_stats": variables["batch_stats"]}
        step = jax.jit(jax.value_and_grad(lambda p: wide.loss(p, state, batch, None, 0), has_aux=True))
        (value, (state, metrics)), grads = jax.tree.map(np.asarray, step(variables["params"]))
    assert value.dtype == np.float64 and metrics["loss"] == value
    named = avs_jax.to_torch(method, {"params": grads, **state})
    return value, metrics, named
