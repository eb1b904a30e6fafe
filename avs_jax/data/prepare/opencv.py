"""OpenCV's bilinear resize without OpenCV: the frames of AVSBench were made by it."""

import functools

import numpy as np

_ONE = 1 << 11  # OpenCV's weights are integers, this many to the whole


def resize_linear(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """`cv2.resize(image, (width, height))`, bit for bit: bilinear between the nearest pixel centres, no averaging.

    OpenCV computes in integers (11-bit weights, rows cut to 1/16 of their precision before they are blended), and
    differs in every eighth value by one grey level from the rounded exact result.

    Args:
      image: (h, w, C) uint8.
      size: (height, width) of the result; the aspect ratio is not kept.
    Returns:
      (height, width, C) uint8.
    """
    above, below, low_row, high_row = _taps(image.shape[0], size[0], held=False)
    left, right, low_column, high_column = _taps(image.shape[1], size[1], held=True)

    def along(rows):
        picked = image[rows].astype(np.int32)
        return (picked[:, left] * low_column[:, None] + picked[:, right] * high_column[:, None]) >> 4

    low_row, high_row = low_row[:, None, None], high_row[:, None, None]
    blend = (low_row * along(above) >> 16) + (high_row * along(below) >> 16)
    return ((blend + 2) >> 2).astype(np.uint8)


@functools.lru_cache(maxsize=16)
def _taps(have: int, want: int, held: bool) -> tuple[np.ndarray, ...]:
    """For `want` positions over `have`: the two source positions and the integer weight of each, (want,) int32.

    held: beyond the edge the whole weight goes to one source position (columns), else it stays divided between two
      copies of it (rows). The value is the same, the rounding is not.
    """
    at = ((np.arange(want) + 0.5) * (have / want) - 0.5).astype(np.float32)
    low = np.floor(at).astype(np.int64)
    part = at - low
    if held:
        part = np.where((low < 0) | (low >= have - 1), 0, part)
    part = part.astype(np.float32)
    first, second = (np.clip(low + k, 0, have - 1) for k in (0, 1))
    return first, second, np.rint((1 - part) * _ONE).astype(np.int32), np.rint(part * _ONE).astype(np.int32)
