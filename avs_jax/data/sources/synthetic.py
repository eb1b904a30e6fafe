"""An embedded audio-visual world: clips that are a pure function of (seed, split, index), with no files.

Each clip is 5 s: five frames, the one at 15/16 of every second, and 80,000 samples of sound at 16 kHz that go through
the real front end. Two or three objects of different classes move over a moving background; some of them sound, the
others are silent distractors, and now and then a class that is not in the picture is heard from off screen. A class
has its own look (shape, texture, motion, neighbourhood of hues: `synthetic_looks`) and its own timbre
(`synthetic_timbres`).

Settings: `single` (exactly one object sounds, for the whole clip; in training only the first frame is labelled, the
labels of the others are 255), `multi` (any number sounds, or none) and `semantic` (as `multi`, labels are classes).
Schedules of `multi` and `semantic`: `persist`, one draw of who sounds holds for the clip; `per_second`, it is drawn
anew for every second. Sounds follow the windows of the VGGish front end: frame t shows second t of the video and is
labelled by what window t, 0.96 t to 0.96 (t + 1) s, hears.

Who sounds is drawn from its own random stream and depends on nothing but the number of visible objects, so pixels
carry no information about it. That fixes the best J that any predictor can reach without sound, whatever it learns
(`video_only_ceiling`; 600 clips of the test split), where one that also hears can reach 1:

|        | `single` | `multi`, `semantic` (either schedule) |
|--------|----------|---------------------------------------|
| easy   | .42      | .52                                   |
| medium | .37      | .49                                   |
| hard   | .29      | .46                                   |
"""

import operator

import numpy as np

from avs_jax.data.clip import IGNORE, Clip
from avs_jax.data.sources import files, synthetic_looks, synthetic_timbres
from avs_jax.data.sources.synthetic_scene import (
    CLASSES,
    DIFFICULTIES,
    NUM_FRAMES,
    Scene,
    draw_scene,
    sounding_prior,
)
from avs_jax.errors import InputError, nearest

