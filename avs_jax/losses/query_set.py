"""TransAVS's objective: queries matched with targets, classified and drawn after every decoder layer, and kept apart.

"TransAVS: End-to-end audio-visual segmentation with transformer", equation 13; what the paper leaves open follows the
DETR, MaskFormer and Mask2Former family and is an option of `QueryLoss`.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax import lax

from avs_jax.errors import InputError, nearest
from avs_jax.losses import audio_query
from avs_jax.losses.dice import pair_dice
from avs_jax.losses.focal import softmax_focal
from avs_jax.losses.matching import assign, matched_targets, matching_cost
from avs_jax.losses.query_targets import Targets, at_size
from avs_jax.models.layers import wide


@dataclasses.dataclass(frozen=True)
class QueryLoss:
    """Options of the objective; the defaults are the paper's where it names a value.

    Attributes:
      lambda_aqdl, lambda_aqml, lambda_class, lambda_dice: weights of equation 13. The last two also weigh the cost.
      lambda_mask: weight of a binary cross-entropy over pixels, in loss and cost; 0 = the paper's, which has none.
      aux_weight: of the losses of the earlier decoder layers, beside the last one's.
      focal_gamma, focal_alpha: see `softmax_focal`; focal_alpha=None does not balance.
      dice: "linear" (Mask2Former) or "squared" (V-Net), see `pair_dice`.
      compare_at: "full": dice and cross-entropy of the matched masks, enlarged to the targets' size; "mask": at the
        size of the mask logits. Costs and AQML are always computed at the latter, with averaged targets.
      aqdl_form, aqdl_normalize, d0, eps: see `query_diversity`.
      delta1, delta2: confidence above which queries count for AQDL and for AQML, at the start and at the end.
      delta_every: steps between rises of both, see `threshold`.
      include_unlabelled_ss: AQDL and AQML, which need no labels, also of frames that are not labelled.
    """

    lambda_aqdl: float = 2.0
    lambda_aqml: float = 2.0
    lambda_class: float = 5.0
    lambda_dice: float = 5.0
    lambda_mask: float = 0.0
    aux_weight: float = 1.0
    focal_gamma: float = 2.0
    focal_alpha: float | None = 0.25
    dice: str = "linear"
    compare_at: str = "full"
    aqdl_form: str = "inv"
    aqdl_normalize: bool = True
    d0: float = 1.0
    eps: float = 1e-2
    delta1: tuple[float, float] = (0.55, 0.65)
    delta2: tuple[float, float] = (0.55, 0.65)
    delta_every: int | None = None
    include_unlabelled_ss: bool = False

    def __post_init__(self):
        for option, valid in (
            ("dice", ("linear", "squared")),
            ("compare_at", ("full", "mask")),
            ("aqdl_form", audio_query.FORMS),
        ):
            value = getattr(self, option)
            if value not in valid:
                _refuse(option, " | ".join(valid), repr(value), nearest(value, valid))
        for option in ("lambda_aqdl", "lambda_aqml", "lambda_class", "lambda_dice", "lambda_mask", "aux_weight",
                       "focal_gamma"):  # fmt: skip
            if not getattr(self, option) >= 0:
                _refuse(option, "a number of at least 0", repr(getattr(self, option)))
        for option in ("d0", "eps"):
            if not getattr(self, option) > 0:
                _refuse(option, "a number above 0", repr(getattr(self, option)))
        if self.focal_alpha is not None and not 0 <= self.focal_alpha <= 1:
            _refuse("focal_alpha", "a number in [0, 1], or None", repr(self.focal_alpha))
        for option in ("delta1", "delta2"):
            value = getattr(self, option)
            if len(value) != 2 or not all(0 <= v <= 1 for v in value):
                _refuse(option, "two numbers in [0, 1], at the start and at the end", repr(value))
        if self.delta_every is not None and self.delta_every < 1:
            _refuse("delta_every", "at least 1, or None", repr(self.delta_every))

    def deltas(self, step, max_steps: int):
        """(delta1, delta2) at a step of `max_steps`; `step` may be traced."""
        return tuple(audio_query.threshold(step, *d, self.delta_every, max_steps) for d in (self.delta1, self.delta2))


def _refuse(option, expected, found, hint=""):
    raise InputError(f"option '{option}' of the query loss", expected=expected, found=found, hint=hint)


def dot_masks(embeddings, features):
    """Mask logits (F, n, h, w), float32 at least: each query's embedding (F, n, d) with each pixel's (F, h, w, d)."""
    return jnp.einsum("fnd,fhwd->fnhw", embeddings, features, preferred_element_type=wide(features.dtype))


def target_count(targets: Targets):
    """max(1, targets of the whole batch), by which focal and dice sums are divided: under jit, of the global batch."""
    return jnp.maximum(_used(targets).sum(dtype=jnp.float32), 1.0)


def _used(targets):
    return targets.valid & targets.frame_valid[:, None]


def match_queries(class_logits, mask_logits, targets: Targets, options: QueryLoss, pooled=None):
    """The query of each target, (F, M) int32, N where there is none: see `assign`. No gradient.

    Args:
      class_logits: (F, N, K). mask_logits: (F, N, h, w).
      pooled: `at_size(targets, (h, w))`, where the caller has it already.
    """
    return assign(_cost(class_logits, mask_logits, targets, options, pooled), _used(targets))


def _cost(class_logits, mask_logits, targets, options, pooled=None):
    masks, weights = at_size(targets, mask_logits.shape[-2:]) if pooled is None else pooled
    lambdas = {k: getattr(options, k) for k in ("lambda_class", "lambda_dice", "lambda_mask")}
    return matching_cost(class_logits, mask_logits, targets.labels, masks, weights, dice=options.dice, **lambdas)


def set_loss(class_logits, mask_logits, targets: Targets, options: QueryLoss):
    """The losses of one set of queries against its targets.

    Args:
      class_logits: (F, N, K), "no object" last. mask_logits: (F, N, h, w). Any float dtype; losses are float32.
    Returns:
      ({"focal", "dice" and, where it has a weight, "mask"}: unweighted sums / `target_count`, scalars), match (F, M).
    """
    match = match_queries(class_logits, mask_logits, targets, options)
    chosen = _take(mask_logits, match)
    return _terms(class_logits, chosen, match, targets, options), match


def _take(x, match):
    """The matched queries' rows of (F, N, ...): (F, M, ...); any row where there is no match."""
    index = jnp.minimum(match, x.shape[1] - 1)
    return jnp.take_along_axis(x, index.reshape(*match.shape, *[1] * (x.ndim - 2)), 1)


