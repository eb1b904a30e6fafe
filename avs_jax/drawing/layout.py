"""Blocks of rows of pictures on one sheet. matplotlib, slow to import, is loaded on first use and needs no display."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from avs_jax.paths import to_path

INNER, LEFT, RIGHT = 5.6, 1.4, 0.7  # inches: five frames of a clip, what stands left of them, and right
STILL = 2.3  # inches: the one picture of a clip
GAP, CAPTION, HEAD = 0.06, 0.19, 0.3  # inches: between rows, for a line of text, above a clip
DPI = 110


class Row(NamedTuple):
    """Pictures of a clip's frames, side by side.

    label: in words. image: (h, w, 3) uint8. captions: a text per frame, below. score: in words, to the right.
    space: inches above, beyond the usual gap. legend: texts and their colours, below, as many as there is room for, the
    first ones first; None where there are no classes.
    """

    label: str
    image: np.ndarray
    captions: Sequence[str] | None = None
    score: str = ""
    space: float = 0.0
    legend: Sequence[tuple] | None = None

    def height(self, wide):
        """In inches, where the image is `wide` inches wide."""
        own = wide * self.image.shape[0] / self.image.shape[1]
        return own + GAP + self.space + (0.0 if self.captions is None and self.legend is None else CAPTION)


def block_picture(
    path: str | Path,
    blocks: Sequence[tuple[str, Sequence[Row]]],
    *,
    frames: int,
    title: str,
    note: str,
    columns: int = 2,
    key: tuple[str, np.ndarray, str] | None = None,
) -> Path:
    """Draws blocks of rows of pictures, a block for each clip.

    Args:
      path: where to write a PNG.
      blocks: (name, rows) each.
      frames: of a clip; with more than five the rows are wider, and fewer blocks stand side by side; with one they are
        narrower, and twice as many do.
      title, note: above everything; the note may have several lines.
      columns: blocks side by side.
      key: a bar of colours below the note: (its left end in words, (h, w, 3) uint8, its right end in words).
    """
    wide = INNER * max(1.0, frames / 5) if frames > 1 else STILL
    columns = min(max(1, int(columns * INNER / wide)), len(blocks)) if frames > 1 else min(2 * columns, len(blocks))
    lines = [blocks[n : n + columns] for n in range(0, len(blocks), columns)]
    talls = [HEAD + 0.25 + max(sum(row.height(wide) for row in rows) for _, rows in line) for line in lines]
    head = 0.8 + CAPTION * note.count("\n") + 0.35 * (key is not None)  # inches
    block = LEFT + wide + RIGHT
    width, height = max(columns * block, LEFT + INNER + RIGHT), head + 0.05 + sum(talls)  # room for the note
    start = (width - columns * block) / 2 + LEFT
    figure = new_figure(width, height)
    heading(figure, title, note)
    if key is not None:
        _draw_key(figure, *key, height - head + 0.27)
    for n, (name, rows) in enumerate(blocks):
        _draw_block(figure, name, rows, wide, start + (n % columns) * block, height - head - sum(talls[: n // columns]))
    return save_figure(figure, path)


def _draw_key(figure, low, image, high, y):
    """A bar of colours in the middle, its centre y inches from below."""
    width, height = figure.get_size_inches()
    axes = figure.add_axes((0.5 - 0.8 / width, (y - 0.08) / height, 1.6 / width, 0.16 / height))
    axes.imshow(image, aspect="auto")
    axes.set_axis_off()
    figure.text(0.5 - 0.88 / width, y / height, low, ha="right", va="center", fontsize=9.5)
    figure.text(0.5 + 0.88 / width, y / height, high, ha="left", va="center", fontsize=9.5)


def _draw_block(figure, name, rows, wide, x, y):
    """One clip, its pictures from x rightwards and y downwards, in inches from the lower left."""
    width, height = figure.get_size_inches()
    figure.text(x / width, y / height, name, fontsize=11, weight="bold", va="top")
    y -= HEAD
    for row in rows:
        tall = wide * row.image.shape[0] / row.image.shape[1]
        y -= row.space
        axes = figure.add_axes((x / width, (y - tall) / height, wide / width, tall / height))
        shrunk = row.image.shape[1] > 1.5 * wide * DPI  # else thin outlines keep their colours
        axes.imshow(row.image, aspect="auto", interpolation="antialiased" if shrunk else "nearest")
        axes.set_axis_off()
        middle = (y - tall / 2) / height
        figure.text((x - 0.1) / width, middle, row.label, ha="right", va="center", fontsize=9.5)
        if row.score:
            figure.text((x + wide + 0.1) / width, middle, row.score, va="center", fontsize=11, weight="bold")
        at = x
        for text, colour in fitting(row.legend or (), wide):
            figure.text(at / width, (y - tall - 0.02) / height, text, fontsize=9, va="top", color=colour)
            at += _length(text)
        if row.captions:
            once = len(set(row.captions)) == 1
            for n, text in enumerate(row.captions[:1] if once else row.captions):
                size = 9 if once else min(9, 150 / max(len(text), 1))
                at = (x + (wide + GAP) * n / len(row.captions)) / width
                figure.text(
                    at, (y - tall - 0.02) / height, text or "(silence)", fontsize=size, va="top", color="#333333"
                )
        y -= row.height(wide) - row.space


def fitting(legend: Sequence[tuple], wide: float) -> list[tuple]:
    """The first entries of a legend, (text, colour) each, that fit into `wide` inches, and how many do not."""
    for count in range(len(legend), 0, -1):
        left = len(legend) - count
        entries = [*legend[:count], *[(f"and {left} more", "#666666")] * (left > 0)]
        if sum(_length(text) for text, _ in entries) <= wide + 0.1 or count == 1:
            return entries
    return []


def _length(text):
    return 0.15 + 0.078 * len(text)  # inches: about the width of the text, and a gap


def heading(figure, title: str, note: str) -> None:
    """A title and, smaller, a note at the top of a figure."""
    height = figure.get_size_inches()[1]
    figure.text(0.5, 1 - 0.15 / height, title, ha="center", va="top", fontsize=14, weight="bold")
    figure.text(0.5, 1 - 0.47 / height, note, ha="center", va="top", fontsize=10, color="#444444")


def new_figure(width: float, height: float):
    """An empty white figure, inches wide and high."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), facecolor="white")
    FigureCanvasAgg(figure)  # no window system, no global state
    return figure


def save_figure(figure, path: str | Path) -> Path:
    """Writes a figure as a PNG, its folder included."""
    path = to_path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=DPI)
    path.write_bytes(drawn.getvalue())
    return path
