"""CAVP's pairs: every clip of a batch is also heard with another clip's sound, in part one that holds its class.

Chen et al., A closer look at audio-visual semantic segmentation, 2023, section 3.2. The public code keeps the sounds
that it turns mismatches into matches with in a first-in first-out bank of past batches. That is hidden state, which a
resumed run has lost, and a class seen less than a batch's worth of times yields silence that is labelled as a match.
Here the replacement is drawn from all clips of the data set whose sound holds that class alone: the same distribution
once the bank is full, without its first epochs, and the pairs of step t are a pure function of (seed, t). The bank's
arithmetic is kept below for comparison.

In stereo a flip of a picture swaps left and right of its own sound (p becomes 1 - p, `avs_jax.data.augment`), and of no
other: nothing in the picture is where another clip's sound comes from, flipped or not; what such a pair says is about
classes alone. A clip that is paired with its own sound hears it as its picture shows it: swapped where that is flipped.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from avs_jax.data.clip import IGNORE
from avs_jax.errors import InputError, nearest

RULES = ("class", "exact")
_STREAM = 2  # of the seed: 0 and 1 are the pipeline's order and augmentation


class Matches(NamedTuple):
    """Of B pairs and K classes.

    match: (B, K) bool, the classes whose label the shuffled sound leaves as it is; others become background.
    matched: (B,) bool, nothing of the image becomes background.
    replaced: (R, 2) int64, rows whose sound is to be replaced, and the class that the new one has to hold alone. Their
      `match` and `matched` already say so.
    """

    match: np.ndarray
    matched: np.ndarray
    replaced: np.ndarray


def matches(classes: np.ndarray, shuffle: np.ndarray, rule: str = "class") -> Matches:
    """What clip i shows of what sound `shuffle[i]` holds, before anything is replaced.

    Args:
      classes: (B, K) bool or 0/1, the classes of each clip; column 0 is the background.
      shuffle: (B,) whose sound each clip hears.
      rule: "class", a label stays where its class is in the sound (the paper); "exact", labels stay where clip and
        sound have all the same classes, and else none does (the public code). Alike for clips of a single class.
    """
    classes = np.asarray(classes, bool)
    sound = classes[shuffle]
    same = (classes == sound).all(1)
    if rule == "exact":
        match, matched = np.broadcast_to(same[:, None], classes.shape).copy(), same
    else:
        match, matched = sound.copy(), ~(classes & ~sound)[:, 1:].any(1)
        match[:, 0] = True
    return Matches(match, matched, np.zeros((0, 2), np.int64))


def balance(pairs: Matches, classes: np.ndarray, rate: float, order: np.ndarray | None = None) -> Matches:
    """Turns a share of the mismatches into matches.

    Of the n mismatched rows the first floor(rate n), in a random order, are drawn; those that have exactly one class
    beside the background get a sound of it, the others stay as they are. Table 5's hard / easy ratios of 10 / 90,
    50 / 50 and 90 / 10 are, in our reading, rates of 0.9, 0.5 and 0.1.

    Args:
      classes: (B, K), as for `matches`.
      order: (n,) permutation of the mismatched rows; None leaves them in order.
    """
    classes = np.asarray(classes, bool)
    rows = np.flatnonzero(~pairs.matched)
    rows = rows if order is None else rows[order]
    drawn = rows[: int(rate * len(rows))]
    drawn = drawn[classes[drawn, 1:].sum(1) == 1]
    match, matched = pairs.match.copy(), pairs.matched.copy()
    match[drawn], matched[drawn] = True, True
    replaced = np.stack([drawn, classes[drawn, 1:].argmax(1) + 1], 1) if len(drawn) else pairs.replaced
    return Matches(match, matched, replaced.astype(np.int64))


@dataclasses.dataclass(frozen=True, eq=False)
class Pairing:
    """(step, clips of the whole batch) -> whose sound each hears, and what it matches. Picklable.

    Attributes:
      classes: (N, K) bool, what the sound of every clip of the source holds; see `class_table`.
      seed: of the run.
      rule: "class" or "exact"; see `matches`.
      rate: share of mismatches turned into matches; see `balance`.
      binary: labels tell only that something sounds. They stay where the sound holds all classes of the clip's own, or
        with the rule "exact" the same ones.
    Raises:
      InputError: an unknown rule, a rate outside [0, 1], a table of another shape.
    """

    classes: np.ndarray
    seed: int = 0
    rule: str = "class"
    rate: float = 0.5
    binary: bool = False

    def __post_init__(self):
        if self.rule not in RULES:
            raise InputError("pairing.rule", expected=" or ".join(RULES), found=repr(self.rule),
                             hint=nearest(self.rule, RULES))  # fmt: skip
        if not 0 <= self.rate <= 1:
            raise InputError("pairing.rate", expected="a share in [0, 1]", found=repr(self.rate))
        if np.ndim(self.classes) != 2 or np.shape(self.classes)[1] < 2 or np.asarray(self.classes).dtype != bool:
            table = np.asarray(self.classes)
            raise InputError("pairing.classes", expected="(clips, classes) bool, two classes or more",
                             found=f"{table.shape} {table.dtype}")  # fmt: skip

    def __call__(self, step: int, clips: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """The pairs of a batch.

        Args:
          step: of the run, 0-based.
          clips: positions in the source of all processes' clips, in the batch's order.
        Returns:
          sounds (B,) int64, positions in the source of the clips that are heard; match (B, K) bool, (B, 2) if binary.
        """
        clips = np.asarray(clips, np.int64)
        rng = np.random.default_rng((self.seed, _STREAM, step))
        classes, shuffle = self.classes[clips], rng.permutation(len(clips))
        pairs = matches(classes, shuffle, self.rule)
        pairs = balance(pairs, classes, self.rate, rng.permutation(int((~pairs.matched).sum())))
        sounds = clips[shuffle]
        for row, label in pairs.replaced:
            sounds[row] = self._another(clips[row], label, rng)
        return sounds, np.stack([np.ones_like(pairs.matched), pairs.matched], 1) if self.binary else pairs.match

    def identity(self) -> dict:
        """What a resumed run must share, as JSON takes it."""
        return {"rule": self.rule, "rate": float(self.rate)}

    def _another(self, clip: int, label: int, rng) -> int:
        """A clip that holds this class alone: another than `clip`, which does, unless there is none."""
        among = self._alone[label]
        if len(among) == 1:
            return clip
        drawn = rng.integers(len(among) - 1)
        return among[drawn + (drawn >= np.searchsorted(among, clip))]

    @functools.cached_property
    def _alone(self) -> list[np.ndarray]:
        single = self.classes[:, 1:].sum(1) == 1
        return [np.flatnonzero(single & column) for column in self.classes.T]


def class_table(source) -> np.ndarray:
    """(N, K) bool: the classes that the sound of each clip holds, column 0 (background) always.

    From `source.sounds(i)`, (T, C) bool of `source.sound_names`, where the source has them under the names of its
    classes; with binary labels K is C + 1. Else from the labels, which mark what sounds: that decodes every clip once.

    Raises:
      InputError: a class that the source does not name.
    """
    names = list(source.class_names)
    if len(names) == 2 and hasattr(source, "sounds"):
        names = ["background", *source.sound_names]
    table = np.zeros((len(source), len(names)), bool)
    table[:, 0] = True
    known = hasattr(source, "sounds") and set(source.sound_names) <= set(names)
    columns = [names.index(name) for name in source.sound_names] if known else []
    for i, row in enumerate(table):
        if known:
            row[columns] |= np.asarray(source.sounds(i), bool).any(0)
            continue
        found = np.unique(source.visual(i)["labels"])
        found = found[found != IGNORE]
        if found.size and found[-1] >= len(names):
            raise InputError(f"clip '{source.ids[i]}', field 'labels'", expected=f"classes below {len(names)}",
                             found=str(found[-1]))  # fmt: skip
        row[found] = True
    return table


# ---- The public code's bank of sounds


def push(bank: np.ndarray, sounds: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """The bank after a batch: each clip of a single class is appended to its class's slots, the oldest falls out.

    Args:
      bank: (K, S, ...) sounds, oldest first; zeros before anything is pushed.
      sounds: (B, ...). classes: (B, K), column 0 is the background.
    """
    bank, classes = bank.copy(), np.asarray(classes, bool)
    for sound, shown in zip(sounds, classes, strict=True):
        if shown[1:].sum() == 1:
            label = shown[1:].argmax() + 1
            bank[label] = np.concatenate([bank[label, 1:], sound[None]])
    return bank


def oldest(bank: np.ndarray, label: int) -> np.ndarray:
    """The sound that the public code replaces with: silence until a class has been pushed S times."""
    return bank[label, 0]
