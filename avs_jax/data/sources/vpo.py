"""VPO on disk: VPO-SS, VPO-MS and VPO-MSMI of Chen et al. (2023), as published or as built by `prepare vpo`."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from avs_jax.data import audio, images
from avs_jax.data.clip import Clip
from avs_jax.data.prepare import vpo_classes
from avs_jax.data.sources import files, stills
from avs_jax.errors import InputError, nearest
from avs_jax.paths import to_path

SETTINGS = ("vpo_ss", "vpo_ms", "vpo_msmi")
SPLITS = ("train", "test")
COLUMNS = ("img_Id", "ann_Ids", "cateName", "cateId", "vgg_file", "split")
SUFFIXES = (".wav", ".flac", ".ogg")


class Sounding(NamedTuple):
    """One object that sounds. label: of its class. stem: of its sound's file. position: 0 left to 1 right."""

    label: int
    stem: str
    position: float


class Row(NamedTuple):
    """One picture. picture, mask: below `data/` and `mask/`, without suffix. folder: of the setting it lies in."""

    id: str
    folder: str
    picture: str
    mask: str
    sounding: tuple[Sounding, ...]
    line: int
    also: str = ""


class VPOSource(stills.StillSource):
    """A random-access source of VPO's pictures, as clips of one frame (see `avs_jax.data.sources.Source`).

    Only the table is read at construction; what is wrong with a picture's files is told when it is read, or by
    `problems`, all at once.

    Args:
      root: the folder that holds `VPO/` and `vggsound_bench/`, or `VPO/` itself, or the setting's own folder.
      setting: "vpo_ss", "vpo_ms" or "vpo_msmi", whose pictures partly lie in VPO-MS.
      split: "train" or "test"; there is no other, and "val" is read as "test", as by the public code.
      image_size, fit, pad: see `stills.Fit`. By default pictures keep their own size: training needs
        `augment.crop`, evaluation a batch of one; with pad="buckets" it compiles for few shapes.
      front_end: name of what turns sound into `audio` (`avs_jax.data.audio`).
      seconds: of the middle of each clip; clips of one picture are added.
      stereo: two channels, each object's sound where it is in the picture; a flip swaps them (`avs_jax.data.augment`).
      fold_person: one class person in place of male, female and baby: 19 classes.
      sounds: folder of the clips; "" finds vggsound_bench/VGGSound/audios.
      crop: "middle", or "reference" for sounds that are too short (`audio.WaveformFrontEnd`).
      resampler: for clips that are not 16 kHz (`audio.resample`).
    Raises:
      InputError: an option outside these, or a folder or table that is not VPO's.
    """

    num_frames = 1

    def __init__(
        self,
        root: str | Path = "",
        setting: str = "vpo_ss",
        split: str = "train",
        image_size: int | tuple[int, int] = 512,
        fit: str = "none",
        pad: int | tuple[int, int] | str = 0,
        front_end: str = "waveform",
        seconds: float = 3.0,
        stereo: bool = False,
        fold_person: bool = False,
        sounds: str | Path = "",
        crop: str = "middle",
        resampler: str = "soxr_hq",
    ):
        self.setting = files.choice("setting", setting, SETTINGS)
        self.split = "test" if split == "val" else files.choice("split", split, SPLITS)
        self._fit = stills.fit_of(fit, image_size, pad)
        self.image_size = self._fit.pad if isinstance(self._fit.pad, tuple) else self._fit.size
        self._mixer = stills.mixer_of(seconds, stereo, crop, resampler)
        self.front_end = stills.front_end_of(front_end, self._mixer)
        self.fold_person = bool(fold_person)
        self.class_names = vpo_classes.class_names(self.fold_person)
        self.root = find_root(root, setting)
        self._sounds = find_sounds(sounds, self.root)
        self._table = self.root / _table_name(setting)
        self._rows = read_table(self._table, setting, self.split, self.fold_person, self._mixer.stereo)
        self.ids = tuple(row.id for row in self._rows)
        self._labels, self._known = vpo_classes.label_table(self.fold_person)

    @staticmethod
    def described(options: Mapping) -> dict:
        """What the options alone say of the clips: `class_names`, `image_size` (None where it is the pictures' own)."""
        names = vpo_classes.class_names(bool(options["fold_person"]))
        return {"class_names": names, "image_size": None if options["fit"] == "none" else options["image_size"]}

    def visual(self, index: int) -> Clip:
        """Clip `index` without its `audio`: frames (1, H, W, 3) and labels (1, H, W), with `pad` also `size`."""
        row = self._row(index)
        picture = self._fit(self._picture(row), lambda size: self._mask(row, size))
        return {**picture, "labelled": np.ones(1, bool), "id": row.id}

    def waveform(self, index: int) -> np.ndarray:
        """What is heard of clip `index` before the front end: (samples,) or (samples, 2) float32 at 16 kHz."""
        return self._waveform(self._row(index))

    def audio_origin(self, index: int):
        """What `audio(index)` is a function of: options, and the file of its only sound; None where it has several."""
        row = self._row(index)
        if len(row.sounding) > 1:
            return None
        (item,) = row.sounding
        position = item.position if self._mixer.stereo else None
        made = {"front_end": repr(self.front_end), "mixer": repr(self._mixer), "position": position}
        return made, self._sound(item)

    def sound_file(self, index: int) -> Path | None:
        """The file of the only sound of clip `index`; None where it has several."""
        row = self._row(index)
        return self._sound(row.sounding[0]) if len(row.sounding) == 1 else None

    def image_classes(self, index: int) -> np.ndarray:
        """(K,) bool: the background, and the classes that sound in clip `index`, by the table."""
        return stills.multi_hot([item.label for item in self._row(index).sounding], len(self.class_names))

    def clips_of_class(self, label: int) -> np.ndarray:
        """Positions of the clips in which this class sounds and no other, (n,) int64."""
        wanted = {int(label)}
        found = [i for i, row in enumerate(self._rows) if {item.label for item in row.sounding} == wanted]
        return np.asarray(found, np.int64)

    def fingerprint(self) -> dict:
        """JSON-able identity. The folder is no part of it: a data set may move."""
        described = (f"{row.id} {row.mask} {row.sounding}" for row in self._rows)
        return {
            "source": "vpo",
            "setting": self.setting,
            "split": self.split,
            "length": len(self),
            "ids": files.digest(described),
            "fit": repr(self._fit),
            "front_end": repr(self.front_end),
            "mixer": repr(self._mixer),
            "fold_person": self.fold_person,
        }

    # --- one clip's files ---

    def _path(self, row: Row, below: str, name: str) -> Path:
        return (self.root.parent / row.folder if row.folder else self.root) / below / name

    def _picture(self, row: Row) -> Path:
        return self._path(row, "data", f"{row.picture}.jpg")

    def _mask(self, row: Row, size: tuple[int, int]) -> np.ndarray:
        path = self._path(row, "mask", f"{row.mask}.png")
        values = images.read_values(path, size)
        if not self._known[values].all():
            bad = int(values[~self._known[values]][0])
            folded = "It was built with --fold-person: set data.fold_person (configs/cavp.py:fold_person=true)."
            hint = folded if bad == vpo_classes.PERSON else ""
            raise InputError(path, expected="0, 255 and the class ids of VPO", found=f"value {bad}", hint=hint)
        return self._labels[values]

    def _sound(self, item: Sounding) -> Path:
        return stills.existing(self._sounds, item.stem, SUFFIXES)

    def _waveform(self, row: Row) -> np.ndarray:
        return self._mixer([(self._sound(item), item.position) for item in row.sounding])

    def _audio(self, row: Row) -> np.ndarray:
        return self.front_end(self._waveform(row), audio.SAMPLE_RATE, 1)

    def _checks(self, row: Row) -> Iterator[Callable]:
        """Every check of one clip, each raising what it finds."""
        yield lambda: files.check_split(self._table, row, self.split)
        yield lambda: self._fit(self._picture(row), lambda size: np.zeros(size, np.uint8))
        yield lambda: self._mask(row, images.read_frame(self._picture(row)).shape[:2])
        for item in row.sounding:
            yield lambda item=item: audio.read_audio(self._sound(item))


