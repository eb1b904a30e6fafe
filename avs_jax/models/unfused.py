"""A border that XLA's fusion on CPUs does not cross.

It recomputes a cheap elementwise result in each place that reads it. In a chain of residual sums, where every sum reads
the one before, the last repeats the whole chain: a program of quadratic length, slow to compile (HRNet: 6 times) and to
run. `optimization_barrier` is no help: it is taken out before fusion.
"""

import jax
import jax.numpy as jnp
from jax import lax

from avs_jax.models import fast_conv


@jax.custom_vjp
def unfused(x, witness):
    """x, computed once, as its gradient is; on accelerators, whose fusion weighs the repetition, nothing but x.

    Args:
      x: any array.
      witness: any array of finite values that the compiler cannot know: a parameter. Replicated, where there are
        several devices. -inf as its first value turns x into NaN; nothing else of it has an effect.
    """
    if not fast_conv._on_cpu():
        return x
    # a conditional stays a computation of its own
    return lax.cond(jnp.isneginf(witness.ravel()[0]), lambda x: jnp.full_like(x, jnp.nan), lambda x: x, x)


def _forward(x, witness):
    return unfused(x, witness), witness


def _backward(witness, dy):
    return unfused(dy, witness), jnp.zeros_like(witness)


unfused.defvjp(_forward, _backward)
