"""J: intersection over union of masks, per frame, per clip, per protocol batch and over a data set."""

import numpy as np

from avs_jax.metrics.fmeasure import in_batches, ratio

EPS = 1e-7  # the protocol's


def frame_jaccard(inter, pred, truth, pixels) -> np.ndarray:
    """J of each frame by the AVSBench protocol (Zhou et al., 2022), float64.

    A frame with an empty truth is scored on its background: an empty prediction gets 1, a false positive over a share a
    of the frame gets 1 - a.

    Args:
      inter, pred, truth, pixels: integer arrays of one shape: areas of the intersection, the prediction, the truth, and
        of all pixels that count (those not marked as ignored).
    """
    inter, pred, truth, pixels = (np.asarray(x, np.float64) for x in (inter, pred, truth, pixels))
    silent = truth == 0
    above = np.where(silent, pixels - pred, inter)
    below = np.where(silent, pixels, pred + truth - inter)
    return above / (below + EPS)


def batched_jaccard(total: np.ndarray, frames: np.ndarray, clips_per_batch: int) -> np.ndarray:
    """J as the AVSBench test scripts report it: the mean over frames of each batch, averaged over batches.

    Differs from the mean over all frames only through a smaller last batch.

    Args:
      total: (..., N) sum of J over each clip's scored frames, in data-set order.
      frames: (..., N) their number.
      clips_per_batch: clips in a protocol batch.
    Returns:
      (...) float64; batches without a scored frame are left out; NaN if there is no other.
    """
    total, frames = in_batches(total, clips_per_batch, -1), in_batches(frames, clips_per_batch, -1)
    means = np.divide(total, frames, out=np.zeros_like(total), where=frames > 0)
    return ratio(means.sum(-1), (frames > 0).sum(-1))
