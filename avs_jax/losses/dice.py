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


def pair_dice(p, y, weights=None, *, form: str = "linear"):
    """1 - (2 sum(w p y) + 1) / (sum(w p) + sum(w y) + 1) of each pair of masks.

    Args:
      p: (..., P) probabilities, float32 or wider.
      y: (..., P) targets in [0, 1], already 0 (or scaled) where `weights` says that pixels do not count (fully).
      weights: (..., P) w in [0, 1] of each pixel, which multiply p; None = all count.
      form: of the denominator, "linear" as above or "squared": sum(w p^2) + sum(y^2) + 1 (V-Net as printed).
    Returns:
      (...), in [0, 1].
    """
    q = p if weights is None else p * weights
    return _dice((q * y).sum(-1), (q if form == "linear" else q * p).sum(-1), _size(y, form))


def dice_matrix(p, y, weights=None, *, form: str = "linear"):
    """`pair_dice` of every query's mask (F, N, P) with every target's (F, M, P); `weights` (F, P). -> (F, N, M)."""
    q = p if weights is None else p * weights[:, None]
    overlap = jnp.einsum("fnp,fmp->fnm", p, y, precision=jax.lax.Precision.HIGHEST)  # y carries the weights
    return _dice(overlap, (q if form == "linear" else q * p).sum(-1)[:, :, None], _size(y, form)[:, None])


def _size(y, form):
    return (y if form == "linear" else jnp.square(y)).sum(-1)


def _dice(overlap, p_size, y_size):
    return 1 - (2 * overlap + 1) / (p_size + y_size + 1)
