"""The form for CPUs and the plain one agree, in value and in every gradient."""

import jax
import jax.numpy as jnp
import pytest
from goldens import image
from test_models_fast_conv import compare

from avs_jax.models import fast_conv, fast_resize
from avs_jax.models.layers import upsample2x


def plain(x, kernel):
    return fast_conv._conv(upsample2x(x, align_corners=False), kernel, 1, 1, 1)


@pytest.mark.parametrize("h, w, c, d", [(5, 7, 3, 4), (1, 1, 2, 2), (2, 1, 1, 3), (32, 33, 2, 2)])
def test_convolution_of_a_doubled_map(h, w, c, d):
    compare(fast_resize.conv3x3_by_phases, plain, (image((2, h, w, c), 0), image((3, 3, c, d), 1)), 5e-6)


def test_convolution_of_a_doubled_map_in_float64():
    with jax.enable_x64(True):
        args = [jnp.asarray(image(s, i), jnp.float64) for i, s in enumerate([(2, 4, 3, 3), (3, 3, 3, 2)])]
        compare(fast_resize.conv3x3_by_phases, plain, args, 1e-14)


@pytest.mark.parametrize("cpu", [True, False])
def test_the_form_follows_the_platform(monkeypatch, cpu):
    monkeypatch.setattr(fast_conv, "_on_cpu", lambda: cpu)

    def doubles(side, dtype=jnp.float32):  # whether a map of the doubled size has the input's channels
        args = jnp.zeros((1, side, side, 3), dtype), jnp.zeros((3, 3, 3, 2), dtype)
        return f"[1,{2 * side},{2 * side},3]" in str(jax.make_jaxpr(lambda *a: fast_resize.conv3x3_doubled(*a))(*args))

    assert doubles(40) != cpu
    assert doubles(8) and doubles(40, jnp.bfloat16)
