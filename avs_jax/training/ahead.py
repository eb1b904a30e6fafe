"""The training step is compiled in a thread of its own while weights are loaded and sounds embedded.

A run starts sooner by the shorter of the two.
"""

import threading
from collections.abc import Callable

import jax
import numpy as np

from avs_jax.data import pipeline
from avs_jax.training.embeddings import WithEmbeddings


def batch_shapes(method, source, embed, params, sharding, order) -> dict:
    """A training batch as `jax.ShapeDtypeStruct`s on the devices, found by loading one.

    Args:
      source: the clips as they are.
      embed: an `avs_jax.training.embeddings.Embedder`, or None: what will take the place of their sounds.
      params: shapes of the method's parameters.
      sharding: of the batch.
      order: keyword options of `pipeline.train_batches`.
    """
    if embed:
        windows = jax.ShapeDtypeStruct(source.front_end.shape(source.num_frames), np.float32)
        embedding = jax.eval_shape(method.embed_audio, params["audio"], windows)
        source = WithEmbeddings(source, np.broadcast_to(np.float32(0), (len(source), *embedding.shape)))
    processes = jax.process_count()
    batches = pipeline.train_batches(
        source, **order, process_index=jax.process_index(), process_count=processes, threads=0, prefetch=1
    )
    try:
        batch = next(batches)
    finally:
        batches.close()

    def shape(x):
        dtype = jax.dtypes.canonicalize_dtype(x.dtype)
        return jax.ShapeDtypeStruct((len(x) * processes, *x.shape[1:]), dtype, sharding=sharding)

    return jax.tree.map(shape, batch)


class CompiledAhead:
    """A jitted step that is compiled from now on, and waited for at its first call.

    Args:
      step: of `jax.jit`.
      state, batch: its arguments as `jax.ShapeDtypeStruct`s with shardings. Of other ones the first call compiles anew.
    """

    def __init__(self, step: Callable, state, batch):
        self._step, self._batch, self._compiled = step, batch, None
        self._thread = threading.Thread(target=self._compile, args=(state, batch), name="compile")
        self._thread.start()

    def _compile(self, state, batch):
        try:
            self._compiled = self._step.lower(state, batch).compile()
        except Exception:  # is met again, and told, where the step is called
            self._compiled = None

    def __call__(self, state, batch):
        if self._thread:
            self._thread.join()
            self._thread = None
            if self._compiled and jax.tree.map(_kind, batch) == jax.tree.map(_kind, self._batch):
                self._step = self._compiled
        return self._step(state, batch)


def _kind(x):
    return x.shape, x.dtype
