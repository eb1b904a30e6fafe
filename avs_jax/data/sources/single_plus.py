"""AVSBench-Single+ on disk (Chen et al., 2023): single frames with multi-class or binary masks; and AVS-M."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from avs_jax.data import audio, images
from avs_jax.data.clip import IGNORE, Clip
from avs_jax.data.sources import files, stills
from avs_jax.errors import InputError, nearest
from avs_jax.paths import to_path

SETTINGS = ("single_plus", "salient", "avs_m")
SPLITS = ("train", "val", "test")
CLASSES = (
    "background", "ambulance_siren", "baby_laughter", "cap_gun_shooting", "cat_meowing", "chainsawing_trees",
    "coyote_howling", "dog_barking", "driving_buses", "female_singing", "helicopter", "horse_clip-clop", "lawn_mowing",
    "lions_roaring", "male_speech", "mynah_bird_singing", "playing_acoustic_guitar", "playing_glockenspiel",
    "playing_piano", "playing_tabla", "playing_ukulele", "playing_violin", "race_car", "typing_on_computer_keyboard",
)  # fmt: skip
FOLDER = "avsbench_data_single_plus"


class Row(NamedTuple):
    """One frame. name: of its files. label: its class. sound: name of another clip's sound (AVS-M), or ""."""

    id: str
    label: int
    sound: str
    line: int
    also: str = ""


