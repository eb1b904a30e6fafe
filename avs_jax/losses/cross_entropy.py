"""Cross-entropy over classes, of the pixels that count."""

import jax
import jax.numpy as jnp

from avs_jax.losses.bce import masked_mean
from avs_jax.models.layers import wide


def masked_cross_entropy(logits, labels, mask):
    """Mean of -log softmax(logits)[label] over the pixels of `mask`; 0 if there is none.

    With all pixels of the labelled frames marked it is AVSS's loss: the mean over each frame, averaged over frames.

    Args:
      logits: (..., K), any float dtype; the softmax is float32 at least.
      labels: (...) integers; those outside `mask` may have any value.
      mask: (...) bool.
    Returns:
      Scalar, float32 at least.
    """
    log_p = jax.nn.log_softmax(logits.astype(wide(logits.dtype)))
    labels = jnp.where(mask, labels, 0).astype(jnp.int32)
    return masked_mean(-jnp.take_along_axis(log_p, labels[..., None], -1)[..., 0], mask)
