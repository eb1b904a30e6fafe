"""What sources of still pictures with a few seconds of sound share (VPO, AVSBench-Single+)."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from avs_jax.data import audio, images
from avs_jax.data.augment import FILL
from avs_jax.data.clip import IGNORE, Clip
from avs_jax.data.sources import files
from avs_jax.data.sources.avsbench_table import read_lines
from avs_jax.errors import InputError

FITS = ("none", *images.FITS)
BUCKETS = ((256, 256), (512, 640), (640, 512), (640, 640))  # for COCO, whose pictures' longer sides have 640 pixels
STEP = 128  # larger pictures come to multiples of this


class StillSource(files.FileSource):
    """Pictures with a sound each, of which the table says which classes sound: `image_classes(index)` (K,) bool."""

    @property
    def own_size(self) -> bool:
        """Whether pictures keep their own size, so that `image_size` is not theirs."""
        return self._fit.how == "none"

    def sounds(self, index: int) -> np.ndarray:
        """(1, K - 1) bool of `sound_names`: the classes that sound in clip `index`, by the table."""
        return self.image_classes(index)[None, 1:]

    @property
    def sound_names(self) -> tuple[str, ...]:
        return self.class_names[1:]


@dataclasses.dataclass(frozen=True)
class Fit:
    """How pictures of any size come to the size that a source yields.

    Attributes:
      how: "none" keeps the picture's own size, which training crops (`augment.crop`) and evaluation takes as it is;
        "squash" and "crop" scale it to `size`, as `images.fitted`.
      size: (height, width).
      pad: with "none": pictures are padded to the right and below, so that few shapes occur (mean colour; ignored
        labels). A number: sides come to the next multiple of it; (height, width): one shape for all; "buckets": the
        smallest of `BUCKETS` that holds the picture, or multiples of `STEP`; 0: nothing. Padded clips have `size`, by
        which a method that knows it (CAVP) predicts as without padding; any other sees the mean colour at the edge.
    """

    how: str
    size: tuple[int, int]
    pad: int | tuple[int, int] | str = 0

    def __call__(self, path: Path, read: Callable[[tuple[int, int]], np.ndarray]) -> Clip:
        """Reads the picture and its labels.

        Args:
          read: (height, width) of the picture -> its labels of the same size, uint8.
        Returns:
          `frames` (1, H, W, 3), `labels` (1, H, W), and with `pad` `size`, as the record has them.
        """
        frame = images.read_frame(path)
        labels = read(frame.shape[:2])
        if self.how != "none":
            smooth, nearest = images.Image.Resampling.BILINEAR, images.Image.Resampling.NEAREST
            frame, labels = _scaled(frame, self, smooth, path), _scaled(labels, self, nearest, path)
        if not self.pad:
            return {"frames": frame[None], "labels": labels[None]}
        height, width = canvas = padded(labels.shape, self.pad)
        rest = [(0, m - n) for n, m in zip(labels.shape, canvas, strict=True)]
        if min(rest)[1] < 0:
            expected = f"at most data.pad = {height} x {width} pixels"
            raise InputError(path, expected=expected, found=f"{labels.shape[0]} x {labels.shape[1]}")
        big = np.broadcast_to(np.array(FILL, np.uint8), (1, height, width, 3)).copy()
        big[0, : labels.shape[0], : labels.shape[1]] = frame
        size = np.array(labels.shape, np.int32)
        return {"frames": big, "labels": np.pad(labels, rest, constant_values=IGNORE)[None], "size": size}


def _scaled(pixels: np.ndarray, fit: Fit, how, path: Path) -> np.ndarray:
    return np.asarray(images.fitted(images.Image.fromarray(pixels), fit.size, fit.how, how, path))


def padded(size: tuple[int, int], pad: int | tuple[int, int] | str) -> tuple[int, int]:
    """(height, width) that a picture of this size is padded to; see `Fit`. One shape may be too small for it."""
    if isinstance(pad, tuple):
        return pad
    if pad == "buckets":
        holding = [bucket for bucket in BUCKETS if bucket[0] >= size[0] and bucket[1] >= size[1]]
        if holding:
            return holding[0]
        pad = STEP
    return tuple(-(-side // pad) * pad for side in size)


def fit_of(how: str, image_size, pad) -> Fit:
    """The options `data.fit`, `data.image_size` and `data.pad`, checked."""
    files.choice("fit", how, FITS)
    expected = "a number of pixels that sides become multiples of, (height, width), 'buckets', or 0"
    if pad == "buckets":
        wrong = False
    elif np.ndim(pad):
        pad = tuple(pad)
        wrong = len(pad) != 2 or any(isinstance(n, bool) or not isinstance(n, int) or n < 1 for n in pad)
    else:
        wrong = isinstance(pad, bool) or not isinstance(pad, int) or pad < 0
    if wrong or (pad and how != "none"):
        hint = "It is for pictures of their own size." if not wrong else ""
        raise InputError("data.pad", expected=expected, found=repr(pad), hint=hint)
    return Fit(how, files.size_of(image_size), pad)


@dataclasses.dataclass(frozen=True)
class Mixer:
    """Sound files -> one waveform: each cut to its middle, panned, and added without rescaling, as CAVP's public code.

    Attributes:
      seconds: of the waveform.
      crop: of a sound shorter than that, "middle" or "reference": see `audio.WaveformFrontEnd`.
      stereo: two channels, left and right; a sound at position p (0 left, 1 right) is (1 - p) and p of itself there.
      resampler: see `audio.resample`.
    """

    seconds: float
    stereo: bool
    crop: str
    resampler: str

    def __call__(self, tracks: Sequence[tuple[Path, float]]) -> np.ndarray:
        """(samples,) or (samples, 2) float32 at 16 kHz. tracks: files and positions; none: silence."""
        count = round(self.seconds * audio.SAMPLE_RATE)
        total = np.zeros((count, 2) if self.stereo else count)
        for path, position in tracks:
            waveform, rate = audio.read_audio(path)
            wave = audio.resample(audio.to_mono(waveform), rate, self.resampler)
            wave = audio.crop_or_repeat(wave, len(wave) // 2 - count // 2, count, self.crop)
            total += np.stack([(1 - position) * wave, position * wave], 1) if self.stereo else wave
        return total.astype(np.float32)


def mixer_of(seconds, stereo, crop: str, resampler: str) -> Mixer:
    """The options `data.seconds`, `data.stereo`, `data.crop` and `data.resampler`, checked."""
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not 0.1 <= seconds <= 60:
        raise InputError("data.seconds", expected="seconds of sound, 0.1 to 60", found=repr(seconds))
    files.choice("crop", crop, audio.CROPS)
    return Mixer(float(seconds), bool(stereo), crop, files.choice("resampler", resampler, audio.RESAMPLERS))


def front_end_of(name: str, mixer: Mixer):
    """The front end called `name`, for the waveforms of `mixer`."""
    files.choice("front_end", name, audio.FRONT_ENDS)
    offered = {"seconds": mixer.seconds, "channels": 1 + mixer.stereo, "resampler": mixer.resampler}
    fields = {field.name for field in dataclasses.fields(audio.FRONT_ENDS[name]) if field.init}
    if mixer.stereo and "channels" not in fields:
        raise InputError(
            "data.stereo", expected=f"False with front end '{name}', which hears one channel", found="True"
        )
    return audio.front_end(name, **{option: value for option, value in offered.items() if option in fields})


def read_rows(path: Path, columns: Sequence[str]) -> list[tuple[int, dict[str, str]]]:
    """(line, {column: value}) of a table with a header that has these columns, each once.

    Raises:
      InputError: the file is missing or no UTF-8 CSV, a column is missing, or a line is too short or long.
    """
    lines = read_lines(path)
    header = lines[0][1] if lines else []
    missing = [column for column in columns if header.count(column) != 1]
    if missing:
        found = ", ".join(header) or "an empty file"
        raise InputError(path, expected=f"columns {', '.join(columns)}, each once", found=found)
    for line, fields in lines[1:]:
        if len(fields) != len(header):
            raise InputError(f"{path}, line {line}", expected=f"{len(header)} values", found=str(len(fields)))
    return [(line, dict(zip(header, fields, strict=True))) for line, fields in lines[1:]]


def plain(where: str, column: str, name: str) -> str:
    """`name`, which becomes part of a path.

    Raises:
      InputError: it could lead elsewhere, or is no file's name.
    """
    if not files.is_plain(name):
        expected = f"a plain name in column '{column}'"
        raise InputError(where, expected=expected, found=repr(name), hint="It becomes part of a path.")
    return name


def existing(folder: Path, stem: str, suffixes: Sequence[str]) -> Path:
    """The file of that stem with the first of the suffixes that is there, or with the first where none is."""
    paths = [folder / f"{stem}{suffix}" for suffix in suffixes]
    return next((path for path in paths if path.is_file()), paths[0])


def multi_hot(labels: Sequence[int], count: int) -> np.ndarray:
    """(count,) bool, True at the labels and at the background, 0."""
    found = np.zeros(count, bool)
    found[[0, *labels]] = True
    return found
