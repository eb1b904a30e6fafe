"""Sound as pictures."""

import numpy as np

from avs_jax.data.audio import FFT, HOP, LOG_OFFSET, WINDOW, mel_matrix

DARK, BRIGHT = np.float32([20, 24, 46]), np.float32([255, 214, 120])
RAW = 1000  # numbers of a frame's sound from which on they are samples, not bands


def spectrograms(audio: np.ndarray, frames: int, size: tuple[int, int]) -> list[np.ndarray] | None:
    """The record's `audio` as one picture per frame, low tones at the bottom; None where it is no sound.

    Args:
      audio: (frames, time, mel); (time, mel) of the whole clip, which is cut into equal parts; raw samples at 16 kHz,
        (frames, samples); or in stereo (frames, 2, samples), left drawn above right.
      size: (height, width) of each.
    """
    audio = np.asarray(audio)
    if is_stereo(audio, frames):
        return _above(log_mel(audio[:, 0]), log_mel(audio[:, 1]), size)
    if _is_raw(audio, frames):
        audio = log_mel(audio)
    elif audio.ndim == 2 and min(audio.shape) > 1 and len(audio) >= frames:
        audio = np.stack([part[: len(audio) // frames] for part in np.array_split(audio, frames)])
    if audio.ndim != 3 or len(audio) != frames:
        return None
    return list(_painted(audio, _range(audio), size))


def is_stereo(audio: np.ndarray, frames: int) -> bool:
    """Whether the record's `audio` is samples in two channels."""
    return audio.ndim == 3 and audio.shape[:2] == (frames, 2) and audio.shape[2] >= RAW


def _is_raw(audio, frames):
    return audio.ndim == 2 and len(audio) == frames and audio.shape[1] >= RAW


def log_mel(samples: np.ndarray) -> np.ndarray:
    """(N, L) samples at 16 kHz -> (N, time, 64): log of the mel bands up to 7.5 kHz, every 10 ms."""
    samples = np.pad(samples, ((0, 0), (0, max(0, WINDOW - samples.shape[1]))))
    windows = np.lib.stride_tricks.sliding_window_view(samples, WINDOW, axis=1)[:, ::HOP]
    return np.log(np.abs(np.fft.rfft(windows * np.hanning(WINDOW), FFT)) @ mel_matrix() + LOG_OFFSET)


def _above(first, second, size):
    """One picture per frame, with first above second, in colours of one scale; a grey line lies between."""
    high = (size[0] - 1) // 2
    scale = _range(np.stack([first, second]))
    upper, lower = (_painted(levels, scale, (high, size[1])) for levels in (first, second))
    line = np.full((len(upper), size[0] - 2 * high, size[1], 3), 128, np.uint8)
    return list(np.concatenate([upper, line, lower], 1))


def _range(levels):
    return np.percentile(levels, [2, 99.5])


def _painted(levels, scale, size):
    """(N, time, mel) -> (N, height, width, 3) uint8, from dark to bright over the scale (low, high)."""
    low, high = scale
    level = np.clip((levels - low) / max(high - low, 1e-6), 0, 1).astype(np.float32)
    rows = (np.arange(size[0]) * levels.shape[2]) // size[0]
    columns = (np.arange(size[1]) * levels.shape[1]) // size[1]
    level = level[:, columns][:, :, rows].transpose(0, 2, 1)[:, ::-1, :, None]
    return np.rint(DARK + level * (BRIGHT - DARK)).astype(np.uint8)
