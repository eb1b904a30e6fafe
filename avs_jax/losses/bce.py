"""Binary cross-entropy on probabilities, with the public code's behaviour where a probability saturates."""

import jax
import jax.numpy as jnp

LOG_FLOOR = -100.0  # each logarithm is clamped here
GRAD_FLOOR = 1e-12  # the backward pass divides by at least this


@jax.custom_vjp
def pixel_bce(logits, targets):
    """-(y log p + (1 - y) log(1 - p)) with p = sigmoid(logits) in float32 and each logarithm at least -100.

    The gradient with respect to the logits is (p - y) / max(p (1 - p), 1e-12) * p (1 - p): p - y as usual, and exactly
    zero once p has saturated. A loss on the logits themselves would differ beyond |logit| of about 17.

    Args:
      logits: float32, any shape.
      targets: the same shape, in [0, 1]; not differentiated.
    """
    return _forward(logits, targets)[0]


def _forward(logits, targets):
    logits = jnp.asarray(logits, jnp.promote_types(jnp.result_type(logits), jnp.float32))
    targets = jnp.asarray(targets, logits.dtype)
    p = jax.nn.sigmoid(logits)
    log_p = jnp.maximum(jnp.log(p), LOG_FLOOR)
    log_q = jnp.maximum(jnp.log1p(-p), LOG_FLOOR)
    return -(targets * log_p + (1 - targets) * log_q), (p, targets)


def _backward(residuals, cotangent):
    p, targets = residuals
    slope = p * (1 - p)
    return cotangent * (p - targets) / jnp.maximum(slope, GRAD_FLOOR) * slope, jnp.zeros_like(targets)


pixel_bce.defvjp(_forward, _backward)


def masked_mean(values, mask):
    """Mean of `values` where `mask` (bool, the same shape) is true; 0 where it never is.

    One sum over one count, so under jit on a mesh it is the mean over the global batch.
    """
    return jnp.where(mask, values, 0.0).sum() / jnp.maximum(mask.sum(dtype=values.dtype), 1.0)


def masked_bce(logits, targets, mask):
    """Mean binary cross-entropy over the pixels of `mask`; all (B, T, H, W) -> scalar float32.

    With every frame marked it is MS3's loss, with the first frame of each clip S4's (Zhou et al., ECCV 2022).
    """
    return masked_mean(pixel_bce(logits, targets), mask)
