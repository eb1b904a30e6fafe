"""From queries, each a mask and a class, to what a frame shows: per pixel, and object by object.

"TransAVS: End-to-end audio-visual segmentation with transformer", equations 14 and 15; "semantic" is MaskFormer's rule
(Cheng et al., Per-pixel classification is not all you need, NeurIPS 2021).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from avs_jax.errors import InputError, nearest
from avs_jax.models.layers import wide

RULES = ("argmax", "semantic")
BLOCK = {"argmax": 4, "semantic": 16}  # queries whose masks exist at full size at a time; few of them are objects


class Segmentation(NamedTuple):
    """F frames of H x W pixels.

    score: (F, H, W) float32: of the best query ("argmax", at most 1) or of the best class ("semantic").
    labels: (F, H, W) int32: 0 background, c + 1 for class c of the queries.
    scores: (F, H, W, 1) for two classes: what sounds. Else (F, H, W, K), background first; its argmax is `labels`.
      In [0, 1]; not to be put through a sigmoid or softmax again.
    winner: (F, H, W) int32: the query that `score` is of, -1 where there is none and with "semantic".
    """

    score: jax.Array
    labels: jax.Array
    scores: jax.Array
    winner: jax.Array


class Instances(NamedTuple):
    """The most probable queries whose best class is an object, the most probable first: Q of each of F frames.

    masks: (F, Q, H, W) float32 probabilities. probabilities: (F, Q) float32, of the best class.
    classes: (F, Q) int32 labels of the data, 1 .. C. queries: (F, Q) int32 indices.
    kept: (F, Q) bool, False where a frame has fewer; there masks, probabilities and classes are 0.
    """

    masks: jax.Array
    probabilities: jax.Array
    classes: jax.Array
    queries: jax.Array
    kept: jax.Array


def _classified(class_logits):
    """Probability and index of each query's best class, and whether it is an object: all (F, N)."""
    p = jax.nn.softmax(class_logits.astype(wide(class_logits.dtype)))
    best = jnp.argmax(p, -1).astype(jnp.int32)
    return p.max(-1), best, best != class_logits.shape[-1] - 1


def _masks(mask_logits, queries, size):
    """Probabilities (F, b, *size) of the masks of `queries` (F, b): enlarged as logits, half-pixel centres."""
    x = jnp.take_along_axis(mask_logits, queries[:, :, None, None], 1)
    return jax.nn.sigmoid(jax.image.resize(x.astype(wide(x.dtype)), (*x.shape[:2], *size), "bilinear"))


def segment(class_logits, mask_logits, size=None, *, rule: str = "argmax", threshold: float = 0.5) -> Segmentation:
    """The sounding pixels of each frame, and their classes.

    "argmax" gives a pixel to the query of greatest p_i(c_i) m_i(x) among those whose best class c_i is an object:
    "no object" has high probabilities and masks that nobody supervised. "semantic" sums p_i(c) m_i(x) over all queries,
    class by class. Either way only scores above `threshold` are objects. Both work through the queries in blocks, and
    "argmax" through those alone that are objects.

    Args:
      class_logits: (F, N, K), "no object" last. mask_logits: (F, N, h, w). Any float dtype.
      size: (H, W) of the result; None = (h, w).
      threshold: in [0, 1).
    Raises:
      InputError: an unknown rule, or a threshold out of range.
    """
    if rule not in RULES:
        raise InputError("option 'rule' of query masks", expected=" | ".join(RULES), found=repr(rule),
                         hint=nearest(rule, RULES))  # fmt: skip
    if not 0 <= threshold < 1:
        raise InputError("option 'threshold' of query masks", expected="a number in [0, 1)", found=repr(threshold))
    size = tuple(mask_logits.shape[-2:]) if size is None else tuple(size)
    classes = class_logits.shape[-1] - 1
    if rule == "semantic":
        found = semantic_scores(class_logits, mask_logits, size)
        score = found.max(1)
        best, winner = jnp.argmax(found, 1), jnp.full(score.shape, -1, jnp.int32)
        found = found / jnp.maximum(score, 1.0)[:, None]  # together, so that their order stays
    else:
        score, winner, best, found = _best_queries(class_logits, mask_logits, size, classes)
    labels = jnp.where(score > threshold, best + 1, 0).astype(jnp.int32)
    if classes == 1:
        return Segmentation(score, labels, jnp.minimum(score, 1.0)[..., None], winner)
    top = found.max(1, keepdims=True)
    background = jnp.clip(2 * threshold - top, 0, 1)  # beaten by the best class where it is above the threshold
    return Segmentation(score, labels, jnp.moveaxis(jnp.concatenate([background, found], 1), 1, -1), winner)