def _terms(class_logits, chosen, match, targets, options):
    """Focal over all queries, and the pixel losses of the matched masks' logits `chosen` (F, M, h, w)."""
    n, k = class_logits.shape[1:]
    count = target_count(targets)
    of_query = matched_targets(match, n)
    label = jnp.take_along_axis(targets.labels, jnp.maximum(of_query, 0), 1)
    focal = softmax_focal(class_logits, jnp.where(of_query < 0, k - 1, label),
                          gamma=options.focal_gamma, alpha=options.focal_alpha)  # fmt: skip
    x = chosen.astype(wide(chosen.dtype))
    if options.compare_at == "full":
        x = jax.image.resize(x, (*x.shape[:2], *targets.masks.shape[-2:]), "bilinear")
    masks, weights = at_size(targets, x.shape[-2:])
    y, w = masks.reshape(*match.shape, -1), None if weights is None else weights.reshape(len(match), 1, -1)
    x = x.reshape(y.shape)
    used = match < n
    dice = pair_dice(jax.nn.sigmoid(x), y, w, form=options.dice)
    terms = {
        "focal": jnp.where(targets.frame_valid[:, None], focal, 0).sum() / count,
        "dice": jnp.where(used, dice, 0).sum() / count,
    }
    if options.lambda_mask:
        w = jnp.ones_like(y[:, :1]) if w is None else w
        bce = (w * jax.nn.softplus(x) - x * y).sum(-1) / jnp.maximum(w.sum(-1), 1.0)
        terms["mask"] = jnp.where(used, bce, 0).sum() / count
    return terms


