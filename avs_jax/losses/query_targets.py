"""What queries are matched with: a frame's labels as a padded set of masks, each with a class."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from avs_jax.errors import InputError
from avs_jax.models.layers import adaptive_avg_pool

IGNORE = 255  # label of a pixel that does not count


class Targets(NamedTuple):
    """F frames with up to M targets each.

    labels: (F, M) int32 in 0 .. K - 2: class c of the queries is label c + 1 of the data (background is no target).
    masks: (F, M, H, W) bool or float in [0, 1], 0 where `counted` is False.
    valid: (F, M) bool: False for padding, and for all of a frame that is not labelled.
    frame_valid: (F,) bool: labelled frames of real clips, whose queries are classified.
    counted: (F, H, W) bool: pixels not marked to be ignored; None = all.
    present: (F,) bool: frames that exist, labelled or not; None = all.
    """

    labels: jax.Array
    masks: jax.Array
    valid: jax.Array
    frame_valid: jax.Array
    counted: jax.Array | None = None
    present: jax.Array | None = None


def targets_from_labels(labels, labelled, num_classes: int, max_targets: int = 1, present=None) -> Targets:
    """Targets of F frames; shapes depend on the arguments' shapes, `num_classes` and `max_targets` alone.

    With two classes a frame has one target, the union of all that sounds, and none where nothing does. With more it has
    one for each class there is, the largest first; beyond `max_targets` the smallest are left out.

    Args:
      labels: (F, H, W) integers: 0 background, 1 .. C classes, 255 = ignore. Beyond C (if C > 1) is background.
      labelled: (F,) bool.
      num_classes: K = C + 1 of the queries, with "no object" last.
      max_targets: M.
      present: (F,) bool, False for frames that only fill up a clip or a batch; None = all exist.
    Raises:
      InputError: fewer than two classes, or M below 1.
    """
    for name, value, least in (("num_classes", num_classes, 2), ("max_targets", max_targets, 1)):
        if value < least:
            raise InputError(f"option '{name}' of targets", expected=f"at least {least}", found=str(value))
    labels = jnp.asarray(labels).astype(jnp.int32)
    frames, classes = len(labels), num_classes - 1
    frame_valid = jnp.asarray(labelled, bool)
    if present is not None:
        present = jnp.asarray(present, bool)
        frame_valid = frame_valid & present
    counted = labels != IGNORE
    if classes == 1:
        chosen = jnp.zeros((frames, 1), jnp.int32)
        masks = ((labels > 0) & counted)[:, None]
        there = masks.any((2, 3))
    else:
        area = jax.vmap(lambda y: jnp.zeros(num_classes, jnp.int32).at[y].add(1, mode="drop"))(
            labels.reshape(frames, -1)
        )
        area, chosen = lax.top_k(area[:, 1:], min(max_targets, classes))  # of equal areas the lower class comes first
        masks, there = labels[:, None] == chosen[:, :, None, None] + 1, area > 0
    pad = max_targets - chosen.shape[1]
    chosen, there = (jnp.pad(x, ((0, 0), (0, pad))) for x in (chosen, there))
    masks = jnp.pad(masks & there[:, : masks.shape[1], None, None], ((0, 0), (0, pad), (0, 0), (0, 0)))
    chosen = jnp.where(there, chosen, 0).astype(jnp.int32)
    return Targets(chosen, masks, there & frame_valid[:, None], frame_valid, counted, present)


def at_size(targets: Targets, size: tuple[int, int]):
    """Masks (F, M, h, w) and the share of each cell that counts, (F, h, w) or None; float32 means over cells."""
    masks = targets.masks.astype(jnp.float32)
    counted = None if targets.counted is None else targets.counted.astype(jnp.float32)[:, None]
    return pool(masks, size), None if counted is None else pool(counted, size)[:, 0]


def pool(x, size: tuple[int, int]):
    """(F, M, H, W) float -> (F, M, *size): means over cells, which overlap where sizes do not divide."""
    height, width = x.shape[-2:]
    h, w = size
    if (height, width) == (h, w):
        return x
    if height % h or width % w:
        return adaptive_avg_pool(x.reshape(-1, height, width, 1), size).reshape(*x.shape[:-2], h, w)
    return x.reshape(*x.shape[:-2], h, height // h, w, width // w).mean((-3, -1))