# --- folders and tables ---


def _folder_name(setting: str) -> str:
    return "VPO-" + setting.removeprefix("vpo_").upper()


def _table_name(setting: str) -> str:
    return f"{setting}_data_stereo.csv"


def find_root(root: str | Path, setting: str) -> Path:
    """The setting's own folder: in `root`/VPO, in `root`, or `root` itself."""
    hint = "Set data.root to the folder that holds VPO/ and vggsound_bench/."
    if not root:
        raise InputError("data.root", expected="the folder of VPO", found="nothing", hint=hint)
    root = to_path(root)
    if not root.is_dir():
        found = "a file" if root.exists() else "no such folder"
        raise InputError(root, expected="the folder of VPO", found=found, hint=hint)
    name, table = _folder_name(setting), _table_name(setting)
    for folder in (root / "VPO" / name, root / name, root):
        if (folder / table).is_file():
            return folder
    inside = sorted(entry.name for entry in root.iterdir())
    found = ", ".join(inside[:8]) or "an empty folder"
    raise InputError(root, expected=f"VPO/{name}/{table} in it", found=found, hint=hint)


def find_sounds(folder: str | Path, root: Path) -> Path:
    """The folder of VGGSound's clips: the one named, or that beside VPO."""
    places = [to_path(folder)] if folder else []
    if not folder:
        above = (root.parent.parent, root.parent, root)
        places = [place / "vggsound_bench" / "VGGSound" / "audios" for place in above]
    found = next((place for place in places if place.is_dir()), None)
    if found is None:
        looked = " or ".join(map(str, places))
        hint = "Set data.sounds to the folder of <YouTube id>_<start>.wav."
        raise InputError("data.sounds", expected=f"a folder of sounds, {looked}", found="no such folder", hint=hint)
    return found