def deep_supervised_loss(
    class_logits, embeddings, features, targets: Targets, options: QueryLoss, make_masks=dot_masks
):
    """`set_loss` of L sets of queries, each matched by itself, with the mask logits of one set alive at a time.

    Costs need every query's mask, but no gradient; the losses need a gradient, but only of the matched queries' masks.
    So the full logits (F, N, h, w) are made once per layer and forgotten, and the gradient sees (F, M, h, w) of them.

    Args:
      class_logits: (L, F, N, K), the last layer last.
      embeddings: (L, F, N, d), of which masks are made.
      features: what `make_masks` needs besides: a pytree of arrays.
      make_masks: (embeddings (F, n, d), features) -> mask logits (F, n, h, w), each query's by itself.
    Returns:
      Terms of `set_loss` for the last layer, the sums of the others' as "aux_" + name where L > 1; match (L, F, M).
    """
    layers, frames, n, _ = class_logits.shape
    still = lax.stop_gradient(features)
    size = jax.eval_shape(make_masks, embeddings[0], features).shape[-2:]
    pooled = at_size(targets, size)

    def cost(layer):
        return _cost(layer[0], make_masks(layer[1], still), targets, options, pooled)

    @jax.checkpoint
    def losses(layer):
        logits, x, match = layer
        return _terms(logits, make_masks(_take(x, match), features), match, targets, options)

    costs = lax.map(cost, lax.stop_gradient((class_logits, embeddings)))
    used = jnp.tile(_used(targets), (layers, 1))  # all layers in one assignment: it is sequential, and small
    match = assign(costs.reshape(layers * frames, n, -1), used).reshape(layers, frames, -1)
    each = lax.map(losses, (class_logits, embeddings, match))
    terms = {k: v[-1] for k, v in each.items()}
    if layers > 1:
        terms |= {f"aux_{k}": v[:-1].sum() for k, v in each.items()}
    return terms, match


def self_supervised_loss(
    class_logits, queries, embeddings, features, projection, deltas, targets: Targets, options: QueryLoss,
    make_masks=dot_masks,
):  # fmt: skip
    """AQDL and AQML of the last layer, each the mean over frames of the frame's own.

    Args:
      class_logits: (F, N, K). queries: (F, N, d), the audio queries A_q (or the decoder's output).
      embeddings, features, make_masks: as `deep_supervised_loss`, for one layer. Mask logits are made again in the
        backward pass rather than kept.
      projection: kernel of h, see `query_diversity`.
      deltas: (delta1, delta2), see `QueryLoss.deltas`.
    Returns:
      {"aqdl", "aqml"} unweighted, and {"n1", "n2"}: the mean number of confident queries of a frame; scalars.
    """
    selected = [audio_query.confident(class_logits, d) for d in deltas]
    aqdl = audio_query.query_diversity(queries, selected[0], projection, form=options.aqdl_form,
                                       normalize=options.aqdl_normalize, d0=options.d0, eps=options.eps)  # fmt: skip

    @jax.checkpoint
    def overlap(x, f):
        return audio_query.mask_overlap(make_masks(x, f), selected[1])

    frames = targets.frame_valid
    if options.include_unlabelled_ss:
        frames = jnp.ones_like(frames) if targets.present is None else targets.present
    n1, n2 = (s.sum(-1).astype(jnp.float32) for s in selected)
    parts = {"aqdl": aqdl, "aqml": overlap(embeddings, features), "n1": n1, "n2": n2}
    count = jnp.maximum(frames.sum(dtype=jnp.float32), 1.0)
    return {k: jnp.where(frames, v, 0).sum() / count for k, v in parts.items()}


def weighted_total(terms, options: QueryLoss):
    """Equation 13 of the terms that there are: those of the last layer, and `aux_weight` times those of the others."""
    weights = {"aqdl": options.lambda_aqdl, "aqml": options.lambda_aqml, "focal": options.lambda_class,
               "dice": options.lambda_dice, "mask": options.lambda_mask}  # fmt: skip
    weights |= {f"aux_{k}": options.aux_weight * w for k, w in weights.items()}
    return sum((weights[k] * v for k, v in terms.items() if k in weights), jnp.float32(0))
