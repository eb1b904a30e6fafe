"""Video and its sound, in: probing, frames with their times, streamed sound. Constant memory for any length.

Time zero is the moment the first video frame is shown; the sound is placed on that clock.

Files of any origin may be read. FFmpeg knows formats that are lists of further files and addresses to open; only those
of `FORMATS` are opened, which hold everything themselves, and only from the local disk. Frames have at most
`MAX_PIXELS`, and clocks may not jump so far that filling the hole would never end.
"""

import collections
import contextlib
import dataclasses
import functools
from collections.abc import Iterable, Iterator
from pathlib import Path

import av
import numpy as np

from avs_jax.data.audio import MAX_CHANNELS, RATES, SAMPLE_RATE, to_mono
from avs_jax.errors import InputError
from avs_jax.paths import fetched, to_path

FORMATS = ("mov", "mp4", "m4a", "3gp", "matroska", "webm", "avi", "asf", "flv", "mpegts", "mpeg", "mpegvideo", "mxf",
           "dv", "ivf", "gif", "ogg", "wav", "w64", "flac", "mp3", "aac", "ac3", "eac3", "aiff", "caf",
           "amr")  # fmt: skip
MAX_PIXELS = 1 << 25  # of a frame: 8K has 33 million
HOLE = 3600.0  # seconds; a clock that jumps farther is damaged, and nobody waits for the silence between
GAP = 0.05  # seconds; a jump of the sound's clock beyond this is silence in the recording, below it jitter


@dataclasses.dataclass(frozen=True)
class SoundInfo:
    """A sound track: where it lies on the video's clock (seconds, `start` < 0: begins before the first frame)."""

    start: float
    end: float
    sample_rate: int
    channels: int
    codec: str


@dataclasses.dataclass(frozen=True)
class VideoInfo:
    """What `probe` finds.

    Attributes:
      width, height: pixels as shown, that is after `rotation`.
      rotation: degrees counter-clockwise by which a stored frame is turned to be shown (0, 90, 180, 270).
      fps: average frames per second; the frame rate may vary.
      num_frames: frames counted in the file.
      duration: seconds from the first frame to the end of the last.
      origin: presentation time of the first frame on the file's own clock, seconds.
      sound: the first sound track, or None.
    """

    path: Path
    width: int
    height: int
    rotation: int
    fps: float
    num_frames: int
    duration: float
    origin: float
    sound: SoundInfo | None


@dataclasses.dataclass(frozen=True)
class Frame:
    """A decoded frame: its number in the file, the time it is shown from (seconds), and `rgb()`, (H, W, 3) uint8.

    Conversion to RGB waits for `rgb()`, so that frames nobody looks at cost only their decoding.
    """

    index: int
    time: float
    picture: av.VideoFrame

    def rgb(self) -> np.ndarray:
        image = self.picture.to_ndarray(format="rgb24")
        turns = round(self.picture.rotation / 90) % 4
        return np.ascontiguousarray(np.rot90(image, turns)) if turns else image


@contextlib.contextmanager
def opened(path: str | Path):
    """An open PyAV container; whatever the decoder refuses inside the block becomes an InputError naming the file."""
    path = to_path(path)
    if not path.is_file():
        found = "a folder" if path.is_dir() else "no such file"
        raise InputError(path, expected="a media file", found=found)
    try:
        options = {"format_whitelist": ",".join(FORMATS), "protocol_whitelist": "file"}
        with av.open(f"file:{fetched(path)}", options=options, metadata_errors="replace") as container:
            yield container
    except av.error.ArgumentError:
        raise InputError(path, expected="a video or a sound file", found="another format, or a damaged file",
                         hint="Playlists are not opened. ffmpeg may convert it to mp4.") from None  # fmt: skip
    except (av.error.InvalidDataError, av.error.EOFError) as error:
        raise InputError(path, expected="a media file that decodes", found=_reason(path, error),
                         hint="Is it complete? Re-encoding it with ffmpeg may repair it.") from None  # fmt: skip
    except (av.error.FFmpegError, OSError) as error:
        raise InputError(path, expected="a readable media file", found=error.strerror or str(error)) from None


