"""Batches of clips: shuffled, augmented, split over processes; batch t is a pure function of (seed, t).

There is no iterator state to save: resuming at step t slices the batches from t on, for any number of workers and
processes. What must not change between a run and its resumption is written down by `identity`.
"""

import collections
import contextlib
import signal
from collections.abc import Callable, Iterator, Mapping

import numpy as np

from avs_jax.data import augment as augmentation
from avs_jax.errors import InputError

Batch = dict[str, np.ndarray]
"""Clips stacked with a leading B (see `avs_jax.data.clip`), and `index` (B,) int32, `valid` (B,) bool; no `id`."""


class _Load:
    """Position in the source -> clip ready to stack: without `id`, with `index` and `valid`. -1 marks padding."""

    def __init__(self, source, transform=None):
        self.source, self.transform = source, transform

    def __call__(self, position: int, rng: np.random.Generator | None = None) -> Batch:
        index = max(int(position), 0)
        clip = dict(self.source[index])
        if self.transform is not None:
            clip = self.transform(clip, rng)
        clip.pop("id", None)
        return {**clip, "index": np.int32(index), "valid": np.bool_(position >= 0)}


class _Rows:
    """Of every batch's clips the rows that are this process's: then rows stand in the same places for any number of
    processes, and so do the random numbers that a network draws for them."""

    def __init__(self, clips, rows: slice, batch_size: int):
        self.clips, self.rows, self.batch_size = clips, rows, batch_size
        self.count = rows.stop - rows.start

    def __len__(self) -> int:
        return len(self.clips) // self.batch_size * self.count

    def __getitem__(self, position: int):
        step, row = divmod(position, self.count)
        return self.clips[step * self.batch_size + self.rows.start + row]


class _Pair:
    """(step, this process's part of its batch) -> the same, with the sounds of other clips beside the clips' own."""

    def __init__(self, source, pairing, order: dict, part: slice):
        self.source, self.pairing, self.order, self.part = source, pairing, order, part

    def __call__(self, step: int, batch: Batch) -> Batch:
        if "audio" not in batch:
            raise InputError("data source", expected="clips with their sound, field 'audio', to pair them with others'",
                             found="fields " + ", ".join(sorted(batch)))  # fmt: skip
        sounds, match = self.pairing(step, train_indices(len(self.source), step=step, **self.order))
        shuffled = np.stack([
            own if i == clip else np.asarray(self.source.audio(int(i)), np.float32)  # its own as augmented
            for i, clip, own in zip(sounds[self.part], batch["index"], batch["audio"], strict=True)
        ])  # fmt: skip
        return {**batch, "audio_shuffled": shuffled, "match": match[self.part]}


def _shuffled(length: int, seed: int):
    """Every epoch another permutation of 0..length-1, without end: the order of training."""
    import grain

    return grain.MapDataset.range(length).seed(_stream(seed, 0)).shuffle().repeat()


def _stream(seed: int, stream: int) -> int:
    """An independent 32-bit seed for each use, so that order and augmentation share no random numbers."""
    if seed < 0:
        raise InputError("seed", expected="a number of at least 0", found=str(seed))
    return int(np.random.SeedSequence((seed, stream)).generate_state(1)[0])


def _local(batch_size: int, process_index: int, process_count: int) -> int:
    if batch_size < 1 or batch_size % process_count:
        raise InputError(
            "batch_size", expected=f"a positive multiple of the {process_count} processes", found=str(batch_size)
        )
    if not 0 <= process_index < process_count:
        raise InputError("process_index", expected=f"0..{process_count - 1}", found=str(process_index))
    return batch_size // process_count


def _stack(clips) -> Batch:
    """Clips stacked field by field; a clip of another size than its neighbours is an error that names both."""
    first, hint = clips[0], "For pictures of many sizes set augment.crop to train, a batch of 1 to evaluate."
    for clip in clips[1:]:
        for field in first | clip:
            found, expected = (str(np.shape(c[field])) if field in c else "no such field" for c in (clip, first))
            if found != expected:
                raise InputError(
                    f"clip at position {int(clip['index'])} of the source, field '{field}'",
                    found=found,
                    expected=f"{expected}, as the clip at position {int(first['index'])}",
                    hint=hint if field in ("frames", "labels") else "",
                )
    return {field: np.stack([clip[field] for clip in clips]) for field in first}


def _quiet_worker(worker_index: int, worker_count: int) -> None:
    """Runs in each data process: Ctrl-C is the parent's to handle, and a stray jax call must not take the GPU."""
    import os
    import threading
    import time

    os.environ["JAX_PLATFORMS"] = "cpu"
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = os.getppid()

    def leave_with_parent():  # a parent that died of SIGKILL cannot stop its workers
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=leave_with_parent, daemon=True).start()


