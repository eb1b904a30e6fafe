"""Pictures a person understands at a glance: what a clip shows and sounds like, what was predicted, how training went.

Drawing on pixels is NumPy; matplotlib, slow to import, is loaded when a picture is made, and needs no display.
"""

import colorsys
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from avs_jax.data.clip import IGNORE, SEEN
from avs_jax.errors import InputError

COLOURS = np.array(  # of class 1, 2, ...: told apart on dark grey, the first ten by most colour-blind eyes
    [[255, 190, 0], [0, 200, 255], [255, 80, 140], [120, 230, 90], [190, 130, 255], [255, 130, 60], [0, 220, 170],
     [240, 240, 110], [90, 150, 255], [230, 100, 230],
     *(np.rint(255 * np.array(colorsys.hsv_to_rgb(0.618 * k % 1, (0.45, 0.8, 0.95)[k % 3], (1.0, 0.85)[k % 2])))
       for k in range(10, 254))], np.uint8)  # fmt: skip
MEAN, STD = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])  # of frames that come normalised
THUMBNAIL = 160  # pixels on the longer side, at most about


# ------------------------------------------------------------------------------------------------ on pixels


def overlay(frame: np.ndarray, mask: np.ndarray, score: np.ndarray | None = None, scale: int = 1) -> np.ndarray:
    """What sounds stays in colour, tinted and outlined; the rest turns dark and grey.

    Args:
      frame: (H, W, 3) uint8 RGB.
      mask: (H, W) integers: class of what sounds, 0 background, 255 not known (left as it is).
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
    out = np.where((mask == IGNORE)[..., None], frame, out)
    line = outline(mask, 1 + min(mask.shape) // 100) & inside
    out[line] = tint[line]
    return np.clip(np.rint(out), 0, 255).astype(np.uint8)


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


# ------------------------------------------------------------------------------------------------ a few clips


class Heard(NamedTuple):
    """A clip under one sound.

    title: what sound, as in "own sound". labels: (T, H, W) integers, the prediction. scores: (T, H, W) float in
    [0, 1], or None.
    audio: the record's `audio`. names: per frame, what can be heard, in words; None where it is not known.
    """

    title: str
    labels: np.ndarray
    scores: np.ndarray | None = None
    audio: np.ndarray | None = None
    names: Sequence[str] | None = None


class View(NamedTuple):
    """A clip to be drawn: its id, frames (T, H, W, 3), truth (T, H, W) uint8, and predictions.

    classes: their names, background first; only where the labels are classes, which are then named in their colours.
    """

    id: str
    frames: np.ndarray
    truth: np.ndarray
    heard: Sequence[Heard]
    classes: Sequence[str] = ()


INNER, LEFT, RIGHT = 5.6, 1.4, 0.7  # inches: five frames of a clip, what stands left of them, and right
GAP, CAPTION, HEAD = 0.06, 0.19, 0.3  # inches: between rows, for a line of text, above a clip


class Row(NamedTuple):
    """Pictures of a clip's frames, side by side.

    label: in words. image: (h, w, 3) uint8. captions: a text per frame, below. score: in words, to the right.
    space: inches above, beyond the usual gap. legend: texts and their colours, below; None where there are no classes.
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