def _best_queries(class_logits, mask_logits, size, classes):
    """Score, winner and its class, (F, H, W), and the best score of each class (F, C, H, W), or None for one class."""
    p, c, kept = _classified(class_logits)
    frames, n = p.shape
    block = min(BLOCK["argmax"], n)
    order = jnp.argsort(~kept, axis=1, stable=True)  # the objects first, in their order: ties go to the first query
    order = jnp.pad(order, ((0, 0), (0, -n % block)))  # not objects, as far as they are looked at
    score = jnp.full((frames, *size), -1.0, p.dtype)
    winner = jnp.full(score.shape, -1, jnp.int32)
    found = jnp.zeros((frames, classes, *size), p.dtype) if classes > 1 else None

    def step(i, carry):
        score, winner, found = carry
        queries = lax.dynamic_slice_in_dim(order, i * block, block, 1)
        here = jnp.take_along_axis(kept, queries, 1) & (i * block + jnp.arange(block) < n)
        weight = jnp.where(here, jnp.take_along_axis(p, queries, 1), 0)[:, :, None, None]
        s = weight * _masks(mask_logits, queries, size)
        if found is not None:
            each = jnp.take_along_axis(c, queries, 1)
            # objects' classes are in range, and what is not an object is dropped
            found = jax.vmap(lambda f, k, v: f.at[k].max(v, mode="drop"))(found, jnp.where(here, each, classes), s)
        s = jnp.where(here[:, :, None, None], s, -1.0)
        first = jnp.argmax(s, 1)
        query = jnp.take_along_axis(queries[:, :, None, None], first[:, None], 1)[:, 0].astype(jnp.int32)
        top = s.max(1)
        better = top > score
        winner = jnp.where(better, query, winner)
        return jnp.where(better, top, score), winner, found

    blocks = (kept.sum(-1).max() + block - 1) // block
    score, winner, found = lax.fori_loop(0, blocks, step, (score, winner, found))
    best = jax.vmap(lambda a, i: a[jnp.maximum(i, 0)])(c, winner)
    return jnp.maximum(score, 0), winner, best, found


def semantic_scores(class_logits, mask_logits, size=None):
    """sum_i p_i(c) m_i(x) over all queries, (F, K - 1, H, W) float32; not bounded by 1. Arguments as `segment`."""
    p = jax.nn.softmax(class_logits.astype(wide(class_logits.dtype)))[..., :-1]
    size = tuple(mask_logits.shape[-2:]) if size is None else tuple(size)
    frames, n, classes = p.shape
    block = min(BLOCK["semantic"], n)
    p = jnp.pad(p, ((0, 0), (0, -n % block), (0, 0)))

    def step(i, total):
        queries = jnp.minimum(i * block + jnp.arange(block), n - 1)  # beyond the last: probability 0
        m = _masks(mask_logits, jnp.broadcast_to(queries, (frames, block)), size)
        weight = lax.dynamic_slice_in_dim(p, i * block, block, 1)
        return total + jnp.einsum("fnc,fnhw->fchw", weight, m, precision=lax.Precision.HIGHEST)

    return lax.fori_loop(0, p.shape[1] // block, step, jnp.zeros((frames, classes, *size), p.dtype))


def instances(class_logits, mask_logits, size=None, *, count: int = 10, confidence: float = 0.0) -> Instances:
    """What each query shows by itself, of the `count` most probable of each frame.

    Args:
      class_logits, mask_logits, size: as `segment`.
      confidence: the probability that an object's class must exceed.
    """
    p, c, kept = _classified(class_logits)
    kept = kept & (p > confidence)
    size = tuple(mask_logits.shape[-2:]) if size is None else tuple(size)
    rank, queries = lax.top_k(jnp.where(kept, p, -1.0), min(count, p.shape[1]))
    here = rank >= 0
    masks = jnp.where(here[:, :, None, None], _masks(mask_logits, queries, size), 0)
    classes = jnp.where(here, jnp.take_along_axis(c, queries, 1) + 1, 0)
    return Instances(masks, jnp.where(here, rank, 0), classes, queries.astype(jnp.int32), here)
