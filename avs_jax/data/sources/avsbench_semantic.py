"""AVSBench-semantic on disk (AVSS, v2): Zhou et al., Audio-visual segmentation with semantics, 2023."""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from avs_jax.data import audio, images
from avs_jax.data.clip import IGNORE, Clip
from avs_jax.data.sources import files
from avs_jax.data.sources.avsbench_table import MAX_BYTES, SPLITS, Row, read_table
from avs_jax.errors import InputError
from avs_jax.paths import to_path

NUM_FRAMES = 10
FRAMES = {"v1s": 5, "v1m": 5, "v2": 10}  # frames of a clip by its part of the benchmark
TRAIN_MASKS = {"v1s": 1, "v1m": 5, "v2": 10}  # how many of them are labelled for training
MAX_CLASSES = IGNORE  # 0 .. 254: labels are bytes, and 255 is taken
TABLE, CLASSES = "metadata.csv", "label2idx.json"


class AVSBenchSemanticSource(files.FileSource):
    """A random-access source of AVSBench-semantic clips (see `avs_jax.data.sources.Source`).

    A clip lies in `<root>/<label>/<uid>/`: `frames/<k>.jpg`, `labels_rgb/<k>.png` (k from 0; classes as colours, see
    `avs_jax.data.images.palette`) and `audio.wav`. Its label is the part of the benchmark it comes from: "v1s" and
    "v1m" are S4's and MS3's clips of 5 frames, "v2" clips have 10. Every record has 10 frames: the last five of a
    shorter clip are not `present`. Of a v1s training clip only the first frame is labelled.

    Only the table and the classes are read at construction; what is wrong with a clip's files is told when the clip is
    read, or by `problems`, all at once.

    Args:
      root: the folder that holds metadata.csv and label2idx.json, or one that has it as a folder.
      setting: "avss".
      split: "train", "val" or "test".
      image_size: side of the frames, or (height, width).
      fit: how images of any size come to it: "crop" (aspect ratio kept, centre crop), "squash", or "auto": as in the
        public code, "crop" for training and "squash" otherwise. Frames bilinearly, labels to the nearest pixel.
      front_end: name of what turns sound into `audio` (`avs_jax.data.audio`).
      sound: "wav": what the front end hears; seconds that the sound does not fill get zeros.
      resampler: for wav files that are not 16 kHz (`avs_jax.data.audio.resample`).
      subsets: which labels to take, of "v1s", "v1m", "v2": names, or one text with commas.
      absent: what the labels of frames that are not present are: "background" (0), which is how the public figures
        score them, or "ignore" (255), which leaves them out of every figure.
      unknown: what a colour that is no class's is: "background", as in the public code, or "ignore". `problems` tells
        of such colours either way.
      seconds: of sound that the "waveform" front end hears with each frame; None = its default.
    Raises:
      InputError: an option outside these, or a folder, table or list of classes that is not AVSBench-semantic's.
    """

    num_frames = NUM_FRAMES

    def __init__(
        self,
        root: str | Path = "",
        setting: str = "avss",
        split: str = "train",
        image_size: int | tuple[int, int] = 224,
        fit: str = "auto",
        front_end: str = "vggish",
        sound: str = "wav",
        resampler: str = "kaiser_best",
        subsets: str | Sequence[str] = tuple(FRAMES),
        absent: str = "background",
        unknown: str = "background",
        seconds: float | None = None,
    ):
        files.choice("setting", setting, ("avss",))
        self.split = files.choice("split", split, SPLITS)
        self.image_size = files.size_of(image_size)
        fit = files.choice("fit", fit, ("auto", *images.FITS))
        self.fit = ("crop" if split == "train" else "squash") if fit == "auto" else fit
        files.choice("sound", sound, ("wav", "auto"))
        self.resampler = files.choice("resampler", resampler, audio.RESAMPLERS)
        padding = {"pad": "zero"} if front_end == "vggish" else {}
        self.front_end = files.front_end_of(front_end, resampler=resampler, seconds=seconds, **padding)
        self.subsets = _subsets(subsets)
        fill = {"background": 0, "ignore": IGNORE}
        self._absent = fill[files.choice("absent", absent, fill)]
        self._unknown = fill[files.choice("unknown", unknown, fill)]
        self.root = find_root(root)
        self.class_names = read_classes(self.root / CLASSES)
        self._table = self.root / TABLE
        rows = read_table(self._table, ("uid", "label", "split"), split, labels=tuple(FRAMES))
        times = Counter(row.id for row in rows)  # the parts of the benchmark name their clips independently
        rows = [row for row in rows if row.category in self.subsets]
        if not rows:
            found = f"none of split '{split}' in {self._table}"
            raise InputError("data.subsets", expected="labels of at least one clip", found=found)
        self._rows = tuple(rows)
        self.ids = tuple(row.id if times[row.id] == 1 else f"{row.category}_{row.id}" for row in rows)
        self.parts = tuple(row.category for row in rows)

    def visual(self, index: int) -> Clip:
        """Clip `index` without its `audio`."""
        index = files.position(index, len(self))
        row = self._rows[index]
        count, masks = FRAMES[row.category], self._num_masks(row)
        frames = np.zeros((NUM_FRAMES, *self.image_size, 3), np.uint8)
        labels = np.full((NUM_FRAMES, *self.image_size), IGNORE, np.uint8)
        labels[count:] = self._absent
        self._check_frames(row)
        for k in range(count):
            frames[k] = self._frame(row, k)
        self._check_masks(row)
        for k in range(masks):
            classes, known = self._classes(row, k)
            labels[k] = classes if known.all() else np.where(known, classes, np.uint8(self._unknown))
        order = np.arange(NUM_FRAMES)
        return {
            "frames": frames,
            "labels": labels,
            "labelled": order < masks,
            "present": order < count,
            "id": self.ids[index],
        }

    def audio(self, index: int) -> np.ndarray:
        """The record's `audio` of clip `index`: (10, 96, 64) float32 for VGGish."""
        return self._audio(self._row(index))

    def audio_origin(self, index: int):
        """What `audio(index)` is a function of: options, and the wav that is read."""
        row = self._row(index)
        options = {"front_end": repr(self.front_end), "frames": [NUM_FRAMES, FRAMES[row.category]]}
        return options, self._folder(row) / "audio.wav"

    def sound_file(self, index: int) -> Path | None:
        """The wav of clip `index` where there is one, to be listened to."""
        path = self._folder(self._row(index)) / "audio.wav"
        return path if path.is_file() else None

    def fingerprint(self) -> dict:
        """JSON-able identity. The folder is no part of it: a data set may move."""
        return {
            "source": "avsbench",
            "setting": "avss",
            "split": self.split,
            "subsets": list(self.subsets),
            "length": len(self),
            "ids": files.digest(self.ids),
            "classes": files.digest(self.class_names),
            "image_size": list(self.image_size),
            "fit": self.fit,
            **files.heard_through(self.front_end),
            "resampler": self.resampler,
            "absent": self._absent,
            "unknown": self._unknown,
        }

    # --- one clip's files ---

    def _num_masks(self, row: Row) -> int:
        return (TRAIN_MASKS if self.split == "train" else FRAMES)[row.category]

    def _folder(self, row: Row) -> Path:
        return self.root / row.category / row.id

    def _frame(self, row: Row, k: int) -> np.ndarray:
        return images.read_fitted(self._folder(row) / "frames" / f"{k}.jpg", self.image_size, self.fit)

    def _mask_file(self, row: Row, k: int) -> Path:
        return self._folder(row) / "labels_rgb" / f"{k}.png"

    def _colours(self, row: Row, k: int) -> np.ndarray:
        return images.read_colours(self._mask_file(row, k), self.image_size, self.fit)

    def _classes(self, row: Row, k: int) -> tuple[np.ndarray, np.ndarray]:
        """(H, W) uint8 classes, and where the colour is one of theirs."""
        return images.classes_of(self._colours(row, k), len(self.class_names))

    def _audio(self, row: Row) -> np.ndarray:
        waveform, rate = audio.read_audio(self._folder(row) / "audio.wav")
        heard = self.front_end(waveform, rate, NUM_FRAMES)
        if len(heard) == NUM_FRAMES:  # one part a frame: a short clip's sound may well outlast its frames
            heard[FRAMES[row.category] :] = 0
        return heard

    def _check_frames(self, row: Row) -> None:
        files.check_images(self._folder(row) / "frames", [f"{k}.jpg" for k in range(FRAMES[row.category])])

    def _check_masks(self, row: Row) -> None:
        count = self._num_masks(row)
        names = [f"{k}.png" for k in range(count)]
        # a training clip may come with more masks than may be used
        files.check_images(self._folder(row) / "labels_rgb", names, more=count < FRAMES[row.category])

    def _checks(self, row: Row) -> Iterator[Callable]:
        """Every check of one clip, each raising what it finds."""
        yield lambda: files.check_split(self._table, row, self.split)
        yield lambda: self._check_frames(row)
        for k in range(FRAMES[row.category]):
            if (self._folder(row) / "frames" / f"{k}.jpg").exists():  # the count tells of those that do not
                yield lambda k=k: self._frame(row, k)
        yield lambda: self._check_masks(row)
        for k in range(self._num_masks(row)):
            if self._mask_file(row, k).exists():
                yield lambda k=k: self._check_colours(row, k)
        yield lambda: self._audio(row)

    def _check_colours(self, row: Row, k: int) -> None:
        colours = self._colours(row, k)
        _, known = images.classes_of(colours, len(self.class_names))
        if known.all():
            return
        first = "#" + bytes(colours[~known][0]).hex()
        raise InputError(
            self._mask_file(row, k),
            expected=f"the colours of the {len(self.class_names)} classes",
            found=f"another in {np.mean(~known):.2%} of the pixels, first {first}",
            hint="It is read as background; data.unknown=ignore leaves such pixels out of training and figures.",
        )


