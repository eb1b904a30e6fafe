"""Soft Dice loss of each frame: an overlap measure, so small objects weigh as much as large ones."""

import jax
import jax.numpy as jnp

from avs_jax.losses.bce import masked_mean


def soft_dice(logits, targets, mask, smooth: float = 1.0):
    """Mean over frames of 1 - (2 sum(p y) + smooth) / (sum(p) + sum(y) + smooth), p = sigmoid(logits).

    Milletari et al., V-Net, 3DV 2016, with linear denominators; an empty frame pushes towards an empty prediction.

    Args:
      logits: (B, T, H, W) float32.
      targets: the same, in [0, 1].
      mask: the same, bool; a frame counts if any of its pixels does.
    Returns:
      Scalar float32.
    """
    mask32 = mask.astype(jnp.float32)
    p = jax.nn.sigmoid(logits.astype(jnp.float32)) * mask32
    y = targets.astype(jnp.float32) * mask32
    axes = (-2, -1)
    dice = 1 - (2 * (p * y).sum(axes) + smooth) / (p.sum(axes) + y.sum(axes) + smooth)
    return masked_mean(dice, mask.any(axes))