def clip_picture(path: str | Path, views: Sequence[View], *, title: str = "", columns: int = 2) -> Path:
    """Draws clips: the sound, the frames, the truth, and the prediction under each sound, with its J.

    Args:
      path: where to write a PNG.
      views: the clips.
      title: above everything.
      columns: clips side by side.
    """
    note = "In colour: what is marked as making the sound.  J: overlap with the truth, from 0 (none) to 1 (exact)."
    if any(len(view.heard) > 1 for view in views):
        note += "  Swapped sound: another clip's."
    if any(view.classes for view in views):
        note = note.replace("J: overlap with the truth,", "mIoU: overlap with the truth, class by class,")
    blocks = [(view.id, clip_rows(view)) for view in views]
    frames = max(len(view.frames) for view in views)
    return block_picture(path, blocks, frames=frames, title=title, note=note, columns=columns)


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
      frames: of a clip; with more than five the rows are wider, and fewer blocks stand side by side.
      title, note: above everything; the note may have several lines.
      columns: blocks side by side.
      key: a bar of colours below the note: (its left end in words, (h, w, 3) uint8, its right end in words).
    """
    wide = INNER * max(1.0, frames / 5)
    columns = min(max(1, int(columns * INNER / wide)), len(blocks))
    lines = [blocks[n : n + columns] for n in range(0, len(blocks), columns)]
    talls = [HEAD + 0.25 + max(sum(row.height(wide) for row in rows) for _, rows in line) for line in lines]
    head = 0.8 + CAPTION * note.count("\n") + 0.35 * (key is not None)  # inches
    width, height = columns * (LEFT + wide + RIGHT), head + 0.05 + sum(talls)
    figure = new_figure(width, height)
    heading(figure, title, note)
    if key is not None:
        _draw_key(figure, *key, height - head + 0.27)
    for n, (name, rows) in enumerate(blocks):
        x = (n % columns) * (LEFT + wide + RIGHT) + LEFT
        _draw_block(figure, name, rows, wide, x, height - head - sum(talls[: n // columns]))
    return save_figure(figure, path)


def _draw_key(figure, low, image, high, y):
    """A bar of colours in the middle, its centre y inches from below."""
    width, height = figure.get_size_inches()
    axes = figure.add_axes((0.5 - 0.8 / width, (y - 0.08) / height, 1.6 / width, 0.16 / height))
    axes.imshow(image, aspect="auto")
    axes.set_axis_off()
    figure.text(0.5 - 0.88 / width, y / height, low, ha="right", va="center", fontsize=9.5)
    figure.text(0.5 + 0.88 / width, y / height, high, ha="left", va="center", fontsize=9.5)


def clip_rows(view: View) -> list[Row]:
    """The rows of a clip: sound, frames, truth, and the prediction under each sound, the last one last."""
    frames, (count, high, wide) = rgb(view.frames), view.truth.shape
    scale = max(1, THUMBNAIL // max(high, wide))

    def masks(labels, scores=None):
        scores = [None] * count if scores is None else scores
        return strip([overlay(f, m, s, scale) for f, m, s in zip(frames, labels, scores, strict=True)])

    rows = []
    for n, heard in enumerate(view.heard):
        if heard.audio is not None:
            bands = spectrograms(heard.audio, count, (high * scale * 2 // 5, wide * scale))
            if bands:
                rows.append(Row(heard.title, strip(bands), heard.names, space=0.1 * (n > 0)))
        if n == 0:
            rows.append(Row("frames", strip([enlarge(f, scale) for f in frames])))
            rows.append(Row("truth", masks(view.truth), legend=_legend(view.truth, view.classes)))
        label, score = f"prediction with\n{heard.title}", _score(heard.labels, view.truth, len(view.classes))
        legend = _legend(heard.labels, view.classes)
        rows.append(Row(label, masks(heard.labels, heard.scores), score=score, legend=legend))
    return rows


def _legend(labels, classes, most=5):
    """The classes in a clip, the largest first: (text, colour) each; None where labels are no classes."""
    if not classes:
        return None
    area = np.bincount(np.asarray(labels).reshape(-1), minlength=256)[1:IGNORE]
    found = [int(k) for k in np.argsort(-area, kind="stable") if area[k]]
    out = [(f"\u25a0 {classes[k + 1]}", COLOURS[k] / 255 * 0.8) for k in found[:most]]
    return out + [(f"and {len(found) - most} more", "#666666")] * (len(found) > most)


def _draw_block(figure, name, rows, wide, x, y):
    """One clip, its pictures from x rightwards and y downwards, in inches from the lower left."""
    width, height = figure.get_size_inches()
    figure.text(x / width, y / height, name, fontsize=11, weight="bold", va="top")
    y -= HEAD
    for row in rows:
        tall = wide * row.image.shape[0] / row.image.shape[1]
        y -= row.space
        axes = figure.add_axes((x / width, (y - tall) / height, wide / width, tall / height))
        axes.imshow(row.image, aspect="auto", interpolation="nearest")
        axes.set_axis_off()
        middle = (y - tall / 2) / height
        figure.text((x - 0.1) / width, middle, row.label, ha="right", va="center", fontsize=9.5)
        if row.score:
            figure.text((x + wide + 0.1) / width, middle, row.score, va="center", fontsize=11, weight="bold")
        at = x
        for text, colour in row.legend or ():
            figure.text(at / width, (y - tall - 0.02) / height, text, fontsize=9, va="top", color=colour)
            at += 0.15 + 0.085 * len(text)  # inches: about the width of the text
        if row.captions:
            once = len(set(row.captions)) == 1
            for n, text in enumerate(row.captions[:1] if once else row.captions):
                size = 9 if once else min(9, 150 / max(len(text), 1))
                at = (x + (wide + GAP) * n / len(row.captions)) / width
                figure.text(
                    at, (y - tall - 0.02) / height, text or "(silence)", fontsize=size, va="top", color="#333333"
                )
        y -= row.height(wide) - row.space


def heading(figure, title: str, note: str) -> None:
    """A title and, smaller, a note at the top of a figure."""
    height = figure.get_size_inches()[1]
    figure.text(0.5, 1 - 0.15 / height, title, ha="center", va="top", fontsize=14, weight="bold")
    figure.text(0.5, 1 - 0.47 / height, note, ha="center", va="top", fontsize=10, color="#444444")


def _score(labels, truth, num_classes):
    if not num_classes:
        j = _jaccard(labels, truth)
        return "not scored" if np.isnan(j) else f"J {j:.2f}"
    from avs_jax.metrics.confusion import class_figures

    valid = truth != IGNORE
    if not valid.any():
        return "not scored"
    cells = truth[valid].astype(int) * num_classes + np.asarray(labels)[valid]
    counts = np.bincount(cells, minlength=num_classes**2).reshape(num_classes, num_classes)
    return f"mIoU\n{np.nanmean(class_figures(counts)['iou']):.2f}"  # background included, as in the table of clips


def _jaccard(labels, truth):
    """Mean J of the frames by the AVSBench protocol."""
    from avs_jax.metrics.jaccard import frame_jaccard

    valid = truth != IGNORE
    mask, sounding = (np.asarray(labels) > 0) & valid, (truth > 0) & valid
    areas = [x.sum((1, 2)) for x in (mask & sounding, mask, sounding, valid)]
    scored = areas[3] > 0
    return float(frame_jaccard(*areas)[scored].mean()) if scored.any() else float("nan")


def predicted_views(method, variables, source, indices: Sequence[int], swap: bool = True) -> list[View]:
    """Clips of a source with what a method predicts of them, hearing their own sound and another clip's.

    Args:
      method, variables, source: as in `avs_jax.metrics.evaluate`; the other clip is the same as there.
      indices: which clips.
      swap: False leaves the other clip's sound out.
    """
    import jax

    from avs_jax.metrics.sounds import derangement

    predict = jax.jit(method.predict)
    partner = derangement(len(source)) if swap and len(source) > 1 else None
    views = []
    for index in indices:
        clip = source[index]
        field = "audio" if "audio" in clip else "audio_embedding"
        inputs = {k: clip[k][None] for k in SEEN if k in clip}
        shown = np.flatnonzero(clip.get("present", np.ones(len(clip["frames"]), bool)))  # padding is not,
        height, width = clip.get("size", clip["labels"].shape[1:])  # nor the rest of a canvas
        drawn = np.ix_(shown, np.arange(height), np.arange(width))
        heard = []
        for title, other in (("own sound", index), ("swapped sound", None if partner is None else int(partner[index]))):
            if other is None:
                continue
            audio = clip[field] if other == index else source.audio(other)
            found = jax.device_get(predict(variables, {**inputs, field: audio[None]}))
            scores = found.scores[0][drawn][..., 0] if method.num_classes == 1 else None
            seen = None if field != "audio" else audio[shown] if len(audio) == len(clip["frames"]) else audio
            names = sound_names(source, other)
            names = None if names is None else [names[t] for t in shown]
            heard.append(Heard(title, found.labels[0][drawn], scores, seen, names))
        classes = source.class_names if method.num_classes > 1 else ()
        views.append(View(source.ids[index], clip["frames"][drawn], clip["labels"][drawn], heard, classes))
    return views


def sound_names(source, index: int) -> list[str] | None:
    """What can be heard in each frame's second of a clip, in words, where the source knows."""
    if not hasattr(source, "sounds"):
        return None
    return [", ".join(np.array(source.sound_names)[now]) for now in np.asarray(source.sounds(index))]


