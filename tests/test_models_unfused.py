"""The border that XLA's fusion does not cross: values, gradients, and the program that it is there for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from goldens import image

from avs_jax.models import fast_conv
from avs_jax.models.unfused import unfused


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_it_is_the_identity_and_so_is_its_gradient(dtype):
    x, weight = (jnp.asarray(image((2, 3, 4, 5), i), dtype) for i in range(2))
    witness = jnp.asarray(image((5,), 2))
    value = lambda x, w: (unfused(x, w) * weight).sum()  # noqa: E731
    np.testing.assert_array_equal(jax.jit(unfused)(x, witness), x)
    dx, dw = jax.jit(jax.grad(value, (0, 1)))(x, witness)
    np.testing.assert_array_equal(dx, weight)
    assert dx.dtype == dtype and dw.shape == witness.shape and not dw.any()


def test_it_holds_under_vmap():
    x, witness = image((3, 4, 5), 0), jnp.ones(5)
    np.testing.assert_array_equal(jax.vmap(unfused, (0, None))(x, witness), x)


@pytest.mark.parametrize("cpu", [True, False])
def test_only_cpus_have_it(monkeypatch, cpu):
    monkeypatch.setattr(fast_conv, "_on_cpu", lambda: cpu)
    program = jax.make_jaxpr(lambda x, w: unfused(x, w))(jnp.ones((2, 3)), jnp.ones(3))
    assert ("cond" in str(program)) == cpu


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="of XLA's fusion on CPUs")
def test_a_chain_of_sums_stays_linear():
    """Operations of the compiled chain: without the border every sum repeats those before it."""

    def chain(border, length):
        def run(x, kernel):
            for _ in range(length):
                x = border(jax.nn.relu(x + jnp.tanh(x @ kernel)), kernel)
            return x

        text = jax.jit(run).lower(jnp.ones((8, 8)), jnp.ones((8, 8))).compile().as_text()
        return text.count(" maximum(")

    assert chain(unfused, 8) == 8
    assert chain(lambda x, w: x, 8) > 8
