"""Small media files for tests, written with PyAV directly."""

from fractions import Fraction

import av
import numpy as np


def level(index: int) -> int:
    """The brightness that marks frame `index`; neighbours differ by more than the codec's loss."""
    return 20 + index * 37 % 200


def tone(seconds: float, rate: int, channels: int = 1) -> np.ndarray:
    """(n, channels) float32: 440 Hz that grows louder, other channels at half of it."""
    t = np.arange(round(seconds * rate)) / rate
    wave = 0.5 * np.sin(2 * np.pi * 440 * t) * np.linspace(0.2, 1, len(t))
    return np.stack([wave / 2 ** (c > 0) for c in range(channels)], 1).astype(np.float32)


def write_video(
    path, *, size=(48, 64), fps=10, seconds=2.0, frames=None, times=None, sound=None, rate=44100, sound_at=0.0,
    rotation=0, codec="aac", options=None,
):  # fmt: skip
    """An mp4/mkv of flat frames of brightness `level(index)`, or of `frames`; sound: (n, channels) float32 or None.

    times: of the frames, seconds (constant rate by default); sound_at: when the sound begins.
    """
    height, width = size
    count = len(times) if times is not None else round(seconds * fps) if frames is None else len(frames)
    with av.open(str(path), "w", options=options or {}) as file:
        odd = height % 2 or width % 2
        video = file.add_stream("libx264", rate=Fraction(fps), options={"crf": "4", "preset": "ultrafast"})
        video.width, video.height, video.pix_fmt = width, height, "yuv444p" if odd else "yuv420p"
        video.codec_context.time_base = Fraction(1, 90000)
        if rotation:
            video.set_display_rotation(rotation)
        track = None
        if sound is not None:
            track = file.add_stream(codec, rate=rate, layout="stereo" if sound.shape[1] == 2 else "mono")
        for i in range(count):
            image = frames[i] if frames is not None else np.full((height, width, 3), level(i), np.uint8)
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            picture.pts = round((i / fps if times is None else times[i]) * 90000)
            picture.time_base, picture.duration = Fraction(1, 90000), round(90000 / fps)
            file.mux(video.encode(picture))
        file.mux(video.encode())
        if track is not None:
            write_sound(file, track, sound, rate, sound_at)
    return path


def write_sound(file, track, sound, rate, at=0.0):
    """Encodes (n, channels) float32 into an open container."""
    layout = "stereo" if sound.shape[1] == 2 else "mono"
    resampler = av.AudioResampler(format=track.format.name, layout=layout, rate=rate)
    for begin in range(0, len(sound), 1024):
        planes = np.ascontiguousarray(sound[begin : begin + 1024].T)
        frame = av.AudioFrame.from_ndarray(planes, format="fltp", layout=layout)
        frame.sample_rate, frame.pts, frame.time_base = rate, begin + round(at * rate), Fraction(1, rate)
        for part in resampler.resample(frame):
            file.mux(track.encode(part))
    file.mux(track.encode())


def decode(path):
    """(list of (time, RGB), (n, channels) float32 sound or None, sample rate, duration) by PyAV alone."""
    with av.open(str(path)) as file:
        frames = [(f.time, f.to_ndarray(format="rgb24")) for f in file.decode(video=0)]
        duration = file.duration / av.time_base
    with av.open(str(path)) as file:
        if not file.streams.audio:
            return frames, None, 0, duration
        rate = file.streams.audio[0].rate
        sound = np.concatenate([f.to_ndarray() for f in file.decode(audio=0)], axis=1).T
    return frames, sound, rate, duration
