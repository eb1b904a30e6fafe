"""Audio-visual matching: what is masked in a frame should look as the frame sounds.

Zhou et al., Audio-visual segmentation, ECCV 2022, equation 3 and table 6, as the public code computes it: a loss for
each stage, the mean of them, KL(audio || visual) with the softmax over channels, and the sum over frames.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

from avs_jax.errors import InputError, nearest
from avs_jax.models.layers import adaptive_avg_pool, adaptive_max_pool, wide

MEASURES = ("kl", "euclid")
POOLINGS = ("avg", "max")
REDUCTIONS = ("sum", "mean")
AREA_EPS = 1e-6  # of a hard mask, in pixels
DISTANCE_EPS = 1e-6  # added to every coordinate of a difference
NORM_EPS = 1e-12
SELF_DISTANCE = 10.0  # of a frame to itself: whoever has no neighbour within it is its own partner


def avm_av(
    logits,
    visual: Sequence[jax.Array],
    audio: Sequence[jax.Array | None],
    *,
    measure: str = "kl",
    normalise: bool = False,
    threshold: bool = False,
    pooling: str = "avg",
    stages: Sequence[int] | None = None,
    present=None,
    reduction: str | None = None,
):
    """L_AVM-AV: the distance of each frame's sound from what its predicted mask selects. Nothing is detached.

    The defaults are the published MS3 run's (weight 0.5 beside the cross-entropy). With several classes this is AVSS's
    loss, whose "VV" with KL is the same number: its code compares with a frame's own sound.

    Args:
      logits: (..., H, W, K). K = 1: the mask is the sigmoid of the pooled logits. K > 1: the average-pooled map of
        where the best class is not 0, without gradient.
      visual: maps (..., h, w, C), one per stage: the decoder's, after its first ReLU.
      audio: (..., C) for each stage, or None where there is no fusion. All leading axes, together the F frames, agree.
      measure: "kl", KL(softmax(audio) || softmax(visual)) summed over channels; or "euclid", the Euclidean distance.
      normalise: scale both vectors to length 1 first.
      threshold: cut the mask at 0.5 and divide by its area in place of h w.
      pooling: "avg" or "max", of the logits to the stage's size.
      stages: indices into `visual`; None = all whose audio is not None.
      present: (...) weights in [0, 1] or bool, frames that count (0 for padding); None = all.
      reduction: over frames; None = what was published: "sum" for "kl" with K = 1, else "mean".
    Returns:
      Scalar float32: the mean over stages.
    Raises:
      InputError: an unknown option; a stage that does not exist or has no audio; no stage at all.
    """
    _one_of(measure=(measure, MEASURES), pooling=(pooling, POOLINGS), reduction=(reduction, (*REDUCTIONS, None)))
    if reduction is None:
        reduction = "sum" if measure == "kl" and logits.shape[-1] == 1 else "mean"

    def one(v, a):
        return _reduce(_distance(a, v, measure), present, reduction)

    return _mean_over_stages(one, logits, visual, audio, stages, pooling, normalise, threshold)


def avm_vv(
    logits,
    visual: Sequence[jax.Array],
    audio: Sequence[jax.Array | None],
    *,
    measure: str = "kl",
    normalise: bool = False,
    pooling: str = "avg",
    stages: Sequence[int] | None = None,
    present=None,
    reduction: str | None = None,
):
    """L_AVM-VV: the distance of what a frame's mask selects from what that of the frame that sounds most like it does.

    The partner is the nearest in sound among all other frames of the batch; the gradient passes both sides, not the
    choice. A frame whose nearest neighbour is farther than 10 is its own partner and adds nothing, which happens
    without `normalise` only. Under jit on a mesh the batch is the global batch.

    Args, returns and errors: as `avm_av`; absent frames are nobody's partner.
    """
    _one_of(measure=(measure, MEASURES), pooling=(pooling, POOLINGS), reduction=(reduction, (*REDUCTIONS, None)))
    reduction = reduction or ("sum" if measure == "kl" else "mean")

    def one(v, a):
        return _reduce(_distance(v[partners(a, present)], v, measure), present, reduction)

    return _mean_over_stages(one, logits, visual, audio, stages, pooling, normalise, False)


def avm_cosine(
    logits,
    visual: Sequence[jax.Array],
    audio: Sequence[jax.Array | None],
    *,
    stages: Sequence[int] | None = None,
    present=None,
):
    """S4's optional loss: the mean over frames of -log(relu(cosine(audio, visual)) + 1e-6).

    The mask is the sigmoid, average-pooled and then cut at 0.5, so the logits get no gradient. Arguments as `avm_av`,
    with K = 1.
    """
    probability = jax.nn.sigmoid(_frames(logits, 3))

    def one(v, a):
        cosine = (unit(v) * unit(a)).sum(-1)
        return _reduce(-jnp.log(jax.nn.relu(cosine) + 1e-6), present, "mean")

    losses = []
    for features, heard in _selected(visual, audio, stages):
        mask = _pool(probability, features.shape[1:3], "avg") > 0.5
        losses.append(one(_mean_under(mask.astype(features.dtype), features, by_area=True), heard))
    return sum(losses) / len(losses)


def partners(audio, present=None):
    """The index of the frame nearest in sound to each of F frames, by (F, C) features; -> (F,) int32, no gradient."""
    audio = lax.stop_gradient(audio)
    difference = audio[:, None] - audio[None]  # direct: a product form loses digits where frames are alike
    distance = jnp.sqrt(jnp.square(difference).sum(-1)) + SELF_DISTANCE * jnp.eye(len(audio), dtype=audio.dtype)
    if present is not None:
        distance = jnp.where(jnp.reshape(present, (-1, 1)) > 0, distance, jnp.inf)
    return jnp.argmin(distance, 0).astype(jnp.int32)


def unit(x):
    """x / max(|x|, 1e-12) over the last axis, differentiable at 0."""
    return x * lax.rsqrt(jnp.maximum(jnp.square(x).sum(-1, keepdims=True), NORM_EPS**2))


def _mean_over_stages(one, logits, visual, audio, stages, pooling, normalise, threshold):
    logits = _frames(logits, 3)
    losses = []
    for features, heard in _selected(visual, audio, stages):
        mask = _mask(logits, features.shape[1:3], pooling, threshold)
        seen = _mean_under(mask, features, by_area=threshold)
        if normalise:
            seen, heard = unit(seen), unit(heard)
        losses.append(one(seen, heard))
    return sum(losses) / len(losses)


def _mask(logits, size, pooling, threshold):
    """(F, H, W, K) -> (F, h, w, 1) float32 in [0, 1]."""
    if logits.shape[-1] > 1:
        mask = _pool((jnp.argmax(logits, -1, keepdims=True) != 0).astype(logits.dtype), size, pooling)
    else:
        mask = jax.nn.sigmoid(_pool(logits, size, pooling))  # pool first: the code's order, not equation 3's
    return (mask > 0.5).astype(mask.dtype) if threshold else mask


def _pool(x, size, pooling):
    h, w = size
    n, height, width, c = x.shape
    if height % h or width % w:
        return (adaptive_avg_pool if pooling == "avg" else adaptive_max_pool)(x, size)
    cells = x.reshape(n, h, height // h, w, width // w, c)
    return cells.mean((2, 4)) if pooling == "avg" else cells.max((2, 4))


def _mean_under(mask, features, by_area):
    """(F, h, w, 1) and (F, h, w, C) -> (F, C) float32: over the h w pixels, or over the mask's area."""
    total = jnp.einsum("fhw,fhwc->fc", mask[..., 0], features, precision=lax.Precision.HIGHEST)
    if by_area:
        return total / (mask.sum((1, 2)) + AREA_EPS)
    return total / (features.shape[1] * features.shape[2])


