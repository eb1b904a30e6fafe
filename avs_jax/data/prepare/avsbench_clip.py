"""One raw video -> the files of one clip of AVSBench (Zhou et al., ECCV 2022), by its public preprocessing's rules.

Pictures: fps is the container's average rate, rounded. The picture of second s is frame number
int(s * fps + 15/16 * fps), or the last frame where there are fewer, squashed to 224 x 224 by OpenCV's bilinear resize.
Frames are numbered as they are decoded. (The public reader first brings a video of varying frame rate to a constant one
by repeating frames; such videos, unlike those of AVSBench's demonstration, give other pictures here.)
Sound: `sound.read_stereo`, saved as 16-bit stereo; its log-mel (`audio.vggish_log_mel` of the saved samples) is pickled
as a torch tensor (5, 1, 96, 64).

In the table of S4, `start` is the second of a ten-second VGGSound clip at which the video was cut; what lies in
raw_videos/ is already cut, and the public code uses `start` for the length alone: 5 s, or 10 - start when that is less,
and as many pictures. Its own loader wants five, so five are always made here; those past the end repeat the last frame,
as the sound repeats its last example. `start` is therefore not needed.
"""

import contextlib
import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile

from avs_jax.data import media
from avs_jax.data.audio import EXAMPLE, EXAMPLE_SAMPLES, HOP, MEL_BINS, SAMPLE_RATE, WINDOW, vggish_log_mel
from avs_jax.data.prepare.opencv import resize_linear
from avs_jax.data.prepare.sound import CHANNELS, read_stereo
from avs_jax.data.prepare.torch_pickle import tensor_pickle
from avs_jax.errors import InputError

SECONDS = 5
SIDE = 224  # pixels
FRAME_IN_SECOND = 15 / 16
FAULTS = ("missing", "undecodable", "no sound", "too short", "crashed")


@dataclasses.dataclass(frozen=True)
class Job:
    """What is made of one clip.

    Attributes:
      videos: where the video may be; the first that exists is taken.
      frames: the five PNGs, or () where another job makes them; wav, log_mel: the other two files.
      note: what the table has to say of the clip.
      resampler: one of `sound.RESAMPLERS`.
      overwrite: make files again that are there and whole.
    """

    id: str
    split: str
    category: str
    videos: tuple[Path, ...]
    frames: tuple[Path, ...]
    wav: Path
    log_mel: Path
    note: str = ""
    resampler: str = "nearest"
    overwrite: bool = False

    @property
    def files(self) -> tuple[Path, ...]:
        return (*self.frames, self.wav, self.log_mel)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of a job.

    Attributes:
      status: "prepared", "there" (all files were), or "bad".
      fault: one of FAULTS where bad; reason: in words, naming the file.
      notes: what is unusual about a clip that was prepared.
    """

    status: str
    fault: str = ""
    reason: str = ""
    notes: tuple[str, ...] = ()


def frame_numbers(fps: float) -> tuple[int, ...]:
    """The number (from 0) of the frame of each of the five seconds, for a container's average frames per second."""
    whole = round(round(fps, 2))  # FFmpeg shows two decimals, and the public code reads what it shows
    return tuple(int(s * whole + FRAME_IN_SECOND * whole) for s in range(SECONDS))


def prepare_clip(job: Job) -> Outcome:
    """Makes the files of a clip that are not there or not whole; each appears whole or not at all.

    What is wrong with a video is an `Outcome`, not an error.

    Raises:
      InputError: a file cannot be written.
    """
    todo = set(job.files) if job.overwrite else {path for path in job.files if not is_whole(path, job)}
    if not todo:
        return Outcome("there")
    path = next((p for p in job.videos if p.is_file()), None)
    if path is None:
        return Outcome("bad", "missing", _missing(job))
    try:
        return _prepare(job, path, todo)
    except _Bad as bad:
        return Outcome("bad", bad.fault, str(bad.args[0]))
    except CannotWrite as error:
        raise InputError(error.path, expected="a place to write to", found=error.reason) from None
    except InputError as error:
        return Outcome("bad", "undecodable", str(error))
    except Exception as error:  # a decoder's odd complaint about one video must not end the work on the others
        return Outcome("bad", "undecodable", f"{path}: {type(error).__name__}: {error}")


def _missing(job: Job) -> str:
    suffixes = list(dict.fromkeys(path.suffix for path in job.videos))
    first = [str(path) for path in job.videos if path.suffix == suffixes[0]]
    return f"no file {' or '.join(first)}" + f" (or {', '.join(suffixes[1:])})" * (len(suffixes) > 1)


