"""Contrastive audio-visual pairing (CAVP): what sounds alike should look alike once fused, with the right sound only.

Chen et al., A closer look at audio-visual semantic segmentation, 2023, equations 1 and 3, with sets and samples as the
public code draws them. Shapes are static: a fixed budget of anchors, those not used marked as such.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from avs_jax.errors import InputError
from avs_jax.losses.avm import unit
from avs_jax.models.layers import wide

IGNORE = 255  # label of a pixel that does not count
EMPTY = -1e30  # logarithm of an empty sum: finite, so that nothing of it becomes NaN


class Anchors(NamedTuple):
    """Pixels that are drawn, in (classes + 2) slots of equal size: classes ascending, background, shuffled half.

    rows: (M,) int32 pixels of the 2 B h w, true half first, image by image, row by row.
    labels: (M,) int32 classes.
    valid: (M,) bool; what is not valid means nothing.
    """

    rows: jax.Array
    labels: jax.Array
    valid: jax.Array


def pairing_loss(
    fused,
    labels,
    match,
    *,
    key=None,
    temperature: float = 0.1,
    max_views: int = 512,
    max_classes: int | None = None,
    groups: int = 1,
    block: int = 512,
):
    """CAVP's loss of a batch fused with its own sounds and with shuffled ones. Nothing is detached.

    Under jit on a mesh the batch is the global batch, so anchors and contrasts come from all devices, and every device
    computes the same small problem: the budget does not grow with them. `groups`, the number of devices or any divisor
    of B, draws and contrasts within parts of the batch instead, as the public code does for each of its two GPUs.

    Args:
      fused: (2 B, h, w, D), any float dtype: the B true pairs, then the same images with shuffled sounds.
      labels: (B, H, W) integer classes, 255 = ignore; taken at the fused maps' size by the nearest.
      match: (B, K) bool: the shuffled sound holds the class (see `avs_jax.data.pairing`).
      key: of the draw; None draws the first pixels, row by row.
      temperature: of the cosine.
      max_views: pixels of a class, of the background and of the shuffled half. A class with fewer is left out.
      max_classes: at most so many of the K - 1 classes, a random choice among those with enough pixels; None = all.
        The budget is M = max_views * (max_classes + 2) anchors.
      groups: independent parts of consecutive clips.
      block: anchors at a time: memory is O(block M).
    Returns:
      Scalar float32 (wider if `fused` is), 0 where no class has enough pixels; and {name: scalar}: `anchors` drawn,
      `anchor_classes` among them, `hard_pairs`, the share of the shuffled half's anchors whose class is not heard.
    Raises:
      InputError: shapes that do not fit each other, or an option out of range.
    """
    fused, labels, match = map(jnp.asarray, (fused, labels, match))
    two_b, h, w, d = fused.shape
    b, classes = match.shape
    if two_b != 2 * b or labels.shape[0] != b:
        raise InputError("maps of the pairing loss", expected=f"2 x {b} maps and {b} labels, as `match` has rows",
                         found=f"{two_b} maps and {labels.shape[0]} labels")  # fmt: skip
    slots = classes - 1 if max_classes is None else min(max_classes, classes - 1)
    for name, value in (("max_views", max_views), ("max_classes", slots), ("groups", groups), ("block", block)):
        if value < 1:
            raise InputError(f"option '{name}' of the pairing loss", expected="at least 1", found=str(value))
    if b % groups:
        raise InputError("option 'groups' of the pairing loss", expected=f"a divisor of the batch of {b}",
                         found=str(groups))  # fmt: skip
    labels = at_size(labels, (h, w))
    pixels, heard = b // groups * h * w, heard_labels(labels, match)
    draw = functools.partial(draw_anchors, num_classes=classes, max_views=max_views, slots=slots)
    parts = labels.reshape(groups, pixels), heard.reshape(groups, pixels)
    keys = None if key is None else jax.random.split(key, groups)
    anchors = jax.vmap(lambda y, g, k: draw(y, g, key=k), (0, 0, None if key is None else 0))(*parts, keys)
    half, pixel = jnp.divmod(anchors.rows, pixels)
    rows = half * (b * h * w) + jnp.arange(groups)[:, None] * pixels + pixel
    rows = jnp.where(anchors.valid, rows, 2 * b * h * w)  # past the end: zeros, and no gradient
    features = fused.reshape(-1, d).at[rows].get(mode="fill", fill_value=0)
    loss = jax.vmap(functools.partial(contrastive_loss, temperature=temperature, block=block))(features, *anchors[1:])
    return loss.mean(), _counts(anchors, slots)


def _counts(anchors, slots):
    valid = anchors.valid.reshape(-1, slots + 2, anchors.valid.shape[-1] // (slots + 2))
    shuffled, hard = valid[:, -1], (anchors.labels.reshape(valid.shape)[:, -1] == 0) & valid[:, -1]
    return {
        "anchors": anchors.valid.sum(-1).mean(dtype=jnp.float32),
        "anchor_classes": valid[:, :-2].any(-1).sum(-1).mean(dtype=jnp.float32),
        "hard_pairs": hard.sum() / jnp.maximum(shuffled.sum(), 1).astype(jnp.float32),
    }


def at_size(labels, size):
    """(B, H, W) -> (B, h, w): the nearest label, that of row floor(i H / h) and column floor(j W / w)."""
    rows, columns = (jnp.arange(n) * full // n for n, full in zip(size, labels.shape[1:], strict=True))
    return labels[:, rows[:, None], columns]


def heard_labels(labels, match):
    """What is labelled where another sound is heard: (B, ...) classes and (B, K) bool -> (B, ...).

    A class that the sound does not hold becomes background; 255 stays.
    """
    b, k = match.shape
    flat = labels.reshape(b, -1).astype(jnp.int32)
    kept = jnp.take_along_axis(match, jnp.clip(flat, 0, k - 1), 1) | (flat == IGNORE)
    return jnp.where(kept, flat, 0).astype(labels.dtype).reshape(labels.shape)


def draw_anchors(labels, heard, *, num_classes: int, max_views: int, slots: int, key=None) -> Anchors:
    """Draws the easy and hard pixels without replacement.

    From the true half: `max_views` pixels of every class that has as many, and s of the background. From the shuffled
    half: s of the pixels at which the image shows a class, labelled by what is heard there; 0, as true background, is a
    hard pair. s is the least of `max_views`, the true half's foreground and its background. The shuffled half's own
    background is never drawn, nor is what is marked to be ignored.

    Args:
      labels: any shape of N pixels, true classes; 255, and whatever is not below `num_classes`, is ignored.
      heard: the same pixels with the shuffled sound.
      slots: of the classes that have enough pixels so many are taken, at random (lowest first without a key).
      key: None takes the first pixels of each.
    Returns:
      Anchors, M = min(max_views, N) * (slots + 2), all invalid where no class has enough pixels.
    """
    y, g = (jnp.asarray(x, jnp.int32).reshape(-1) for x in (labels, heard))
    n, classes = y.size, jnp.arange(1, num_classes)
    views = min(max_views, n)
    true_first, shuffled_first, class_first = _priorities(key, n, num_classes)
    enough = (y == classes[:, None]).sum(-1) >= max_views
    rank = jnp.argsort(jnp.argsort(jnp.where(enough, class_first, 2.0)))
    kept = enough & (rank < slots)
    order = jnp.argsort(~kept, stable=True)[:slots]
    chosen = jnp.where(kept[order], classes[order], -1)

    foreground, background = (y > 0) & (y < num_classes), y == 0
    s = jnp.minimum(max_views, jnp.minimum(foreground.sum(), background.sum())) * kept.any()
    of_true = jnp.where(jnp.concatenate([y == chosen[:, None], background[None]]), true_first, -1.0)
    of_shuffled = jnp.where(foreground, shuffled_first, -1.0)
    # Its results must not be sliced: XLA's CPU compiler would then sort all pixels, which takes 30 times as long.
    value, pixel = lax.top_k(jnp.concatenate([of_true, of_shuffled[None]]), views)
    slot = jnp.arange(slots + 2)[:, None]
    valid = (value >= 0) & (jnp.arange(views) < jnp.where(slot < slots, views, s))
    drawn = jnp.where(slot == slots + 1, g[pixel], y[pixel])
    rows = jnp.where(slot == slots + 1, pixel + n, pixel)
    return Anchors(rows.reshape(-1), drawn.reshape(-1), valid.reshape(-1))


def _priorities(key, n, num_classes):
    """Who comes first among pixels of the true half, of the shuffled half, and lowest first among classes."""
    if key is None:
        first = jnp.arange(n, 0, -1, dtype=jnp.float32)
        return first, first, jnp.arange(num_classes - 1) / num_classes
    keys = jax.random.split(key, 3)
    return tuple(jax.random.uniform(k, (m,)) for k, m in zip(keys, (n, n, num_classes - 1), strict=True))


def contrastive_loss(features, labels, valid=None, *, temperature: float = 0.1, block: int = 512):
    """Equation 3: each anchor against every other one, all of the batch in one set.

    With s the cosine over the temperature, P(a) the others of a's label and N(a) those of other labels,

        L_a = - mean over p in P(a) of log( exp(s_ap) / (exp(s_ap) + sum over n in N(a) of exp(s_an)) ),

    0 where P(a) is empty, and the mean over all anchors. Computed as softplus(logsumexp(N(a)) - s_ap), which neither
    underflows nor overflows.

    Args:
      features: (M, D), any float dtype and length; normalised here.
      labels: (M,) integers. valid: (M,) bool, None = all.
      block: anchors at a time. Only as many blocks are computed as hold valid ones.
    Returns:
      Scalar, float32 at least. It can be differentiated once, in reverse, with respect to `features`.
    """
    m = features.shape[0]
    features, labels, valid = map(jnp.asarray, (features, labels, jnp.ones(m, bool) if valid is None else valid))
    order = jnp.argsort(~valid, stable=True)  # the valid ones first
    block = min(block, m)
    pad = -m % block
    z = jnp.pad(unit(features[order].astype(wide(features.dtype))), ((0, pad), (0, 0)))
    return _mean_loss(z, jnp.pad(labels[order], (0, pad)), jnp.pad(valid[order], (0, pad)), float(temperature), block)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _mean_loss(z, labels, valid, temperature, block):
    return _blocks(z, labels, valid, temperature, block, with_gradient=False)[0]


def _mean_loss_forward(z, labels, valid, temperature, block):
    return _blocks(z, labels, valid, temperature, block, with_gradient=True)


def _mean_loss_backward(temperature, block, gradient, cotangent):
    return cotangent * gradient, None, None


_mean_loss.defvjp(_mean_loss_forward, _mean_loss_backward)


def _blocks(z, labels, valid, temperature, block, with_gradient):
    """The loss of unit vectors z (M, D), valid ones first, and its gradient: known at once, since the loss is a scalar,
    so the backward pass neither keeps nor recomputes similarities. M is a multiple of the block.

    A block of anchors meets a block of others at a time, and none of those that hold no valid one: first for the
    similarities and the sum over negatives, then for what the positives lose, then for the gradient.
    """
    dot = functools.partial(jnp.matmul, precision=lax.Precision.HIGHEST)
    total = valid.sum(dtype=jnp.int32)
    blocks, anchor = -(-total // block), jnp.arange(len(z))
    weight = 1 / jnp.maximum(total, 1).astype(z.dtype)

    def part(x, i, axis=0):
        return lax.dynamic_slice_in_dim(x, i * block, block, axis)

    def one(i, carry):
        loss, gradient, similarities = carry
        zb, lb, vb, ab = (part(x, i) for x in (z, labels, valid, anchor))

        def sets(j):
            same, counted = lb[:, None] == part(labels, j), part(valid, j)
            return same & counted & (ab[:, None] != part(anchor, j)), ~same & counted

        def compare(j, carry):
            similarities, rest, positives = carry
            s = dot(zb, part(z, j).T) / temperature
            positive, negative = sets(j)
            rest = jnp.logaddexp(rest, jax.nn.logsumexp(jnp.where(negative, s, EMPTY), -1, keepdims=True))
            similarities = lax.dynamic_update_slice_in_dim(similarities, s, j * block, 1)
            return similarities, rest, positives + positive.sum(-1, keepdims=True)

        start = similarities, jnp.full((block, 1), EMPTY, z.dtype), jnp.zeros((block, 1), jnp.int32)
        similarities, rest, positives = lax.fori_loop(0, blocks, compare, start)
        w = weight * vb[:, None] / jnp.maximum(positives, 1)

        def slopes(j):  # of softplus(x) at the positives, and exp(s - rest) at the negatives, where x >= 0
            positive, negative = sets(j)
            x = rest - part(similarities, j, 1)
            e = jnp.exp(-jnp.abs(x))
            return x, e, positive, jnp.where(positive, w * jnp.where(x > 0, 1, e) / (1 + e), 0), negative

        def lose(j, carry):
            loss, pulls = carry
            x, e, positive, pull, _ = slopes(j)
            loss += (w * jnp.where(positive, jax.nn.relu(x) + jnp.log1p(e), 0)).sum()
            return loss, pulls + pull.sum(-1, keepdims=True)

        loss, pulls = lax.fori_loop(0, blocks, lose, (loss, jnp.zeros((block, 1), z.dtype)))

        def move(j, carry):
            gradient, own = carry
            _, e, _, pull, negative = slopes(j)
            slope = (jnp.where(negative, e, 0) * pulls - pull) / temperature
            other = part(gradient, j) + dot(slope.T, zb)
            return lax.dynamic_update_slice_in_dim(gradient, other, j * block, 0), own + dot(slope, part(z, j))

        if with_gradient:
            gradient, own = lax.fori_loop(0, blocks, move, (gradient, jnp.zeros_like(zb)))
            gradient = lax.dynamic_update_slice_in_dim(gradient, part(gradient, i) + own, i * block, 0)
        return loss, gradient, similarities

    zero = jnp.zeros((), z.dtype)
    start = zero, jnp.zeros_like(z) if with_gradient else zero, jnp.zeros((block, len(z)), z.dtype)
    return lax.fori_loop(0, blocks, one, start)[:2]
