"""AVSBench on disk: the S4 (single source) and MS3 (multiple sources) folders of Zhou et al., ECCV 2022."""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from avs_jax.data import audio, images
from avs_jax.data.clip import IGNORE, Clip
from avs_jax.data.sources import files
from avs_jax.data.sources.avsbench_table import SPLITS, Row, read_table
from avs_jax.errors import InputError, nearest
from avs_jax.paths import to_path
from avs_jax.torch_files import read_torch_pickle

NUM_FRAMES = 5


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where a setting keeps its files. `{split}`, `{category}`, `{id}` and `{k}` (1 to 5) stand for a clip's own."""

    folder: str
    table: str
    columns: tuple[str, ...]
    frame: str
    mask: str
    log_mel: str
    wav: str
    train_masks: int  # how many of the five frames of a training clip are labelled


LAYOUTS = {
    "s4": Layout(
        folder="Single-source",
        table="s4_meta_data.csv",
        columns=("name", "start", "category", "split"),
        frame="s4_data/visual_frames/{split}/{category}/{id}/{id}_{k}.png",
        mask="s4_data/gt_masks/{split}/{category}/{id}/{id}_{k}.png",
        log_mel="s4_data/audio_log_mel/{split}/{category}/{id}.pkl",
        wav="s4_data/audio_wav/{split}/{category}/{id}.wav",
        train_masks=1,
    ),
    "ms3": Layout(
        folder="Multi-sources",
        table="ms3_meta_data.csv",
        columns=("video_id", "split"),
        frame="ms3_data/visual_frames/{id}/{id}.mp4_{k}.png",  # no split folder, and .mp4 within the name
        mask="ms3_data/gt_masks/{split}/{id}/{id}_{k}.png",
        log_mel="ms3_data/audio_log_mel/{split}/{id}.pkl",
        wav="ms3_data/audio_wav/{split}/{id}.wav",
        train_masks=5,
    ),
}


