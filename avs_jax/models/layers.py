"""Layers whose numbers are PyTorch's: explicit padding, batch statistics, bilinear resizing, default initialisers.

Arrays are NHWC, kernels HWIO. Parameters are float32; `dtype` is the compute dtype of the heavy products.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from avs_jax.errors import InputError
from avs_jax.models.fast_conv import conv2d
from avs_jax.models.initialise import uniform_fan_in

BN_EPS = 1e-5
LN_EPS = 1e-5
GN_EPS = 1e-5


def wide(dtype):
    """The dtype of statistics and long sums under a compute dtype: float32 at least."""
    return jnp.promote_types(dtype, jnp.float32)


class Conv(nn.Module):
    """2-D convolution with explicit symmetric padding ("SAME" pads stride-2 layers asymmetrically).

    Args:
      features: output channels.
      kernel: side of the square kernel.
      stride, dilation: of both axes.
      padding: rows and columns added on every side; None = dilation * (kernel - 1) // 2.
      use_bias: whether a bias is added.
      kernel_init, bias_init: None = PyTorch's defaults.
      dtype: compute dtype.
    """

    features: int
    kernel: int = 3
    stride: int = 1
    dilation: int = 1
    padding: int | None = None
    use_bias: bool = True
    kernel_init: Callable | None = None
    bias_init: Callable | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):  # (N, H, W, C) -> (N, H', W', features)
        k = self.kernel
        default = uniform_fan_in(k * k * x.shape[-1])
        kernel = self.param("kernel", self.kernel_init or default, (k, k, x.shape[-1], self.features))
        padding = self.dilation * (k - 1) // 2 if self.padding is None else self.padding
        y = conv2d(x.astype(self.dtype), kernel.astype(self.dtype), self.stride, padding, self.dilation)
        if self.use_bias:
            y = y + self.param("bias", self.bias_init or default, (self.features,)).astype(self.dtype)
        return y


class Dense(nn.Module):
    """Linear layer over the last axis with PyTorch's default initialisers; the kernel is (in, out)."""

    features: int
    use_bias: bool = True
    kernel_init: Callable | None = None
    bias_init: Callable | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        default = uniform_fan_in(x.shape[-1])
        kernel = self.param("kernel", self.kernel_init or default, (x.shape[-1], self.features))
        y = x.astype(self.dtype) @ kernel.astype(self.dtype)
        if self.use_bias:
            y = y + self.param("bias", self.bias_init or default, (self.features,)).astype(self.dtype)
        return y


class BatchNorm(nn.Module):
    """Batch normalisation over all axes but the last, with PyTorch's running statistics.

    Training normalises with the biased batch variance and folds the *unbiased* one, n / (n - 1) of it, into the
    running variance (flax folds the biased one). Under jit on a mesh the batch is the global batch. Statistics are
    float32 whatever the compute dtype; the result has the input's dtype.

    Args:
      momentum: weight of the old running value (1 - PyTorch's momentum).
      scale_init: initialiser of the scale.
      frozen: always normalise with the running statistics and never update them; no gradient reaches scale and bias.
    """

    momentum: float = 0.9
    eps: float = BN_EPS
    scale_init: Callable = nn.initializers.ones
    frozen: bool = False

    @nn.compact
    def __call__(self, x, train: bool = False):
        c = x.shape[-1]
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (c,), jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, (c,), jnp.float32)
        scale = self.param("scale", self.scale_init, (c,))
        bias = self.param("bias", nn.initializers.zeros, (c,))
        if self.frozen:
            scale, bias, train = lax.stop_gradient(scale), lax.stop_gradient(bias), False
        wide_x = x.astype(wide(x.dtype))
        if train:
            n = x.size // c
            axes = tuple(range(x.ndim - 1))
            mean = wide_x.mean(axes)
            var = jnp.square(wide_x - mean).mean(axes)
            if not self.is_initializing():
                m = self.momentum
                running_mean.value = m * running_mean.value + (1 - m) * mean
                running_var.value = m * running_var.value + (1 - m) * var * (n / max(n - 1, 1))
        else:
            mean, var = running_mean.value, running_var.value
        y = (wide_x - mean) * (scale * inverse_sqrt(var + self.eps)) + bias
        return y.astype(x.dtype)


