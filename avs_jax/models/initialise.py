"""Random initialisation that compiles in a second: all parameters are cut from one draw for each distribution.

Drawing every parameter by itself costs XLA a tenth of a second each, half a minute for a ResNet-50.
"""

import contextvars
import dataclasses
import math

import jax
import jax.numpy as jnp

_record = contextvars.ContextVar("record", default=None)  # while shapes are collected: what each initialiser returned


@dataclasses.dataclass(frozen=True)
class Random:
    """An initialiser (key, shape, dtype) -> array: `scale` times U(-1, 1) or N(0, 1)."""

    kind: str  # "uniform" or "normal"
    scale: float

    def __call__(self, key, shape, dtype=jnp.float32):
        record = _record.get()
        if record is None:
            return self.scale * _draw(self.kind, key, shape).astype(dtype)
        record.append((jnp.zeros(shape, dtype), self))
        return record[-1][0]


def uniform_fan_in(fan_in: int) -> Random:
    """PyTorch's default for the weight and the bias of a convolution or linear layer: U(-1, 1) / sqrt(fan_in)."""
    return Random("uniform", fan_in**-0.5)


def he_normal(fan: int) -> Random:
    """N(0, 2 / fan), with the fan in or out."""
    return Random("normal", (2.0 / fan) ** 0.5)


def _draw(kind, key, shape):
    return jax.random.uniform(key, shape, minval=-1.0) if kind == "uniform" else jax.random.normal(key, shape)


def initialise(module, rng, *inputs) -> dict:
    """`module.init(rng, *inputs)`, with every parameter that a `Random` makes cut from one draw of its kind.

    Args:
      module: a linen module.
      rng: a key.
      *inputs: of the module, or None; small ones do.
    Returns:
      Variables as nested dicts. A pure function of `rng`; also inside jit and eval_shape.
    """
    random = {}  # path -> (Random, shape)

    def trace(key):
        record = []
        token = _record.set(record)
        try:
            variables = module.init(key, *inputs)
        finally:
            _record.reset(token)
        made = {id(value): initialiser for value, initialiser in record}
        leaves, tree = jax.tree_util.tree_flatten_with_path(dict(variables))
        random.update({path: (made[id(x)], x.shape) for path, x in leaves if id(x) in made})
        found = set(random.values())  # a module that is called again makes values that nobody uses, like the first ones
        if any((initialiser, value.shape) not in found for value, initialiser in record):
            raise RuntimeError("a parameter's initial value was lost inside a transformation (nn.remat, nn.scan)")
        # XLA drops the forward pass: nothing below depends on it
        return tree.unflatten([jnp.zeros(()) if id(x) in made else x for _, x in leaves])

    plain = jax.jit(trace)(rng)

    @jax.jit
    def fill(rng, plain):
        values = {}
        for i, kind in enumerate(("uniform", "normal")):
            mine = {p: (init, shape) for p, (init, shape) in random.items() if init.kind == kind}
            sizes = [math.prod(shape) for _, shape in mine.values()]
            flat, start = _draw(kind, jax.random.fold_in(rng, i), (sum(sizes),)), 0
            for (path, (init, shape)), size in zip(mine.items(), sizes, strict=True):
                values[path] = init.scale * flat[start : start + size].reshape(shape)
                start += size
        return jax.tree_util.tree_map_with_path(lambda path, x: values.get(path, x), plain)

    return fill(rng, plain)
