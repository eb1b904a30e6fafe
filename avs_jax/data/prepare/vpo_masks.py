"""COCO's three ways to write a mask, checked and decoded: polygons, run lengths, compressed run lengths."""

import numpy as np

MAX_SIDE = 1 << 14
_SLACK = 2.0  # pixels that COCO's polygons may reach beyond the picture


class BadMask(ValueError):
    """What is wrong with a segmentation, in words."""


def decode(segmentation: object, size: tuple[int, int]) -> np.ndarray:
    """A COCO `segmentation` as (height, width) bool.

    Polygons are drawn by pycocotools. Run lengths are expanded here, because its C code trusts them to fill exactly
    the picture.

    Args:
      segmentation: a list of polygons [x, y, x, y, ...], or {"size": [height, width], "counts": list or text}.
      size: (height, width) of the picture.
    Raises:
      BadMask: it is none of these, or lies outside the picture.
    """
    if isinstance(segmentation, dict):
        return _runs(segmentation, size)
    if isinstance(segmentation, list) and segmentation:
        return _polygons(segmentation, size)
    raise BadMask("neither polygons nor run lengths")


def _polygons(polygons: list, size: tuple[int, int]) -> np.ndarray:
    from pycocotools import mask as coco_mask

    height, width = size
    checked = []
    for polygon in polygons:
        if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
            raise BadMask("a polygon that is no list of at least three points x, y")
        if any(isinstance(v, bool) or not isinstance(v, (int, float)) or not abs(v) < 1e9 for v in polygon):
            raise BadMask("a polygon whose coordinates are no numbers of pixels")
        points = np.asarray(polygon, np.float64).reshape(-1, 2)
        if (
            not np.isfinite(points).all()
            or (points < -_SLACK).any()
            or (points > (width + _SLACK, height + _SLACK)).any()
        ):
            raise BadMask("a polygon outside the picture")
        checked.append(np.clip(points, 0, (width, height)).ravel().tolist())
    runs = coco_mask.merge(coco_mask.frPyObjects(checked, height, width))
    return coco_mask.decode(runs).astype(bool)


def _runs(segmentation: dict, size: tuple[int, int]) -> np.ndarray:
    height, width = size
    if segmentation.get("size") != [height, width]:
        raise BadMask(f"run lengths of size {segmentation.get('size')!r:.40} in a picture of {[height, width]}")
    counts = segmentation.get("counts")
    if isinstance(counts, str):
        counts = _uncompressed(counts)
    if not isinstance(counts, list) or any(isinstance(n, bool) or not isinstance(n, int) or n < 0 for n in counts):
        raise BadMask("run lengths that are no list of counts")
    if sum(counts) != height * width:
        raise BadMask(f"run lengths of {sum(counts)} pixels in a picture of {height * width}")
    values = np.arange(len(counts)) % 2 == 1
    return np.repeat(values, counts).reshape(width, height).T  # columns first


def _uncompressed(text: str) -> list[int]:
    """COCO's text of run lengths: five bits a character, the sixth says that more follow; from the fourth number on
    differences to the number before the last."""
    counts: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or shift > 40:
            raise BadMask("compressed run lengths that do not decode")
        value |= (bits & 0x1F) << shift
        shift += 5
        if bits & 0x20:
            continue
        if bits & 0x10:
            value -= 1 << shift
        counts.append(value + counts[-2] if len(counts) > 2 else value)
        value = shift = 0
    if shift:
        raise BadMask("compressed run lengths that end early")
    return counts


def centroid(mask: np.ndarray) -> float:
    """How far right an object's middle lies: 0 at the left edge, 1 at the right one. `mask`: (height, width) bool."""
    columns = np.count_nonzero(mask, axis=0)
    return float((columns @ (np.arange(mask.shape[1]) + 0.5)) / (columns.sum() * mask.shape[1]))
