"""Pictures a person understands at a glance: what a clip shows and sounds like, what was predicted, how training went.

What they are drawn with lies in `avs_jax.drawing`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from avs_jax.data.clip import IGNORE, SEEN
from avs_jax.drawing.curves import curves_picture, threshold_picture
from avs_jax.drawing.layout import Row, block_picture, heading, new_figure, save_figure
from avs_jax.drawing.pixels import (
    COLOURS,
    MEAN,
    STD,
    THUMBNAIL,
    enlarge,
    heat,
    outline,
    overlay,
    rgb,
    spread,
    strip,
)
from avs_jax.drawing.sound import is_stereo, spectrograms

__all__ = [
    "COLOURS", "MEAN", "STD", "THUMBNAIL", "Heard", "Row", "View", "block_picture", "clip_picture", "clip_rows",
    "curves_picture", "enlarge", "heading", "heat", "new_figure", "outline", "overlay", "predicted_views", "rgb",
    "save_figure", "sound_names", "spectrograms", "spread", "strip", "threshold_picture", "typical_clips",
]  # fmt: skip


GREY = "#666666"


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
                label = heard.title + "\n(left above right)" * is_stereo(heard.audio, count)
                rows.append(Row(label, strip(bands), heard.names, space=0.1 * (n > 0)))
        if n == 0:
            rows.append(Row("frames" if count > 1 else "picture", strip([enlarge(f, scale) for f in frames])))
            rows.append(Row("truth", masks(view.truth), legend=_legend(view.truth, view.classes)))
        label, score = f"prediction with\n{heard.title}", _score(heard.labels, view.truth, len(view.classes))
        legend = _legend(heard.labels, view.classes)
        rows.append(Row(label, masks(heard.labels, heard.scores), score=score, legend=legend))
    return rows


def _legend(labels, classes):
    """The classes in a clip, the largest first: (text, colour) each; None where labels are no classes."""
    if not classes:
        return None
    labels = np.asarray(labels)
    area = np.bincount(labels.reshape(-1), minlength=256)[1:IGNORE]
    found = [int(k) for k in np.argsort(-area, kind="stable") if area[k]]
    out = [(f"\u25a0 {classes[k + 1]}", COLOURS[k] / 255 * 0.8) for k in found]
    if not out and (labels != IGNORE).any():
        out = [("nothing sounds", GREY)]
    return [*out, ("\u25a8 not scored", GREY)] if (labels == IGNORE).any() else out


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
    of J, or of the mIoU of the clip where there are classes, among the clips in which something sounds."""
    figure = "miou_classes" if rows and "miou_classes" in rows[0] else "j"
    sounding = [row for row in rows if row["true_pixels"] > 0 and row[figure] == row[figure]] or list(rows)
    ranked = sorted(sounding, key=lambda row: (-row[figure], row["index"]))
    count = min(count, len(ranked))
    return [ranked[int((n + 0.5) * len(ranked) / count)]["index"] for n in range(count)]