def _reason(path: Path, error) -> str:
    head = path.open("rb").read(512)
    if not head:
        return "an empty file"
    if all(32 <= byte < 127 or byte in b"\r\n\t" for byte in head):
        return "text"
    return f"a broken, truncated or unsupported file ({(error.strerror or str(error)).rstrip('.')})"


def _video_stream(container, path):
    """The first real video stream: a picture attached to a song is none."""
    attached = av.stream.Disposition.attached_pic
    for stream in container.streams.video:
        if not stream.disposition & attached and stream.codec_context is not None:
            stream.thread_type = "AUTO"
            stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}  # for sizes that change on the way
            width, height = stream.codec_context.width, stream.codec_context.height
            if width * height > MAX_PIXELS:
                raise InputError(path, expected=f"frames of at most {MAX_PIXELS} pixels", found=f"{width}x{height}")
            return stream
    kinds = ", ".join(sorted({stream.type for stream in container.streams})) or "nothing"
    raise InputError(path, expected="a video stream", found=f"{kinds} only")


def audio_stream(container):
    """The first sound track of an open container, or None."""
    return next((s for s in container.streams.audio if s.codec_context is not None), None)


def _audio_stream(container, path):
    stream = audio_stream(container)
    if stream is None:
        found = "one of an unsupported codec" if container.streams.audio else "none"
        raise InputError(path, expected="an audio track", found=found,
                         hint="The models hear as well as see: give a file with sound.")  # fmt: skip
    return stream


def _check_sound(path, rate: int, channels: int) -> None:
    if not (RATES[0] <= rate <= RATES[1] and 1 <= channels <= MAX_CHANNELS):
        raise InputError(path, expected=f"sound of {RATES[0]} to {RATES[1]} Hz, 1 to {MAX_CHANNELS} channels",
                         found=f"{rate} Hz, {channels} channels")  # fmt: skip


class _Span:
    """The stretch of time that a stream's packets cover; how many there are, and how many of them are shown."""

    def __init__(self):
        self.first, self.begin, self.last, self.corrupt = None, 0.0, 0.0, False
        self.packets = self.count = 0

    def add(self, packet):
        stamp = packet.pts if packet.pts is not None else packet.dts
        self.corrupt |= packet.is_corrupt
        self.packets += 1
        if packet.is_discard:  # an edit list leaves it out
            return
        self.count += 1
        if stamp is not None:
            begin = float(stamp * packet.time_base)
            self.first = begin if self.first is None else min(self.first, begin)
            self.begin = max(self.begin, begin)
            self.last = max(self.last, begin + float((packet.duration or 0) * packet.time_base))

    def rate(self, declared: float) -> float:
        """Packets per second: as declared, unless the packets' own times speak against it (some AVI files)."""
        covered = self.begin - (self.first or 0.0)
        measured = (self.count - 1) / covered if covered > 0 else 0.0
        trusted = declared and (not measured or 0.8 < declared / measured < 1.25)
        return declared if trusted else measured or 25.0


def _scan(container, streams) -> list[_Span]:
    """Reads every packet of `streams`, decoding none: a damaged file is found before hours of work, not after."""
    spans = {stream.index: _Span() for stream in streams}
    for packet in container.demux(streams):
        if packet.size:
            spans[packet.stream.index].add(packet)
    return [spans[stream.index] for stream in streams]


def _sound_info(stream, span: _Span, origin: float, path) -> SoundInfo:
    context = stream.codec_context
    _check_sound(path, context.sample_rate, context.layout.nb_channels)
    first = span.first or 0.0
    return SoundInfo(first - origin, max(span.last, first) - origin, context.sample_rate, context.layout.nb_channels,
                     context.name)  # fmt: skip


