"""What can be predicted on, as one thing: frames with their times, and a sound track on the same clock."""

import dataclasses
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from avs_jax.data import media
from avs_jax.data.images import read_picture
from avs_jax.errors import InputError, nearest
from avs_jax.paths import to_path

IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff")
FORMATS = ("PNG", "JPEG", "MPO", "BMP", "WEBP", "TIFF")  # MPO: what phones save as .jpg
SOUNDS = (".wav", ".flac", ".ogg", ".mp3", ".m4a", ".aac", ".opus")
NOTEWORTHY = 0.1  # seconds by which picture and sound may differ before the report says so


@dataclasses.dataclass(frozen=True)
class Movie:
    """Frames and sound.

    Attributes:
      name: the input, as the user gave it; kind: "video", "folder", "picture" (one, with a sound) or "clip".
      size: (height, width) of the frames as shown.
      fps: frames per second, the average where it varies.
      duration: seconds; num_frames: how many frames.
      frames: call it for a fresh pass over the frames, things with `index`, `time` (s) and `rgb()`.
      sound: where the sound lies on the clock of the frames; None where only its spectrogram is known.
      track: a media file or (samples, rate), as `VideoWriter` takes; `origin`: the file's time that is time zero.
    """

    name: str
    kind: str
    size: tuple[int, int]
    fps: float
    duration: float
    num_frames: int
    frames: Callable[[], Iterator]
    sound: media.SoundInfo | None
    track: Any
    origin: float = 0.0


@dataclasses.dataclass(frozen=True)
class Picture:
    """A frame from an image file or an array; the counterpart of `media.Frame`."""

    index: int
    time: float
    source: Path | np.ndarray

    def rgb(self) -> np.ndarray:
        return self.source if isinstance(self.source, np.ndarray) else read_image(self.source)


def read_image(path: Path) -> np.ndarray:
    """(H, W, 3) uint8, turned as its EXIF tag says.

    Raises:
      InputError: the file is missing, truncated, no image of these formats, or one of too many pixels.
    """
    return read_picture(path, FORMATS)


def open_movie(path: str | Path, *, audio: str | Path | None = None, fps: float | None = None) -> Movie:
    """The video file, folder of frames, or single picture at `path`.

    Args:
      audio: sound file to use in place of the one inside (a folder's only sound file, a video's own track); a picture
        needs one.
      fps: frame rate of a folder (default 1, as AVSBench's frames); a video knows its own.
    Raises:
      InputError: missing or broken files, no pictures, no sound, an option that does not apply.
    """
    path = to_path(path)
    if path.is_dir():
        return _folder(path, audio, 1.0 if fps is None else fps)
    if path.suffix.lower() in IMAGES and path.is_file():
        if audio is None or fps is not None:
            option, expected = ("--audio", "a sound file") if audio is None else ("--fps", "a folder of frames")
            raise InputError(option, expected=f"{expected}, with the picture {path.name} as the input",
                             found="nothing" if audio is None else f"{fps}")  # fmt: skip
        return _picture(str(path), path, audio)
    if fps is not None:
        raise InputError("--fps", expected="a folder of frames as the input", found=f"{path}",
                         hint="A video file has its own frame times; --rate sets how many masks a second.")  # fmt: skip
    info = media.probe(path, need_sound=audio is None)
    sound, track, origin = info.sound, path, info.origin
    if audio is not None:
        sound, track, origin = _sound_file(to_path(audio))
    size = (info.height, info.width)
    return Movie(str(path), "video", size, info.fps, info.duration, info.num_frames,
                 lambda: media.read_frames(path), sound, track, origin)  # fmt: skip


def _sound_file(path: Path):
    """A sound file beside the frames begins with them, whatever its own clock says."""
    info = media.probe_sound(path)
    return dataclasses.replace(info, start=0.0, end=info.end - info.start), path, info.start