class LayerNorm(nn.Module):
    """Layer normalisation over the last axis, two-pass float32 statistics; the result has the input's dtype."""

    eps: float = LN_EPS

    @nn.compact
    def __call__(self, x):
        c = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (c,))
        bias = self.param("bias", nn.initializers.zeros, (c,))
        wide_x = x.astype(wide(x.dtype))
        centred = wide_x - wide_x.mean(-1, keepdims=True)
        var = jnp.square(centred).mean(-1, keepdims=True)
        return (centred * inverse_sqrt(var + self.eps) * scale + bias).astype(x.dtype)


class GroupNorm(nn.Module):
    """Normalisation over all positions of groups of neighbouring channels, frame by frame, with PyTorch's numbers.

    Two-pass float32 statistics with the biased variance; the result has the input's dtype. Each group of a map of one
    pixel needs several channels: a single number normalises to zero.

    Args:
      groups: number of groups; as many as channels where those are fewer.
    Call:
      x: (N, ..., C).
    Raises:
      InputError: the groups do not divide the channels.
    """

    groups: int = 32
    eps: float = GN_EPS

    @nn.compact
    def __call__(self, x):
        c = x.shape[-1]
        groups = min(self.groups, c)
        if groups < 1 or c % groups:
            raise InputError("channels", expected=f"a multiple of the norm's {groups} groups", found=str(c),
                             hint="Choose another number of channels or of groups.")  # fmt: skip
        scale = self.param("scale", nn.initializers.ones, (c,))
        bias = self.param("bias", nn.initializers.zeros, (c,))
        positions = tuple(range(1, x.ndim - 1))

        def mean(y):  # of every group, for each of its channels: (N, 1, ..., 1, C)
            of_channels = y.mean(positions, keepdims=True)
            of_groups = of_channels.reshape(*of_channels.shape[:-1], groups, c // groups).mean(-1)
            return jnp.repeat(of_groups, c // groups, -1)

        wide_x = x.astype(wide(x.dtype))
        centred = wide_x - mean(wide_x)
        return (centred * (scale * inverse_sqrt(mean(jnp.square(centred)) + self.eps)) + bias).astype(x.dtype)


def inverse_sqrt(x):
    """1 / sqrt(x), correctly rounded twice; a CPU's rsqrt is an approximation, some ulp off."""
    return 1.0 / jnp.sqrt(x)


def stochastic_depth(rng, rate: float, blocks: int, samples: int):
    """What multiplies the two branches of every block, (blocks, 2, samples): 0 where a branch is dropped, else one over
    the chance of keeping it. The chance of dropping grows linearly from 0 in the first block to `rate` in the last.

    Huang et al., Deep networks with stochastic depth, ECCV 2016.
    """
    kept = 1 - jnp.linspace(0.0, rate, blocks)[:, None, None]
    return jnp.where(jax.random.uniform(rng, (blocks, 2, samples)) < kept, 1 / kept, 0.0)


def max_pool(x, window: int, stride: int, padding: int = 0):
    """Max pooling of (N, H, W, C), padded with -inf."""
    pad = [(0, 0), (padding, padding), (padding, padding), (0, 0)]
    return lax.reduce_window(x, -jnp.inf, lax.max, (1, window, window, 1), (1, stride, stride, 1), pad)


def upsample2x(x, align_corners: bool):
    """Bilinear resize of (N, H, W, C) to (N, 2H, 2W, C).

    Each axis splits into its even and odd outputs, which are elementwise blends of neighbours: no gathers, and far
    faster than a general resize. With n inputs, output 2k reads position k - k / (2n - 1) and output 2k + 1 reads
    k + (n - 1 - k) / (2n - 1) when corners are aligned; k -+ 1/4, clamped to the edge, when they are not.
    """
    for axis in (1, 2):
        x = _double(x, axis, align_corners)
    return x


def _double(x, axis, align_corners):
    n = x.shape[axis]
    first, last = lax.slice_in_dim(x, 0, 1, axis=axis), lax.slice_in_dim(x, n - 1, n, axis=axis)
    before = jnp.concatenate([first, lax.slice_in_dim(x, 0, n - 1, axis=axis)], axis)
    after = jnp.concatenate([lax.slice_in_dim(x, 1, n, axis=axis), last], axis)
    if align_corners:
        k = jnp.arange(n, dtype=jnp.float32)
        shape = [n if a == axis else 1 for a in range(x.ndim)]
        w_before = (k / (2 * n - 1)).reshape(shape).astype(x.dtype)
        w_after = ((n - 1 - k) / (2 * n - 1)).reshape(shape).astype(x.dtype)
    else:
        w_before = w_after = jnp.asarray(0.25, x.dtype)
    even = x + (before - x) * w_before
    odd = x + (after - x) * w_after
    shape = list(x.shape)
    shape[axis] = 2 * n
    return jnp.stack([even, odd], axis + 1).reshape(shape)


def resize(x, size: tuple[int, int]):
    """Bilinear enlargement of (N, H, W, C) to (N, *size, C), half-pixel centres (corners not aligned)."""
    return jax.image.resize(x, (x.shape[0], *size, x.shape[-1]), "bilinear")


def resize_aligned(x, size: tuple[int, int]):
    """Bilinear resize of (N, H, W, C) to (N, *size, C) with aligned corners, any sizes (float32 weights)."""
    out = []
    for n, m in zip(x.shape[1:3], size, strict=True):
        position = jnp.arange(m, dtype=jnp.float32) * ((n - 1) / (m - 1) if m > 1 else 0.0)
        # a hat of width one around every input row: the rows of the interpolation matrix
        out.append(jnp.maximum(1.0 - jnp.abs(position[:, None] - jnp.arange(n)), 0.0).astype(x.dtype))
    return jnp.einsum("nhwc,ih,jw->nijc", x, *out)


# Of the layers that look across a map, those without parameters are modules too, so that `models.canvas` finds them.


class MaxPool(nn.Module):
    """`max_pool`."""

    window: int
    stride: int
    padding: int = 0

    def __call__(self, x):
        return max_pool(x, self.window, self.stride, self.padding)


class Resize(nn.Module):
    """`resize_aligned`, or `resize` where not aligned."""

    aligned: bool

    def __call__(self, x, size: tuple[int, int]):
        return resize_aligned(x, size) if self.aligned else resize(x, size)


class SpatialMean(nn.Module):
    """The mean over space, (N, H, W, C) -> (N, 1, 1, C), summed in float32 at least."""

    def __call__(self, x):
        return x.mean((1, 2), keepdims=True, dtype=wide(x.dtype)).astype(x.dtype)


class SpatialSoftmax(nn.Module):
    """Softmax over space: each channel of (N, H, W, C) sums to one over each image."""

    def __call__(self, x):
        return jax.nn.softmax(x, axis=(1, 2))


def _bins(n: int, m: int) -> list[tuple[int, int]]:
    """PyTorch's adaptive pooling: output i covers inputs floor(i n / m) ... ceil((i + 1) n / m) - 1."""
    return [(i * n // m, -(-(i + 1) * n // m)) for i in range(m)]


def adaptive_avg_pool(x, size: tuple[int, int]):
    """Adaptive average pooling of (N, H, W, C) to (N, *size, C) as PyTorch bins it."""
    weights = []
    for n, m in zip(x.shape[1:3], size, strict=True):
        i = jnp.arange(n)
        weights.append(jnp.stack([((i >= a) & (i < b)).astype(x.dtype) / (b - a) for a, b in _bins(n, m)]))
    return jnp.einsum("nhwc,ih,jw->nijc", x, *weights)


def adaptive_max_pool(x, size: tuple[int, int]):
    """Adaptive max pooling of (N, H, W, C) to (N, *size, C) as PyTorch bins it."""
    for axis, m in ((1, size[0]), (2, size[1])):
        bins = _bins(x.shape[axis], m)
        x = jnp.concatenate([lax.slice_in_dim(x, a, b, axis=axis).max(axis, keepdims=True) for a, b in bins], axis)
    return x
