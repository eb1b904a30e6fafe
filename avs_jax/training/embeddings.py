"""A frozen audio encoder runs once per clip: its outputs are kept on disk and take the place of the sound.

VGGish is 44 % of TPAVI's parameters and never learns, and nothing changes a clip's sound from step to step. What is
kept is found again by the encoder's weights and compiled program and by what each sound is made from, so that a resumed
run, one with another seed and one with another backbone compute nothing, and a changed weight or wav is noticed.
"""

import collections
import dataclasses
import functools
import hashlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import jaxlib
import numpy as np

from avs_jax.paths import to_path
from avs_jax.training.embedding_cache import Shards, SoundFiles, origin
from avs_jax.training.progress import say
from avs_jax.training.sharding import whole

WINDOWS = 60  # of sound, in one batch: as fast per window as larger ones on a CPU
PART = 256  # clips after which what is computed is written: a kill loses no more
SHOWN_AFTER = 1.0  # seconds: shorter waits need no progress bar


def embedder(config, method, trainable, example) -> "Embedder | None":
    """What embeds sounds in this run; None where the encoder has to hear them in every step.

    Args:
      trainable: tree of bool like the parameters.
      example: a batch of the source as it is.
    """
    if not config.loader.embeddings or method.embed_audio is None or any(jax.tree.leaves(trainable["audio"])):
        return None
    if "audio" not in example or example["audio"].shape[1] != example["frames"].shape[1]:  # one window a frame
        return None
    return Embedder(method, cache_folder(config.loader.embeddings), max(config.loader.threads, 1))


def cache_folder(text: str) -> Path:
    """The folder that `loader.embeddings` names; "auto" lies beside the cache of compiled programs."""
    return Path.home() / ".cache" / "avs_jax" / "embeddings" if text == "auto" else to_path(text).resolve()


def clips_of(clips: Callable[[int], np.ndarray], steps: range, length: int, batch_size: int) -> np.ndarray | None:
    """The positions, sorted, of the clips that `steps` train on, `clips(step)` each; None where it may be all."""
    if len(steps) * batch_size >= length:
        return None
    return np.unique(np.concatenate([clips(step) for step in steps])) if steps else np.zeros(0, np.int64)


