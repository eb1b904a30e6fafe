"""One mesh of all devices: the batch is split over all of them, the state copied to each or split over `fsdp`.

    mesh axis    the batch       parameters, optimiser state, moving average
    data         split           copied
    fsdp         split           split where `partition` says so, copied otherwise

With fsdp = 1 this is plain data parallelism. With more, every device keeps 1/fsdp of the large arrays and gathers the
parameters for the step: each computes what it would without (ZeRO; Rajbhandari et al., 2020).
"""

import dataclasses
import math
import zlib
from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from avs_jax import distributed
from avs_jax.errors import InputError

MIN_SIZE = 2**16  # elements of the smallest array that is split


def partition(shape: Sequence[int], fsdp: int, min_size: int = MIN_SIZE) -> PartitionSpec:
    """The rule: an array is split along its largest dimension that `fsdp` divides, of equal ones the last.

    Arrays of fewer than `min_size` elements, and those that no dimension of can be divided, are copied.
    """
    fits = [i for i, n in enumerate(shape) if n % fsdp == 0]
    if fsdp == 1 or math.prod(shape) < min_size or not fits:
        return PartitionSpec()
    axis = max(fits, key=lambda i: (shape[i], i))
    return PartitionSpec(*("fsdp" if i == axis else None for i in range(axis + 1)))


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where arrays live.

    Attributes:
      mesh: all devices of all processes, axes `data` and `fsdp`; a process's own stand together, so that rows of the
        global batch are in the same order for any number of processes.
      min_size: elements of the smallest array that is split over `fsdp`.
    """

    mesh: Mesh
    min_size: int = MIN_SIZE

    @property
    def data(self) -> NamedSharding:
        """Splits the leading dimension over all devices."""
        return NamedSharding(self.mesh, PartitionSpec(("data", "fsdp")))

    @property
    def replicated(self) -> NamedSharding:
        """Copies to every device."""
        return NamedSharding(self.mesh, PartitionSpec())

    def state(self, shapes):
        """The state as `jax.ShapeDtypeStruct`s with shardings by `partition`: what to restore into and compile for."""
        fsdp = self.mesh.shape["fsdp"]

        def place(s):
            sharding = NamedSharding(self.mesh, partition(s.shape, fsdp, self.min_size))
            return jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=sharding)

        return jax.tree.map(place, shapes)

    def gathered(self, method):
        """The method with a loss whose parameters are gathered first, so that activations stay split by clip alone."""
        if self.mesh.shape["fsdp"] == 1:
            return method

        def loss(params, *rest):
            return method.loss(jax.lax.with_sharding_constraint(params, self.replicated), *rest)

        return dataclasses.replace(method, loss=loss)


def layout(batch_size: int, *, fsdp: int = 1, min_size: int = MIN_SIZE) -> Layout:
    """The layout over every device of every process.

    Args:
      batch_size: clips over all of them.
      fsdp: devices that share one copy of the state.
      min_size: see `partition`.
    Raises:
      InputError: the devices cannot be grouped so, or the batch cannot be split evenly.
    """
    devices = sorted(jax.devices(), key=lambda d: (d.process_index, d.id))
    count = len(devices)
    if fsdp < 1 or count % fsdp:
        raise InputError("mesh.fsdp", expected=f"a divisor of the {count} devices", found=str(fsdp))
    if batch_size < 1 or batch_size % count:
        raise InputError("batch_size", expected=f"a positive multiple of the {count} devices", found=str(batch_size))
    # Auto: the compiler places what is not annotated. The other kind, Explicit, refuses ordinary code.
    mesh = Mesh(np.array(devices).reshape(-1, fsdp), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
    if jax.process_count() > 1:
        _meet(mesh)
    return Layout(mesh, min_size)


def _meet(mesh: Mesh) -> None:
    """The first collective of every group of devices that a step has."""
    everywhere = NamedSharding(mesh, PartitionSpec())
    for axes in (("data", "fsdp"), "data", "fsdp"):
        zeros = np.zeros(math.prod(mesh.shape.values()), np.float32)
        split = jax.make_array_from_callback(
            zeros.shape, NamedSharding(mesh, PartitionSpec(axes)), lambda index, x=zeros: x[index]
        )
        together = jax.jit(lambda x: x, out_shardings=everywhere)
        distributed.meet(lambda f=together, x=split: jax.block_until_ready(f(x)), f"mesh {mesh.shape}, {axes}")


def jit_step(step, where: Layout, abstract):
    """Compiles a training step for the layout. Its state argument is donated: use the returned one.

    Args:
      abstract: the state as `Layout.state` makes it.
    """
    state = shardings(abstract)
    return jax.jit(
        step, in_shardings=(state, where.data), out_shardings=(state, where.replicated), donate_argnums=0
    )  # fmt: skip


def shardings(abstract):
    """Of every leaf."""
    return jax.tree.map(lambda x: x.sharding, abstract)


def placed(shapes, where: NamedSharding):
    """`jax.ShapeDtypeStruct`s that all have one sharding."""
    return jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=where), shapes)


def whole(array) -> np.ndarray:
    """An array that may live on the devices of several processes, on this host. If it is split over processes, it is
    gathered: then all of them must call this."""
    if not isinstance(array, jax.Array) or array.is_fully_addressable:
        return np.asarray(array)
    if array.is_fully_replicated:
        return np.asarray(array.addressable_data(0))
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather(array, tiled=True)


def checksums(arrays: Sequence[jax.Array]) -> list[int]:
    """CRC-32 of every array's bytes in C order, however it is split. All processes must call it with all arrays.

    Nothing but 4 bytes an array travels: CRC-32 is affine, so that of an array put together from disjoint shares is the
    exclusive or of the shares' own, each filled up with zeros, but for the CRC of the zeros alone.
    """
    shared = [x for x in arrays if isinstance(x, jax.Array) and not (x.is_fully_addressable or x.is_fully_replicated)]
    if not shared:
        return [crc(whole(x)) for x in arrays]
    from jax.experimental import multihost_utils

    found = [crc(_share(x)) for x in arrays]
    every = np.asarray(multihost_utils.process_allgather(np.array(found, np.uint32)))
    apart = {id(x) for x in shared}
    return [combined(every[:, i], x.shape, x.dtype) if id(x) in apart else found[i] for i, x in enumerate(arrays)]


def combined(shares: Sequence[int], shape, dtype) -> int:
    """The CRC-32 of an array from those of its shares, each of the whole shape with zeros where it holds nothing."""
    zeros = 0 if len(shares) % 2 else crc(np.zeros(shape, dtype))
    return int(np.bitwise_xor.reduce(np.asarray(shares, np.uint32))) ^ zeros


def _share(array) -> np.ndarray:
    """Of an array that is split over processes, what this one answers for, and zeros elsewhere; of others, all."""
    if not isinstance(array, jax.Array) or array.is_fully_addressable or array.is_fully_replicated:
        return whole(array)
    share = np.zeros(array.shape, array.dtype)
    for shard in array.addressable_shards:
        if shard.replica_id == 0:  # of each part one copy over all processes
            share[shard.index] = np.asarray(shard.data)
    return share


def crc(array: np.ndarray) -> int:
    """CRC-32 of an array's bytes in C order."""
    return zlib.crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
