"""What is counted of a prediction on the device: exact integers per frame, from which every figure follows."""

import jax
import jax.numpy as jnp

from avs_jax.data.clip import IGNORE
from avs_jax.errors import InputError
from avs_jax.metrics.confusion import frame_confusions
from avs_jax.metrics.fmeasure import score_histograms


def frame_counts(
    prediction, truth: jax.Array, num_classes: int, present: jax.Array | None = None
) -> dict[str, jax.Array]:
    """Counts each frame of a batch; pixels labelled 255 are left out of everything.

    Args:
      prediction: a `Prediction` for B clips of T frames.
      truth: (B, T, H, W) uint8 labels of the record.
      num_classes: the method's K: 1 scores "sounding or not" (any label above 0 sounds), more scores classes.
      present: (B, T) bool of the record, or None: all frames are.
    Returns:
      int32 arrays: inter, pred, truth, pixels (B, T): areas in pixels of the sounding mask; present (B, T), 0 or 1;
      hist (B, T, 2, 256), see `score_histograms`, of the probability of sounding; for K > 1 confusion (B, T, K, K).
    """
    if prediction.labels.shape != truth.shape:
        raise InputError("prediction.labels", expected=f"the labels' shape {truth.shape}",
                         found=f"shape {prediction.labels.shape}")  # fmt: skip
    if prediction.scores.shape != (*truth.shape, num_classes):
        raise InputError("prediction.scores", expected=f"shape {(*truth.shape, num_classes)}",
                         found=f"shape {prediction.scores.shape}")  # fmt: skip
    valid = truth != IGNORE
    sounding, mask = (truth > 0) & valid, (prediction.labels > 0) & valid
    first = prediction.scores[..., 0].astype(jnp.float32)
    areas = {"inter": sounding & mask, "pred": mask, "truth": sounding, "pixels": valid}
    counts = {name: area.sum((-2, -1), dtype=jnp.int32) for name, area in areas.items()}
    counts["present"] = jnp.ones(truth.shape[:2], jnp.int32) if present is None else present.astype(jnp.int32)
    counts["hist"] = score_histograms(first if num_classes == 1 else 1 - first, sounding, valid)
    if num_classes > 1:
        counts["confusion"] = frame_confusions(prediction.labels, truth, valid, num_classes)
    return counts