def typical_clips(rows: Sequence[Mapping], count: int = 4) -> list[int]:
    """Positions in the source of clips that show the range of an evaluation, from good to poor: at evenly spaced ranks
    of J among the clips in which something sounds."""
    sounding = [row for row in rows if row["true_pixels"] > 0 and row["j"] == row["j"]] or list(rows)
    ranked = sorted(sounding, key=lambda row: (-row["j"], row["index"]))
    count = min(count, len(ranked))
    return [ranked[int((n + 0.5) * len(ranked) / count)]["index"] for n in range(count)]


# ------------------------------------------------------------------------------------------------ curves


def curves_picture(metrics: str | Path, path: str | Path, *, title: str = "") -> Path:
    """Draws a run's `metrics.jsonl`: losses above, the evaluations' figures below, over steps.

    Raises:
      InputError: the file is missing, or has no line with a step and a number.
    """
    series = _read_series(Path(metrics))
    other = {"lr", *(name for name in series if name.endswith("_norm"))}
    panels = {
        "loss and its parts": {k: v for k, v in series.items() if not k.startswith("eval/") and k not in other},
        "learning rate": {k: v for k, v in series.items() if k == "lr"},
        "evaluation": {
            k: v for k, v in series.items() if k in ("eval/miou", "eval/fscore", "eval/audio_gain", "eval/j_swap")
        },
    }
    panels = {name: lines for name, lines in panels.items() if lines} or {"metrics": series}
    figure = new_figure(8, 3.0 * len(panels) + 0.4)
    figure.suptitle(title, fontsize=13, weight="bold")
    for n, (name, lines) in enumerate(panels.items()):
        axes = figure.add_subplot(len(panels), 1, n + 1)
        for key, (steps, values) in sorted(lines.items()):
            axes.plot(
                steps, values, marker="o" if len(steps) < 30 else None, markersize=3, label=key.removeprefix("eval/")
            )
        axes.set_title(name, loc="left", fontsize=11)
        axes.set_xlabel("step")
        axes.set_xlim(0, 1.02 * max(max(steps) for steps, _ in series.values()))
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8, frameon=False, ncols=3)
    figure.tight_layout()
    return save_figure(figure, path)