class SinglePlusSource(stills.StillSource):
    """A random-access source of AVSBench-Single+, as clips of one frame (see `avs_jax.data.sources.Source`).

    The folder holds frames/<name>.png, labels/<name>.png (classes), salient_labels/<name>.png (binary),
    audios/<name>.wav and one table with the columns name, category ("<class>,background"), split; for AVS-M also
    vgg_file, the sound of the same category that takes the place of a training clip's own.

    Args:
      root: that folder, or the one that holds it.
      setting: "single_plus" (24 classes), "salient" (binary) or "avs_m" (salient with the sounds replaced).
      split: "train", "val" or "test".
      image_size, fit, pad: see `stills.Fit`. By default salient frames are squashed to 224 x 224, and those of
        single_plus keep their own size, which training crops (`augment.crop`) and pad="buckets" brings to few shapes.
      front_end: name of what turns sound into `audio` (`avs_jax.data.audio`).
      seconds: of the middle of each sound.
      table: the table's file name in the folder; "" takes the only .csv.
      sounds: AVS-M's other clips: VGGSound's folder of sounds; "" finds vggsound_bench/VGGSound/audios beside.
      crop: "middle", or "reference" for sounds that are too short (`audio.WaveformFrontEnd`).
      resampler: for sounds that are not 16 kHz (`audio.resample`).
    Raises:
      InputError: an option outside these, or a folder or table that is not AVSBench-Single+'s.
    """

    num_frames = 1

    def __init__(
        self,
        root: str | Path = "",
        setting: str = "single_plus",
        split: str = "train",
        image_size: int | tuple[int, int] | None = None,
        fit: str = "auto",
        pad: int | tuple[int, int] | str = 0,
        front_end: str = "waveform",
        seconds: float = 1.0,
        table: str = "",
        sounds: str | Path = "",
        crop: str = "middle",
        resampler: str = "soxr_hq",
    ):
        self.setting = files.choice("setting", setting, SETTINGS)
        self.split = files.choice("split", split, SPLITS)
        self._binary = setting != "single_plus"
        image_size = _default_size(setting) if image_size is None else image_size
        fit = _default_fit(setting) if fit == "auto" else fit
        self._fit = stills.fit_of(fit, image_size, pad)
        self.image_size = self._fit.pad if isinstance(self._fit.pad, tuple) else self._fit.size
        self._mixer = stills.mixer_of(seconds, False, crop, resampler)
        self.front_end = stills.front_end_of(front_end, self._mixer)
        self.class_names = _class_names(setting)
        self.root = find_root(root)
        self._replaced = setting == "avs_m" and split == "train"
        self._sounds = _find_sounds(sounds, self.root) if self._replaced else self.root / "audios"
        self._table = find_table(self.root, table)
        self._rows = read_table(self._table, split, self._replaced)
        self.ids = tuple(row.id for row in self._rows)
        self.categories = tuple(CLASSES[row.label] for row in self._rows)

    @staticmethod
    def described(options: Mapping) -> dict:
        """What the options alone say of the clips: `class_names`, `image_size` (None where it is the pictures' own)."""
        setting, fit = options["setting"], options["fit"]
        keeps = (_default_fit(setting) if fit == "auto" else fit) == "none"
        size = None if keeps else options["image_size"] or _default_size(setting)
        return {"class_names": _class_names(setting), "image_size": size}

    def visual(self, index: int) -> Clip:
        """Clip `index` without its `audio`: frames (1, H, W, 3) and labels (1, H, W), with `pad` also `size`."""
        row = self._row(index)
        picture = self._fit(self._frame(row), lambda size: self._mask(row, size))
        return {**picture, "labelled": np.ones(1, bool), "id": row.id}

    def waveform(self, index: int) -> np.ndarray:
        """What is heard of clip `index` before the front end: (samples,) float32 at 16 kHz."""
        return self._mixer([(self._sound(self._row(index)), 0.5)])

    def audio_origin(self, index: int):
        """What `audio(index)` is a function of: options, and the wav that is read."""
        return {"front_end": repr(self.front_end), "mixer": repr(self._mixer)}, self._sound(self._row(index))

    def sound_file(self, index: int) -> Path | None:
        """The wav of clip `index`."""
        return self._sound(self._row(index))

    def image_classes(self, index: int) -> np.ndarray:
        """(K,) bool: the background, and the class that sounds in clip `index`, by the table."""
        label = self._row(index).label
        return stills.multi_hot([min(label, 1) if self._binary else label], len(self.class_names))

    sound_names = CLASSES[1:]  # columns of `sounds`, also where labels are binary

    def sounds(self, index: int) -> np.ndarray:
        """(1, 23) bool of `sound_names`: the class that sounds in clip `index`, by the table."""
        return stills.multi_hot([self._row(index).label], len(CLASSES))[None, 1:]

    def clips_of_class(self, label: int) -> np.ndarray:
        """Positions of the clips in which this class sounds, (n,) int64."""
        found = [i for i, row in enumerate(self._rows) if (min(row.label, 1) if self._binary else row.label) == label]
        return np.asarray(found, np.int64)

    def fingerprint(self) -> dict:
        """JSON-able identity. The folder is no part of it: a data set may move."""
        return {
            "source": "single_plus",
            "setting": self.setting,
            "split": self.split,
            "length": len(self),
            "ids": files.digest(f"{row.id} {row.label} {row.sound}" for row in self._rows),
            "fit": repr(self._fit),
            "front_end": repr(self.front_end),
            "mixer": repr(self._mixer),
        }

    # --- one clip's files ---

    def _frame(self, row: Row) -> Path:
        return stills.existing(self.root / "frames", row.id, (".png", ".jpg"))

    def _mask(self, row: Row, size: tuple[int, int]) -> np.ndarray:
        if self._binary:
            return images.read_mask(self.root / "salient_labels" / f"{row.id}.png", size)
        path = self.root / "labels" / f"{row.id}.png"
        values = images.read_values(path, size)
        bad = values[(values >= len(CLASSES)) & (values != IGNORE)]
        if bad.size:
            expected = f"classes below {len(CLASSES)}, or {IGNORE} for ignore"
            raise InputError(path, expected=expected, found=f"value {int(bad[0])}")
        return values

    def _sound(self, row: Row) -> Path:
        return stills.existing(self._sounds, row.sound or row.id, (".wav", ".flac", ".ogg"))

    def _audio(self, row: Row) -> np.ndarray:
        return self.front_end(self._mixer([(self._sound(row), 0.5)]), audio.SAMPLE_RATE, 1)

    def _checks(self, row: Row) -> Iterator[Callable]:
        """Every check of one clip, each raising what it finds."""
        yield lambda: files.check_split(self._table, row, self.split)
        yield lambda: self._fit(self._frame(row), lambda size: np.zeros(size, np.uint8))
        yield lambda: self._mask(row, images.read_frame(self._frame(row)).shape[:2])
        yield lambda: self._audio(row)


