"""Objects one by one: laid over a picture in their own colours, and side by side on a sheet."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from avs_jax.drawing.layout import heading, new_figure, save_figure
from avs_jax.drawing.pixels import enlarge, outline

CELL, TIME, MARGIN = (1.5, 2.2), 0.75, 0.15  # inches: a picture's width, from and to; for the times; at the edges
LINE, GAP, HEAD = 0.17, 0.1, 0.95  # inches: of text; between pictures; above the first row
PIXELS = 300  # on the longer side of a picture on a sheet
INK, FAINT = "#222222", "#777777"


class Tag(NamedTuple):
    """What is said of an object: its query, the probability and name of its class ("" where there is one class), and
    its colour (3,) uint8."""

    query: int
    probability: float
    name: str
    colour: np.ndarray


class Paint:
    """Objects ready to be laid over pictures: filled and outlined, with a tag; all else turns dark and grey.

    Args:
      masks: N of (H, W) bool; tags: N, the most probable first.
      size: (H, W), `scale` times the size of the pictures.
    """

    def __init__(self, masks: Sequence[np.ndarray], tags: Sequence[Tag], size: tuple[int, int], scale: int = 1):
        keep, colour = np.full((*size, 1), 256, np.uint16), np.zeros((*size, 3), np.uint16)
        self._lines = []
        for mask, tag in reversed(list(zip(masks, tags, strict=True))):  # the most probable on top
            keep[mask] = keep[mask] * 5 // 8
            colour[mask] = (colour[mask] >> 3) * 5 + np.uint16(96) * tag.colour
            self._lines.append((outline(mask, 1 + min(size) // 240) & mask, tag.colour))
        self._scale, self._keep, self._colour, self._any = scale, keep, colour, keep < 256
        self._signs = _signs(masks, tags, size)

    def over(self, frame: np.ndarray) -> np.ndarray:
        """frame: (h, w, 3) uint8 -> (h * scale, w * scale, 3) uint8."""
        frame = enlarge(frame, self._scale)
        grey = (frame[..., 0] >> 3) + (frame[..., 1] >> 2) + (frame[..., 2] >> 3) + np.uint8(25)
        mixed = ((frame * self._keep + self._colour) >> 8).astype(np.uint8)
        out = np.where(self._any, mixed, grey[..., None])
        for line, colour in self._lines:
            out[line] = colour
        for y, x, sign in self._signs:
            out[y : y + sign.shape[0], x : x + sign.shape[1]] = sign
        return out


def _signs(masks, tags, size) -> list[tuple[int, int, np.ndarray]]:
    """(top, left, picture) of each tag: above its mask where there is room, and below those already there."""
    text, placed = int(np.clip(min(size) // 20, 12, 40)), []
    for mask, tag in zip(masks, tags, strict=True):
        if not mask.any():
            continue
        sign = _sign(tag, text)
        high, wide = sign.shape[0], min(sign.shape[1], size[1])
        rows, columns = np.nonzero(mask)
        top = int(np.percentile(rows, 1)) - high - 2  # not led astray by a few pixels elsewhere
        left = int(np.clip(np.median(columns) - wide // 2, 0, size[1] - wide))
        top = int(np.clip(top, 0, max(size[0] - high, 0)))
        while any(abs(top - y) < high and left < x + s.shape[1] and x < left + wide for y, x, s in placed):
            top += 2
        if top + high <= size[0]:
            placed.append((top, left, sign[:, :wide]))
    return placed


def _sign(tag: Tag, text: int) -> np.ndarray:
    font = ImageFont.load_default(text)
    words = f"q{tag.query}  p {short(tag.probability)}" + f"  {tag.name}" * bool(tag.name)
    image = Image.new("RGB", (int(font.getlength(words)) + text, text + text // 2), tuple(tag.colour.tolist()))
    ImageDraw.Draw(image).text((text // 2, image.height // 2), words, fill=(15, 15, 15), font=font, anchor="lm")
    return np.asarray(image)


def short(probability: float) -> str:
    """To two digits, without the nought in front."""
    return f"{probability:.2f}".removeprefix("0")


class SheetRow(NamedTuple):
    """A frame on a sheet: when, the picture under the prediction, what that found in words, and the objects' masks."""

    label: str
    prediction: np.ndarray
    found: str
    objects: Sequence[tuple[Tag, np.ndarray]]


def sheet_row(label: str, frame, labels, names: Sequence[str], masks, tags: Sequence[Tag]) -> SheetRow:
    """A frame's pictures.

    Args:
      frame: (H, W, 3) uint8; labels: (H, W) the prediction; names: of the classes in it.
      masks: (N, h, w) float32 in [0, 1], of any size; tags: N.
    """
    scale = PIXELS / max(frame.shape[:2])
    size = [max(1, round(n * scale)) for n in frame.shape[:2]]
    small = np.asarray(Image.fromarray(frame).resize(size[::-1], Image.Resampling.BICUBIC))
    inside = _resized(labels > 0, size) > 0.5
    objects = [(tag, _soft(small, _resized(mask, size), tag.colour)) for mask, tag in zip(masks, tags, strict=True)]
    return SheetRow(label, _cut_out(small, inside), ", ".join(names), objects)


