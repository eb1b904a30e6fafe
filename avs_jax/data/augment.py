"""Random changes of frames and labels together; every frame of a clip is changed alike, so that motion stays motion."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from avs_jax.data.clip import IGNORE, Clip
from avs_jax.errors import InputError, nearest

FILL = (124, 116, 104)  # ImageNet's mean colour: padding is zero once normalised
CROP_FILL = (123, 116, 103)  # the same, cut to whole numbers: what CAVP's public code pads with


@dataclasses.dataclass(frozen=True)
class Augment:
    """(clip, rng) -> clip. The fields are those of the config's `augment` section.

    Attributes:
      hflip: probability of a left-right flip.
      scale: range of a random resize, followed by a random crop, or a pad (frames: mean colour, labels: ignore), back
        to the clip's size. (1, 1) is off.
      color: brightness, contrast and saturation are each multiplied by a factor from [1 - color, 1 + color].
      hue: turned by a share of the circle from [-hue, hue]; the four are then done in random order, as torchvision's
        ColorJitter does them.
      crop: side, or (height, width), that every clip comes out with; (0, 0) is off. What lacks is padded to the right
        and below, then a random part is taken. Clips may be of any size.
      scales: with `crop`, in place of `scale`: the factors to draw from (CAVP: bicubic, sizes cut to whole pixels).

    A flip swaps left and right of a waveform in stereo, (T, 2, samples).
    """

    hflip: float = 0.0
    scale: tuple[float, float] = (1.0, 1.0)
    color: float = 0.0
    hue: float = 0.0
    crop: tuple[int, int] = (0, 0)
    scales: tuple[float, ...] = ()

    def __post_init__(self):
        for name, most in (("hflip", 1), ("color", 1), ("hue", 0.5)):
            value = getattr(self, name)
            if not 0 <= value <= most:
                raise InputError(f"augment.{name}", expected=f"a number in [0, {most}]", found=repr(value))
        whole = all(isinstance(n, int) and n >= 0 for n in self.crop)
        if len(self.crop) != 2 or not whole or (min(self.crop) == 0) != (max(self.crop) == 0):
            raise InputError("augment.crop", expected="a side in pixels, or (height, width)", found=repr(self.crop))
        if not all(scale > 0 for scale in self.scales):
            raise InputError("augment.scales", expected="factors above 0", found=repr(self.scales))
        if self.scales and (not self.crop[0] or self.scale != (1.0, 1.0)):
            hint = "augment.scales needs augment.crop, and takes the place of augment.scale."
            raise InputError("augment.scales", expected="to be used with a crop", found=repr(self.scales), hint=hint)
        if len(self.scale) != 2 or not 0 < self.scale[0] <= self.scale[1]:
            raise InputError("augment.scale", expected="(low, high) with 0 < low <= high", found=repr(self.scale))

    def __call__(self, clip: Clip, rng: np.random.Generator) -> Clip:
        # Every draw is made whether or not it is used: switching one option leaves the others' numbers alone.
        flip, scale, corner = rng.random(), rng.uniform(*self.scale), rng.random(2)
        factors = 1 + self.color * rng.uniform(-1, 1, 3)
        turn, order, pick = self.hue * rng.uniform(-1, 1), rng.permutation(4), rng.random()
        frames, labels = clip["frames"], clip["labels"]
        if (self.color or self.hue) and frames.dtype != np.uint8:
            raise InputError(
                f"clip '{clip.get('id', '?')}', field 'frames'",
                found=str(frames.dtype),
                expected="uint8, which color jitter needs",
                hint="Set augment.color and augment.hue to 0.",
            )
        if self.hue:
            frames = color_jitter(frames, *factors, turn, order, present=clip.get("present"))
        elif self.color:
            frames = jitter(frames, *factors, present=clip.get("present"))
        flips = flip < self.hflip
        if self.crop[0]:
            if self.scales:
                scale = self.scales[int(pick * len(self.scales))]
            frames, labels = (frames[:, :, ::-1], labels[:, :, ::-1]) if flips else (frames, labels)
            frames, labels = rescaled_crop(frames, labels, scale, self.crop, corner)
        else:
            if scale != 1:
                frames, labels = rescale(frames, labels, scale, corner)
            frames, labels = (frames[:, :, ::-1], labels[:, :, ::-1]) if flips else (frames, labels)
        changed = {"frames": np.ascontiguousarray(frames), "labels": np.ascontiguousarray(labels)}
        sound = clip.get("audio")
        if flips and sound is not None and sound.ndim == 3 and sound.shape[1] == 2:
            changed["audio"] = np.ascontiguousarray(sound[:, ::-1])
        kept = {field: value for field, value in clip.items() if field != "size"}  # pictures are no longer top left
        return {**kept, **changed}


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
    for name in ("scale", "scales"):
        if name in options:
            options[name] = tuple(options[name])
    crop = options.get("crop", 0)
    options["crop"] = (crop, crop) if np.ndim(crop) == 0 else tuple(crop)
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


def color_jitter(
    frames: np.ndarray,
    brightness: float,
    contrast: float,
    saturation: float,
    hue: float,
    order: Sequence[int],
    present: np.ndarray | None = None,
) -> np.ndarray:
    """torchvision's ColorJitter of PIL images: one property after the other, each cut to whole numbers in 0..255.

    Args:
      frames: (T, H, W, 3) uint8, all changed alike.
      brightness, contrast, saturation: factors; contrast about the clip's mean grey. hue: share of the circle.
      order: of 0 brightness, 1 contrast, 2 saturation, 3 hue.
      present: (T,) bool, the frames that the mean grey is of; None: all.
    """
    for step in order:
        if step == 3:
            frames = _turned(frames, hue)
            continue
        factors = np.ones(3)
        factors[step] = (brightness, contrast, saturation)[step]
        frames = jitter(frames, *factors, present=present)
    return frames


def _turned(frames: np.ndarray, hue: float) -> np.ndarray:
    """Every colour moved along the circle of hues, in Pillow's 8-bit HSV, whose circle has 256 steps."""
    from PIL import Image

    turned = np.empty_like(frames)
    for out, frame in zip(turned, frames, strict=True):
        h, s, v = Image.fromarray(np.ascontiguousarray(frame)).convert("HSV").split()
        h = Image.fromarray(np.asarray(h) + np.uint8(int(hue * 255) % 256))
        out[:] = np.asarray(Image.merge("HSV", (h, s, v)).convert("RGB"))
    return turned