def _folder(path: Path, audio, fps: float) -> Movie:
    if not (np.isfinite(fps) and fps > 0):
        raise InputError("--fps", expected="a positive number of frames per second", found=repr(fps))
    files = [f for f in path.iterdir() if f.is_file() and not f.name.startswith(".")]
    images = sorted((f for f in files if f.suffix.lower() in IMAGES), key=natural_key)
    if not images:
        raise InputError(path, expected=f"images ({', '.join(IMAGES)})", found=f"{len(files)} files, none an image")
    if audio is None:
        sounds = sorted(f for f in files if f.suffix.lower() in SOUNDS)
        if len(sounds) != 1:
            found = ", ".join(f.name for f in sounds[:4]) or "none"
            raise InputError(path, expected=f"one sound file ({', '.join(SOUNDS)})", found=found,
                             hint="Name the one to use with --audio.")  # fmt: skip
        audio = sounds[0]
    if len(images) == 1:
        return _picture(str(path), images[0], audio)
    size = read_image(images[0]).shape[:2]

    def frames():
        for index, file in enumerate(images):
            image = read_image(file)
            if image.shape[:2] != size:
                raise InputError(file, expected=f"{size[1]}x{size[0]} pixels, as {images[0].name}",
                                 found=f"{image.shape[1]}x{image.shape[0]}")  # fmt: skip
            yield Picture(index, index / fps, image)

    sound, track, origin = _sound_file(to_path(audio))
    return Movie(str(path), "folder", size, fps, len(images) / fps, len(images), frames, sound, track, origin)


def _picture(name: str, image: Path, audio) -> Movie:
    """One picture, shown for as long as its sound lasts."""
    size = read_image(image).shape[:2]
    sound, track, origin = _sound_file(to_path(audio))
    duration = max(sound.end, 1e-3)
    return Movie(name, "picture", size, 1 / duration, duration, 1, lambda: iter([Picture(0, 0.0, image)]), sound, track,
                 origin)  # fmt: skip


def natural_key(path: Path):
    """Sorts frame_2 before frame_10."""
    return [(0, int(part), "") if part.isdigit() else (1, 0, part.lower()) for part in re.split(r"(\d+)", path.name)]


def find_clip(source, name: str) -> int:
    """The index of the clip called `name`.

    Raises:
      InputError: no such clip; names the nearest.
    """
    ids = list(source.ids)
    if name not in ids:
        raise InputError(f"--input={name}", expected="a video, a folder of frames, or the id of a clip of this split",
                         found=f"no such file, and none of the {len(ids)} clips has this id",
                         hint=nearest(name, ids) or f"Ids look like '{ids[0]}'.")  # fmt: skip
    return ids.index(name)


def clip_movie(source, index: int, frames: np.ndarray) -> Movie:
    """A clip of a data set as a movie of one frame a second, or of a single one for as long as its sound lasts.

    It has sound where the source can give it: `waveform(index)` (samples at `sample_rate`), or `sound_file(index)`,
    a path or None.
    """
    track = sound = None
    origin = 0.0
    if hasattr(source, "sound_file") and (file := source.sound_file(index)) is not None:
        sound, track, origin = _sound_file(to_path(file))
    elif hasattr(source, "waveform"):
        rate = getattr(source, "sample_rate", media.SAMPLE_RATE)
        track = (source.waveform(index), rate)
        sound = media.SoundInfo(0.0, len(track[0]) / rate, rate, 1 if track[0].ndim == 1 else track[0].shape[1], "pcm")
    pictures = [Picture(i, float(i), image) for i, image in enumerate(frames)]
    duration = sound.end if len(frames) == 1 and sound is not None else float(len(frames))
    return Movie(source.ids[index], "clip", frames.shape[1:3], len(frames) / duration, duration, len(frames),
                 lambda: iter(pictures), sound, track, origin)  # fmt: skip


def sound_report(movie: Movie) -> tuple[dict | None, list[str]]:
    """What the report says of the sound, and sentences about whatever had to be filled or left unused."""
    if movie.sound is None:
        return None, ["The data set gives no waveform for this clip: the overlay is silent."]
    before, after = max(0.0, movie.sound.start), max(0.0, movie.duration - movie.sound.end)
    over = max(0.0, movie.sound.end - movie.duration)
    notes = []
    if before > NOTEWORTHY:
        notes.append(f"The sound begins {before:.2f} s after the first frame: silence was put before it.")
    if after > NOTEWORTHY:
        notes.append(f"The sound ends {after:.2f} s before the last frame: silence was put after it.")
    if over > NOTEWORTHY:
        notes.append(f"The sound goes on for {over:.2f} s after the last frame: that part was not used.")
    report = {
        "start": round(movie.sound.start, 4),
        "end": round(movie.sound.end, 4),
        "sample_rate": movie.sound.sample_rate,
        "channels": movie.sound.channels,
        "silence_before": round(before, 4),
        "silence_after": round(after, 4),
        "unused": round(over, 4),
    }
    return report, notes
