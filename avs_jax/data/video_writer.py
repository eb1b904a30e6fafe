"""Video and its sound, out: an mp4 (H.264, AAC) written frame by frame, with a file's sound or an array's."""

from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import Colorspace

from avs_jax.data.media import audio_stream, opened, probe_sound, read_sound_blocks

CLOCK = 90000  # ticks per second of the written video: frames may come at any times
COPIED = ("aac", "mp3")  # codecs mp4 takes as they are
AAC_RATES = (96000, 88200, 64000, 48000, 44100, 32000, 24000, 22050, 16000, 12000, 11025, 8000, 7350)


class VideoWriter:
    """Writes RGB frames, at any increasing times, and sound as one mp4. Use as a context manager.

    Sound is interleaved with the frames as they come, so memory stays constant. Sizes that 4:2:0 video cannot hold
    (odd ones) grow by one row or column, a copy of the last.

    Args:
      path: the file to write.
      size: (height, width) of the frames.
      fps: nominal frames per second (also the time the last frame is shown for).
      sound: a media file, whose first sound track is copied (AAC, MP3) or re-encoded to AAC; or (samples, rate) with
        samples (n,) or (n, channels) float32 in [-1, 1]; or None.
      sound_origin: the moment of the sound file's clock (seconds) that is this video's time zero.
      crf: H.264 quality, 0 (lossless) to 51.
    """

    def __init__(self, path: str | Path, size: tuple[int, int], fps: float, *, sound=None, sound_origin: float = 0.0,
                 crf: int = 20):  # fmt: skip
        self._height, self._width = size
        self._step = max(1, round(CLOCK / fps))
        self._last = -1
        self._file = av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"})
        self._video = self._file.add_stream("libx264", rate=Fraction(fps).limit_denominator(60000))
        self._video.width, self._video.height = self._width + self._width % 2, self._height + self._height % 2
        self._video.pix_fmt = "yuv420p"
        codec = self._video.codec_context
        codec.time_base = Fraction(1, CLOCK)
        codec.colorspace = codec.color_primaries = codec.color_trc = int(Colorspace.ITU709)
        self._video.options = {"crf": str(crf), "preset": "veryfast"}
        self._sound: Iterator[float] | None = _sound_track(self._file, sound, sound_origin)
        self._heard = 0.0

    def write(self, frame: np.ndarray, time: float | None = None) -> None:
        """Adds a frame (H, W, 3) uint8 shown from `time` (seconds; by default one frame after the last)."""
        pts = self._last + self._step if time is None and self._last >= 0 else round((time or 0.0) * CLOCK)
        pts = max(pts, self._last + 1)
        self._last = pts
        if self._height % 2 or self._width % 2:
            frame = np.pad(frame, ((0, self._height % 2), (0, self._width % 2), (0, 0)), mode="edge")
        picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
        picture = picture.reformat(format="yuv420p", dst_colorspace=Colorspace.ITU709)
        picture.pts, picture.time_base, picture.duration = pts, Fraction(1, CLOCK), self._step
        self._file.mux(self._video.encode(picture))
        self._hear(pts / CLOCK)

    def _hear(self, until: float) -> None:
        while self._sound is not None and self._heard < until:
            heard = next(self._sound, None)
            if heard is None:
                self._sound = None
            else:
                self._heard = heard

    def close(self) -> None:
        """Writes what is left of the sound and completes the file."""
        try:
            self._file.mux(self._video.encode())
            self._hear(float("inf"))
        finally:
            self._file.close()

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        if kind is None:
            self.close()
        else:
            self._file.close()


def _sound_track(file, sound, origin: float):
    """A generator that muxes a little sound at each step and yields the time reached (seconds); None without sound.

    The stream is added here and now, because a container takes no streams once packets have been written.
    """
    if sound is None:
        return None
    if not isinstance(sound, tuple):
        info = probe_sound(sound)
        if info.codec in COPIED:
            return _copied(file, sound, origin)
        return _encoded(file, read_sound_blocks(sound, origin), info.sample_rate, info.channels)
    samples, rate = sound
    samples = np.asarray(samples, np.float32).reshape(len(samples), -1)
    blocks = ((samples[i : i + rate], rate) for i in range(0, len(samples), rate))
    return _encoded(file, blocks, int(rate), samples.shape[1])


def _copied(file, path: Path, origin: float):
    with opened(path) as source:
        track = file.add_stream_from_template(audio_stream(source))

    def packets():
        with opened(path) as source:
            stream = audio_stream(source)
            shift = round(origin / stream.time_base)
            for packet in source.demux(stream):
                if packet.pts is None:  # the closing packet
                    continue
                # A decoder needs the packet before the first it plays; the player leaves out what is before time zero.
                if packet.pts - shift < -2 * (packet.duration or 0):
                    continue
                packet.pts, packet.dts = packet.pts - shift, (packet.dts or packet.pts) - shift
                reached = float(packet.pts * packet.time_base)
                packet.stream = track
                file.mux(packet)
                yield reached

    return packets()


def _encoded(file, blocks: Iterable[tuple[np.ndarray, int]], rate: int, channels: int):
    layout = "stereo" if channels == 2 else "mono"
    out_rate = rate if rate in AAC_RATES else 48000
    track = file.add_stream("aac", rate=out_rate, layout=layout)

    def packets():
        resampler = av.AudioResampler(format="fltp", layout=layout, rate=out_rate)
        done = 0
        for block, _ in blocks:
            if channels > 2:
                block = block.mean(axis=1, keepdims=True)
            planes = np.ascontiguousarray(block.T, np.float32)
            frame = av.AudioFrame.from_ndarray(planes, format="fltp", layout=layout)
            frame.sample_rate, frame.pts, frame.time_base = rate, done, Fraction(1, rate)
            done += len(block)
            for part in resampler.resample(frame):
                file.mux(track.encode(part))
            yield done / rate
        for part in resampler.resample(None):
            file.mux(track.encode(part))
        file.mux(track.encode())
        yield done / rate

    return packets()
