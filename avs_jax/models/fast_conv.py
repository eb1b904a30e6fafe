"""The convolutions every layer calls, in the form that is fastest where they run.

Accelerators run XLA's own. On a CPU three of them are slow and are written as matrix products here: the weight gradient
of a 3x3 convolution over large maps (4 to 9 times faster), 3x3 convolutions of many channels over maps of a few pixels,
and the neck's sum of dilated convolutions, most of whose taps fall into the padding on small maps. Values and gradients
agree to rounding.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

_NHWC = ("NHWC", "HWIO", "NHWC")
LARGE_MAP = 32 * 32  # pixels of a map from which the forms for CPUs work frame by frame
WIDE = 128  # input channels from which the fused neck pays for its many small products
TINY_MAP, DEEP = 2 * 2, 64  # pixels and channels of maps so small that XLA's convolution takes 10 times as long


def _on_cpu() -> bool:
    """The one place where the form is chosen."""
    return jax.default_backend() == "cpu"


def conv2d(x, kernel, stride: int = 1, padding: int = 0, dilation: int = 1):
    """Convolution of (N, H, W, C) with (k, k, C, D), zero padding on every side -> (N, H', W', D)."""
    if kernel.shape[:2] == (1, 1) and padding == 0:  # a matrix product, which CPUs run faster than a convolution
        return lax.dot_general(x[:, ::stride, ::stride], kernel[0, 0], (((3,), (0,)), ((), ())))
    same_3x3 = kernel.shape[:2] == (3, 3) and stride == 1 and padding == dilation
    if same_3x3 and x.shape[1] * x.shape[2] >= LARGE_MAP and _on_cpu():
        return conv3x3(x, kernel, dilation)
    if same_3x3 and dilation == 1 and x.shape[1] * x.shape[2] <= TINY_MAP and x.shape[3] >= DEEP and _on_cpu():
        return _taps(x, (kernel,), (1,))
    return _conv(x, kernel, stride, padding, dilation)


def dilated_sum(x, kernels, dilations):
    """The sum of 3x3 convolutions of (N, H, W, C) with padding = dilation, each with its own kernel and dilation."""
    if x.shape[-1] >= WIDE and _on_cpu():
        return dilated_sum_as_products(x, tuple(kernels), tuple(dilations))
    return sum(_conv(x, k, 1, d, d) for k, d in zip(kernels, dilations, strict=True))


def _conv(x, kernel, stride, padding, dilation):
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), ((padding, padding),) * 2, rhs_dilation=(dilation,) * 2, dimension_numbers=_NHWC
    )


def _sums(dtype):
    return jnp.promote_types(dtype, jnp.float32)


# --- 3x3, stride 1, padding = dilation: the weight gradient as three products a frame ------------------------------


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def conv3x3(x, kernel, dilation: int = 1):
    """Stride 1, padding = dilation; only the gradient with respect to the kernel is not XLA's."""
    return _conv(x, kernel, 1, dilation, dilation)


def _conv3x3_forward(x, kernel, dilation):
    return conv3x3(x, kernel, dilation), (x, kernel)


def _conv3x3_backward(dilation, residuals, dy):
    x, kernel = residuals
    (dx,) = jax.vjp(lambda x: _conv(x, kernel, 1, dilation, dilation), x)[1](dy)
    start = jnp.zeros((3, x.shape[-1], 3 * dy.shape[-1]), _sums(x.dtype))
    total, _ = lax.scan(lambda total, frame: (total + _frame_gradient(*frame, dilation), None), start, (x, dy))
    return dx, _as_kernel(total, kernel)


def _frame_gradient(x, dy, dilation):
    """(H, W, C), (H, W, D) -> (3, C, 3 D): for each kernel row, all its three columns in one product."""
    return _kernel_rows(x, _columns(dy, dilation), dilation)


def _columns(dy, dilation):
    """(H, W, D) -> (H, W, 3 D): what a pixel adds to, for each of the kernel's columns."""
    w = dy.shape[1]
    shift = min(dilation, w)
    left = jnp.pad(dy[:, shift:], ((0, 0), (0, shift), (0, 0)))
    right = jnp.pad(dy[:, : w - shift], ((0, 0), (shift, 0), (0, 0)))
    return jnp.concatenate([left, dy, right], -1)


