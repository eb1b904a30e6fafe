"""Memory that a training step needs, computed from shapes alone: nothing is compiled, no device and no weights needed.

    python -m benchmarks.memory --config=configs/transavs.py:setting=ms3,backbone=swin_b --clips=8
                                [--precision=bfloat16 --frames=5 --size=224 --options=remat=false]

For methods that hear embedded seconds (TPAVI, TransAVS). Columns: parameters; MiB of these with their gradients and the
state of the recipe's optimiser; and the most MiB that are alive at once in the whole step, all of the former included,
if every operation runs by itself in the order that it is written in. A compiler fuses operations, whose results then
never exist, and may keep others longer: an estimate, not a bound.
"""

import argparse
import sys

from benchmarks.measure import _options as options_of
from benchmarks.measure import numbers, recipe

MIB = 2**20


def size_of(aval) -> int:
    """Bytes of an abstract value; keys of random numbers count as nothing."""
    itemsize = getattr(getattr(aval, "dtype", None), "itemsize", 0)
    return int(getattr(aval, "size", 0)) * itemsize


def alive_at_most(jaxpr) -> int:
    """Bytes of the values alive at once in a jaxpr, its inputs and results included, operation by operation."""
    last = {}
    for i, eqn in enumerate(jaxpr.eqns):
        last |= {v: i for v in eqn.invars if not hasattr(v, "val")}
    last |= {v: len(jaxpr.eqns) for v in (*jaxpr.outvars, *jaxpr.invars, *jaxpr.constvars) if not hasattr(v, "val")}
    alive = sum(size_of(v.aval) for v in (*jaxpr.invars, *jaxpr.constvars))
    most = alive
    for i, eqn in enumerate(jaxpr.eqns):
        made = sum(size_of(v.aval) for v in eqn.outvars)
        most = max(most, alive + max(made, _inside(eqn)))
        done = {v for v in eqn.invars if not hasattr(v, "val") and last[v] == i}
        unused = {v for v in eqn.outvars if v not in last}
        alive += made - sum(size_of(v.aval) for v in done | unused)
    return most


def _inside(eqn) -> int:
    """Bytes beyond its inputs that an operation with a program inside it needs (jit, loops, recomputation)."""
    from jax.extend import core

    needed = 0
    for value in eqn.params.values():
        for inner in value if isinstance(value, tuple | list) else (value,):
            inner = inner.jaxpr if isinstance(inner, core.ClosedJaxpr) else inner
            if isinstance(inner, core.Jaxpr):
                given = sum(size_of(v.aval) for v in (*inner.invars, *inner.constvars))
                needed = max(needed, alive_at_most(inner) - given)
    return needed


def step_memory(config, clips: int, frames: int, size: int, options: dict) -> dict[str, float]:
    """{"parameters": million, "state", "peak": MiB} of a recipe's training step of clips of `frames` frames."""
    import jax

    import avs_jax
    from avs_jax.training import optimizer
    from benchmarks.transavs import make_batch

    chosen = config.method.to_dict() | options
    method = avs_jax.create(chosen.pop("name"), **chosen)
    variables = dict(jax.eval_shape(method.init, jax.random.key(0)))
    params = {k: v for k, v in variables.pop("params").items() if k != "audio"}  # which is embedded once for all steps
    batch = make_batch(method, clips, frames, size)

    def loss(params):
        state = jax.tree.map(lambda x: jax.numpy.zeros(x.shape, x.dtype), variables)
        return method.loss(params, state, batch, jax.random.key(0), 0)[0]

    tx = optimizer.make_optimizer(config.optimizer, method.param_groups(params), max(config.steps, 1))
    held = size_in(params)
    gradient = jax.make_jaxpr(jax.grad(loss))(params).jaxpr
    state = size_in(jax.eval_shape(tx.init, params)) + (held if config.optimizer.ema else 0)
    return {
        "parameters": sum(x.size for x in jax.tree.leaves(params)) / 1e6,
        "state": (2 * held + state) / MIB,
        "peak": (alive_at_most(gradient) + state) / MIB,
    }


def size_in(tree) -> int:
    """Bytes of a pytree of arrays or their shapes."""
    import jax

    return sum(size_of(x) for x in jax.tree.leaves(tree))


def main(argv=None) -> int:
    parser = argparse.ArgumentParser("python -m benchmarks.memory", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--config", default="transavs.py", help="of configs/, with its arguments; several: with spaces")
    parser.add_argument("--clips", default="8")
    parser.add_argument("--frames", type=int, default=5)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--precision", default="float32,bfloat16")
    parser.add_argument("--options", type=options_of, default="", help="of create, as name=value,name=value")
    args = parser.parse_args(argv)
    columns = ("recipe", "clips", "precision", "parameters", "with gradients and optimiser", "alive at most")
    print("| " + " | ".join(columns) + " |\n" + "|---" * len(columns) + "|", flush=True)
    for name in args.config.split():
        config = recipe(name.removeprefix("configs/"))
        for clips in numbers(args.clips):
            for precision in args.precision.split(","):
                given = {"compute_dtype": precision, **(args.options or {})}
                m = step_memory(config, clips, args.frames, args.size, given)
                print(f"| {name} | {clips} | {precision} | {m['parameters']:.1f} M | {m['state']:.0f} | "
                      f"{m['peak']:.0f} |", flush=True)  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