def probe(path: str | Path, *, need_sound: bool = False) -> VideoInfo:
    """What a video file holds, after reading all of its packets once (no decoding beyond the first frame).

    Args:
      path: any container and codec FFmpeg reads.
      need_sound: refuse a file without an audio track.
    Raises:
      InputError: no such file, not media, no video stream, no frames, no audio track where one is needed, or the
        file is damaged or shorter than its header says.
    """
    path = to_path(path)
    with opened(path) as container:
        video = _video_stream(container, path)
        sound = _audio_stream(container, path) if need_sound else audio_stream(container)
        # Other containers do not say, count what is not there, or are streams that may begin and end anywhere.
        declared = video.frames if "mp4" in container.format.name else 0
        spans = _scan(container, [video] + ([sound] if sound else []))
        span = spans[0]
        if declared and (span.corrupt or span.packets < declared):
            whole = span.packets - span.corrupt
            raise InputError(path, expected=f"{declared} video frames", found=f"{whole} whole ones",
                             hint="The file is truncated or damaged; fetch it again.")  # fmt: skip
        if not span.count:
            raise InputError(path, expected="at least one video frame", found="zero frames")
        if need_sound and not spans[1].count:
            raise InputError(path, expected="an audio track with sound in it", found="an empty audio track")
        if span.last - (span.first or 0.0) > HOLE * span.count:
            raise InputError(path, expected="frames at most an hour apart",
                             found=f"{span.count} in {span.last - (span.first or 0.0):.0f} s",
                             hint="Its clock is damaged; re-encoding it with ffmpeg may repair it.")  # fmt: skip
        fps = span.rate(float(video.average_rate or video.guessed_rate or 0))
    with opened(path) as container:  # the decoder's own word on the first frame
        first = next(container.decode(_video_stream(container, path)), None)
        if first is None:
            raise InputError(path, expected="at least one video frame", found="none that decodes")
        rotation = round(first.rotation / 90) % 4 * 90
        origin = first.time if first.time is not None else (span.first or 0.0)
        sideways = rotation in (90, 270)
    track = _sound_info(sound, spans[1], origin, path) if sound and spans[1].count else None
    if track is not None and abs(track.start) > HOLE:
        raise InputError(path, expected="sound that begins within an hour of the picture", found=f"{track.start:.0f} s")
    return VideoInfo(
        path=path,
        width=first.height if sideways else first.width,
        height=first.width if sideways else first.height,
        rotation=rotation,
        fps=fps,
        num_frames=span.count,
        duration=max(span.last - origin, span.count / fps if span.first is None else 0.0, 1e-3),
        origin=origin,
        sound=track,
    )


def probe_sound(path: str | Path) -> SoundInfo:
    """The first sound track of a sound (or video) file, on its own clock.

    Raises:
      InputError: no such file, not media, or no sound in it.
    """
    with opened(path) as container:
        stream = _audio_stream(container, path)
        (span,) = _scan(container, [stream])
        if not span.count:
            raise InputError(path, expected="sound", found="an empty audio track")
        return _sound_info(stream, span, span.first or 0.0, path)


def read_frames(path: str | Path) -> Iterator[Frame]:
    """Every frame in the order shown, with its time in seconds since the first; one frame is held at a time.

    Raises:
      InputError: as `probe`, when the damage is met.
    """
    with opened(path) as container:
        stream = _video_stream(container, path)
        fps = float(stream.average_rate or stream.guessed_rate or 0) or 25.0
        origin, now, size = None, 0.0, None
        for index, picture in enumerate(container.decode(stream)):
            time = picture.time if picture.time is not None else index / fps
            origin = time if origin is None else origin
            now = max(time - origin, now)  # a clock that steps back would break every search by time
            size = size or (picture.width, picture.height)
            if (picture.width, picture.height) != size:
                raise InputError(path, expected=f"frames of {size[0]}x{size[1]} throughout",
                                 found=f"{picture.width}x{picture.height} at {now:.2f} s")  # fmt: skip
            yield Frame(index, now, picture)


