"""F-measure over 255 thresholds, from one histogram per frame in place of 255 passes."""

import jax
import jax.numpy as jnp
import numpy as np

BETA2 = 0.3  # beta squared, the weight of recall (Achanta et al., 2009; AVSBench, Zhou et al., 2022)
EPS = 1e-20  # the protocol's: an empty prediction has precision 0


def _thresholds() -> np.ndarray:
    # 255 float32 values from 0 to 1 - 1e-10 (which float32 rounds to 1), stepping from both ends towards the middle
    # with a float32 step: the protocol's own values to the last bit, which decides ties.
    steps, step = np.arange(255), float(np.float32((1 - 1e-10) / 254))
    return np.where(steps < 127, steps * step, 1.0 - (254 - steps) * step).astype(np.float32)


THRESHOLDS = _thresholds()
THRESHOLDS.flags.writeable = False
BINS = len(THRESHOLDS) + 1


def score_histograms(scores: jax.Array, truth: jax.Array, valid: jax.Array) -> jax.Array:
    """Counts the pixels of each frame by the number of thresholds that their score reaches.

    Bin b holds the pixels with score >= THRESHOLDS[k] for exactly k < b, so one pass gives the predicted area at every
    threshold, exactly. A NaN score reaches none.

    Args:
      scores: (B, T, H, W) float32 in [0, 1].
      truth, valid: (B, T, H, W) bool: pixels that sound, pixels that count.
    Returns:
      (B, T, 2, 256) int32: pixels of the background, pixels of the truth.
    """
    lead = scores.shape[:2]
    reached = jnp.searchsorted(jnp.asarray(THRESHOLDS), scores.astype(jnp.float32), side="right")
    reached = jnp.where(jnp.isnan(scores), 0, reached)
    frame = jnp.arange(lead[0] * lead[1]).reshape(*lead, 1, 1)
    cell = (frame * 2 + truth) * BINS + reached
    size = lead[0] * lead[1] * 2 * BINS
    cell = jnp.where(valid, cell, size)  # past the end: dropped
    return jnp.zeros(size, jnp.int32).at[cell.reshape(-1)].add(1, mode="drop").reshape(*lead, 2, BINS)


def threshold_counts(histograms: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(..., 2, 256) histograms -> true positives and predicted area at every threshold, each (..., 255) int64."""
    reversed_sum = np.cumsum(np.asarray(histograms, np.int64)[..., ::-1], axis=-1)[..., ::-1]
    return reversed_sum[..., 1, 1:], reversed_sum[..., 0, 1:] + reversed_sum[..., 1, 1:]


def f_beta(inter, pred, truth) -> np.ndarray:
    """F = 1.3 P R / (0.3 P + R) in float64, 0 where it is undefined, as the protocol computes it from areas."""
    precision, recall = precision_recall(inter, pred, truth)
    below = BETA2 * precision + recall
    return np.divide((1 + BETA2) * precision * recall, below, out=np.zeros_like(below), where=below > 0)


def precision_recall(inter, pred, truth) -> tuple[np.ndarray, np.ndarray]:
    """The protocol's P = inter / (pred + 1e-20) and R = inter / (truth + 1e-20) in float64."""
    inter = np.asarray(inter, np.float64)
    return inter / (np.asarray(pred, np.float64) + EPS), inter / (np.asarray(truth, np.float64) + EPS)


def clip_curves(histograms: np.ndarray) -> np.ndarray:
    """(..., T, 2, 256) -> (..., 255) float64: the sum over a clip's non-empty frames of F at every threshold."""
    inter, pred = threshold_counts(histograms)
    truth = np.asarray(histograms, np.int64)[..., 1, :].sum(-1)
    curves = f_beta(inter, pred, truth[..., None]) * (truth > 0)[..., None]
    total = np.zeros(curves.shape[:-2] + curves.shape[-1:])
    for t in range(curves.shape[-2]):  # in the order of the frames: the same rounding for every batch size
        total += curves[..., t, :]
    return total


def batched_fscore(curves: np.ndarray, frames: np.ndarray, scored: np.ndarray, clips_per_batch: int) -> np.ndarray:
    """F as the AVSBench test scripts report it: the best threshold of each batch, averaged over batches.

    Frames with an empty truth are skipped; a batch that has no others contributes 0, as there. A batch without any
    scored frame, which the benchmark does not have, is left out.

    Args:
      curves: (..., N, 255) sums of F over each clip's non-empty frames, in data-set order.
      frames: (..., N) their number.
      scored: (..., N) the number of frames that have a pixel that counts.
      clips_per_batch: the protocol's batch; the figure depends on it (the public scripts test with 4 clips).
    Returns:
      (...) float64, NaN without a scored frame.
    """
    best = in_batches(curves, clips_per_batch, axis=-2).max(-1)
    frames, scored = (in_batches(x, clips_per_batch, axis=-1) for x in (frames, scored))
    means = np.divide(best, frames, out=np.zeros_like(best), where=frames > 0)
    return ratio(means.sum(-1), (scored > 0).sum(-1))


def ratio(above, below) -> np.ndarray:
    """above / below in float64, NaN where below is 0: a figure that the data set does not define."""
    above, below = np.broadcast_arrays(np.asarray(above, np.float64), np.asarray(below, np.float64))
    return np.divide(above, below, out=np.full(above.shape, np.nan), where=below != 0)


def in_batches(values: np.ndarray, clips_per_batch: int, axis: int) -> np.ndarray:
    """Sums `values` over consecutive groups of `clips_per_batch` along `axis` (the last group may be smaller)."""
    starts = np.arange(0, values.shape[axis], clips_per_batch)
    return np.add.reduceat(np.asarray(values, np.float64), starts, axis=axis)
