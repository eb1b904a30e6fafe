"""Semantic figures: from one confusion matrix over a data set, and by the AVSBench semantic protocol."""

import jax
import jax.numpy as jnp
import numpy as np

from avs_jax.metrics.fmeasure import BETA2, ratio

EPS = 2.220446049250313e-16  # the semantic protocol's


def frame_confusions(labels: jax.Array, truth: jax.Array, valid: jax.Array, num_classes: int) -> jax.Array:
    """Counts pixels by (true class, predicted class).

    Args:
      labels, truth: (B, T, H, W) integer classes in 0..num_classes-1.
      valid: (B, T, H, W) bool, pixels that count.
    Returns:
      (B, T, K, K) int32, rows are the truth.
    """
    lead, size = labels.shape[:2], labels.shape[0] * labels.shape[1] * num_classes**2
    frame = jnp.arange(lead[0] * lead[1]).reshape(*lead, 1, 1)
    cell = (frame * num_classes + truth.astype(jnp.int32)) * num_classes + labels.astype(jnp.int32)
    cell = jnp.where(valid, cell, size)  # past the end: dropped
    return jnp.zeros(size, jnp.int32).at[cell.reshape(-1)].add(1, mode="drop").reshape(*lead, num_classes, num_classes)


def class_areas(confusion: np.ndarray) -> np.ndarray:
    """(..., K, K) -> (..., K, 3): intersection, predicted area and true area of each class."""
    return np.stack([np.diagonal(confusion, axis1=-2, axis2=-1), confusion.sum(-2), confusion.sum(-1)], axis=-1)


def class_figures(confusion: np.ndarray) -> dict[str, np.ndarray]:
    """Figures per class from one confusion matrix; NaN where a class does not define one.

    Args:
      confusion: (..., K, K), rows are the truth, pixels marked as ignored left out.
    Returns:
      (..., K) float64 each: iou = TP/(TP+FP+FN), precision, recall, fdr = FP/(TP+FP), and f1, f03 with beta squared
      1 and 0.3.
    """
    inter, pred, truth = np.moveaxis(class_areas(np.asarray(confusion, np.float64)), -1, 0)
    union = pred + truth - inter
    weighted = {name: ratio((1 + b) * inter, pred + b * truth) for name, b in (("f1", 1.0), ("f03", BETA2))}
    for name in weighted:  # a class in neither the truth nor the prediction has no F
        weighted[name] = np.where(union > 0, weighted[name], np.nan)
    return {
        "iou": ratio(inter, union),
        "precision": ratio(inter, pred),
        "recall": ratio(inter, truth),
        "fdr": ratio(pred - inter, pred),
        **weighted,
    }


def confusion_figures(confusion: np.ndarray) -> dict[str, np.ndarray]:
    """Means over classes from one confusion matrix, background included (as CAVP, Chen et al., 2024, reports them).

    Returns:
      (...) float64 each: miou_classes, fdr, f1, f03: means over the classes that define the figure; and
      miou_all_classes, where a class in neither the truth nor the prediction counts 0.
    """
    figures = class_figures(confusion)
    means = {"miou_classes": "iou", "fdr": "fdr", "f1": "f1", "f03": "f03"}
    out = {name: ratio(np.nansum(figures[key], -1), (~np.isnan(figures[key])).sum(-1)) for name, key in means.items()}
    out["miou_all_classes"] = np.nan_to_num(figures["iou"]).sum(-1) / figures["iou"].shape[-1]
    return out


def protocol_sums(areas: np.ndarray, scored: np.ndarray) -> dict[str, np.ndarray]:
    """The AVSBench semantic protocol's sums over a clip's frames: IoU and F of each class, and frames that define them.

    Args:
      areas: (..., T, K, 3) integers from `class_areas`.
      scored: (..., T) bool: frames that have a pixel that counts.
    Returns:
      (..., K) float64 each: iou, f, frames.
    """
    inter, pred, truth = np.moveaxis(np.asarray(areas, np.float64), -1, 0)
    union = pred + truth - inter
    precision, recall = ratio(inter, pred), ratio(inter, truth)
    f = np.nan_to_num(ratio((1 + BETA2) * precision * recall, BETA2 * precision + recall))
    defined = (union > 0) & scored[..., None]
    return {
        "iou": (inter / (union + EPS) * defined).sum(-2),
        "f": (f * defined).sum(-2),
        "frames": defined.sum(-2) * 1.0,
    }


def protocol_mean(total: np.ndarray, frames: np.ndarray) -> np.ndarray:
    """(..., K) sums over a data set -> (...): mean over frames, then over all K; a class never seen counts 0."""
    return np.divide(total, frames, out=np.zeros_like(total), where=frames > 0).mean(-1)