def read_frames_at(path: str | Path, indices: Iterable[int]) -> Iterator[np.ndarray]:
    """The frames with these numbers (ascending), RGB (H, W, 3) uint8; numbers past the end give the last frame."""
    wanted, last = collections.deque(indices), None
    for last in read_frames(path):
        while wanted and wanted[0] <= last.index:
            wanted.popleft()
            yield last.rgb()
        if not wanted:
            return
    if last is None:
        raise InputError(path, expected="at least one video frame", found="zero frames")
    for _ in wanted:
        yield last.rgb()


def read_sound_blocks(path: str | Path, origin: float = 0.0) -> Iterator[tuple[np.ndarray, int]]:
    """The sound track as decoded: ((n, channels) float32 in [-1, 1], sample rate), n at most about a second.

    Args:
      origin: the moment of the file's clock (seconds) that the first sample belongs to: earlier sound is cut, and
        silence fills the time before a later start and the holes inside the track.
    """
    with opened(path) as container:
        stream = _audio_stream(container, path)
        rate, channels, done = None, 0, 0  # done: samples yielded
        for frame in container.decode(stream):
            samples = _samples(frame)
            if rate is None:
                rate, channels = frame.sample_rate, samples.shape[1]
                _check_sound(path, rate, channels)
            if (frame.sample_rate, samples.shape[1]) != (rate, channels):
                raise InputError(path, expected=f"{rate} Hz and {channels} channels throughout",
                                 found=f"{frame.sample_rate} Hz and {samples.shape[1]}")  # fmt: skip
            ahead = 0 if frame.time is None else round((frame.time - origin) * rate) - done
            if ahead > HOLE * rate:
                raise InputError(path, expected="sound without holes of an hour", found=f"{ahead / rate:.0f} s")
            if ahead < 0 and done == 0:
                samples = samples[-ahead:]
            elif ahead > (GAP * rate if done else 0):
                for begin in range(0, ahead, rate):  # a second at a time: a damaged clock may jump by years
                    yield np.zeros((min(rate, ahead - begin), channels), np.float32), rate
                done += ahead
            for begin in range(0, len(samples), rate):
                yield samples[begin : begin + rate], rate
            done += len(samples)


def _samples(frame) -> np.ndarray:
    """An audio frame as (n, channels) float32 in [-1, 1]."""
    raw = frame.to_ndarray()
    channels = frame.layout.nb_channels
    raw = raw.T if frame.format.is_planar else raw.reshape(-1, channels)
    if raw.dtype == np.uint8:
        return (raw.astype(np.float32) - 128.0) / 128.0
    if raw.dtype.kind == "i":
        return (raw / -float(np.iinfo(raw.dtype).min)).astype(np.float32)
    return np.ascontiguousarray(raw, np.float32)


def read_audio_stream(
    path: str | Path, sample_rate: int = SAMPLE_RATE, origin: float = 0.0, channels: int = 1
) -> Iterator[np.ndarray]:
    """The sound track as float32 blocks at `sample_rate`, resampled on the way ("soxr_hq").

    Args:
      origin: see `read_sound_blocks`; `VideoInfo.origin` puts the first sample at the first video frame.
      channels: 1, blocks (n,) of the mean of all; or 2, blocks (n, 2) of the first two, which are left and right (a
        track of one channel is on both).
    """
    import soxr

    resampler = None
    for block, rate in read_sound_blocks(path, origin):
        if not np.isfinite(block).all():
            raise InputError(path, expected="finite sound samples", found="NaN or infinite ones")
        if channels == 2:
            heard = np.ascontiguousarray(
                np.broadcast_to(block, (len(block), 2)) if block.shape[1] == 1 else block[:, :2]
            )
        else:
            heard = to_mono(block).astype(np.float32) if len(block) else np.zeros(0, np.float32)
        if resampler is None:
            resampler = soxr.ResampleStream(rate, sample_rate, channels, dtype="float32", quality="HQ")
        out = resampler.resample_chunk(heard)
        if len(out):
            yield out
    if resampler is not None:
        yield resampler.resample_chunk(np.zeros((0, 2)[:channels], np.float32), last=True)


