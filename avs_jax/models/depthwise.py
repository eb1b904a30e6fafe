"""The 3x3 depthwise convolution, in the form that is fastest where it runs."""

import jax
import jax.numpy as jnp

from avs_jax.models.layers import wide


@jax.custom_vjp
def depthwise(x, kernel):
    """3x3 convolution of every channel of (N, h, w, C) by itself with (3, 3, C), zero padding.

    Sums and result are float32 at least. Nine shifted products, which fuse into one pass over memory: several times as
    fast as XLA's grouped convolution on a CPU, forward and backward.
    """
    _, h, w, _ = x.shape
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))).astype(wide(x.dtype))
    return sum(padded[:, i : i + h, j : j + w] * kernel[i, j] for i in range(3) for j in range(3))


def _depthwise_forward(x, kernel):
    return depthwise(x, kernel), (x, kernel)


def _depthwise_backward(residuals, dy):
    x, kernel = residuals
    dx = depthwise(dy, kernel[::-1, ::-1]).astype(x.dtype)
    return dx, jax.lax.platform_dependent(x, dy, cpu=_by_row, default=_at_once).astype(kernel.dtype)


def _by_row(x, dy):
    """The kernel's gradient from one image row after another: what a row needs stays in a CPU's cache."""
    _, h, w, c = x.shape
    rows = jnp.moveaxis(jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))), 1, 0)

    def add(total, row):
        i, g = row
        three = jax.lax.dynamic_slice_in_dim(rows, i, 3)
        return total + _products(lambda a, b: three[a][:, b : b + w], g, (0, 1)), None

    return jax.lax.scan(add, jnp.zeros((3, 3, c), wide(dy.dtype)), (jnp.arange(h), jnp.moveaxis(dy, 1, 0)))[0]


def _at_once(x, dy):
    _, h, w, _ = x.shape
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    return _products(lambda a, b: padded[:, a : a + h, b : b + w], dy, (0, 1, 2))


def _products(shifted, dy, axes):
    sums = [(shifted(a, b).astype(wide(dy.dtype)) * dy).sum(axes) for a in range(3) for b in range(3)]
    return jnp.stack(sums).reshape(3, 3, -1)


depthwise.defvjp(_depthwise_forward, _depthwise_backward)
