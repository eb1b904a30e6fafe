"""A TransAVS small enough to compile in seconds, and batches for it."""

import jax
import jax.numpy as jnp
import numpy as np

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


def losses_of(method):
    """The method's loss and gradients, compiled once: (variables, batch, step) -> ((loss, (state, metrics)), grads)."""
    run = jax.jit(jax.value_and_grad(method.loss, has_aux=True))

    def call(variables, batch, step=0, seed=0):
        state = {k: v for k, v in variables.items() if k != "params"}
        return run(variables["params"], state, batch, jax.random.key(seed), step)

    return call


def assert_same_gradients(found, wanted):
    """Up to rounding; some, of keys' biases, are zero but for it."""
    atol = 1e-5 * max(np.abs(g).max() for g in jax.tree.leaves(wanted))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=atol), found, wanted)
