"""CAVP's contrastive loss as `python -m benchmarks.cavp --parts=loss` measures it: functions with their inputs.

The loss and its gradient in blocks of anchors against the plain form, which holds every similarity; the draw of anchors
from a batch's labels; the whole pairing loss, from fused maps to their gradient.
"""

import functools

BLOCK = 512  # anchors at a time, the default of `pairing_loss`


def loss(budget: int, channels: int, classes: int, block: int, valid: float = 1.0):
    """(function, inputs): value and gradient of the loss of `budget` anchors, of all classes and the background.

    block: anchors at a time; 0 = the plain form. valid: share of the anchors that count.
    """
    import jax
    import numpy as np

    from avs_jax.losses.contrastive import contrastive_loss

    features = np.random.default_rng(0).normal(size=(budget, channels)).astype(np.float32)
    labels = np.arange(budget) * (classes + 1) // budget % classes  # as slots are: the last one is background again
    counted = np.arange(budget) < budget * valid
    f = functools.partial(contrastive_loss, block=block) if block else plain_loss
    return jax.value_and_grad(f), (features, labels, counted)


def plain_loss(features, labels, valid, temperature=0.1):
    """The same, as it is written down: M x M similarities, differentiated."""
    import jax
    import jax.numpy as jnp

    from avs_jax.losses.avm import unit

    z = unit(features)
    s = jnp.matmul(z, z.T, precision="highest") / temperature
    same, both = labels[:, None] == labels, valid[:, None] & valid
    positive, negative = same & both & ~jnp.eye(len(z), dtype=bool), ~same & both
    rest = jax.nn.logsumexp(jnp.where(negative, s, -1e30), -1, keepdims=True)
    total = jnp.where(positive, jax.nn.softplus(rest - s), 0).sum(-1) / jnp.maximum(positive.sum(-1), 1)
    return total.sum() / jnp.maximum(valid.sum(), 1)


def draw(batch: int, side: int, classes: int, views: int, slots: int):
    """(function, inputs): anchors of a batch of `batch` maps of side x side."""
    import jax

    from avs_jax.losses.contrastive import draw_anchors

    labels = objects(batch, side, classes)
    f = functools.partial(draw_anchors, num_classes=classes, max_views=views, slots=slots)
    return lambda y, heard, key: f(y, heard, key=key), (labels, labels, jax.random.key(0))


def pairing(batch: int, side: int, channels: int, classes: int, **choice):
    """(function, inputs): value, counts and gradient of the pairing loss of 2 x `batch` fused maps of side x side."""
    import jax
    import numpy as np

    from avs_jax.losses.contrastive import pairing_loss

    fused = np.random.default_rng(0).normal(size=(2 * batch, side, side, channels)).astype(np.float32)
    match = np.random.default_rng(1).random((batch, classes)) < 0.5

    def f(fused, labels, match, key):
        return pairing_loss(fused, labels, match, key=key, **choice)

    run = jax.value_and_grad(f, has_aux=True)
    return run, (fused, objects(batch, side, classes), match, jax.random.key(0))


def objects(batch: int, side: int, classes: int):
    """(batch, side, side) uint8 labels: in every picture an object of a quarter of it, of one class after the other."""
    import numpy as np

    labels, r = np.zeros((batch, side, side), np.uint8), np.random.default_rng(0)
    for i, picture in enumerate(labels):
        y, x = r.integers(0, side - side // 2 + 1, 2)
        picture[y : y + side // 2, x : x + side // 2] = 1 + i % (classes - 1)
    return labels


def loop_flops(anchors: float, budget: int, channels: int, block: int = BLOCK) -> float:
    """What XLA's count leaves out of value and gradient in blocks: it counts a loop's body once.

    anchors: valid ones; only blocks with some are computed, three products each with each of them.
    """
    block = min(block, budget)
    return ((-(-anchors // block)) ** 2 - 1) * 3 * 2 * block**2 * channels
