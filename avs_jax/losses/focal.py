"""Focal loss over classes: what is classified well already hardly counts, so many negatives do not drown a few hits.

Lin et al., Focal loss for dense object detection, ICCV 2017, in its softmax form, as TransAVS classifies its queries.
"""

import jax
import jax.numpy as jnp

from avs_jax.models.layers import wide


def softmax_focal(logits, classes, *, gamma: float = 2.0, alpha: float | None = 0.25):
    """-a_t (1 - p_t)^gamma log p_t of every query, p_t the softmax probability of its class.

    a_t is `alpha` for objects and 1 - alpha for "no object", the last class.

    Args:
      logits: (..., K), any float dtype; the softmax is float32 at least.
      classes: (...) integers in 0 .. K - 1.
      gamma: at least 0; 0 leaves the (balanced) cross-entropy.
      alpha: in [0, 1], or None for a_t = 1.
    Returns:
      (...) float32 at least.
    """
    log_p = jax.nn.log_softmax(logits.astype(wide(logits.dtype)))
    log_pt = jnp.take_along_axis(log_p, classes[..., None].astype(jnp.int32), -1)[..., 0]
    missing = -jnp.expm1(log_pt)  # 1 - p_t, with its digits where p_t is almost 1
    certain = missing <= 0  # no slope there: a power below 1 has none that is finite
    power = jnp.where(certain, 0.0, jnp.where(certain, 1.0, missing) ** gamma) if gamma else 1.0
    loss = -power * log_pt
    if alpha is None:
        return loss
    return jnp.where(classes == logits.shape[-1] - 1, 1 - alpha, alpha) * loss
