"""TransAVS: "TransAVS: End-to-end audio-visual segmentation with transformer", arXiv 2305.07223 (settings S4 and MS3),
and the same network on semantic benchmarks.

No code was published. Where the paper is silent the defaults follow DETR, MaskFormer and Mask2Former; every such choice
is an option.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from avs_jax.losses.query_set import QueryLoss, deep_supervised_loss, dot_masks, self_supervised_loss, weighted_total
from avs_jax.losses.query_targets import targets_from_labels
from avs_jax.methods import Method, Prediction, transavs_views
from avs_jax.methods.batch import (
    checked_frames,
    checked_present,
    fail,
    normalise,
    refuse_canvas,
    statistics,
    vggish_sound,
)
from avs_jax.methods.transavs_options import BACKBONES, SETTINGS, SWINS, build_network  # noqa: F401
from avs_jax.models import query_masks
from avs_jax.models.initialise import initialise
from avs_jax.models.transavs import Network, Output, example_inputs, torch_table


def create(
    setting: str = "ms3", backbone: str = "resnet101", num_queries: int = 300, query_init: str = "frame",
    pixel_decoder: str = "fpn", num_classes: int | None = None, max_targets: int | None = None,
    num_frames: int | None = None,
    # the transformer and the encoders
    dim: int = 256, heads: int = 8, ffn: int = 2048, encoder_layers: int = 6, decoder_layers: int = 9,
    dropout: float = 0.0, drop_path: float = 0.3, round_robin: str = "coarse_first",
    decoder_self_attention: bool = True, literal_attention: bool = False, masked_attention: bool = False,
    mask_mlp: bool = False, class_prior: float = 0.01, attention: str = "einsum",
    pixel_options: Mapping[str, Any] | None = None, frozen_norm: bool = True, freeze_encoder: bool = False,
    train_audio: bool = False, width: int | None = None, depths: Sequence[int] | None = None, audio_width: int = 64,
    audio_hidden: int = 4096,
    # the objective
    train_frames: str = "auto", aux_loss: bool = True, aqdl_on: str = "encoder", lambda_aqdl: float = 2.0,
    lambda_aqml: float = 2.0, lambda_class: float = 5.0, lambda_dice: float = 5.0, lambda_mask: float = 0.0,
    aux_weight: float = 1.0, focal_gamma: float = 2.0, focal_alpha: float | None = 0.25, dice: str = "linear",
    compare_at: str = "full", aqdl_form: str = "inv", aqdl_normalize: bool = True, d0: float = 1.0, eps: float = 1e-2,
    delta1: Sequence[float] = (0.55, 0.65), delta2: Sequence[float] = (0.55, 0.65), delta_every: int | None = None,
    max_iter: int = 90_000, include_unlabelled_ss: bool = False,
    # prediction, memory and speed
    inference_rule: str = "argmax", inference_threshold: float = 0.5, remat: bool = False,
    compute_dtype: str = "float32",
) -> Method:  # fmt: skip
    """TransAVS as a `Method`. The defaults are the paper's, and its family's where it is silent.

    Args:
      setting: "s4" or "ms3": where the sounding pixels are; "avss", "vpo_ss", "vpo_ms", "vpo_msmi" or "single_plus": of
        which class each is; "salient": binary, on stills. Fixes `num_classes`, `max_targets` and `num_frames`.
      backbone: "resnet101" or "swin_b" (paper); "resnet10", "resnet18", "resnet50", "swin_t", "swin_s", "swin_l",
        "swin_b_384", "swin_l_384" (windows of 12), an encoder's full name, or "pvt_v2_b0" ... "pvt_v2_b5".
      num_queries: N.
      query_init: "frame", "clip" (equation 1 to the letter) or "shared": how a clip's sounds become the queries of its
        frames, see `query_decoder.AudioQueries`; "learned": they do not, the video-only control, without an encoder of
        sounds.
      pixel_decoder: "fpn"; "none", 1x1 projections alone (the letter); "msdeform", deformable attention over scales.
      num_classes: K with background. A query tells K - 1 classes apart, and "no object".
      max_targets: targets of a frame; with more classes in it than that, its largest ones.
      num_frames: T that "clip" mixes; clips of another length are refused there.
      dim, heads, ffn, dropout: of the transformer: channels d (also the pixel decoder's), attention heads, hidden
        channels, rate.
      encoder_layers, decoder_layers: N1 and N2.
      drop_path: rate of Swin's and PVT's stochastic depth.
      round_robin, masked_attention, mask_mlp, class_prior: see `query_decoder.QueryTransformer`.
      decoder_self_attention: queries see each other in the decoder too, between cross-attention and FFN.
      literal_attention: layers to the letter of equations 2 to 6: single-head attention with a residual sum, no FFN, no
        norm, no self-attention in the decoder.
      attention: "einsum", "dot_product" or "cudnn", the same up to rounding, see `query_decoder.attend`.
      pixel_options: options of the pixel decoder of its own.
      frozen_norm: a ResNet's BatchNorms keep their statistics and affine parameters: for encoders that come pretrained.
      freeze_encoder: train no part of the image encoder, statistics included.
      train_audio: train VGGish too; frozen otherwise.
      width, depths: of the ResNet's stem, the PVT's heads or Swin's first stage; Swin's blocks. None = published.
      audio_width, audio_hidden: VGGish's first convolution and hidden layers.
      train_frames: "all", "first" (the others are neither looked at nor learnt from), or "auto": "first" for S4, whose
        training clips have no other labels, unless `include_unlabelled_ss`.
      aux_loss: supervise the queries that enter the decoder and every layer's, not the last layer's alone.
      aqdl_on: the queries that AQDL keeps apart: "encoder", A_q after the encoder, or "decoder", F_av.
      lambda_aqdl ... delta_every, include_unlabelled_ss: the objective, see `avs_jax.losses.query_set.QueryLoss`.
      max_iter: steps of the whole training, over which the thresholds delta rise.
      inference_rule, inference_threshold: see `query_masks.segment`.
      remat: recompute decoder layers, and the encoder but for its products, in the backward pass: less memory.
      compute_dtype: "float32" or "bfloat16"; parameters, softmaxes, statistics, losses and scores stay float32.
    Returns:
      A method that hears through "vggish", with num_classes = 1 for the binary settings. Batches hold `frames` (B, T,
      H, W, 3), any H and W, unless queries are learned `audio` (B, T, 96, 64) or `audio_embedding` (B, T, 128),
      optionally `present` (B, T), and for the loss `labels`, `labelled` and optionally `valid`; no `size`, which comes
      of data.pad. Predictions have no logits. Parameter groups: "encoder" and "head", each with a "/no_decay" part
      (norms and embeddings), "audio", and "frozen".
    Raises:
      InputError: an option out of its range.
    """
    options = {k: list(v) if isinstance(v, list | tuple) else v for k, v in locals().items()}
    options["pixel_options"] = dict(pixel_options or {})
    return _method(build_network(options), options)


def _method(network: Network, options: dict) -> Method:
    forward = jax.jit(functools.partial(_forward, network), static_argnames="looks")
    segment = jax.jit(functools.partial(_segment, network, options), static_argnames="size")

    def init(rng, batch=None):
        """Random variables; their shapes depend on the options only, so `batch` is checked and not used."""
        if batch is not None:
            inputs_of(batch, network)
        return initialise(network, rng, *example_inputs(network))

    def run(variables, batch, looks=False):
        """(Output, what was stored where it `looks`) of a batch."""
        refuse_canvas(batch)
        return forward({"params": variables["params"], **statistics(variables)}, *inputs_of(batch, network), looks)

    def predict(variables, batch) -> Prediction:
        clips, size, present = np.shape(batch["frames"])[:2], np.shape(batch["frames"])[2:4], batch.get("present")
        output, _ = run(variables, batch)
        scores, labels = segment(output.queries, size, None if present is None else jnp.asarray(present))
        return Prediction(None, scores.reshape(*clips, *scores.shape[1:]), labels.reshape(*clips, *size))

    embed_audio = functools.partial(transavs_views.embed_audio, network)
    return Method(
        name="transavs",
        options=options,
        num_classes=1 if network.classes == 2 else network.classes,
        front_end="vggish",
        init=init,
        loss=make_loss(network, options),
        predict=predict,
        param_groups=functools.partial(param_groups, network),
        torch_keys=torch_table(network),
        attention=functools.partial(transavs_views.attention, network, run),
        features=functools.partial(transavs_views.features, network, run),
        instances=functools.partial(transavs_views.instances, run),
        embed_audio=embed_audio if network.hears else None,
    )


def _forward(network: Network, variables, frames, audio, present, looks=False):
    """The network's Output, and its attention weights where it `looks`."""
    return network.apply(variables, normalise(frames, present), audio, present,
                         mutable=["intermediates"] if looks else [])  # fmt: skip


def _segment(network: Network, options, queries, size, present):
    """Scores and labels of frames; one that does not exist is background."""
    masks = dot_masks(queries.embeddings[-1], queries.features)
    found = query_masks.segment(queries.class_logits[-1], masks, size, rule=options["inference_rule"],
                                threshold=options["inference_threshold"])  # fmt: skip
    if present is None:
        return found.scores, found.labels
    there = present.reshape(-1, 1, 1) > 0
    classes = found.scores.shape[-1]
    nothing = jnp.zeros(classes) if network.classes == 2 else jnp.eye(classes)[0]
    return jnp.where(there[..., None], found.scores, nothing), jnp.where(there, found.labels, 0)


def make_loss(network: Network, options: Mapping[str, Any]):
    """`Method.loss`: of the frames that training looks at, all of them or each clip's first.

    Raises:
      InputError: an option of the objective out of its range.
    """
    objective, first = make_objective(network, options), train_first(options)

    def loss(params, model_state, batch, rng, step):
        refuse_canvas(batch)
        frames, audio, present = inputs_of(batch, network)
        if first:
            frames = frames[:, :1]
            if network.query_init != "clip":  # which mixes all of the clip's seconds
                audio, present = (None if x is None else x[:, :1] for x in (audio, present))
        seen = None if present is None else present[:, : frames.shape[1]]
        variables = {"params": params, **statistics(model_state)}
        rngs = None if rng is None else {"dropout": rng}  # stochastic depth and dropout
        output, updated = network.apply(variables, normalise(frames, seen), audio, present, True, options["aux_loss"],
                                        mutable=["batch_stats"], rngs=rngs)  # fmt: skip
        total, metrics = objective(output, batch, step)
        return total, ({**model_state, **updated}, {"loss": total, **metrics})

    return loss


def train_first(options: Mapping[str, Any]) -> bool:
    """Whether training looks at each clip's first frame alone."""
    if options["train_frames"] == "auto":
        return options["setting"] == "s4" and not options["include_unlabelled_ss"]
    return options["train_frames"] == "first"


def make_objective(network: Network, options: Mapping[str, Any]):
    """(Output, batch, step) -> (scalar, {name: scalar}): every term unweighted, n1, n2, and both thresholds.

    Raises:
      InputError: an option of the objective out of its range.
    """
    fields = [field.name for field in dataclasses.fields(QueryLoss)]
    loss = QueryLoss(**{k: tuple(options[k]) if isinstance(options[k], list) else options[k] for k in fields})
    targets_of_frame = options["max_targets"] or SETTINGS[options["setting"]].targets
    first = train_first(options)

    def objective(output: Output, batch, step):
        labels = jnp.asarray(batch["labels"])
        labelled = jnp.asarray(batch["labelled"], bool)
        present = jnp.asarray(batch.get("present", jnp.ones_like(labelled)), bool)
        if "valid" in batch:  # clips that only fill up a batch
            present = present & jnp.asarray(batch["valid"], bool)[:, None]
        labels, labelled, present = (
            (x[:, :1] if first else x).reshape(-1, *x.shape[2:]) for x in (labels, labelled, present)
        )
        targets = targets_from_labels(labels, labelled, network.classes, targets_of_frame, present)
        q, deltas = output.queries, loss.deltas(step, options["max_iter"])
        terms, _ = deep_supervised_loss(q.class_logits, q.embeddings, q.features, targets, loss)
        apart = q.encoded if options["aqdl_on"] == "encoder" else q.decoded
        terms |= self_supervised_loss(q.class_logits[-1], apart, q.embeddings[-1], q.features, q.projection, deltas,
                                      targets, loss)  # fmt: skip
        return weighted_total(terms, loss), {**terms, "delta1": deltas[0], "delta2": deltas[1]}

    return objective


def param_groups(network: Network, params):
    """A label per parameter: "encoder" or "head", without decay in norms and embeddings; "audio"; "frozen".

    As Mask2Former decays: biases of other layers too, tables of position biases and level embeddings not.
    """
    fixed = dict(network.encoder_options).get("frozen_norm", False)

    def labels(tree, group, norms):
        if not isinstance(tree, Mapping):
            return group
        kind = {
            k: norms if "scale" in tree else group if k in ("kernel", "bias") else f"{group}/no_decay" for k in tree
        }
        return {k: labels(v, group if isinstance(v, Mapping) else kind[k], norms) for k, v in tree.items()}

    found = {}
    for part, tree in params.items():
        if part == "audio":
            label = "audio" if network.train_audio else "frozen"
            found[part] = jax.tree.map(lambda _, label=label: label, tree)
        elif part == "encoder" and network.freeze_encoder:
            found[part] = jax.tree.map(lambda _: "frozen", tree)
        else:
            group = "encoder" if part == "encoder" else "head"
            found[part] = labels(tree, group, "frozen" if part == "encoder" and fixed else f"{group}/no_decay")
    return found


def inputs_of(batch, network: Network):
    """(frames, audio or None where nothing is heard, present as float32 or None) of a batch, checked.

    Raises:
      InputError: a missing field or a wrong shape, named.
    """
    frames = checked_frames(batch)
    t, h, w = frames.shape[1:4]
    if min(h, w) < 32:
        fail("frames", "height and width of at least 32", f"{h} x {w}")
    if network.query_init == "clip" and t != network.num_frames:
        fail("frames", f"{network.num_frames} frames, whose sounds become one set of queries", f"{t} frames")
    audio = jnp.asarray(vggish_sound(batch)) if network.hears else None
    return frames, audio, checked_present(batch, network.dtype)
