"""The forms for CPUs and XLA's own agree, in value and in every gradient."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from goldens import image

from avs_jax.models import fast_conv


def value_and_gradients(f, *args):
    y, back = jax.vjp(f, *args)
    return y, back(jnp.asarray(image(y.shape, 9), y.dtype))


def compare(f, g, args, tolerance=2e-6):
    results = [jax.tree.leaves(jax.jit(partial(value_and_gradients, form))(*args)) for form in (f, g)]
    for a, b in zip(*results, strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        assert np.abs(a - b).max() <= tolerance * np.abs(b).max()


@pytest.mark.parametrize("n, h, w, c, d", [(2, 5, 7, 3, 4), (1, 1, 1, 2, 2), (3, 2, 1, 1, 5)])
def test_3x3(n, h, w, c, d):
    xla = lambda x, k: fast_conv._conv(x, k, 1, 1, 1)  # noqa: E731
    compare(fast_conv.conv3x3, xla, (image((n, h, w, c), 0), image((3, 3, c, d), 1)))


@pytest.mark.parametrize("h, w, dilation", [(9, 7, 2), (5, 8, 6), (3, 2, 4)])  # taps wholly in the padding
def test_dilated_3x3(h, w, dilation):
    xla = lambda x, k: fast_conv._conv(x, k, 1, dilation, dilation)  # noqa: E731
    compare(lambda x, k: fast_conv.conv3x3(x, k, dilation), xla, (image((2, h, w, 3), 0), image((3, 3, 3, 4), 1)))


@pytest.mark.parametrize("h, w", [(2, 2), (1, 3)])
def test_3x3_over_tiny_maps(h, w):
    xla = lambda x, k: fast_conv._conv(x, k, 1, 1, 1)  # noqa: E731
    args = image((2, h, w, fast_conv.DEEP), 0), image((3, 3, fast_conv.DEEP, 8), 1)
    compare(lambda x, k: fast_conv.conv2d(x, k, 1, 1), xla, args)


@pytest.mark.parametrize("h, w", [(7, 5), (2, 3), (32, 33), (4, 256)])  # taps wholly in the padding; frame by frame
def test_dilated_sum(h, w):
    dilations = (1, 2, 6)
    kernels = tuple(image((3, 3, 4, 3), i) for i in range(3))
    xla = lambda x, k: sum(fast_conv._conv(x, q, 1, d, d) for q, d in zip(k, dilations, strict=True))  # noqa: E731
    compare(
        lambda x, k: fast_conv.dilated_sum_as_products(x, k, dilations), xla, (image((2, h, w, 4), 7), kernels), 5e-6
    )


def test_forms_agree_in_float64():
    with jax.enable_x64(True):
        x, *kernels = (jnp.asarray(image(s, 0), jnp.float64) for s in ((2, 32, 32, 3), (3, 3, 3, 2), (3, 3, 3, 2)))
        compare(fast_conv.conv3x3, lambda x, k: fast_conv._conv(x, k, 1, 1, 1), (x, kernels[0]), 1e-14)
        xla = lambda x, k: sum(fast_conv._conv(x, q, 1, d, d) for q, d in zip(k, (2, 5), strict=True))  # noqa: E731
        compare(lambda x, k: fast_conv.dilated_sum_as_products(x, k, (2, 5)), xla, (x, tuple(kernels)), 1e-14)


def test_bfloat16_keeps_its_dtype():
    x, k = (jnp.asarray(image(s, 0), jnp.bfloat16) for s in ((2, 33, 32, 4), (3, 3, 4, 4)))
    compare(fast_conv.conv3x3, lambda x, k: fast_conv._conv(x, k, 1, 1, 1), (x, k), 0.02)
    xla = lambda x, k: fast_conv._conv(x, k[0], 1, 2, 2)  # noqa: E731
    compare(lambda x, k: fast_conv.dilated_sum_as_products(x, k, (2,)), xla, (x, (k,)), 0.02)


@pytest.mark.parametrize("cpu", [True, False])
def test_the_form_follows_the_platform(monkeypatch, cpu):
    monkeypatch.setattr(fast_conv, "_on_cpu", lambda: cpu)
    large, small, tiny = jnp.zeros((1, 32, 32, 4)), jnp.zeros((1, 8, 8, 4)), jnp.zeros((1, 2, 2, fast_conv.DEEP))
    kernel = jnp.zeros((3, 3, 4, 4))

    def form(f, *args):
        return "custom_vjp" in str(jax.make_jaxpr(lambda *x: f(*x))(*args))

    assert form(lambda x, k: fast_conv.conv2d(x, k, 1, 1), large, kernel) == cpu
    assert not form(lambda x, k: fast_conv.conv2d(x, k, 1, 1), small, kernel)
    products = str(
        jax.make_jaxpr(lambda x, k: fast_conv.conv2d(x, k, 1, 1))(tiny, jnp.zeros((3, 3, fast_conv.DEEP, 4)))
    )
    assert ("conv_general_dilated" not in products) == cpu
    assert not form(lambda x, k: fast_conv.conv2d(x, k, 2, 1), large, kernel)
    assert form(lambda x, k: fast_conv.conv2d(x, k, 1, 2, 2), large, kernel) == cpu
    assert not form(lambda x, k: fast_conv.conv2d(x, k, 1, 1, 2), large, kernel)
    wide = jnp.zeros((3, 3, fast_conv.WIDE, 4))
    assert form(lambda x, k: fast_conv.dilated_sum(x, [k], [1]), jnp.zeros((1, 8, 8, fast_conv.WIDE)), wide) == cpu
    assert not form(lambda x, k: fast_conv.dilated_sum(x, [k], [1]), small, kernel)


def test_pointwise_convolution_with_a_stride():
    x, k = image((2, 5, 6, 3), 0), image((1, 1, 3, 4), 1)
    compare(lambda x, k: fast_conv.conv2d(x, k, 2), lambda x, k: fast_conv._conv(x, k, 2, 0, 1), (x, k))
