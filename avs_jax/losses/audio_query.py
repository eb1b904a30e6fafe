"""TransAVS's two losses without labels: confident queries of a frame should differ, and so should their masks.

"TransAVS: End-to-end audio-visual segmentation with transformer", equations 9 to 12 and 18. Both in closed form: all
pairs of N masks of P pixels cost O(N P), and nothing of N x N x P is ever made.
"""

import jax
import jax.numpy as jnp
from jax import lax

from avs_jax.models.layers import wide

FORMS = ("inv", "exp")
NORM_EPS = 1e-12


def confident(class_logits, delta):
    """(..., N, K) -> (..., N) bool: 1 - p(no object) > delta, strictly; "no object" is the last class."""
    p = jax.nn.softmax(class_logits.astype(wide(class_logits.dtype)))
    return lax.stop_gradient(1 - p[..., -1] > delta)


def query_diversity(
    queries,
    selected,
    projection=None,
    *,
    form: str = "inv",
    normalize: bool = True,
    d0: float = 1.0,
    eps: float = 1e-2,
):
    """L_AQDL of each frame: sum of d(q_i, q_j) over the pairs of selected queries, divided by their number + 1.

    d is 1 / (D + eps), or exp(-D) in the form "exp", where D = |h(q_i) - h(q_j)|^2 < d0, and 0 beyond. Identical
    queries have no direction to part in and get no gradient from each other.

    Args:
      queries: (F, N, d), any float dtype; computed in float32 at least, whatever the compute dtype.
      selected: (F, N) bool, not differentiated.
      projection: (d, d') kernel of h; None = the identity.
      form: "inv" (the fraction that the layout of equation 10 shows) or "exp" (its other reading).
      normalize: scale h(q) to length 1; without it h can bring the loss to 0 by scaling up.
      d0: the distance, squared, from which a pair does not count.
      eps: above 0; what a distance of 0 is worth, in "inv".
    Returns:
      (F,) float32 at least; 0 where fewer than two are selected.
    """
    h = queries.astype(wide(queries.dtype))
    if projection is not None:
        h = jnp.matmul(h, projection.astype(h.dtype), precision=lax.Precision.HIGHEST)
    if normalize:
        h = h / jnp.sqrt(jnp.square(h).sum(-1, keepdims=True) + NORM_EPS)
    count = selected.sum(-1, dtype=h.dtype)
    # distances do not depend on the origin: about the selected queries' mean the products keep their digits when the
    # queries collapse, which is when this loss matters
    chosen = selected[..., None]
    mean = jnp.where(chosen, h, 0).sum(-2, keepdims=True) / jnp.maximum(count, 1)[:, None, None]
    z = jnp.where(chosen, h - lax.stop_gradient(mean), 0)
    gram = jnp.einsum("fid,fjd->fij", z, z, precision=lax.Precision.HIGHEST)
    square = jnp.square(z).sum(-1)
    distance = jnp.maximum(square[:, :, None] + square[:, None] - 2 * gram, 0)
    pair = selected[:, :, None] & selected[:, None] & ~jnp.eye(h.shape[1], dtype=bool)
    apart = distance > 0
    safe = jnp.where(pair & apart, distance, 1.0)
    near, same = (1 / (safe + eps), 1 / eps) if form == "inv" else (jnp.exp(-safe), 1.0)
    d = jnp.where(pair & (distance < d0), jnp.where(apart, near, same), 0)
    return d.sum((-2, -1)) / 2 / (count + 1)


def mask_overlap(mask_logits, selected):
    """L_AQML of each frame: sum over pairs of selected queries of the mean over pixels of (b_i m_j + m_i b_j) / 2,
    divided by their number + 1; m the sigmoid of the logits and b = (m > 0.5), a constant.

    At each pixel the sum over pairs is (sum b)(sum m) - sum b m.

    Args:
      mask_logits: (F, N, h, w), any float dtype; computed in float32 at least.
      selected: (F, N) bool, not differentiated.
    Returns:
      (F,) float32 at least; 0 where fewer than two are selected.
    """
    x = mask_logits.astype(wide(mask_logits.dtype))
    s = selected[:, :, None, None]
    m, b = jnp.where(s, jax.nn.sigmoid(x), 0), (s & (x > 0)).astype(x.dtype)
    pairs = b.sum(1) * m.sum(1) - (b * m).sum(1)  # pixel by pixel: exactly 0 for a single query
    return pairs.mean((-2, -1)) / 2 / (selected.sum(-1, dtype=x.dtype) + 1)


def threshold(step, start: float = 0.55, end: float = 0.65, every: int | None = None, max_steps: int = 90_000):
    """The confidence that a query must exceed, equation 18: from `start` to `end` in equal steps, then constant.

    Args:
      step: integer, possibly traced.
      every: steps between rises (the paper: 5000 of 90,000); None = an 18th of `max_steps`. The number of rises is
        max_steps // every.
      start, end: equal for a fixed threshold.
    Returns:
      Scalar float32.
    """
    every = max(max_steps // 18, 1) if every is None else every
    rises = max(max_steps // every, 1)
    level = jnp.minimum(jnp.asarray(step) // every, rises)
    return start + (end - start) * (level / rises).astype(jnp.float32)
