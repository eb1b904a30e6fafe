"""Sound as pictures."""

import numpy as np


def spectrograms(audio: np.ndarray, frames: int, size: tuple[int, int]) -> list[np.ndarray] | None:
    """The record's `audio` as one picture per frame, low tones at the bottom; None where it is no spectrogram.

    Args:
      audio: (frames, time, mel), or (time, mel) of the whole clip, which is cut into equal parts.
      size: (height, width) of each.
    """
    if audio.ndim == 2 and min(audio.shape) > 1 and len(audio) >= frames:
        audio = np.stack([part[: len(audio) // frames] for part in np.array_split(audio, frames)])
    if audio.ndim != 3 or len(audio) != frames:
        return None
    low, high = np.percentile(audio, [2, 99.5])
    level = np.clip((audio - low) / max(high - low, 1e-6), 0, 1)
    rows = (np.arange(size[0]) * audio.shape[2]) // size[0]
    columns = (np.arange(size[1]) * audio.shape[1]) // size[1]
    level = level[:, columns][:, :, rows].transpose(0, 2, 1)[:, ::-1, :, None]
    dark, bright = np.float32([20, 24, 46]), np.float32([255, 214, 120])
    return list(np.rint(dark + level * (bright - dark)).astype(np.uint8))