def rescaled_crop(
    frames: np.ndarray, labels: np.ndarray, scale: float, crop: tuple[int, int], corner: Sequence[float]
) -> tuple[np.ndarray, np.ndarray]:
    """Resizes a clip of any size by `scale` and takes a part of the size `crop`, as CAVP's public code does: bicubic,
    sides cut to whole pixels, where the result is smaller padded to the right and below (mean colour; ignore).

    Only the part is computed: an image is never held at twice its size.

    Args:
      frames: (T, H, W, 3) uint8 or float32; labels: (T, H, W) uint8, resized to the nearest.
      crop: (height, width) of the result.
      corner: two numbers in [0, 1): where in its range of freedom the part's corner lies (y, x).
    """
    size = [max(1, int(n * scale)) for n in labels.shape[1:]]
    offset = [int(c * (max(n, m) - m + 1)) for n, m, c in zip(size, crop, corner, strict=True)]
    part = tuple(min(n, m) for n, m in zip(size, crop, strict=True))
    steps = [n / m for n, m in zip(labels.shape[1:], size, strict=True)]
    (top, bottom), (left, right) = ((o * s, (o + n) * s) for o, n, s in zip(offset, part, steps, strict=True))
    box = (left, top, min(right, labels.shape[2]), min(bottom, labels.shape[1]))
    fill = np.array(CROP_FILL, np.uint8) if frames.dtype == np.uint8 else np.float32(0)
    out_frames = np.broadcast_to(fill, (len(frames), *crop, 3)).astype(frames.dtype)
    out_labels = np.full((len(labels), *crop), IGNORE, np.uint8)
    for k in range(len(frames)):
        out_frames[k, : part[0], : part[1]] = _resize(frames[k], part, bicubic=True, box=box)
    rows, columns = (_nearest(n, m)[o : o + k] for n, m, o, k in zip(labels.shape[1:], size, offset, part, strict=True))
    out_labels[:, : part[0], : part[1]] = labels[:, rows][:, :, columns]
    return out_frames, out_labels


def _nearest(n: int, m: int) -> np.ndarray:
    """(m,) which of n pixels each of m takes when Pillow resizes to the nearest; it breaks ties in its own way."""
    from PIL import Image

    line = Image.fromarray(np.arange(n, dtype=np.int32)[None])
    return np.asarray(line.resize((m, 1), Image.Resampling.NEAREST))[0]


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


def _resize(image: np.ndarray, size: tuple[int, int], nearest_pixel=False, bicubic=False, box=None) -> np.ndarray:
    """box: (left, top, right, bottom) of the part of the image that becomes the result; None: all."""
    from PIL import Image

    ways = Image.Resampling
    how = ways.NEAREST if nearest_pixel else ways.BICUBIC if bicubic else ways.BILINEAR
    if image.dtype == np.uint8:
        return np.asarray(Image.fromarray(np.ascontiguousarray(image)).resize(size[::-1], how, box))
    planes = np.moveaxis(image, -1, 0)
    return np.stack(
        [np.asarray(Image.fromarray(np.ascontiguousarray(c)).resize(size[::-1], how, box)) for c in planes], -1
    )
