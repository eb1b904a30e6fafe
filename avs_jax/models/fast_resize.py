"""A 3x3 convolution of a map doubled in size, in the form that is fastest where it runs.

Accelerators double the map and convolve it. On a CPU the doubled map, the largest of TPAVI's network, costs more than
the convolution: here neither it nor its gradient is ever made (value and gradients in 0.6 of the time and a quarter of
the memory). Both forms agree to rounding.
"""

import jax.numpy as jnp
import numpy as np
from jax import lax

from avs_jax.models import fast_conv
from avs_jax.models.layers import upsample2x

# Of one axis. Output 2k + p reads x[k - 1], x[k], x[k + 1] with weights linear in the kernel: (p, neighbour, tap).
_INSIDE = np.array([[[3, 1, 0], [1, 3, 3], [0, 0, 1]], [[1, 0, 0], [3, 3, 1], [0, 1, 3]]]) / 4
# What zeros outside miss in the first and the last pixel, where resizing repeats the edge and the convolution does not.
_FIRST = np.array([[[-1, 1, 0]], [[1, 0, 0]]]) / 4
_LAST = np.array([[[0, 0, 1]], [[0, 1, -1]]]) / 4


def conv3x3_doubled(x, kernel):
    """conv2d(upsample2x(x, align_corners=False), kernel, padding=1): (N, H, W, C), (3, 3, C, D) -> (N, 2H, 2W, D)."""
    if x.shape[1] * x.shape[2] >= fast_conv.LARGE_MAP and x.dtype != jnp.bfloat16 and fast_conv._on_cpu():
        return conv3x3_by_phases(x, kernel)
    return fast_conv.conv2d(upsample2x(x, align_corners=False), kernel, 1, 1)


def conv3x3_by_phases(x, kernel):
    """As `conv3x3_doubled`: resizing folded into four kernels, one for each of the four outputs of a pixel."""
    (n, h, w, _), d = x.shape, kernel.shape[-1]

    def parts(size):  # (pixels, weights) along an axis
        return (slice(0, size), _INSIDE), (slice(0, 1), _FIRST), (slice(size - 1, size), _LAST)

    y = None
    for rows, vertical in parts(h):
        for columns, horizontal in parts(w):
            part = _phases(x[:, rows, columns], kernel, vertical, horizontal)
            y = part if y is None else y.at[:, rows, columns].add(part)
    return y.reshape(n, h, w, 2, 2, d).swapaxes(2, 3).reshape(n, 2 * h, 2 * w, d)


def _phases(x, kernel, vertical, horizontal):
    """(N, h, w, C) -> (N, h, w, 4 D), zeros outside."""
    folded = jnp.einsum("pai,qbj,ijcd->abcpqd", vertical.astype(x.dtype), horizontal.astype(x.dtype), kernel,
                        precision=lax.Precision.HIGHEST)  # fmt: skip
    folded = folded.reshape(*folded.shape[:3], -1)
    if folded.shape[:2] == (3, 3):
        return fast_conv.conv2d(x, folded, 1, 1)
    padding = [((k - 1) // 2,) * 2 for k in folded.shape[:2]]
    return lax.conv_general_dilated(x, folded, (1, 1), padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))
