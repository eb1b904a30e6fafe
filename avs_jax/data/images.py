"""Frames and masks from image files, checked before and while they are decoded.

Files of any origin may be read: only the decoders that are named are tried (some of Pillow's start other programs), and
no picture has more than `MAX_PIXELS`, whatever a small file declares.
"""

import functools
import io
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, TiffImagePlugin, UnidentifiedImageError, WebPImagePlugin

from avs_jax.errors import InputError
from avs_jax.paths import to_path

MAX_PIXELS = 1 << 26  # of an image of no particular size: 8192 x 8192
_FRAME_MODES = ("RGB", "L", "P", "RGBA", "LA", "1")
assert TiffImagePlugin and WebPImagePlugin  # loaded, they are among those that Pillow can be told to try
_MASK_MODES = (*_FRAME_MODES, "I;16", "I")
FITS = ("crop", "squash")
# What Pillow raises on damaged files.
_DAMAGE = (OSError, SyntaxError, ValueError, EOFError, LookupError, TypeError, AttributeError, AssertionError,
           ArithmeticError, struct.error, zlib.error, Image.DecompressionBombError)  # fmt: skip


def read_frame(path: str | Path, size: tuple[int, int] | None = None, resize: bool = False) -> np.ndarray:
    """Reads one frame, PNG or JPEG.

    Args:
      size: the (height, width) it must have; None takes any.
      resize: scale a frame of another size to `size` (see `squash`) in place of refusing it.
    Returns:
      (H, W, 3) uint8 RGB. Transparency is dropped.
    Raises:
      InputError: the file is missing, cut short or no 8-bit PNG or JPEG, or the frame has another size.
    """
    with _open(path, ("PNG", "JPEG"), _FRAME_MODES) as image:
        other = _check_size(path, image, size, resize)
        pixels = np.asarray(_decode(path, image, "RGB"))
    return squash(pixels, size) if other else pixels


def read_mask(path: str | Path, size: tuple[int, int] | None = None, resize: bool = False) -> np.ndarray:
    """Reads one binary mask, PNG of any mode, without dithering.

    A pixel sounds where its colour is not black; a palette index counts as its colour, and a fully transparent pixel
    as black. Should every colour the image uses be black although it holds several palette indices (its palette is
    lost), index 0 is the background.

    Args:
      size, resize: as for `read_frame`; a mask is scaled to the nearest pixel.
    Returns:
      (H, W) uint8: 1 where something sounds, 0 elsewhere.
    Raises:
      InputError: the file is missing, cut short or no PNG, or the mask has another size.
    """
    with _open(path, ("PNG",), _MASK_MODES) as image:
        other = _check_size(path, image, size, resize)
        mask = _sounding(_decode(path, image))
    if other:
        mask = np.asarray(Image.fromarray(mask).resize(size[::-1], Image.Resampling.NEAREST))
    return mask


def read_fitted(path: str | Path, size: tuple[int, int], fit: str) -> np.ndarray:
    """Reads one frame, PNG or JPEG, of any size, and fits it to `size` (height, width); see `fitted`.

    Returns:
      (H, W, 3) uint8 RGB.
    Raises:
      InputError: as `read_frame`.
    """
    image = _rgb(path, ("PNG", "JPEG"), _FRAME_MODES)
    return np.asarray(fitted(image, size, fit, Image.Resampling.BILINEAR, path))


def read_colours(path: str | Path, size: tuple[int, int], fit: str) -> np.ndarray:
    """Reads one mask whose colours are classes, a PNG of any size, fitted to `size` by picking the nearest pixels.

    Returns:
      (H, W, 3) uint8 RGB, for `classes_of`. Transparency is dropped.
    Raises:
      InputError: as `read_mask`.
    """
    return np.asarray(fitted(_rgb(path, ("PNG",), _FRAME_MODES), size, fit, Image.Resampling.NEAREST, path))


def read_picture(path: str | Path, formats: tuple[str, ...]) -> np.ndarray:
    """Reads one picture as it is shown: any mode, turned as its EXIF tag says.

    Args:
      formats: Pillow's names of those it may have.
    Returns:
      (H, W, 3) uint8 RGB. Transparency is dropped.
    Raises:
      InputError: the file is missing, cut short, of another format, or too large.
    """
    with _open(path, formats, None) as image:
        _check_size(path, image, None, False)
        return np.asarray(_decode(path, image, "RGB", upright=True))