def read_table(path: Path, setting: str, split: str, fold_person: bool, stereo: bool) -> tuple[Row, ...]:
    """The pictures of one split, in the table's order. SS has one line for each, MS and MSMI one for each sound.

    Raises:
      InputError: the table is no such CSV, a value is not what its column should hold, a picture's lines disagree or
        come twice, or the split is empty.
    """
    columns = (*COLUMNS, *["audio_pos"] * stereo, *["multi_instance"] * (setting == "vpo_msmi"))
    entries = {entry.name: (label, entry.id) for label, entry in enumerate(vpo_classes.classes(fold_person), 1)}
    rows: dict[tuple[str, str], Row] = {}
    splits: dict[str, set[str]] = {}
    for line, values in stills.read_rows(path, columns):
        where = f"{path}, line {line}"
        row, own = _parse(where, line, values, setting, entries, fold_person)
        earlier = rows.get((own, row.id))
        if earlier is not None:
            if setting == "vpo_ss":
                found = f"'{row.id}' again, first in line {earlier.line}"
                raise InputError(where, expected="every mask once", found=found)
            if earlier.folder != row.folder:
                found = f"another than in line {earlier.line}"
                raise InputError(where, expected="one 'multi_instance' for a picture", found=found)
            row = earlier._replace(sounding=(*earlier.sounding, *row.sounding))
        rows[own, row.id] = row
        splits.setdefault(_number(row), set()).add(own)
    chosen = [row for (own, _), row in rows.items() if own == split]
    if not chosen:
        raise InputError(path, expected=f"lines of split '{split}'", found=f"{len(rows)} pictures of others")
    (other,) = set(SPLITS) - {split}
    return tuple(row._replace(also=f"'{other}'" if other in splits[_number(row)] else "") for row in chosen)


def _number(row: Row) -> str:
    """The picture's own, which two masks of VPO-SS may share."""
    return row.picture.rpartition("/")[2]


def _parse(where: str, line: int, values: dict[str, str], setting: str, entries, fold_person: bool) -> tuple[Row, str]:
    """One line as a picture with one sound, and its split."""

    def refuse(column, expected, hint=""):
        raise InputError(where, expected=f"{expected} in column '{column}'", found=repr(values[column]), hint=hint)

    numbers = {}
    for column in ("img_Id", "cateId", *["ann_Ids"] * (setting == "vpo_ss")):
        text = values[column].removesuffix(".0")  # spreadsheets
        if not (text.isascii() and text.isdigit() and len(text) <= 15):
            refuse(column, "a whole number")
        numbers[column] = int(text)
    name, category = values["cateName"], numbers["cateId"]
    folder_name = name
    if fold_person and name in ("male", "female", "baby"):
        name, category = "person", vpo_classes.PERSON
    if name not in entries:
        refuse(
            "cateName", "a class of VPO", "Set data.fold_person=True." if name == "person" else nearest(name, entries)
        )
    label, expected_id = entries[name]
    if category != expected_id:
        refuse("cateId", f"{expected_id} for '{name}'")
    split = {"val": "test"}.get(values["split"], values["split"])
    if split not in SPLITS:
        refuse("split", "train or test")
    position = _share(values["audio_pos"]) if "audio_pos" in values else 0.5
    if position is None:
        refuse("audio_pos", "a number from 0 to 1")
    if setting == "vpo_msmi" and values["multi_instance"].removesuffix(".0") not in ("0", "1"):
        refuse("multi_instance", "0 or 1")
    item = Sounding(label, stills.plain(where, "vgg_file", values["vgg_file"]), position)
    picture = f"{numbers['img_Id']:012d}"
    if setting == "vpo_ss":
        identity, mask = f"{picture}_{numbers['ann_Ids']:012d}", f"{picture}_{numbers['ann_Ids']:012d}"
        return Row(identity, "", f"{folder_name}/{picture}", f"{folder_name}/{mask}", (item,), line), split
    elsewhere = setting == "vpo_msmi" and values["multi_instance"].removesuffix(".0") == "0"
    return Row(picture, _folder_name("vpo_ms") if elsewhere else "", picture, picture, (item,), line), split


def _share(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if 0 <= value <= 1 else None