class Encoder:
    """A method's audio encoder as one program over batches of a static size.

    Rows do not influence each other, and every row is computed by the same program: an embedding is the same to the
    bit whatever else is in its batch.

    Args:
      method: has `embed_audio`.
      params: the encoder's own, numpy or jax arrays.
      shape: (T, ...) of one clip's `audio`.
    Attributes:
      clips: in a batch.
      shape: (T, D) of what it makes of a clip.
    """

    def __init__(self, method, params, shape: Sequence[int]):
        self._params = jax.tree.map(whole, params)
        self.clips = max(1, WINDOWS // shape[0])
        self._windows = (self.clips * shape[0], *shape[1:])

        def embed(params, windows):
            return method.embed_audio(params, windows).astype(np.float32)

        self._lowered = jax.jit(embed).lower(self._params, jax.ShapeDtypeStruct(self._windows, np.float32))
        self.shape = (shape[0], self._lowered.out_info.shape[-1])

    @functools.cached_property
    def key(self) -> str:
        """32 hexadecimal digits: others for other weights, another program, or where rounding may be another."""
        device = jax.local_devices()[0]
        versions = f"{device.platform} {device.device_kind} jax {jax.__version__} jaxlib {jaxlib.__version__}"
        found = hashlib.sha256(f"{versions}\n{self._lowered.as_text()}\n".encode())
        for path, leaf in jax.tree_util.tree_leaves_with_path(self._params):
            found.update(f"{jax.tree_util.keystr(path)} {leaf.dtype} {leaf.shape}\n".encode())
            found.update(np.ascontiguousarray(leaf))
        return found.hexdigest()[:32]

    def __call__(self, audio: np.ndarray) -> np.ndarray:
        """(N, T, ...) sounds of clips -> (N, T, D) float32."""
        parts = [self._batch(audio[i : i + self.clips]) for i in range(0, len(audio), self.clips)]
        return np.concatenate(parts) if parts else np.zeros((0, *self.shape), np.float32)

    def _batch(self, audio):
        compiled, params = self._program
        windows = np.zeros(self._windows, np.float32)
        heard = audio.reshape(-1, *audio.shape[2:])
        windows[: len(heard)] = heard
        return np.asarray(compiled(params, windows))[: len(heard)].reshape(len(audio), *self.shape)

    @functools.cached_property
    def _program(self):
        return self._lowered.compile(), jax.device_put(self._params, jax.local_devices()[0])


@dataclasses.dataclass(frozen=True)
class Embedder:
    """Gives the clips of sources the embeddings of their sounds, from the cache where it has them.

    Attributes:
      method: has `embed_audio`.
      folder: of the cache.
      threads: that load sounds.
    """

    method: object
    folder: Path
    threads: int = 2

    def __call__(self, params, source, clips: Sequence[int] | None = None, *, audio: np.ndarray | None = None,
                 stop: Callable[[], object] = lambda: False) -> "WithEmbeddings":  # fmt: skip
        """The source with embeddings in place of sounds. Every process computes what its own disk lacks.

        Args:
          params: the method's, whose "audio" are the encoder's.
          clips: those to embed; None = all. The others' embeddings are NaN.
          audio: every clip's `audio`, where it is at hand.
          stop: asked between batches; once true, the rest is left NaN.
        Raises:
          InputError: a sound that cannot be read. What was computed before is kept.
        """
        clips = range(len(source)) if clips is None else [int(i) for i in clips]
        encoder = Encoder(self.method, params["audio"], source.front_end.shape(source.num_frames))
        shards = Shards(self.folder / encoder.key, encoder.shape)
        load = source.audio if audio is None else audio.__getitem__
        with ThreadPoolExecutor(self.threads) as pool:
            origins = self._origins(pool, source, clips)
            known = shards.read()
            missing = {origins[i].key: i for i in clips if origins[i].key not in known}
            if missing:
                todo = list(missing.values())
                known |= self._compute(pool, encoder, shards, load, todo, origins, stop)
            elif clips:
                say(f"audio embeddings: {len(clips)} clips, all in {self.folder}")
        embeddings = np.full((len(source), *encoder.shape), np.nan, np.float32)
        for i in clips:
            embeddings[i] = known.get(origins[i].key, np.nan)
        return WithEmbeddings(source, embeddings)

    def _origins(self, pool, source, clips):
        files = SoundFiles(self.folder / "sound-files.json")
        found = pool.map(lambda i: origin(source, i, files), clips)
        origins = dict(zip(clips, _bar(found, "sounds", len(clips)), strict=True))
        self._write(files.save)
        return origins

    def _compute(self, pool, encoder, shards, load, clips, origins, stop) -> dict[bytes, np.ndarray]:
        """Embeds `clips`, writing what is done after every `PART` of them and at the end, whatever the end."""
        say(f"audio embeddings: {len(clips)} clips to compute, once and for all runs; kept in {self.folder}")
        start, computed, part = time.perf_counter(), {}, {}

        def write():
            self._write(shards.add, part.copy())
            part.clear()

        try:
            with _bar(None, "audio embeddings", len(clips)) as bar:
                for batch, sounds in _loaded(pool, load, clips, encoder.clips):
                    if stop():
                        break
                    for i, embedding in zip(batch, encoder(np.stack(sounds)), strict=True):
                        computed[origins[i].key] = embedding
                        if origins[i].holds():  # else the file has changed since its key was made
                            part[origins[i].key] = embedding
                    if len(part) >= PART:
                        write()
                    bar.update(len(batch))
        finally:
            write()
        self._write(shards.merge)
        seconds = time.perf_counter() - start
        say(f"audio embeddings: {len(computed)} computed in {seconds:.0f} s, {len(computed) / seconds:.1f} clips/s")
        return computed

    def _write(self, write: Callable, *args) -> None:
        """A cache that cannot be written makes a run slower to start, and does not end it."""
        try:
            write(*args)
        except OSError as error:
            say(f"audio embeddings are not kept: {error}", error=True)


def _loaded(pool, load, clips: Sequence[int], size: int, ahead: int = 2) -> Iterator[tuple[list[int], list]]:
    """Batches of clips and their sounds; the next `ahead` batches are loaded meanwhile, and no more."""
    pending = collections.deque()
    for i in range(0, len(clips), size):
        pending.append((clips[i : i + size], [pool.submit(load, k) for k in clips[i : i + size]]))
        if len(pending) > ahead:
            batch, sounds = pending.popleft()
            yield batch, [sound.result() for sound in sounds]
    for batch, sounds in pending:
        yield batch, [sound.result() for sound in sounds]


def _bar(items, title: str, total: int):
    """A progress bar with rate and time left, on the first process; seldom drawn where it goes to a file."""
    from tqdm import tqdm

    interval = 0.2 if sys.stderr.isatty() else 30.0
    return tqdm(items, title, total, unit="clip", leave=False, disable=jax.process_index() != 0, file=sys.stderr,
                delay=SHOWN_AFTER, mininterval=interval, dynamic_ncols=True)  # fmt: skip


class WithEmbeddings:
    """A source whose clips carry `audio_embedding` (T, D) in place of `audio`; the sound is not loaded."""

    def __init__(self, source, embeddings: np.ndarray):
        self._source, self._embeddings = source, embeddings

    def __getattr__(self, name):
        if name.startswith("__"):  # pickling asks before __init__ has run
            raise AttributeError(name)
        return getattr(self._source, name)

    def __len__(self):
        return len(self._source)

    def __getitem__(self, index):
        return {**self._source.visual(index), "audio_embedding": self._embeddings[index]}
