"""Memory computed from shapes: by hand for small programs, plausible for a whole step."""

import jax
import jax.numpy as jnp
import pytest

from avs_jax import config as configs
from benchmarks import memory

VECTOR = jax.ShapeDtypeStruct((256,), jnp.float32)  # 1 KiB


def alive(function, *args):
    return memory.alive_at_most(jax.make_jaxpr(function)(*args).jaxpr) / 1024


def test_what_is_alive_at_once():
    assert alive(lambda x: x, VECTOR) == 1
    assert alive(lambda x: jnp.sin(x) * 2, VECTOR) == 3  # x, its sine, the product
    assert alive(lambda x: jnp.cos(jnp.cos(jnp.cos(x))), VECTOR) == 3  # each only until the next one is there
    chain = jax.jit(lambda x: jnp.tanh(jnp.tanh(jnp.tanh(x))))
    assert alive(lambda x: chain(x) + chain(x), VECTOR) == 4  # x, the first chain's result, two inside the second one
    many = jax.ShapeDtypeStruct((10, 256), jnp.float32)
    assert alive(lambda xs: jax.lax.scan(lambda c, x: (c + x, None), jnp.zeros(256), xs)[0], many) == 12
    assert alive(lambda x: (x + 1).astype(jnp.bfloat16), VECTOR) == 2.5


def test_recomputing_keeps_less():
    def loss(params, recompute):
        layer = lambda x, w: jnp.sin(jnp.sin(jnp.sin(x * w)))  # noqa: E731
        layer = jax.checkpoint(layer) if recompute else layer
        return layer(layer(layer(jnp.ones(256), params[0]), params[1]), params[2]).sum()

    params = (VECTOR, VECTOR, VECTOR)
    plain, recomputed = (alive(jax.grad(lambda p, r=r: loss(p, r)), params) for r in (False, True))
    assert 6 < recomputed < plain


@pytest.mark.parametrize("name", ["transavs", "tpavi"])
def test_a_step(name):
    config = configs.defaults()
    config.method.update(name=name, backbone="resnet10", width=4, audio_width=2, audio_hidden=8)
    if name == "transavs":
        config.method.update(num_queries=3, dim=8, heads=2, ffn=8, encoder_layers=1, decoder_layers=1,
                             pixel_options={"groups": 2})  # fmt: skip
    else:
        config.method.update(channels=8, head_channels=(4, 4))
    one, two = (memory.step_memory(config, clips, 2, 32, {}) for clips in (1, 2))
    bytes_each = one["state"] * 2**20 / (one["parameters"] * 1e6)
    assert 15.8 < bytes_each < 16.01, "parameter, gradient and Adam's two moments, which frozen parts do not have"
    assert one["state"] < one["peak"] < two["peak"] < 2.1 * one["peak"]
    half = memory.step_memory(config, 2, 2, 32, {"compute_dtype": "bfloat16"})
    assert half["state"] == two["state"] and half["peak"] < two["peak"]