def _subsets(subsets: str | Sequence[str]) -> tuple[str, ...]:
    names = [name.strip() for name in subsets.split(",")] if isinstance(subsets, str) else list(subsets)
    for name in names:
        files.choice("subsets", name, FRAMES)
    if not names or len(set(names)) != len(names):
        raise InputError("data.subsets", expected=f"some of {', '.join(FRAMES)}, each once", found=repr(subsets))
    return tuple(name for name in FRAMES if name in names)


def find_root(root: str | Path) -> Path:
    """The folder with metadata.csv: `root` itself, or the only one within it that has it."""
    hint = f"Set data.root to the folder that holds {TABLE}, {CLASSES}, v1s/, v1m/ and v2/."
    if not root:
        raise InputError("data.root", expected="the folder of AVSBench-semantic", found="nothing", hint=hint)
    root = to_path(root)
    if not root.is_dir():
        found = "a file" if root.exists() else "no such folder"
        raise InputError(root, expected="the folder of AVSBench-semantic", found=found, hint=hint)
    if (root / TABLE).is_file():
        return root
    inside = sorted(root.iterdir())
    having = [entry for entry in inside if (entry / TABLE).is_file()]
    if len(having) == 1:
        return having[0]
    names = having or inside
    text = ", ".join(entry.name for entry in names[:8]) + (", ..." if len(names) > 8 else "")
    found = f"it in each of {text}" if having else text or "an empty folder"
    raise InputError(root, expected=f"{TABLE} in it, or in one of its folders", found=found, hint=hint)


