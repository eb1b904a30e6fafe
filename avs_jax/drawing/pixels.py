"""Drawing on pixels: masks over frames, heat maps, strips. NumPy alone."""

import colorsys
from collections.abc import Sequence

import numpy as np

from avs_jax.data.clip import IGNORE

COLOURS = np.array(  # of class 1, 2, ...: told apart on dark grey, the first ten by most colour-blind eyes
    [[255, 190, 0], [0, 200, 255], [255, 80, 140], [120, 230, 90], [190, 130, 255], [255, 130, 60], [0, 220, 170],
     [240, 240, 110], [90, 150, 255], [230, 100, 230],
     *(np.rint(255 * np.array(colorsys.hsv_to_rgb(0.618 * k % 1, (0.45, 0.8, 0.95)[k % 3], (1.0, 0.85)[k % 2])))
       for k in range(10, 254))], np.uint8)  # fmt: skip
MEAN, STD = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])  # of frames that come normalised
THUMBNAIL = 160  # pixels on the longer side, at most about


def overlay(frame: np.ndarray, mask: np.ndarray, score: np.ndarray | None = None, scale: int = 1) -> np.ndarray:
    """What sounds stays in colour, tinted and outlined; the rest turns dark and grey; what is not known is hatched.

    Args:
      frame: (H, W, 3) uint8 RGB.
      mask: (H, W) integers: class of what sounds, 0 background, 255 not known (left as it is, under stripes).
      score: (H, W) in [0, 1], optional: how sure; the tint follows it.
      scale: whole factor by which the result is enlarged, so that outlines stay thin on small frames.
    Returns:
      (H * scale, W * scale, 3) uint8.
    """
    frame, mask = enlarge(frame, scale), enlarge(np.asarray(mask), scale)
    inside = (mask > 0) & (mask != IGNORE)
    grey = 0.5 * frame.mean(-1, keepdims=True) + 25
    tint = COLOURS[(np.where(inside, mask, 1).astype(int) - 1) % len(COLOURS)]
    strength = 0.3 if score is None else 0.3 * enlarge(np.asarray(score, np.float32), scale)[..., None]
    out = np.where(inside[..., None], frame * (1 - strength) + tint * strength, grey)
    unknown = mask == IGNORE
    out = np.where(unknown[..., None], frame, out)
    out[unknown & _stripes(mask.shape)] = 235
    line = outline(mask, 1 + min(mask.shape) // 100) & inside
    out[line] = tint[line]
    return np.clip(np.rint(out), 0, 255).astype(np.uint8)


def _stripes(shape):
    """(H, W) bool: thin diagonal lines, a tenth to a twentieth of the shorter side apart."""
    gap = max(8, min(shape) // 16)
    return np.add.outer(np.arange(shape[0]), np.arange(shape[1])) % gap >= gap - 1 - gap // 12


def outline(mask: np.ndarray, width: int = 1) -> np.ndarray:
    """(H, W) bool: pixels within `width` of a pixel of another value."""
    edge = np.zeros(mask.shape, bool)
    for axis in (0, 1):
        for step in range(1, width + 1):
            first, second = np.arange(mask.shape[axis] - step), np.arange(step, mask.shape[axis])
            differ = np.take(mask, first, axis) != np.take(mask, second, axis)
            pad = [(0, 0), (0, 0)]
            pad[axis] = (0, step)
            edge |= np.pad(differ, pad)
            pad[axis] = (step, 0)
            edge |= np.pad(differ, pad)
    return edge


def enlarge(image: np.ndarray, scale: int) -> np.ndarray:
    """(H, W, ...) repeated to (H * scale, W * scale, ...)."""
    return image if scale == 1 else np.repeat(np.repeat(image, scale, 0), scale, 1)


def rgb(frames: np.ndarray) -> np.ndarray:
    """The record's frames as uint8 RGB, also where they come normalised."""
    if frames.dtype == np.uint8:
        return frames
    return np.clip(np.rint((np.asarray(frames, np.float32) * STD + MEAN) * 255), 0, 255).astype(np.uint8)


def heat(frame: np.ndarray, values: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
    """A grey frame (H, W, 3) uint8 under a map (H, W) in [-1, 1]: orange where positive, blue where negative.

    mask: (H, W) integers, optional: what sounds, outlined in white.
    """
    strength = np.clip(values, -1, 1)[..., None]
    colour = np.where(strength > 0, np.float32([255, 140, 0]), np.float32([40, 110, 255]))
    grey = 0.6 * frame.mean(-1, keepdims=True)
    out = grey * (1 - 0.8 * np.abs(strength)) + colour * 0.8 * np.abs(strength)
    if mask is not None:
        inside = (mask > 0) & (mask != IGNORE)
        out[outline(inside, 1 + min(mask.shape) // 100) & inside] = 255
    return np.rint(out).astype(np.uint8)


def spread(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Maps (..., h, w) between their cells' centres, bilinearly, to (..., H, W) float32; edges go on as they are."""
    out = np.asarray(values, np.float32)
    for axis, high in ((-2, size[0]), (-1, size[1])):
        low = out.shape[axis]
        at = np.clip((np.arange(high) + 0.5) * low / high - 0.5, 0, low - 1)
        first = np.minimum(at.astype(int), max(low - 2, 0))
        share = (at - first).astype(np.float32)
        share = share[:, None] if axis == -2 else share
        after = np.take(out, np.minimum(first + 1, low - 1), axis)
        out = np.take(out, first, axis) * (1 - share) + after * share
    return out


def strip(images: Sequence[np.ndarray], gap: int = 6) -> np.ndarray:
    """Pictures of one size side by side on white."""
    white = np.full((images[0].shape[0], gap, 3), 255, np.uint8)
    parts = [part for image in images for part in (image, white)]
    return np.concatenate(parts[:-1], axis=1)