class _Bad(Exception):
    """A video that no clip can be made of."""

    def __init__(self, fault: str, where: Path, expected: str, found: str):
        super().__init__(InputError(where, expected=expected, found=found))
        self.fault = fault


class CannotWrite(OSError):
    """A file of the tree cannot be written."""

    def __init__(self, path: Path, reason: str):
        super().__init__(reason)
        self.path, self.reason = path, reason


def _prepare(job: Job, path: Path, todo: set[Path]) -> Outcome:
    video = media.probe(path)
    if video.sound is None:
        raise _Bad("no sound", path, "an audio track", "none, or an empty one")
    numbers, notes = frame_numbers(video.fps), [job.note] if job.note else []
    if video.num_frames <= numbers[0]:
        raise _Bad("too short", path, f"more than {numbers[0]} frames (at {video.fps:.4g} a second)",
                   f"{video.num_frames}")  # fmt: skip
    frames = []
    if todo & set(job.frames):  # first, because most that can be wrong is wrong here
        frames = [resize_linear(frame, (SIDE, SIDE)) for frame in media.read_frames_at(path, numbers)]
    beyond = sum(number >= video.num_frames for number in numbers)
    if beyond:
        notes.append(f"{video.num_frames} frames ({video.duration:.2f} s): the last stands for {beyond} of {SECONDS}")
    with replacing(job.wav) as wav:
        samples = _write_wav(wav, read_stereo(video, job.resampler))
        if samples < EXAMPLE_SAMPLES:
            raise _Bad("too short", path, f"{EXAMPLE_SAMPLES / SAMPLE_RATE} s of sound",
                       f"{samples / SAMPLE_RATE:.3f} s")  # fmt: skip
        examples = (1 + (samples - WINDOW) // HOP) // EXAMPLE
        if examples < SECONDS:
            notes.append(f"sound for {examples} of {SECONDS} seconds: the last is repeated")
        elif examples > SECONDS:
            notes.append(f"sound for {examples} seconds: the first {SECONDS} are in the log-mel")
        if job.log_mel in todo:
            with replacing(job.log_mel) as file:
                file.write_bytes(tensor_pickle(_log_mel(wav)))
        for target, pixels in zip(job.frames, frames, strict=False):
            if target in todo:
                with replacing(target) as file:
                    _write_png(file, pixels)
        if job.wav not in todo:
            wav.unlink()
    return Outcome("prepared", notes=tuple(notes))


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path to write to, which becomes `path` when the block ends well. Removed within the block: nothing does.

    Raises:
      CannotWrite: for any OSError, in the block as well.
    """
    half = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield half
        if half.exists():
            os.replace(half, path)
    except CannotWrite:  # a file within the block
        raise
    except OSError as error:  # reading tells its own by InputError
        raise CannotWrite(path, error.strerror or str(error)) from None
    finally:
        with contextlib.suppress(OSError):
            half.unlink()


def _write_wav(path: Path, blocks) -> int:
    count = 0
    try:
        with soundfile.SoundFile(path, "w", SAMPLE_RATE, CHANNELS, "PCM_16", format="WAV") as file:
            for block in blocks:
                file.write(block)
                count += len(block)
    except soundfile.LibsndfileError as error:
        raise OSError(error.error_string) from None
    return count


def _log_mel(wav: Path) -> np.ndarray:
    """(5, 1, 96, 64) float32."""
    needed = WINDOW + (SECONDS * EXAMPLE - 1) * HOP  # of a file of any length
    samples, rate = soundfile.read(wav, frames=needed, dtype="int16", always_2d=True)
    return vggish_log_mel(samples, rate, SECONDS)[:, None]


def _write_png(path: Path, pixels: np.ndarray) -> None:
    from PIL import Image

    Image.fromarray(pixels).save(path, format="PNG")


def is_whole(path: Path, job: Job) -> bool:
    """Whether a file of the job is there and complete, as far as its head, end and size tell."""
    try:
        if path in job.frames:
            data = path.read_bytes()
            size = SIDE.to_bytes(4, "big")
            return data[:8] == b"\x89PNG\r\n\x1a\n" and data[16:24] == size * 2 and data[-8:-4] == b"IEND"
        if path == job.log_mel:
            from avs_jax.torch_files import read_torch_pickle

            return read_torch_pickle(path).shape == (SECONDS, 1, EXAMPLE, MEL_BINS)
        info = soundfile.info(path)
        # libsndfile reports the frames that are there, so the size that the header states is compared with the file's
        stated = int.from_bytes(path.open("rb").read(8)[4:], "little") + 8
        return info.frames > 0 and info.samplerate == SAMPLE_RATE and stated == path.stat().st_size
    except (OSError, InputError, soundfile.LibsndfileError):
        return False