def read_classes(path: str | Path) -> tuple[str, ...]:
    """The names of the classes, in the order of their numbers, from label2idx.json: {name: number}.

    Raises:
      InputError: the file is missing or no such JSON, or its numbers are not 0 .. K-1 with 2 <= K <= 255, each once.
    """
    path = to_path(path)

    def fail(found, hint=""):
        raise InputError(path, expected="JSON of class names and their numbers, from 0", found=found, hint=hint)

    def pairs(items):
        names = [name for name, _ in items]
        twice = next((name for name in names if names.count(name) > 1), None) if len(items) <= MAX_CLASSES else None
        return fail(f"'{twice}' twice") if twice is not None else dict(items)

    try:
        if path.stat().st_size > MAX_BYTES:
            fail(f"{path.stat().st_size} bytes")
        numbers = json.loads(path.read_bytes().decode("utf-8-sig"), object_pairs_hook=pairs)
    except InputError:
        raise
    except FileNotFoundError:
        fail("no such file", hint="It comes with the data set.")
    except (OSError, ValueError, RecursionError) as error:
        fail(str(error))
    if not isinstance(numbers, dict):
        fail(f"a {type(numbers).__name__}")
    if not 2 <= len(numbers) <= MAX_CLASSES:
        fail(f"{len(numbers)} classes", hint=f"There may be 2 to {MAX_CLASSES}, with the background.")
    order: dict[int, str] = {}
    for name, number in numbers.items():
        if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < len(numbers):
            fail(f"{number!r} for '{name}' among {len(numbers)} classes")
        if number in order:
            fail(f"number {number} for '{order[number]}' and '{name}'")
        order[number] = name
    return tuple(order[number] for number in range(len(order)))