def _class_names(setting: str) -> tuple[str, ...]:
    return CLASSES if setting == "single_plus" else ("background", "sounding")


def _default_fit(setting: str) -> str:
    return "none" if setting == "single_plus" else "squash"


def _default_size(setting: str) -> int:
    return 512 if setting == "single_plus" else 224


def find_root(root: str | Path) -> Path:
    """The folder with frames/ and audios/: `root` itself, or `avsbench_data_single_plus` within it."""
    hint = f"Set data.root to {FOLDER}, the folder that holds frames/, labels/ and audios/."
    if not root:
        raise InputError("data.root", expected="the folder of AVSBench-Single+", found="nothing", hint=hint)
    root = to_path(root)
    if not root.is_dir():
        found = "a file" if root.exists() else "no such folder"
        raise InputError(root, expected="the folder of AVSBench-Single+", found=found, hint=hint)
    for folder in (root / FOLDER, root):
        if (folder / "frames").is_dir():
            return folder
    inside = sorted(entry.name for entry in root.iterdir())
    raise InputError(root, expected="frames/ in it", found=", ".join(inside[:8]) or "an empty folder", hint=hint)


def find_table(root: Path, name: str) -> Path:
    """The table called `name`, or the only .csv of the folder."""
    if name:
        return root / stills.plain("data.table", "table", name)
    found = sorted(root.glob("*.csv"))
    if len(found) != 1:
        text = ", ".join(path.name for path in found) or "none"
        raise InputError(root, expected="one .csv, the table of clips", found=text, hint="Name it with data.table.")
    return found[0]


def _find_sounds(folder: str | Path, root: Path) -> Path:
    path = to_path(folder) if folder else root.parent / "vggsound_bench" / "VGGSound" / "audios"
    if not path.is_dir():
        hint = "AVS-M's training clips are heard with sounds of VGGSound's: set data.sounds to their folder."
        raise InputError("data.sounds", expected=f"a folder of sounds, {path}", found="no such folder", hint=hint)
    return path


def read_table(path: Path, split: str, replaced: bool) -> tuple[Row, ...]:
    """The frames of one split, in the table's order. replaced: each needs a `vgg_file`.

    Raises:
      InputError: the table is no such CSV, a value is not what its column should hold, a name comes twice, or the split
        is empty.
    """
    rows: dict[str, dict[str, Row]] = {name: {} for name in SPLITS}
    for line, values in stills.read_rows(path, ("name", "category", "split", *["vgg_file"] * replaced)):
        where, own = f"{path}, line {line}", values["split"]
        if own not in SPLITS:
            raise InputError(where, expected="train, val or test in column 'split'", found=repr(own))
        name = stills.plain(where, "name", values["name"])
        if name in rows[own]:
            found = f"'{name}' again, first in line {rows[own][name].line}"
            raise InputError(where, expected="every frame once", found=found)
        sound = stills.plain(where, "vgg_file", values["vgg_file"]) if replaced and own == split else ""
        rows[own][name] = Row(name, _label(where, values["category"]), sound, line)
    if not rows[split]:
        found = ", ".join(f"{len(some)} of '{name}'" for name, some in rows.items() if some) or "no frames at all"
        raise InputError(path, expected=f"frames of split '{split}'", found=found)

    def also(name):
        return next((f"'{s}' (line {r[name].line})" for s, r in rows.items() if s != split and name in r), "")

    return tuple(row._replace(also=also(row.id)) for row in rows[split].values())


def _label(where: str, category: str) -> int:
    """The number of the class in "<class>,background"."""
    names = [part.strip() for part in category.split(",")]
    classes = [name for name in names if name != CLASSES[0]]
    unknown = [name for name in classes if name not in CLASSES]
    if unknown:
        raise InputError(where, expected="classes of AVSBench-Single+ in column 'category'", found=repr(unknown[0]),
                         hint=nearest(unknown[0], CLASSES))  # fmt: skip
    if len(classes) != 1:
        expected = "one class, and 'background', in column 'category'"
        raise InputError(where, expected=expected, found=repr(category))
    return CLASSES.index(classes[0])
