"""One streaming pass over a data set: every clip is predicted under every sound and counted, on all local devices."""

import collections
import functools
import math
from collections.abc import Callable, Iterable, Mapping

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P

from avs_jax.data.clip import SEEN
from avs_jax.metrics.counts import frame_counts
from avs_jax.metrics.sounds import Sounds
from avs_jax.metrics.tally import Tally, tally


def collect(
    method,
    variables,
    batches: Iterable[Mapping[str, np.ndarray]],
    sounds: Sounds,
    *,
    exact: bool = True,
    mesh: Mesh | None = None,
    advance: Callable[[int], object] = lambda clips: None,
) -> Tally:
    """Counts the clips of `batches`, in any order and of any size.

    Args:
      method, variables: what predicts.
      batches: stacked clips with `index` and `valid`, as `avs_jax.data.pipeline.eval_batches` yields them.
      sounds: what to hear them with.
      exact: predict each clip alone on its device, always by the same compiled program, so that no figure can depend on
        the batch or its padding. False: whole batches at once, faster on a GPU or TPU, the same up to rounding.
      mesh: its devices in this process share the clips; None: one device.
      advance: called with the number of clips after each batch.
    Returns:
      One row per valid clip (a single padding row, index -1, if there is none).
    """
    devices = _local_devices(mesh)
    count = _counter(method.predict, method.num_classes, devices)
    place, variables = _placement(devices, variables)
    pending, parts, first = collections.deque(), [], None

    def push(batch):
        group = len(devices) * (1 if exact else math.ceil(len(batch["valid"]) / len(devices)))
        for index, chosen in _groups(batch, group):
            pending.append((index, _count_group(count, place, variables, batch, chosen, sounds)))
            while len(pending) > 1:  # fetch one group late: the devices work on the next meanwhile
                parts.append(_fetch(*pending.popleft()))

    for batch in batches:
        first = batch if first is None else first
        push(batch)
        advance(int(np.sum(batch["valid"])))
    if not pending:  # a process without clips must still know the shapes, to take part in `gather`
        push({**{k: v[:1] for k, v in first.items()}, "index": np.array([-1]), "valid": np.array([True])})
    parts.extend(_fetch(*group) for group in pending)
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _groups(batch, size):
    """The real clips of a batch in groups of `size`: (their index in the source, `size` positions in the batch)."""
    real = np.flatnonzero(batch["valid"])
    for start in range(0, len(real), size):
        group = real[start : start + size]
        yield np.asarray(batch["index"])[group], np.pad(group, (0, size - len(group)), mode="edge")


def _count_group(count, place, variables, batch, chosen, sounds):
    """Device counts of the chosen clips under every sound; frames and labels travel once."""
    field = "audio" if "audio" in batch else "audio_embedding"
    index, true = np.maximum(np.asarray(batch["index"])[chosen], 0), np.asarray(batch[field])[chosen]
    truth = place(np.asarray(batch["labels"])[chosen])
    inputs = {k: place(np.asarray(batch[k])[chosen]) for k in SEEN if k in batch}
    heard = ((name, place(sounds(name, index, true))) for name in sounds.conditions)
    return {name: count(variables, {**inputs, field: audio}, truth) for name, audio in heard}


def _fetch(index, counts):
    counts = jax.device_get(counts)
    return tally(index, {name: {k: v[: len(index)] for k, v in part.items()} for name, part in counts.items()})


@functools.lru_cache(maxsize=16)  # evaluation runs often in training: compile once
def _counter(predict, num_classes, devices):
    """The compiled (variables, inputs, truth) -> counts, clips spread over `devices`, which share nothing."""

    def count(variables, inputs, truth):
        return frame_counts(predict(variables, inputs), truth, num_classes, inputs.get("present"))

    if len(devices) == 1:
        return jax.jit(count)
    specs = dict(in_specs=(P(), P("clip"), P("clip")), out_specs=P("clip"))
    return jax.jit(jax.shard_map(count, mesh=Mesh(np.array(devices), ("clip",)), check_vma=False, **specs))


def _local_devices(mesh):
    if mesh is None:
        return (jax.local_devices()[0],)
    return tuple(d for d in mesh.devices.flat if d.process_index == jax.process_index())


def _placement(devices, variables):
    """(function that spreads a batch over the devices, variables copied to each of them)."""
    if len(devices) == 1:
        split = whole = SingleDeviceSharding(devices[0])
    else:
        mesh = Mesh(np.array(devices), ("clip",))
        split, whole = NamedSharding(mesh, P("clip")), NamedSharding(mesh, P())
    place = functools.partial(jax.device_put, device=split)
    return place, jax.device_put(jax.tree.map(_to_process, variables), whole)


def _to_process(x):
    """An array over the devices of many processes, as one that this process holds whole."""
    if not isinstance(x, jax.Array) or x.is_fully_addressable:
        return x
    if x.is_fully_replicated:
        return x.addressable_data(0)
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather(x, tiled=True)