def _rows_inside(h, dilation):
    """(offset, first, last) of every kernel row: rows of dy, first up to last, whose input row at offset is inside."""
    for offset in (-min(dilation, h), 0, min(dilation, h)):
        yield offset, max(0, -offset), min(h, h - offset)


def _kernel_rows(x, columns, dilation):
    rows = []
    for offset, first, last in _rows_inside(x.shape[0], dilation):
        a = x[first + offset : last + offset].reshape(-1, x.shape[-1])
        b = columns[first:last].reshape(-1, columns.shape[-1])
        rows.append(lax.dot_general(a, b, (((0,), (0,)), ((), ())), preferred_element_type=_sums(x.dtype)))
    return jnp.stack(rows)


def _as_kernel(rows, kernel):
    """(3, C, 3 D) -> (3, 3, C, D)."""
    _, _, c, d = kernel.shape
    return rows.reshape(3, c, 3, d).swapaxes(1, 2).astype(kernel.dtype)


# --- the neck: one product for the centres, one for every other tap that touches the map ---------------------------


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def dilated_sum_as_products(x, kernels, dilations):
    """As `dilated_sum`; kernels and dilations as tuples."""
    return _by_frames(lambda x: _taps(x, kernels, dilations), x)


def _dilated_forward(x, kernels, dilations):
    return dilated_sum_as_products(x, kernels, dilations), (x, kernels)


def _dilated_backward(dilations, residuals, dy):
    x, kernels = residuals
    if x.shape[1] * x.shape[2] < LARGE_MAP:
        return jax.vjp(lambda x, k: _taps(x, k, dilations), x, kernels)[1](dy)

    def frame(totals, inputs):
        dx, rows = _frame_gradients(*inputs, kernels, dilations)
        return tuple(t + r for t, r in zip(totals, rows, strict=True)), dx

    start = tuple(jnp.zeros((3, k.shape[2], 3 * k.shape[3]), _sums(k.dtype)) for k in kernels)
    totals, dx = lax.scan(frame, start, (x, dy))
    return dx, tuple(_as_kernel(t, k) for t, k in zip(totals, kernels, strict=True))


def _frame_gradients(x, dy, kernels, dilations):
    """One frame's dx, and of every kernel (3, C, 3 D): three products each a dilation, from the same three columns.

    Two thirds of the time of the taps' gradients, and of their compilation, over maps on which most taps are inside.
    """
    (h, _, c), dx, rows = x.shape, 0.0, []
    for kernel, dilation in zip(kernels, dilations, strict=True):
        columns = _columns(dy, dilation)
        rows.append(_kernel_rows(x, columns, dilation))
        matrices = kernel.swapaxes(2, 3).reshape(3, -1, c)
        for matrix, (offset, first, last) in zip(matrices, _rows_inside(h, dilation), strict=True):
            part = _product(columns[first:last], matrix)
            dx = dx + jnp.pad(part, ((first + offset, h - last - offset), (0, 0), (0, 0)))
    return dx, rows


def _by_frames(f, x):
    """f over the batch, one frame after the other where maps are large (its intermediates would not fit a cache)."""
    return lax.map(lambda frame: f(frame[None])[0], x) if x.shape[1] * x.shape[2] >= LARGE_MAP else f(x)


def _taps(x, kernels, dilations):
    _, h, w, _ = x.shape
    y = _product(x, sum(k[1, 1] for k in kernels))  # all centres see the same pixel
    for kernel, d in zip(kernels, dilations, strict=True):
        for i, j in ((i, j) for i in range(3) for j in range(3) if (i, j) != (1, 1)):
            up, left = (i - 1) * d, (j - 1) * d
            if abs(up) >= h or abs(left) >= w:
                continue  # wholly in the padding
            seen = x[:, max(0, up) : h + min(0, up), max(0, left) : w + min(0, left)]
            pad = ((0, 0), (max(0, -up), max(0, up)), (max(0, -left), max(0, left)), (0, 0))
            y = y + jnp.pad(_product(seen, kernel[i, j]), pad)
    return y


def _product(x, matrix):
    return lax.dot_general(x, matrix, (((x.ndim - 1,), (0,)), ((), ())))


conv3x3.defvjp(_conv3x3_forward, _conv3x3_backward)
dilated_sum_as_products.defvjp(_dilated_forward, _dilated_backward)