class AVSBenchSource(files.FileSource):
    """A random-access source of AVSBench clips (see `avs_jax.data.sources.Source`).

    Only the table is read at construction; what is wrong with a clip's files is told when the clip is read, or by
    `problems`, all at once.

    Args:
      root: the folder that holds `Single-source/` and `Multi-sources/`, or the setting's own of the two.
      setting: "s4" or "ms3".
      split: "train", "val" or "test". Of an S4 training clip only the first frame is labelled.
      image_size: side of the frames, or (height, width). The public frames and masks are 224 x 224.
      resize: scale images of another size (frames bilinearly, masks to the nearest pixel) in place of refusing them.
      front_end: name of what turns sound into `audio` (`avs_jax.data.audio`).
      sound: "log_mel" reads the pickled log-mel tensors, "wav" computes the front end from the wav, "auto" takes
        the pickle where there is one. Pickles hold VGGish's log-mel, so another front end needs "wav".
      resampler: for wav files that are not 16 kHz (`avs_jax.data.audio.resample`).
      seconds: of sound that the "waveform" front end hears with each frame; None = its default.
    Raises:
      InputError: an option outside these, or a folder or table that is not AVSBench's.
    """

    num_frames = NUM_FRAMES
    class_names = ("background", "sounding")

    def __init__(
        self,
        root: str | Path = "",
        setting: str = "s4",
        split: str = "train",
        image_size: int | tuple[int, int] = 224,
        resize: bool = False,
        front_end: str = "vggish",
        sound: str = "auto",
        resampler: str = "kaiser_best",
        seconds: float | None = None,
    ):
        if setting not in LAYOUTS:  # AVSS has a source of its own, which `create_source` gives
            valid = (*LAYOUTS, "avss")
            expected = f"one of {', '.join(valid)}"
            raise InputError("data.setting", expected=expected, found=repr(setting), hint=nearest(setting, valid))
        self.setting = setting
        self.split = files.choice("split", split, SPLITS)
        self.sound = files.choice("sound", sound, ("auto", "log_mel", "wav"))
        self.image_size, self.resize = files.size_of(image_size), bool(resize)
        self.resampler = files.choice("resampler", resampler, audio.RESAMPLERS)
        self.front_end = files.front_end_of(front_end, resampler=resampler, seconds=seconds)
        if front_end != "vggish" and sound != "wav":
            raise InputError("data.sound", expected=f"'wav' with front end '{front_end}'", found=repr(sound))
        self.layout = LAYOUTS[setting]
        self.root = find_root(root, self.layout)
        self._rows = read_table(self.root / self.layout.table, self.layout.columns, split)
        self.ids = tuple(row.id for row in self._rows)
        self.categories = tuple(row.category for row in self._rows)  # "" in MS3

    def visual(self, index: int) -> Clip:
        """Clip `index` without its `audio`."""
        row = self._row(index)
        labels = np.full((NUM_FRAMES, *self.image_size), IGNORE, np.uint8)
        labelled = np.arange(NUM_FRAMES) < self._num_masks
        self._check_count(row, self.layout.frame, NUM_FRAMES)
        frames = np.stack([self._frame(row, k) for k in range(1, NUM_FRAMES + 1)])
        self._check_count(row, self.layout.mask, self._num_masks)
        for k in range(1, self._num_masks + 1):
            labels[k - 1] = self._mask(row, k)
        return {"frames": frames, "labels": labels, "labelled": labelled, "id": row.id}

    def audio(self, index: int) -> np.ndarray:
        """The record's `audio` of clip `index`: (5, 96, 64) float32 for VGGish."""
        return self._audio(self._row(index))

    def audio_origin(self, index: int):
        """What `audio(index)` is a function of: options, and the pickle or wav that is read."""
        row = self._row(index)
        pickled = self._log_mel(row)
        if pickled is not None:
            return {"log_mel": NUM_FRAMES}, pickled
        return {"front_end": repr(self.front_end), "frames": NUM_FRAMES}, self._path(row, self.layout.wav)

    def sound_file(self, index: int) -> Path | None:
        """The wav of clip `index` where there is one, to be listened to: a log-mel pickle cannot be."""
        path = self._path(self._row(index), self.layout.wav)
        return path if path.is_file() else None

    def fingerprint(self) -> dict:
        """JSON-able identity. The folder is no part of it: a data set may move."""
        return {
            "source": "avsbench",
            "setting": self.setting,
            "split": self.split,
            "length": len(self),
            "ids": files.digest(self.ids),
            "image_size": list(self.image_size),
            "resize": self.resize,
            **files.heard_through(self.front_end),
            "sound": self.sound,
            "resampler": self.resampler,
        }

    # --- one clip's files ---

    @property
    def _num_masks(self) -> int:
        return self.layout.train_masks if self.split == "train" else NUM_FRAMES

    def _path(self, row: Row, template: str, k: int = 0) -> Path:
        return self.root / template.format(split=self.split, category=row.category, id=row.id, k=k)

    def _frame(self, row: Row, k: int) -> np.ndarray:
        return images.read_frame(self._path(row, self.layout.frame, k), self.image_size, self.resize)

    def _mask(self, row: Row, k: int) -> np.ndarray:
        return images.read_mask(self._path(row, self.layout.mask, k), self.image_size, self.resize)

    def _log_mel(self, row: Row) -> Path | None:
        """The pickle that the clip is heard from; None: the wav."""
        pickled = self._path(row, self.layout.log_mel)
        return pickled if self.sound == "log_mel" or (self.sound == "auto" and pickled.exists()) else None

    def _audio(self, row: Row) -> np.ndarray:
        pickled, wav = self._log_mel(row), self._path(row, self.layout.wav)
        if pickled is not None:
            return _read_log_mel(pickled, self.front_end.shape(NUM_FRAMES))
        if self.sound == "auto" and not wav.exists():
            pickled = self._path(row, self.layout.log_mel)
            raise InputError(pickled, expected=f"a log-mel pickle, or the sound in {wav}", found="neither")
        return self.front_end(*audio.read_audio(wav), NUM_FRAMES)

    def _check_count(self, row: Row, template: str, count: int) -> None:
        """Compares the images in the folder of frames or masks with those expected, by name."""
        names = [self._path(row, template, k).name for k in range(1, count + 1)]
        # a training clip may come with more masks than may be used
        files.check_images(self._path(row, template).parent, names, more=count < NUM_FRAMES)

    def _checks(self, row: Row) -> Iterator[Callable]:
        """Every check of one clip, each raising what it finds."""
        yield lambda: files.check_split(self.root / self.layout.table, row, self.split)
        for template, count, read in (
            (self.layout.frame, NUM_FRAMES, self._frame),
            (self.layout.mask, self._num_masks, self._mask),
        ):
            yield lambda template=template, count=count: self._check_count(row, template, count)
            for k in range(1, count + 1):
                if self._path(row, template, k).exists():  # the count tells of those that do not
                    yield lambda read=read, k=k: read(row, k)
        yield lambda: self._audio(row)


def find_root(root: str | Path, layout: Layout) -> Path:
    """The setting's own folder: `root` itself or the one within it."""
    hint = "Set data.root to the folder that holds Single-source/ and Multi-sources/."
    if not root:
        raise InputError("data.root", expected="the folder of AVSBench", found="nothing", hint=hint)
    root = to_path(root)
    if not root.is_dir():
        found = "a file" if root.exists() else "no such folder"
        raise InputError(root, expected="the folder of AVSBench", found=found, hint=hint)
    for folder in (root / layout.folder, root):
        if (folder / layout.table).is_file():
            return folder
    inside = sorted(entry.name + "/" * entry.is_dir() for entry in root.iterdir())
    raise InputError(
        root,
        expected=f"{layout.folder}/{layout.table} or {layout.table} in it",
        found=", ".join(inside[:8]) + (", ..." if len(inside) > 8 else "") or "an empty folder",
    )


def _read_log_mel(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """A pickled (T, 1, 96, 64) or (T, 96, 64) tensor as (T, 96, 64) float32."""
    values = read_torch_pickle(path)
    if values.shape not in (shape, (shape[0], 1, *shape[1:])) or values.dtype.kind != "f":
        expected = f"a float tensor of shape {(shape[0], 1, *shape[1:])}"
        raise InputError(path, expected=expected, found=f"{values.dtype} of shape {values.shape}")
    values = values.reshape(shape).astype(np.float32)
    if not np.isfinite(values).all():
        bad = int((~np.isfinite(values)).sum())
        raise InputError(path, expected="finite numbers", found=f"{bad} NaN or infinite values")
    return values
