"""The sounds a clip is heard with: its own, another clip's, silence, noise. What J loses tells what sound is worth."""

import dataclasses
import functools
from typing import Any

import numpy as np

from avs_jax.errors import InputError, nearest

CONDITIONS = ("true", "swap", "silence", "noise")
SAMPLE_RATE = 16000  # Hz
NOISE_RMS = 0.1  # of full scale


def derangement(n: int) -> np.ndarray:
    """(n,) int64: the clip whose sound each of n clips hears; nobody its own. A function of n alone (n >= 2).

    Following partners visits every clip once: one random cycle.
    """
    order = np.random.default_rng([n, 20220707]).permutation(n)
    partner = np.empty(n, np.int64)
    partner[order] = np.roll(order, 1)
    return partner


@dataclasses.dataclass(frozen=True)
class Sounds:
    """What the clips of a source hear under each condition.

    Attributes:
      source: see `avs_jax.data.sources.Source`.
      conditions: those available, "true" first.
      missing: those asked for and not available.
      notes: in words, why they are missing.
    """

    source: Any
    conditions: tuple[str, ...]
    missing: tuple[str, ...]
    notes: tuple[str, ...]

    def __call__(self, condition: str, index: np.ndarray, true: np.ndarray) -> np.ndarray:
        """(B, ...) float32: the record's `audio` (or `audio_embedding`) for clips `index`, whose own is `true`."""
        if condition == "true":
            return true
        if condition == "swap":
            heard = [self.source.audio(int(i)) for i in self._partner[index]]
        elif condition == "silence":
            heard = [self._silence] * len(index)
        else:
            heard = [self._noise(int(i)) for i in index]
        heard = np.stack([np.asarray(x, np.float32) for x in heard])
        if heard.shape != true.shape:
            raise InputError(f"sound under '{condition}'", expected=f"shape {true.shape[1:]}, as in the clip's record",
                             found=f"shape {heard.shape[1:]}")  # fmt: skip
        return heard

    def partner(self, index: int) -> int | None:
        """The clip whose sound clip `index` hears under "swap"."""
        return int(self._partner[index]) if "swap" in self.conditions else None

    @functools.cached_property
    def _partner(self):
        return derangement(len(self.source))

    @functools.cached_property
    def _silence(self):
        return self._hear(np.zeros(self._samples, np.float32))

    def _noise(self, index):
        return self._hear(np.random.default_rng([index, 16000]).normal(0.0, NOISE_RMS, self._samples))

    @property
    def _samples(self):
        return SAMPLE_RATE * max(self.source.num_frames, 10)  # longer than any front end reads for one clip

    def _hear(self, waveform):
        return self.source.front_end(waveform, SAMPLE_RATE, self.source.num_frames)


def sounds(source, conditions=CONDITIONS) -> Sounds:
    """Which of `conditions` the source can be heard with.

    Raises:
      InputError: an unknown condition, naming the nearest valid one.
    """
    for name in conditions:
        if name not in CONDITIONS:
            raise InputError("conditions", expected="names of sound conditions", found=repr(name),
                             hint=nearest(name, CONDITIONS))  # fmt: skip
    usable, notes = ["true"], []
    if "swap" in conditions:
        if len(source) > 1:
            usable.append("swap")
        else:
            notes.append("swap: not measured, a single clip has no other clip's sound to hear")
    wanted = [name for name in ("silence", "noise") if name in conditions]
    if wanted:
        clip = source[0]
        if "audio" in clip and getattr(source, "front_end", None) is not None:
            usable.extend(wanted)
        else:
            notes.append(f"{' and '.join(wanted)}: not measured, the data set holds cached audio embeddings, no sound")
    missing = tuple(name for name in conditions if name not in usable and name != "true")
    return Sounds(source, tuple(usable), missing, tuple(notes))