def _iterate(batches, *, workers: int, threads: int, prefetch: int) -> Iterator[Batch]:
    import grain

    if workers == 0 and threads == 0:
        prefetch = 0
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(prefetch, threads))
    dataset = batches.to_iter_dataset(options)
    if workers:
        options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=max(1, prefetch // workers))
        dataset = dataset.mp_prefetch(options, worker_init_fn=_quiet_worker)
    iterator = iter(dataset)
    try:
        yield from iterator
    finally:
        iterator.close()


def train_batches(
    source,
    *,
    seed: int,
    batch_size: int,
    augment: Mapping | None = None,
    pairing: Callable | None = None,
    start_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    workers: int = 0,
    threads: int = 2,
    prefetch: int = 4,
) -> Iterator[Batch]:
    """Training batches from `start_step` on, without end; each epoch is another permutation of the source.

    Order and augmentation depend on (seed, step) alone: they are the same for any number of workers and threads, and
    the processes' batches of one step are together the same clips for any number of processes.

    Args:
      source: random access to clips.
      batch_size: over all processes.
      augment: the config's `augment` section; None leaves clips as they are.
      pairing: (step, positions of the whole batch's clips) -> (positions of the clips whose sound they also hear, match
        (B, K) bool), e.g. `avs_jax.data.pairing.Pairing`; adds `audio_shuffled`, shaped as `audio`, and `match`.
      start_step: the first step to yield (a resumed run's).
      workers: data processes; 0 loads in `threads` threads of this one.
      prefetch: batches held ready.
    Yields:
      This process's rows of each batch, in order: numpy arrays with leading dimension batch_size / process_count.
    Raises:
      InputError: an empty source, a batch that processes cannot share, a clip that cannot be read.
    """
    import grain

    local = _local(batch_size, process_index, process_count)
    if len(source) == 0:
        raise InputError("data source", expected="at least one clip", found="none")
    transform = augmentation.make(augment) if augment is not None else None
    # random_map stands before the process takes its rows: a clip's random numbers come from its place among all.
    clips = _shuffled(len(source), seed).random_map(_Load(source, transform), seed=_stream(seed, 1))
    rows = slice(process_index * local, (process_index + 1) * local)
    clips = grain.MapDataset.source(_Rows(clips, rows, batch_size))
    batches = clips.batch(local, drop_remainder=True, batch_fn=_stack)
    if pairing is not None:
        batches = batches.map_with_index(_Pair(source, pairing, {"seed": seed, "batch_size": batch_size}, rows))
    return _iterate(batches[start_step:], workers=workers, threads=threads, prefetch=prefetch)


def train_indices(length: int, *, seed: int, batch_size: int, step: int) -> np.ndarray:
    """Positions in the source of the clips that all processes train on at `step`: (batch_size,) int32."""
    order = _shuffled(length, seed)
    return np.asarray([order[i] for i in range(step * batch_size, (step + 1) * batch_size)], np.int32)


def eval_batches(
    source,
    *,
    batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
    workers: int = 0,
    threads: int = 2,
    prefetch: int = 4,
    max_clips: int = 0,
) -> Iterator[Batch]:
    """Every clip exactly once over all processes, in order, in full batches; padding copies have `valid` False.

    Args:
      batch_size: over all processes, which all yield the same number of batches.
      max_clips: only the first ones; 0 = all.
    Raises:
      InputError: as `train_batches`.
    """
    import grain

    local = _local(batch_size, process_index, process_count)
    count = min(len(source), max_clips) if max_clips else len(source)
    if count == 0:
        raise InputError("data source", expected="at least one clip", found="none")
    positions = list(range(count)) + [-1] * (-count % batch_size)
    clips = grain.MapDataset.source(positions).map(_Load(source))
    batches = clips[process_index::process_count].batch(local, drop_remainder=True, batch_fn=_stack)
    return _iterate(batches, workers=workers, threads=threads, prefetch=prefetch)


def identity(source, *, seed: int, batch_size: int, augment: Mapping | None = None, pairing=None) -> dict:
    """What the batches are a function of, as JSON-able values: saved with every checkpoint, compared on resuming."""
    paired = {} if pairing is None else {"pairing": _plain(pairing.identity())}
    return {
        "source": _plain(source.fingerprint()),
        "clips": len(source),
        "seed": int(seed),
        "batch_size": int(batch_size),
        "augment": _plain(dict(augment or {})),
        **paired,
    }


def _plain(value):
    """As JSON gives it back, so that a saved identity compares equal to a fresh one."""
    import json

    return json.loads(json.dumps(value))


def difference(saved, current, name: str = "") -> tuple[str, object, object] | None:
    """The first field, in sorted order, in which two trees of plain values differ: (dotted name, saved, current)."""
    if isinstance(saved, dict) and isinstance(current, dict):
        for key in sorted(saved.keys() | current.keys()):
            found = difference(saved.get(key), current.get(key), f"{name}.{key}" if name else key)
            if found:
                return found
        return None
    return None if saved == current else (name, saved, current)


def to_device(batches: Iterator[Batch], sharding, depth: int = 2, copying=contextlib.nullcontext):
    """Copies the process-local batches to the devices as global arrays, `depth` of them ahead of their use.

    Args:
      sharding: how the leading dimension is laid over the devices, e.g. NamedSharding(mesh, P("data")).
      copying: makes a context for each copy, e.g. to count its time.
    Yields:
      Batches of jax.Array with the global batch as leading dimension.
    """
    import jax

    def put(batch):
        with copying():
            return {k: jax.make_array_from_process_local_data(sharding, v) for k, v in batch.items()}

    ready = collections.deque()
    try:
        for batch in batches:
            ready.append(put(batch))
            if len(ready) > depth:
                yield ready.popleft()
        while ready:
            yield ready.popleft()
    finally:
        if hasattr(batches, "close"):
            batches.close()


class Cached:
    """A source that keeps the clips it has decoded in memory: for data sets that fit."""

    def __init__(self, source):
        self._source, self._clips = source, {}

    def __getattr__(self, name):
        if name.startswith("_"):  # unpickling asks before `_source` exists
            raise AttributeError(name)
        return getattr(self._source, name)

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int):
        return self._kept("clip", index, self._source.__getitem__)

    def visual(self, index: int):
        return self._kept("visual", index, self._source.visual)

    def audio(self, index: int):
        clip = self._clips.get(("clip", index), {})
        return clip["audio"] if "audio" in clip else self._source.audio(index)

    def _kept(self, kind, index, load):
        if (kind, index) not in self._clips:
            self._clips[kind, index] = load(index)
        return dict(self._clips[kind, index])  # its fields may be replaced by who receives it, not written to

    def __getstate__(self):
        return {"_source": self._source, "_clips": {}}  # each data process fills its own