def read_values(path: str | Path, size: tuple[int, int] | None = None) -> np.ndarray:
    """Reads one mask that stores a number for every pixel: a grey PNG, or one with a palette, whose indices count.

    Args:
      size: the (height, width) it must have; None takes any.
    Returns:
      (H, W) uint8.
    Raises:
      InputError: as `read_mask`.
    """
    with _open(path, ("PNG",), ("L", "P")) as image:
        found = (image.height, image.width)
        _check_size(path, image, None, False)
        if size is not None and found != tuple(size):
            expected = f"{size[0]} x {size[1]} pixels, as its picture"
            raise InputError(path, expected=expected, found=f"{found[0]} x {found[1]}")
        return np.asarray(_decode(path, image))


def _rgb(path, formats, modes) -> Image.Image:
    with _open(path, formats, modes) as image:
        _check_size(path, image, None, False)
        return _decode(path, image, "RGB")


def fitted(
    image: Image.Image, size: tuple[int, int], fit: str, how: Image.Resampling, where: object = "picture"
) -> Image.Image:
    """An image scaled to `size` (height, width).

    Args:
      fit: "squash" does not keep the aspect ratio; "crop" keeps it, scales the image until it covers `size` (for a
        square: its shorter side to that length) and takes the centre, rounding as AVSS's public code does.
      how: Pillow's resampling; its bilinear one averages over more pixels where it shrinks.
      where: the file, for errors.
    Raises:
      InputError: the image is so long and narrow that it would cover `size` only when far too large.
    """
    height, width = size
    if fit == "squash":
        return image.resize((width, height), how)
    if image.width * height > image.height * width:
        covering = (image.width * height // image.height, height)
    else:
        covering = (width, image.height * width // image.width)
    if covering[0] * covering[1] > MAX_PIXELS:
        found = f"{image.height} x {image.width} pixels"
        raise InputError(where, expected=f"a picture to be cut to {height} x {width} pixels", found=found)
    image = image.resize(covering, how)
    left, top = (round((n - m) / 2) for n, m in zip(image.size, (width, height), strict=True))
    return image.crop((left, top, left + width, top + height))


@functools.cache
def palette(num_classes: int) -> np.ndarray:
    """(num_classes, 3) uint8: the colours of classes in PASCAL VOC's masks, and AVSS's.

    Bits 0, 1, 2 of the class are the highest bits of red, green and blue, bits 3, 4, 5 the next, and so on.
    """
    k = np.arange(num_classes)
    colours = np.zeros((num_classes, 3), np.uint8)
    for bit in range(8):
        colours[:, bit % 3] |= ((k >> bit & 1) << (7 - bit // 3)).astype(np.uint8)
    colours.flags.writeable = False  # shared by every caller
    return colours


@functools.cache
def _class_bits() -> np.ndarray:
    """(3, 256) uint8: the bits of the class that a value of red, green and blue tells; `palette` undone."""
    values, bits = np.arange(256), np.zeros((3, 256), np.uint8)
    for bit in range(8):
        bits[bit % 3] |= ((values >> (7 - bit // 3) & 1) << bit).astype(np.uint8)
    return bits


def classes_of(colours: np.ndarray, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """The class of each pixel by its colour in `palette(num_classes)`.

    Args:
      colours: (..., 3) uint8 RGB.
      num_classes: at most 255.
    Returns:
      (...) uint8 classes, 0 where the colour is no class's; and (...) bool, whether it is one's.
    """
    bits = _class_bits()
    classes = bits[0][colours[..., 0]] | bits[1][colours[..., 1]] | bits[2][colours[..., 2]]
    full = np.zeros((256, 3), np.uint8)
    full[:num_classes] = palette(num_classes)  # a class beyond them gets black, which its colour is not
    known = np.ones(classes.shape, bool)
    for channel in range(3):  # a channel at a time: a gather of (..., 3) is many times as slow
        known &= full[:, channel][classes] == colours[..., channel]
    return np.where(known, classes, np.uint8(0)), known


def squash(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Scales (H, W, C) uint8 to `size` (height, width), aspect ratio not kept: bilinear between the four nearest pixel
    centres without antialiasing, as OpenCV's resize, which made the public frames."""
    (rows, row_part), (columns, column_part) = (_centres(n, m) for n, m in zip(pixels.shape, size, strict=False))
    row_part, column_part = row_part[:, None, None], column_part[:, None]
    above, below = pixels[rows[0]], pixels[rows[1]]  # whole rows first: the larger part of the work, in uint8
    blend = above + row_part * (below.astype(np.float32) - above)
    left, right = blend[:, columns[0]], blend[:, columns[1]]
    return np.rint(left + column_part * (right - left)).astype(np.uint8)


def _centres(n: int, m: int) -> tuple[np.ndarray, np.ndarray]:
    """For each of m new pixels, the indices (2, m) of the two old ones of n it lies between, and the second's part."""
    at = np.clip((np.arange(m, dtype=np.float32) + 0.5) * (n / m) - 0.5, 0, n - 1)
    low = at.astype(np.int64)
    return np.stack([low, np.minimum(low + 1, n - 1)]), at - low


def _sounding(image: Image.Image) -> np.ndarray:
    values = np.asarray(image)
    if image.mode == "P":
        palette = np.zeros((256, 3), np.uint8)
        colours = np.asarray(image.getpalette("RGB"), np.uint8).reshape(-1, 3)
        palette[: len(colours)] = colours
        coloured = palette.any(axis=1)[values]
        return np.asarray(coloured if coloured.any() else values > 0, np.uint8)
    if image.mode == "LA":
        return np.asarray((values[..., 0] > 0) & (values[..., 1] > 0), np.uint8)
    if image.mode in ("RGB", "RGBA"):
        coloured = values[..., :3].any(axis=-1)
        return np.asarray(coloured & (values[..., 3] > 0) if image.mode == "RGBA" else coloured, np.uint8)
    return np.asarray(values > 0, np.uint8)


def _open(path: str | Path, formats: tuple[str, ...], modes: tuple[str, ...] | None) -> Image.Image:
    """Reads the header only. modes: that are taken; None: all."""
    path = to_path(path)
    expected = f"a {' or '.join(formats)} image"
    try:
        # From memory: of a file, Pillow asks for as many bytes as a chunk says it has, and Python sets them aside.
        data = io.BytesIO(path.read_bytes())
        image = Image.open(data, formats=("PNG", "JPEG", *(f for f in formats if f != "MPO")))  # MPO begins as JPEG
    except FileNotFoundError:
        raise InputError(path, expected=expected, found="no such file") from None
    except InputError:  # no access to a bucket
        raise
    except _DAMAGE as error:
        raise InputError(path, expected=expected, found=_reason(path, error)) from None
    if image.format not in formats:
        found = f"a {image.format}, which blurs the edge of a mask" if image.format == "JPEG" else f"a {image.format}"
        raise InputError(path, expected=expected, found=found)
    if modes is not None and image.mode not in modes:
        raise InputError(path, expected=f"an image of mode {', '.join(modes)}", found=f"mode {image.mode}")
    return image


def _check_size(path, image: Image.Image, size: tuple[int, int] | None, resize: bool) -> bool:
    """Whether the image must be resized."""
    found = (image.height, image.width)
    if found[0] * found[1] > MAX_PIXELS:
        raise InputError(path, expected=f"at most {MAX_PIXELS} pixels", found=f"{found[0]} x {found[1]}")
    if size is None or found == tuple(size):
        return False
    if not resize:
        raise InputError(
            path,
            expected=f"{size[0]} x {size[1]} pixels",
            found=f"{found[0]} x {found[1]}",
            hint="Set data.image_size to the size on disk, or data.resize=True to scale every image.",
        )
    return True


def _decode(path, image: Image.Image, mode: str | None = None, upright: bool = False) -> Image.Image:
    try:
        image.load()
        if upright:
            ImageOps.exif_transpose(image, in_place=True)
        return image.convert(mode) if mode else image
    except _DAMAGE as error:
        raise InputError(path, expected="a whole image", found=_reason(to_path(path), error)) from None


def _reason(path: Path, error: Exception) -> str:
    if path.is_dir():
        return "a folder"
    size = path.stat().st_size if path.exists() else 0
    text = "no such image" if isinstance(error, UnidentifiedImageError) else error  # Pillow's names an object in memory
    return f"{size} bytes that do not decode: {text}" if size else "an empty file"
