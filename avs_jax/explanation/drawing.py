"""The pictures: attention maps over frames, and features laid out by t-SNE."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from avs_jax import pictures
from avs_jax.errors import InputError

# Of cluster 1, 2, ...: told apart on white; with the markers, twenty and more of them.
COLOURS = ("#e69f00", "#0072b2", "#d6337c", "#2ca02c", "#7a4fd0", "#8c510a", "#17a2b8", "#808000", "#d62728", "#444444")
MARKERS = "o^sDvPX*"
ROBUST = 99  # percent: what is stronger has the full colour
NOTE = (
    "Attention of pixels to sounds, summed over the clip's sounds. White: outline of the truth.\n"
    "± is the value that 99 % of a map's pixels stay within: its full colours. The sign is the network's own.\n"
    "A map that is never negative, as a gate's is, goes from its low values (dark) to its high ones (orange).\n"
    "AUC: how often a sounding pixel has more than a silent one. 0.5 tells nothing; 0 tells as much as 1."
)
MOST = 60  # clips in a picture


class Attended(NamedTuple):
    """A clip's attention at one stage: values (T, h, w) of either sign, or of none; auc: of the truth by the values, or
    NaN."""

    values: np.ndarray
    auc: float

    @property
    def bound(self) -> float:
        """What the full colours stand for."""
        return max(float(np.percentile(np.abs(self.values), ROBUST)), 1e-12)

    @property
    def low(self) -> float | None:
        """What no colour stands for, where no value is negative and zero may be far away; None elsewhere: zero."""
        return float(np.percentile(self.values, 100 - ROBUST)) if (self.values >= 0).all() else None

    def strength(self) -> np.ndarray:
        """The values as `avs_jax.pictures.heat` draws them."""
        low = self.low or 0.0
        return (self.values - low) / max(self.bound - low, 1e-12)


def attention_picture(
    path: str | Path,
    views: Sequence[pictures.View],
    attended: Sequence[Mapping[str, Attended]],
    *,
    title: str = "",
    columns: int = 2,
) -> Path:
    """Draws clips: the sound, the frames, the truth, the attention of every stage, and the prediction.

    Args:
      path: where to write a PNG.
      views: the clips.
      attended: for each clip, stage -> attention, drawn over the frames in grey.
      title: above everything.
      columns: clips side by side.
    Raises:
      InputError: attention that does not fit its clip, or more clips than a picture can hold.
    """
    if len(views) > MOST:
        raise InputError("--clips", expected=f"at most {MOST} in a picture", found=str(len(views)))
    blocks = []
    for view, stages in zip(views, attended, strict=True):
        *above, prediction = pictures.clip_rows(view)
        blocks.append((view.id, [*above, *(_attention_row(view, *item) for item in stages.items()), prediction]))
    ramp = np.broadcast_to(np.linspace(-1, 1, 256), (24, 256))
    if all(a.low is not None for stages in attended for a in stages.values()):
        ramp = (ramp + 1) / 2
    ends = ("negative", "positive") if ramp.min() < 0 else ("low", "high")
    key = (ends[0], pictures.heat(np.full((24, 256, 3), 128, np.uint8), ramp), ends[1])
    frames = max(len(view.frames) for view in views)
    return pictures.block_picture(path, blocks, frames=frames, title=title, note=NOTE, columns=columns, key=key)


def _attention_row(view, name, attended):
    values, bound, low = attended.values, attended.bound, attended.low
    if values.ndim != 3 or len(values) != len(view.frames):
        raise InputError(f"attention map '{name}' of clip '{view.id}'", expected=f"({len(view.frames)}, h, w)",
                         found=str(values.shape))  # fmt: skip
    high, wide = view.truth.shape[1:]
    scale = max(1, pictures.THUMBNAIL // max(high, wide))
    smooth = pictures.spread(attended.strength(), (high * scale, wide * scale))
    images = [
        pictures.heat(pictures.enlarge(frame, scale), strength, pictures.enlarge(mask, scale))
        for frame, strength, mask in zip(pictures.rgb(view.frames), smooth, view.truth, strict=True)
    ]
    score = "" if np.isnan(attended.auc) else f"AUC\n{attended.auc:.2f}"
    span = f"± {_short(bound)}" if low is None else f"{_short(low)} to {_short(bound)}"
    return pictures.Row(f"{words(name)}\n{span}", pictures.strip(images), score=score)


def _short(value):
    return f"{float(f'{value:.2g}'):g}"


def words(name: str) -> str:
    """ "stage4" as "stage 4"."""
    return name[:5] + " " + name[5:] if name.startswith("stage") and name[5:].isdigit() else name


class Panel(NamedTuple):
    """One run's features: a title, its figures in words, points (n, 2), and their clusters (n,)."""

    title: str
    figures: str
    points: np.ndarray
    clusters: np.ndarray


def tsne_picture(
    path: str | Path, panels: Sequence[Panel], names: Sequence[str], *, title: str = "", note: str = ""
) -> Path:
    """Draws points in the colours of their clusters, a panel for each run, up to three side by side.

    Args:
      path: where to write a PNG.
      panels: the runs.
      names: of all clusters, in words, for the legend.
      title, note: above everything.
    """
    from matplotlib.lines import Line2D

    side, gap, legend, under = 4.6, 0.35, 3.1, 0.62  # inches
    columns = min(3, len(panels))
    lines = -(-len(panels) // columns)
    head = 0.95 + 0.17 * note.count("\n")
    entries = 0.23 * len(names) + 0.5
    width, height = max(columns * (side + gap) + legend + gap, 9.6), head + max(lines * (side + under), entries)
    figure = pictures.new_figure(width, height)
    pictures.heading(figure, title, note)
    size = float(np.clip(6000 / max(len(panel.points) for panel in panels), 9, 42))
    for n, panel in enumerate(panels):
        x, top = gap + (n % columns) * (side + gap), height - head - (n // columns) * (side + under)
        axes = figure.add_axes((x / width, (top - 0.3 - (side - 0.3)) / height, side / width, (side - 0.3) / height))
        for k in range(len(names)):
            here = panel.points[panel.clusters == k]
            axes.scatter(*here.T, s=size, c=COLOURS[k % len(COLOURS)], marker=_marker(k), alpha=0.75, linewidths=0)
        axes.set(xticks=[], yticks=[])
        axes.margins(0.04)
        for spine in axes.spines.values():
            spine.set_color("#bbbbbb")
        figure.text(x / width, (top - 0.07) / height, panel.title, fontsize=11.5, weight="bold", va="top")
        figure.text(x / width, (top - side - 0.05) / height, panel.figures, fontsize=9.5, va="top", linespacing=1.35)
    handles = [
        Line2D([], [], linestyle="", marker=_marker(k), color=COLOURS[k % len(COLOURS)], markeredgewidth=0, label=name)
        for k, name in enumerate(names)
    ]
    corner = ((columns * (side + gap) + gap) / width, 1 - (head + 0.25) / height)
    figure.legend(handles=handles, loc="upper left", bbox_to_anchor=corner, title="clusters of sounds", fontsize=9.5,
                  title_fontsize=10.5, frameon=False, alignment="left", borderaxespad=0)  # fmt: skip
    return pictures.save_figure(figure, path)


def _marker(cluster):
    return MARKERS[cluster // len(COLOURS) % len(MARKERS)]
