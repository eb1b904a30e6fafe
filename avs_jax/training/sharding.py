"""Data parallelism: one mesh of all devices, the batch laid over it, the state on every device."""

import dataclasses

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from avs_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where arrays live: `data` splits the leading dimension over the devices, `replicated` copies."""

    data: NamedSharding
    replicated: NamedSharding


def layout(batch_size: int) -> Layout:
    """The layout over every device of every process.

    Raises:
      InputError: the global batch cannot be split evenly.
    """
    count = jax.device_count()
    if batch_size < 1 or batch_size % count:
        raise InputError("batch_size", expected=f"a positive multiple of the {count} devices", found=str(batch_size))
    # Auto: the compiler places what is not annotated. make_mesh's own default (Explicit) refuses ordinary code.
    mesh = jax.make_mesh((count,), ("data",), axis_types=(AxisType.Auto,))
    return Layout(NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec()))


def jit_step(step, where: Layout):
    """Compiles a training step for the layout. Its state argument is donated: use the returned one."""
    return jax.jit(
        step,
        in_shardings=(where.replicated, where.data),
        out_shardings=(where.replicated, where.replicated),
        donate_argnums=0,
    )


def placed(shapes, where: NamedSharding):
    """`jax.ShapeDtypeStruct`s with a sharding: what to restore into, so that the compiled step is hit again."""
    return jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=where), shapes)