def _read_series(path):
    if not path.is_file():
        raise InputError(path, expected="the metrics of a run", found="no such file")
    series = {}
    for number, line in enumerate(path.read_text().splitlines(), 1):
        try:
            values = json.loads(line)
            step = values["step"]
        except (ValueError, KeyError, TypeError):
            raise InputError(f"{path}, line {number}", expected="JSON with a 'step'", found=repr(line[:60])) from None
        for key, value in values.items():
            if key != "step" and isinstance(value, int | float):
                steps, numbers = series.setdefault(key, ([], []))
                steps.append(step)
                numbers.append(value)
    if not series:
        raise InputError(path, expected="at least one number", found="none")
    return series


def threshold_picture(path: str | Path, curves: Mapping[str, np.ndarray], *, title: str = "") -> Path:
    """Draws precision against recall, and F against the threshold, from a report's `curves`."""
    figure = new_figure(9.5, 4.2)
    figure.suptitle(title, fontsize=13, weight="bold")
    left, right = figure.add_subplot(1, 2, 1), figure.add_subplot(1, 2, 2)
    marked = curves["recall"] > 0  # precision means nothing where nothing is marked
    left.plot(curves["recall"][marked], curves["precision"][marked], color="#1f5fa8")
    middle = int(np.argmin(np.abs(curves["threshold"] - 0.5)))
    left.plot(curves["recall"][middle], curves["precision"][middle], "o", color="#1f5fa8", label="threshold 0.5")
    left.set(xlabel="recall", ylabel="precision", xlim=(0, 1.02), ylim=(0, 1.02), title="All pixels together")
    right.plot(curves["threshold"], curves["f"], color="#1f5fa8")
    if np.isfinite(curves["f"]).all():
        best = int(np.argmax(curves["f"]))
        text = f"best: {curves['f'][best]:.3f} at {curves['threshold'][best]:.3f}"
        right.plot(curves["threshold"][best], curves["f"][best], "o", color="#d9730d", label=text)
    right.axvline(0.5, color="#999999", linewidth=0.8, linestyle=":")
    right.set(xlabel="threshold", ylabel="F", xlim=(0, 1), ylim=(0, 1.02), title="Frames in which something sounds")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False, loc="lower left")
    figure.tight_layout()
    return save_figure(figure, path)


def new_figure(width: float, height: float):
    """An empty white figure, inches wide and high."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), facecolor="white")
    FigureCanvasAgg(figure)  # no window system, no global state
    return figure


def save_figure(figure, path: str | Path) -> Path:
    """Writes a figure as a PNG, its folder included."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    return path