def _resized(mask, size):
    image = Image.fromarray(np.asarray(mask, np.float32))
    return np.asarray(image.resize(size[::-1], Image.Resampling.BILINEAR))


def _grey(frame):
    return 0.5 * frame.mean(-1, keepdims=True) + 25


def _cut_out(frame, inside):
    """What is inside in its own colours, outlined in white: colours are the objects'."""
    out = np.where(inside[..., None], frame, _grey(frame))
    out[outline(inside, 2) & inside] = 255
    return np.rint(out).astype(np.uint8)


def _soft(frame, mask, colour):
    grey, strength = _grey(frame), 0.85 * mask[..., None]
    lit = colour * np.minimum(0.45 + 0.75 * (grey - 25) / 127.5, 1)  # the picture shows through
    out = grey * (1 - strength) + lit * strength
    out[outline(mask > 0.5, 1) & (mask > 0.5)] = 255
    return np.rint(np.clip(out, 0, 255)).astype(np.uint8)


def columns_of(rows: Sequence[Sequence[int]], most: int) -> list[list[int]]:
    """Which column each query of each row stands in: a query stays in its own where nobody else is there.

    rows: the queries of each row, at most `most`; so many columns there are.
    """
    home, placed = {}, []
    for queries in rows:
        taken = {}
        for q in queries:
            if q in home and home[q] not in taken.values():
                taken[q] = home[q]
        for q in (q for q in queries if q not in taken):
            free = [c for c in range(most) if c not in taken.values()]
            taken[q] = home[q] = min(free, key=lambda c: (c in home.values(), c))
        placed.append([taken[q] for q in queries])
    return placed


def sheet_picture(path: str | Path, rows: Sequence[SheetRow], *, title: str, most: int) -> Path:
    """Draws rows of frames: when, the prediction, and each query's soft mask, a query in one column as far as possible.

    most: objects in a row, at most.
    """
    placed = columns_of([[tag.query for tag, _ in row.objects] for row in rows], most)
    columns = 1 + max([1, *(c + 1 for row in placed for c in row)])
    cell = float(np.clip(11 / columns, *CELL))  # inches
    tall = cell * rows[0].prediction.shape[0] / rows[0].prediction.shape[1]
    named = any(tag.name for row in rows for tag, _ in row.objects) or any(row.found for row in rows)
    step = tall + GAP + LINE * (1 + named)
    left = MARGIN + TIME * any(row.label for row in rows)
    width, height = max(left + columns * (cell + GAP) + MARGIN, 7.5), HEAD + len(rows) * step + MARGIN
    left += (width - left - columns * (cell + GAP) - MARGIN) / 2
    figure = new_figure(width, height)
    heading(figure, title, "What is predicted to sound, and the queries that find it: a query's colour is as strong as "
            "its mask's\nprobability, the line is where that is 0.5; p is the probability of its class.")  # fmt: skip

    def cell_at(row, column, image, words, tag=None):
        x, y = left + column * (cell + GAP), height - HEAD - row * step - LINE * (1 + named)
        axes = figure.add_axes((x / width, (y - tall) / height, cell / width, tall / height))
        axes.imshow(image, aspect="auto", interpolation="antialiased")
        axes.set_axis_off()
        if tag is not None:
            axes.add_patch(_swatch(figure, x, y + LINE * (1 + named) - 0.13, tag.colour / 255))
        for n, line in enumerate(words):
            indent = 0.16 * (tag is not None)
            at = ((x + indent) / width, (y + LINE * (1 + named - n) - 0.02) / height)
            room = int((cell - indent) / 0.075)  # letters
            line = line if len(line) <= room else f"{line[: room - 1]}…"
            figure.text(*at, line, fontsize=9, va="top", color=INK if n == 0 else FAINT)
        return x, y

    for n, (row, where) in enumerate(zip(rows, placed, strict=True)):
        x, y = cell_at(n, 0, row.prediction, ["prediction" if n == 0 else "", row.found])
        figure.text((x - 0.1) / width, (y - tall / 2) / height, row.label, fontsize=9.5, ha="right", va="center")
        for (tag, image), column in zip(row.objects, where, strict=True):
            cell_at(n, column + 1, image, [f"query {tag.query}   p {short(tag.probability)}", tag.name], tag)
        if not row.objects:
            at = ((x + 1.5 * cell + GAP) / width, (y - tall / 2) / height)
            figure.text(*at, "no object", fontsize=9.5, ha="center", va="center", color=FAINT)
    return save_figure(figure, path)


def _swatch(figure, x, y, colour):
    """A little square of a colour, its lower left corner x and y inches from the figure's."""
    from matplotlib.patches import Rectangle

    return Rectangle((x, y), 0.11, 0.11, facecolor=colour, edgecolor="none", transform=figure.dpi_scale_trans,
                     clip_on=False)  # fmt: skip