class SoundWindow:
    """A window that slides forward over streamed sound; it holds what later windows may still need, and no more.

    Before the start the sound is mirrored (a window that begins early then hears the first moments, not silence);
    after the end there is silence.

    Attributes:
      held: samples in memory now; `most_held`: the most there have been.
      total: samples of sound seen so far.
    """

    def __init__(self, blocks: Iterable[np.ndarray], lead: int = SAMPLE_RATE):
        """blocks: float32 (n,) or (n, channels); lead: samples before the start that a window may begin, at most."""
        self._blocks, self._parts = iter(blocks), []
        self._begin, self.held, self.most_held, self.total = 0, 0, 0, 0
        while self.held <= lead and self._pull():
            pass
        self._channels = self._parts[0].shape[1:] if self._parts else ()
        head = np.concatenate([*self._parts, self._silence(max(0, lead + 1 - self.held))])
        self._parts, self._begin = [head[1 : lead + 1][::-1], *self._parts], -lead
        self.held += lead

    def _pull(self) -> bool:
        """One more block, if there is one."""
        block = next(self._blocks, None)
        if block is None:
            return False
        self._parts.append(block)
        self.held += len(block)
        self.total += len(block)
        self.most_held = max(self.most_held, self.held)
        return True

    def read(self, start: int, length: int) -> np.ndarray:
        """Samples start .. start+length-1, (length,) or (length, channels) float32. `start` never goes back from one
        call to the next."""
        if start < self._begin:
            raise ValueError(f"window start {start} is before {self._begin}, which is no longer held")
        while True:
            self._drop(start)
            if self._begin + self.held >= start + length or not self._pull():
                break
        window = np.concatenate([self._silence(0), *self._parts])[start - self._begin :][:length]
        return np.concatenate([window, self._silence(length - len(window))])

    def _silence(self, length):
        return np.zeros((length, *self._channels), np.float32)

    def _drop(self, start: int) -> None:
        """Lets go of whole blocks before `start`."""
        while self._parts and self._begin + len(self._parts[0]) <= start:
            block = self._parts.pop(0)
            self._begin += len(block)
            self.held -= len(block)


def squash(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """An RGB frame squashed to `size` (H, W) as AVSBench's own frames were: bilinear, aspect ratio not kept.

    AVSBench stores 224 x 224 frames made by plain bilinear sampling (OpenCV's, no averaging of the pixels between);
    a run at another size resizes those with averaging. Both steps are repeated here, so that a model sees frames of
    the kind it was trained on. `image` is (h, w, 3) uint8, and so is the result.
    """
    from PIL import Image

    stored = tuple(max(target, min(have, 224)) for target, have in zip(size, image.shape, strict=False))
    if any(have > keep for have, keep in zip(image.shape, stored, strict=False)):
        image = sample_bilinear(image, stored)
    if image.shape[:2] == tuple(size):
        return image
    return np.asarray(Image.fromarray(image).resize((size[1], size[0]), Image.Resampling.BILINEAR))


def sample_bilinear(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Plain bilinear resampling at pixel centres, edges held, without averaging: (h, w, C) uint8 -> (*size, C)."""
    (top, bottom, v), (left, right, u) = (_taps(have, want) for have, want in zip(image.shape, size, strict=False))
    rows = image[top].astype(np.float32) * (1 - v)[:, None, None] + image[bottom].astype(np.float32) * v[:, None, None]
    out = rows[:, left] * (1 - u)[None, :, None] + rows[:, right] * u[None, :, None]
    return np.rint(out).astype(np.uint8)


@functools.lru_cache(maxsize=16)
def _taps(have: int, want: int):
    """The two source positions and the weight of the second, for each of `want` positions over `have`."""
    at = np.clip((np.arange(want) + 0.5) * (have / want) - 0.5, 0, have - 1)
    low = np.floor(at).astype(np.int64)
    return low, np.minimum(low + 1, have - 1), (at - low).astype(np.float32)
