"""One query for each target: the cost of every pair, and the assignment of least total cost, inside jit.

Carion et al., End-to-end object detection with transformers, ECCV 2020; costs as TransAVS weighs its losses. Targets
are padded to M, so shapes are static.
"""

import jax
import jax.numpy as jnp
import optax
from jax import lax

from avs_jax.losses.dice import dice_matrix
from avs_jax.models.layers import wide

LIMIT = 1e5  # of a cost, which is a few tens: infinities and NaNs would keep the search from ending


def matching_cost(
    class_logits,
    mask_logits,
    labels,
    masks,
    weights=None,
    *,
    lambda_class: float = 5.0,
    lambda_dice: float = 5.0,
    lambda_mask: float = 0.0,
    dice: str = "linear",
):
    """lambda_class (-p_n(c_m)) + lambda_dice dice(n, m) + lambda_mask BCE(n, m) of query n with target m. No gradient.

    Args:
      class_logits: (F, N, K). mask_logits: (F, N, h, w). Any float dtype; computed in float32 at least.
      labels: (F, M) integers in 0 .. K - 2; those of padding may be anything in range.
      masks: (F, M, h, w) in [0, 1]: targets averaged over the cells of the mask logits, 0 where pixels do not count.
      weights: (F, h, w) in [0, 1], the share of each cell that counts; None = 1.
      dice: "linear" or "squared", see `avs_jax.losses.dice.pair_dice`.
    Returns:
      (F, N, M) float32 at least.
    """
    class_logits, x = (lax.stop_gradient(a.astype(wide(a.dtype))) for a in (class_logits, mask_logits))
    x, y = (a.reshape(*a.shape[:2], -1) for a in (x, masks.astype(x.dtype)))
    w = None if weights is None else weights.astype(x.dtype).reshape(x.shape[0], -1)
    probability = jax.nn.softmax(class_logits)
    cost = -lambda_class * jnp.take_along_axis(probability, labels[:, None].astype(jnp.int32), 2)
    cost += lambda_dice * dice_matrix(jax.nn.sigmoid(x), y, w, form=dice)
    if lambda_mask:
        cost += lambda_mask * _bce_matrix(x, y, w)
    return cost


def _bce_matrix(x, y, w):
    """Mean over pixels of softplus(x) - x y, (F, N, P) with (F, M, P) -> (F, N, M)."""
    area = x.shape[-1] if w is None else jnp.maximum(w.sum(-1), 1.0)[:, None, None]
    softplus = jax.nn.softplus(x) if w is None else jax.nn.softplus(x) * w[:, None]
    return (softplus.sum(-1, keepdims=True) - jnp.einsum("fnp,fmp->fnm", x, y, precision=lax.Precision.HIGHEST)) / area


def assign(cost, target_valid):
    """The assignment of queries to targets with the least total cost, each query to one target at most.

    Padding costs the same with every query, so it takes what the others leave. Where there are more targets than
    queries, as many are matched as there are queries, the cheapest choice. A cost that is not a number counts as 1e5.

    Args:
      cost: (F, N, M) of N >= 1 queries with M targets; not differentiated.
      target_valid: (F, M) bool, False for padding (and all targets of frames that do not count).
    Returns:
      (F, M) int32: the query of each target, or N (one past the last: scatters drop it) where it has none.
    """
    n, m = cost.shape[1:]
    if not m:
        return jnp.zeros(target_valid.shape, jnp.int32)
    cost = lax.stop_gradient(cost.astype(wide(cost.dtype)))
    cost = jnp.clip(jnp.where(jnp.isnan(cost), LIMIT, cost), -LIMIT, LIMIT)
    if m == 1:
        query = jnp.argmin(cost, 1)
    else:
        # with fewer queries than columns padding must cost more than any target, or it would take their queries
        padding = cost.max((1, 2), keepdims=True) + 1 if n < m else 0.0
        query = jax.vmap(_columns)(jnp.where(target_valid[:, None], cost, padding))
    return jnp.where(target_valid, query, n).astype(jnp.int32)


def _columns(cost):
    """(N, M) -> (M,): the row of each column, N where there is none."""
    rows, columns = optax.assignment.hungarian_algorithm(cost)
    return jnp.full(cost.shape[1], cost.shape[0]).at[columns].set(rows)


def matched_targets(match, num_queries: int):
    """`assign`'s (F, M) queries of targets, seen from the queries: (F, N) int32 targets, -1 for a query without one."""
    hit = match[:, :, None] == jnp.arange(num_queries)  # comparisons rather than a scatter: they split over devices
    return jnp.where(hit.any(1), jnp.argmax(hit, 1), -1).astype(jnp.int32)