def _distance(p, q, measure):
    """(F,): KL(softmax(p) || softmax(q)), or |p - q| as PyTorch's pairwise distance has it."""
    if measure == "kl":
        return _kl(jax.nn.log_softmax(p), jax.nn.log_softmax(q))
    squared = jnp.square(p - q + DISTANCE_EPS).sum(-1)
    positive = squared > 0  # no slope at 0, rather than a NaN
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, squared, 1.0)), 0.0)


def _kl(log_p, log_q):
    """Sum of p (log p - log q) over channels, as the sum of p (d + exp(-d) - 1) with d = log p - log q.

    The same, since p and q sum to 1, but without negative terms: where p and q are alike, as vectors of length 1 make
    them, the plain sum cancels to nothing but rounding.
    """
    p, d = jnp.exp(log_p), log_p - log_q
    near = jnp.maximum(d, -1.0)
    far = p * d - p + jnp.exp(log_q)  # exp(-d) may overflow
    return jnp.where(d > -1, p * (near + jnp.expm1(-near)), far).sum(-1)


def _reduce(values, present, reduction):
    if present is None:
        return values.sum() if reduction == "sum" else values.mean()
    weights = jnp.reshape(present, -1).astype(values.dtype)
    total = (values * weights).sum()
    return total if reduction == "sum" else total / jnp.maximum(weights.sum(), 1e-6)


def _frames(x, trailing):
    """All leading axes as one, float32 at least."""
    return x.reshape(-1, *x.shape[-trailing:]).astype(wide(x.dtype))


def _selected(visual, audio, stages):
    """[(features (F, h, w, C), heard (F, C))] of the chosen stages, float32."""
    if stages is None:
        stages = [i for i, a in enumerate(audio) if a is not None]
    valid = [i for i, a in enumerate(audio) if a is not None and i < len(visual)]
    if not stages or any(i not in valid for i in stages):
        raise InputError("stages of the audio-visual loss", expected=f"one or more of the fused stages {valid}",
                         found=str(list(stages)))  # fmt: skip
    return [(_frames(visual[i], 3), _frames(audio[i], 1)) for i in stages]


def _one_of(**options):
    for name, (value, valid) in options.items():
        if value not in valid:
            raise InputError(f"option '{name}' of the audio-visual loss", expected=" | ".join(map(str, valid)),
                             found=repr(value), hint=nearest(value, valid))  # fmt: skip