SPLITS = {"train": 3000, "val": 200, "test": 200}  # default lengths
SETTINGS = ("single", "multi", "semantic")
SCHEDULES = ("persist", "per_second")
MIDDLE = slice(NUM_FRAMES // 2, NUM_FRAMES // 2 + 1)  # the frame of a still
_LOOK, _SOUND, _PIXELS, _WAVEFORM = range(4)  # random streams of one clip
_VERSION = 1  # part of the fingerprint: raise it when the same options give other clips


class SyntheticSource:
    """A random-access source of synthetic clips (see `avs_jax.data.sources.Source`).

    Args:
      split: "train", "val" or "test": disjoint random streams.
      setting: "single", "multi" or "semantic".
      schedule: "persist" or "per_second"; "single" knows only "persist".
      length: number of clips; 3000, 200 and 200 by default.
      image_size: side of the square frames, or (height, width); at least 16 pixels.
      seed: of the whole world.
      difficulty: "easy", "medium" or "hard" (`synthetic_scene.DIFFICULTIES`).
      front_end: name of what turns the waveform into `audio` (`avs_jax.data.audio`).
      seconds: of sound that the "waveform" front end hears with each frame; None = its default.
      still: one picture a clip, the middle second's frame, labelled, with the clip's sound: what VPO is made of. For
        the schedule "persist".
    Raises:
      InputError: an option outside these, naming the nearest valid one.
    """

    sample_rate = synthetic_timbres.SAMPLE_RATE
    sound_names = CLASSES  # columns of `sounds`

    def __init__(
        self,
        split: str = "train",
        setting: str = "multi",
        schedule: str = "persist",
        length: int | None = None,
        image_size: int | tuple[int, int] = 64,
        seed: int = 0,
        difficulty: str = "easy",
        front_end: str = "vggish",
        seconds: float | None = None,
        still: bool = False,
    ):
        self.split = _choice("split", split, SPLITS)
        self.setting = _choice("setting", setting, SETTINGS)
        self.schedule = _choice("schedule", schedule, SCHEDULES)
        self.difficulty = _choice("difficulty", difficulty, DIFFICULTIES)
        if setting == "single" and schedule != "persist":
            raise InputError("data.schedule", expected="'persist' for setting 'single'", found=repr(schedule))
        if still and schedule != "persist":
            raise InputError("data.still", expected=f"False with schedule '{schedule}'", found=repr(still))
        self.still, self.num_frames = bool(still), 1 if still else NUM_FRAMES
        self.front_end = files.front_end_of(front_end, seconds=seconds)
        self.seed = _integer("seed", seed, 0)
        self.image_size = _size(image_size)
        self.class_names = ("background", *(CLASSES if setting == "semantic" else ("sounding",)))
        length = SPLITS[split] if length is None else _integer("length", length, 1)
        self.ids = tuple(f"{setting}-{split}-{i:05d}" for i in range(length))

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Clip:
        """Clip `index` as the record of `avs_jax.data.clip`."""
        return {**self.visual(index), "audio": self.audio(index)}

    def visual(self, index: int) -> Clip:
        """Clip `index` without its `audio`."""
        index = self._index(index)
        scene = self.scene(index)
        frames, instances = self._draw(scene, index)
        labels = self._labels(scene, instances)
        labelled = np.ones(NUM_FRAMES, bool)
        if self.still:
            frames, labels, labelled = frames[MIDDLE], labels[MIDDLE], labelled[MIDDLE]
        elif self.setting == "single" and self.split == "train":
            labelled[1:] = False
            labels[1:] = IGNORE
        return {
            "frames": frames,
            "labels": labels,
            "labelled": labelled,
            "id": self.ids[index],
        }

    def scene(self, index: int) -> Scene:
        """The scene behind clip `index`: its objects, who sounds when, and what is heard from off screen."""
        index = self._index(index)
        height, width = self.image_size
        side = min(height, width)
        return draw_scene(
            self._rng(index, _LOOK),
            self._rng(index, _SOUND),
            setting=self.setting,
            schedule=self.schedule,
            difficulty=DIFFICULTIES[self.difficulty],
            aspect=(height / side, width / side),
        )

    def instances(self, index: int) -> np.ndarray:
        """(T, H, W) uint8: k + 1 where object k of the scene is visible, sounding or silent; 0 background."""
        instances = self._draw(self.scene(index), index)[1]
        return instances[MIDDLE] if self.still else instances

    def waveform(self, index: int) -> np.ndarray:
        """(80000,) float32 in [-1, 1], 16 kHz."""
        return self._mix(self.scene(index), index)

    def audio(self, index: int) -> np.ndarray:
        """The record's `audio` of clip `index`: (T, 96, 64) float32 log-mel, or what another front end makes."""
        return self.front_end(self.waveform(index), self.sample_rate, self.num_frames)

    def audio_origin(self, index: int):
        """What `audio(index)` is a function of; no file is read."""
        options = {name: value for name, value in self.fingerprint().items() if name != "length"}
        return {**options, "front_end": repr(self.front_end), "index": self._index(index)}, None

    def sounds(self, index: int) -> np.ndarray:
        """(T, C) bool: column c is true where class index c + 1 (`sound_names[c]`) is audible in window t, from on
        screen or off."""
        scene = self.scene(index)
        heard = np.zeros((NUM_FRAMES, len(CLASSES)), bool)
        for source in (*scene.objects, *scene.offscreen):
            heard[:, source.class_index - 1] |= source.sounding
        return heard[MIDDLE] if self.still else heard

    def sounding_prior(self, num_objects: int) -> np.ndarray:
        """(2 ** num_objects,) probability of every set of sounding objects; bit k of the index stands for object k."""
        return sounding_prior(num_objects, self.setting, DIFFICULTIES[self.difficulty])

    def fingerprint(self) -> dict:
        """JSON-able identity."""
        still = {"still": True} if self.still else {}
        return {
            "source": "synthetic",
            "version": _VERSION,
            "split": self.split,
            "setting": self.setting,
            "schedule": self.schedule,
            "length": len(self),
            "image_size": list(self.image_size),
            "seed": self.seed,
            "difficulty": self.difficulty,
            **files.heard_through(self.front_end),
            **still,
        }

    def _index(self, index) -> int:
        index = operator.index(index)
        if not 0 <= index < len(self):
            raise IndexError(f"clip {index} of {len(self)}")
        return index

    def _rng(self, index: int, stream: int) -> np.random.Generator:
        key = (self.seed, list(SPLITS).index(self.split), index, stream)
        return np.random.Generator(np.random.PCG64(np.random.SeedSequence(key)))

    def _draw(self, scene, index):
        rng = self._rng(self._index(index), _PIXELS)
        return synthetic_looks.draw(scene, *self.image_size, DIFFICULTIES[self.difficulty], rng)

    def _mix(self, scene, index):
        return synthetic_timbres.mix(scene, DIFFICULTIES[self.difficulty], self._rng(self._index(index), _WAVEFORM))

    def _labels(self, scene, instances):
        """(T, H, W) uint8 from the instance map, by a table of each frame's sounding objects."""
        table = np.zeros((NUM_FRAMES, len(scene.objects) + 1), np.uint8)
        for k, item in enumerate(scene.objects):
            table[:, k + 1] = item.sounding * (item.class_index if self.setting == "semantic" else 1)
        return table[np.arange(NUM_FRAMES)[:, None, None], instances]


def expected_j(areas: np.ndarray, prior: np.ndarray, num_pixels: int) -> np.ndarray:
    """Expected J of every union of whole objects, predicted without knowing which of them sound.

    Args:
      areas: (n,) visible pixels of each object in one frame.
      prior: (2 ** n,) probability of every sounding set (bit k: object k sounds).
      num_pixels: of the frame.
    Returns:
      (2 ** n,) expected J by predicted set. J is AVSBench's: intersection over union, and where nothing sounds one
      minus the predicted share of the frame.
    """
    sets = np.arange(len(prior))
    area = sum((sets >> k & 1) * float(a) for k, a in enumerate(areas))
    intersection, union = area[sets[:, None] & sets], area[sets[:, None] | sets]  # (predicted, true)
    j = np.where(sets == 0, 1 - area[:, None] / num_pixels, intersection / np.maximum(union, 1))
    return j @ prior


def video_only_ceiling(source: SyntheticSource, n: int | None = None) -> float:
    """Expected J of the best predictor that sees every object perfectly and hears nothing, over the first n clips.

    Exact for the clips it is given: pixels say nothing about who sounds, so the truth follows the prior; and within
    one object expected J is convex in the number of its pixels that are predicted, so the best prediction takes whole
    objects, of which every union is tried. The best predictor that also hears reaches 1.
    """
    num_pixels = source.image_size[0] * source.image_size[1]
    best = []
    for i in range(min(n or len(source), len(source))):
        count = len(source.scene(i).objects)
        prior = source.sounding_prior(count)
        for frame in source.instances(i):
            areas = np.bincount(frame.ravel(), minlength=count + 1)[1:]
            best.append(expected_j(areas, prior, num_pixels).max())
    return float(np.mean(best))


def _choice(name, value, valid):
    if not isinstance(value, str) or value not in valid:
        raise InputError(
            f"data.{name}", expected=f"one of {', '.join(valid)}", found=repr(value), hint=nearest(value, valid)
        )
    return value


def _integer(name, value, low):
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < low:
        raise InputError(f"data.{name}", expected=f"an integer of at least {low}", found=repr(value))
    return int(value)


def _size(value):
    pair = tuple(value) if isinstance(value, (tuple, list)) else (value, value)
    if len(pair) != 2:
        raise InputError("data.image_size", expected="a side or (height, width)", found=repr(value))
    return tuple(_integer("image_size", v, 16) for v in pair)
