"""Pictures of any size on a canvas of one size: one compiled program, and every picture's values as if it were alone.

A picture lies in the top left corner of its canvas, with anything to its right and below. A network that ran over the
whole canvas would let what lies there in: through convolutions, poolings, means and resizes that reach across the
picture's edge. On a canvas each of these layers is given what it would meet at the edge of the bare picture instead:

| layer                        | beyond the picture's edge, at every stride                                          |
|------------------------------|-------------------------------------------------------------------------------------|
| convolution wider than 1 x 1 | zero, which is its padding                                                          |
| max pooling, softmax         | -inf                                                                                |
| mean                         | left out of sum and count                                                           |
| bilinear resize              | weights that stop at the edge, computed from the picture's own sizes                |

All else works pixel by pixel (1 x 1 convolutions, norms with running statistics, activations, fusion with a sound).
The values inside are the bare picture's up to the rounding of another order of summation; those outside mean nothing.

That the picture's part of a map is known from the map's height alone rests on one fact: each strided layer here pads
its input to both sides by dilation (k - 1) / 2, so that it turns n rows into ceil(n / 2).
"""

import contextlib
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from avs_jax.models.layers import Conv, MaxPool, Resize, SpatialMean, SpatialSoftmax, wide


class Canvas(NamedTuple):
    """Where the pictures of a batch lie.

    shape: (height, width) of the canvas in pixels.
    sizes: (N, 2) int32, height and width of each picture in its top left corner, 1 to `shape`; may be traced.
    """

    shape: tuple[int, int]
    sizes: jax.Array

    def sizes_at(self, shape: tuple[int, int]) -> jax.Array:
        """(N, 2) int32: the size of each picture in a map of this shape, a halving or several of the canvas."""
        halvings = jnp.asarray([2 ** _halvings(n, m) for n, m in zip(self.shape, shape, strict=True)])
        return -(-self.sizes // halvings)

    def inside(self, shape: tuple[int, int]) -> jax.Array:
        """(N, h, w, 1) bool: which pixels of a map of this shape are the picture's."""
        sizes = self.sizes_at(shape)
        rows, columns = (jnp.arange(n) < sizes[:, k, None] for k, n in enumerate(shape))
        return (rows[:, :, None] & columns[:, None])[..., None]

    def fill(self, x, value: float):
        """Maps (N, h, w, C) with `value` outside the pictures."""
        return jnp.where(self.inside(x.shape[1:3]), x, jnp.asarray(value, x.dtype))


def _halvings(n: int, m: int) -> int:
    """How often n rows are halved, rounding up, to become m; one row stays one."""
    count = 0
    while n > m and n > 1:
        n, count = -(-n // 2), count + 1
    if n != m:
        raise ValueError(f"{m} rows or columns are no halving of the canvas")
    return count


def on(shape: tuple[int, int], sizes) -> contextlib.AbstractContextManager:
    """Within it modules see the pictures of these sizes alone (`Canvas`); with sizes None they work as always.

    It reaches every `Conv`, `MaxPool`, `SpatialMean`, `SpatialSoftmax` and `Resize` that is called inside, in whatever
    module, so only maps of the canvas may be computed there.
    """
    if sizes is None:
        return contextlib.nullcontext()
    canvas = Canvas(shape, jnp.asarray(sizes))

    def intercept(call, args, kwargs, context):
        module, x = context.module, args[0] if args else None
        if context.method_name != "__call__" or kwargs:
            return call(*args, **kwargs)
        if isinstance(module, Conv) and module.kernel > 1:
            return call(canvas.fill(x, 0))
        if isinstance(module, SpatialSoftmax):
            return call(canvas.fill(x, -jnp.inf))
        if isinstance(module, MaxPool):  # whose windows without a pixel of the picture must not leave -inf
            return canvas.fill(call(canvas.fill(x, -jnp.inf)), 0)
        if isinstance(module, SpatialMean):
            return spatial_mean(canvas, x)
        if isinstance(module, Resize):
            return resize(canvas, x, args[1], module.aligned)
        return call(*args)

    return nn.intercept_methods(intercept)


def spatial_mean(canvas: Canvas, x):
    """The mean of each picture's pixels, (N, h, w, C) -> (N, 1, 1, C)."""
    full = wide(x.dtype)
    pixels = canvas.sizes_at(x.shape[1:3]).prod(-1)[:, None, None, None]
    return (canvas.fill(x, 0).sum((1, 2), keepdims=True, dtype=full) / pixels.astype(full)).astype(x.dtype)


def resize(canvas: Canvas, x, size: tuple[int, int], aligned: bool):
    """Bilinear resize of each picture's part of (N, h, w, C) to its part of (N, *size, C), beyond which the picture's
    last row and column go on; as `layers.resize_aligned`, or `layers.resize` (enlargement only)."""
    before, after = canvas.sizes_at(x.shape[1:3]), canvas.sizes_at(size)
    weights = [
        _weights(n, m, before[:, k], after[:, k], aligned).astype(x.dtype)
        for k, (n, m) in enumerate(zip(x.shape[1:3], size, strict=True))
    ]
    # the precision of the plain forms
    return jnp.einsum("nhwc,nih,njw->nijc", x, *weights, precision=None if aligned else lax.Precision.HIGHEST)


def _weights(n: int, m: int, before, after, aligned: bool):
    """(N, m, n) float32: rows of the interpolation from the first `before` (N,) of n rows to the first `after` of m."""
    before, after = (x.astype(jnp.float32)[:, None] for x in (before, after))
    i = jnp.arange(m, dtype=jnp.float32)
    if aligned:
        position = i * ((before - 1) / jnp.maximum(after - 1, 1))
    else:
        position = (i + 0.5) * (before / after) - 0.5
    position = jnp.clip(position, 0, before - 1)
    return jnp.maximum(1 - jnp.abs(position[..., None] - jnp.arange(n)), 0)
