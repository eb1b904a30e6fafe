"""Random changes of frames and labels together; every frame of a clip is changed alike, so that motion stays motion."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from avs_jax.data.clip import IGNORE, Clip
from avs_jax.errors import InputError, nearest

FILL = (124, 116, 104)  # ImageNet's mean colour: padding is zero once normalised


@dataclasses.dataclass(frozen=True)
class Augment:
    """(clip, rng) -> clip. The fields are those of the config's `augment` section.

    Attributes:
      hflip: probability of a left-right flip.
      scale: range of a random resize, followed by a random crop, or a pad (frames: mean colour, labels: ignore), back
        to the clip's size. (1, 1) is off.
      color: brightness, contrast and saturation are each multiplied by a factor from [1 - color, 1 + color].
    """

    hflip: float = 0.0
    scale: tuple[float, float] = (1.0, 1.0)
    color: float = 0.0

    def __post_init__(self):
        for name in ("hflip", "color"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise InputError(f"augment.{name}", expected="a number in [0, 1]", found=repr(value))
        if len(self.scale) != 2 or not 0 < self.scale[0] <= self.scale[1]:
            raise InputError("augment.scale", expected="(low, high) with 0 < low <= high", found=repr(self.scale))

    def __call__(self, clip: Clip, rng: np.random.Generator) -> Clip:
        # Every draw is made whether or not it is used: switching one option leaves the others' numbers alone.
        flip, scale, corner = rng.random(), rng.uniform(*self.scale), rng.random(2)
        factors = 1 + self.color * rng.uniform(-1, 1, 3)
        frames, labels = clip["frames"], clip["labels"]
        if self.color and frames.dtype != np.uint8:
            raise InputError(
                f"clip '{clip.get('id', '?')}', field 'frames'",
                found=str(frames.dtype),
                expected="uint8, which color jitter needs",
                hint="Set augment.color to 0.",
            )
        if self.color:
            frames = jitter(frames, *factors, present=clip.get("present"))
        if scale != 1:
            frames, labels = rescale(frames, labels, scale, corner)
        if flip < self.hflip:
            frames, labels = frames[:, :, ::-1], labels[:, :, ::-1]
        return {**clip, "frames": np.ascontiguousarray(frames), "labels": np.ascontiguousarray(labels)}


def make(options: Mapping) -> Augment | None:
    """The transform the config's `augment` section asks for; None when it asks for nothing.

    Raises:
      InputError: an unknown option (naming the nearest) or a value out of range.
    """
    options = dict(options)
    valid = [field.name for field in dataclasses.fields(Augment)]
    for name in options:
        if name not in valid:
            raise InputError(f"augment.{name}", expected="an augmentation", found=repr(name), hint=nearest(name, valid))
    if "scale" in options:
        options["scale"] = tuple(options["scale"])
    transform = Augment(**options)
    return None if transform == Augment() else transform


def jitter(
    frames: np.ndarray, brightness: float, contrast: float, saturation: float, present: np.ndarray | None = None
) -> np.ndarray:
    """Frames (T, H, W, 3) uint8 with each property multiplied, in that order; contrast about the clip's mean grey.

    present: (T,) bool, the frames that this mean is of; None: all.
    """
    grey = np.array([0.299, 0.587, 0.114], np.float32)
    x = frames.astype(np.float32) * np.float32(brightness)
    mean = ((x if present is None else x[present]) @ grey).mean()
    x = mean + (x - mean) * np.float32(contrast)
    luma = (x @ grey)[..., None]
    x = luma + (x - luma) * np.float32(saturation)
    return np.clip(np.rint(x), 0, 255).astype(np.uint8)


def rescale(frames: np.ndarray, labels: np.ndarray, scale: float, corner) -> tuple[np.ndarray, np.ndarray]:
    """Resizes a clip by `scale` and crops or pads it back to its size.

    Args:
      frames: (T, H, W, 3) uint8 or float32, resized bilinearly (antialiased when shrinking).
      labels: (T, H, W) uint8, resized to the nearest.
      corner: two numbers in [0, 1): where in its range of freedom the crop's, or the pasted clip's, corner lies (y, x).
    """
    height, width = labels.shape[1:]
    size = max(1, round(height * scale)), max(1, round(width * scale))
    big_frames = np.stack([_resize(f, size) for f in frames])
    big_labels = np.stack([_resize(f, size, nearest_pixel=True) for f in labels])
    fill = np.array(FILL, np.uint8) if frames.dtype == np.uint8 else np.float32(0)
    out_frames = np.broadcast_to(fill, frames.shape).astype(frames.dtype)
    out_labels = np.full_like(labels, IGNORE)
    (src_y, dst_y), (src_x, dst_x) = (_overlap(n, m, c) for n, m, c in zip(size, (height, width), corner, strict=True))
    out_frames[:, dst_y, dst_x] = big_frames[:, src_y, src_x]
    out_labels[:, dst_y, dst_x] = big_labels[:, src_y, src_x]
    return out_frames, out_labels


def _overlap(resized: int, target: int, corner: float) -> tuple[slice, slice]:
    """Where a resized axis is read and where it is written: a crop when it is longer than the target, else a pad."""
    offset = int(corner * (abs(resized - target) + 1))
    if resized >= target:
        return slice(offset, offset + target), slice(0, target)
    return slice(0, resized), slice(offset, offset + resized)


def _resize(image: np.ndarray, size: tuple[int, int], nearest_pixel: bool = False) -> np.ndarray:
    from PIL import Image

    how = Image.Resampling.NEAREST if nearest_pixel else Image.Resampling.BILINEAR
    if image.dtype == np.uint8:
        return np.asarray(Image.fromarray(image).resize(size[::-1], how))
    return np.stack([np.asarray(Image.fromarray(c).resize(size[::-1], how)) for c in np.moveaxis(image, -1, 0)], -1)
