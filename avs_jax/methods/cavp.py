"""CAVP: Chen et al., A closer look at audio-visual semantic segmentation, 2023 (public code: its CVPR 2024 version)."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from avs_jax.errors import InputError, nearest
from avs_jax.losses.contrastive import pairing_loss
from avs_jax.losses.cross_entropy import masked_cross_entropy
from avs_jax.methods import Method, Prediction
from avs_jax.methods.batch import IGNORE, checked_frames, fail, normalise, statistics, training_mask
from avs_jax.models import canvas, remat, torch_keys
from avs_jax.models.decoders import deeplab, ocr
from avs_jax.models.encoders import create_encoder
from avs_jax.models.fusion import cross_attention
from avs_jax.models.fusion.cross_attention import GATES, MLP, Broadcast, CrossAttention
from avs_jax.models.initialise import initialise
from avs_jax.models.layers import Resize, resize
from avs_jax.models.spectrogram import mel_spectrogram

FUSIONS = ("attention", "sum", "concat", "none")
ARCHITECTURES = ("deeplab", "hrnet", "ocr")
RESNETS = ("resnet10", "resnet18", "resnet50", "resnet101")
AUDIO_PREFIX = "audio_backbone.backbone."


class Setting(NamedTuple):
    """A benchmark's classes with background, and what its public configuration fixes."""

    classes: int
    audio_encoder: str
    output_stride: int


SETTINGS = {
    "vpo_ss": Setting(22, "resnet18", 8),
    "vpo_ms": Setting(22, "resnet18", 8),
    "vpo_msmi": Setting(22, "resnet18", 8),
    "single_plus": Setting(24, "vggish", 16),
    "salient": Setting(2, "vggish", 16),
    "avss": Setting(71, "vggish", 16),
}


class Output(NamedTuple):
    """What the network makes of N images and M sounds (M = N, or 2 N: every image again with another sound).

    logits: (N, H, W, K) float32, of the images with their first sounds.
    fused: (M, h, w, D) float32 at stride 4: what the contrastive loss compares and the head classifies; None without
      sound.
    gate: (M, h, w, heads, 1) float32, how much each pixel hears; None for the other fusions.
    region: OCR's region logits (N, h, w, K) float32, or None.
    visual: (N, h, w, D), the features before any sound. heard: (M, D) float32, the sounds'; None without sound.
    """

    logits: jax.Array
    fused: jax.Array | None
    gate: jax.Array | None
    region: jax.Array | None
    visual: jax.Array
    heard: jax.Array | None


class Network(nn.Module):
    """Image encoder, segmentation features, audio encoder, fusion, head. Fields as the options of `create`."""

    architecture: str
    backbone: str
    backbone_options: Any
    audio_encoder: str
    audio_options: Any
    classes: int
    channels: int
    low: int
    projector: int
    fusion: str
    gate: str
    heads: int
    remat: bool
    dtype: Any

    @nn.compact
    def __call__(self, images, sounds, train: bool = False, sizes=None) -> Output:
        """images: (N, H, W, 3) float32 normalised. sounds: (N or 2 N, time, mel[, 2]) float32, or None without fusion.
        sizes: (N, 2) int32, where images are canvases with a picture of that size top left; not in training, whose
        batch statistics take in everything.

        In training the head's and the audio encoder's batch statistics mix true and other sounds, as published.
        """
        if train and sizes is not None:
            raise ValueError("training on pictures with something around them")
        shape = images.shape[1:3]
        backbone = create_encoder(self.backbone, **dict(self.backbone_options), dtype=self.dtype)
        with canvas.on(shape, sizes):
            maps = remat.call(backbone.copy(name="encoder"), images, again=self.remat and train, train=train)
            x, region = self._features(maps, train)
        visual, heard, fused, gate = x, None, None, None
        if self.fusion != "none":
            audio = create_encoder(self.audio_encoder, **dict(self.audio_options), features=x.shape[-1])
            heard = audio.copy(name="audio")(sounds, train)
            x, gate = self._fuse(MLP(self.projector, self.dtype, name="projector")(x), heard)
            fused = x
        with canvas.on(shape, sizes):
            logits = self._head()(x.astype(self.dtype), train)[: images.shape[0]]  # only true pairs are supervised
            return Output(Resize(aligned=False)(logits, shape), fused, gate, region, visual, heard)

    @property
    def width(self) -> int:
        """D, of the fused features."""
        if self.architecture == "deeplab":
            return self.channels + self.low
        return (
            self.channels
            if self.architecture == "ocr"
            else sum(create_encoder(self.backbone, **dict(self.backbone_options)).channels)
        )

    def _features(self, maps, train):
        if self.architecture == "deeplab":
            return deeplab.Features(self.channels, self.low, self.dtype, name="features")(maps, train), None
        x = ocr.concatenate(maps)
        if self.architecture == "hrnet":
            return x, None
        return ocr.Features(self.classes, self.channels, dtype=self.dtype, name="features")(x, train)

    def _fuse(self, visual, heard):
        if self.fusion == "attention":
            return CrossAttention(self.heads, self.gate, dtype=self.dtype, name="fusion")(visual, heard[:, None])
        return Broadcast(self.fusion, self.dtype, name="fusion")(visual, heard), None

    def _head(self):
        if self.architecture == "deeplab":
            return deeplab.Head(self.classes, self.channels, self.dtype, name="head")
        head = ocr.Head if self.architecture == "hrnet" else ocr.PointHead
        return head(self.classes, dtype=self.dtype, name="head")


def create(
    setting: str = "vpo_ss",
    architecture: str = "deeplab",
    backbone: str | None = None,
    output_stride: int | None = None,
    audio_encoder: str | None = None,
    num_classes: int | None = None,
    fusion: str = "attention",
    attention_gate: str = "sigmoid",
    heads: int = 4,
    contrastive: float = 1.0,
    temperature: float = 0.1,
    max_views: int = 512,
    max_classes: int | None = None,
    groups: int = 1,
    ocr_aux_weight: float = 0.0,
    channels: int | None = None,
    low: int = 48,
    projector: int = 256,
    width: int | None = None,
    audio_width: int = 64,
    audio_hidden: int = 4096,
    audio_channels: int = 1,
    remat: bool = False,
    compute_dtype: str = "float32",
) -> Method:
    """CAVP as a `Method`. The defaults are the published system; the other values make it small or vary it.

    Args:
      setting: "vpo_ss", "vpo_ms", "vpo_msmi", "single_plus", "salient" (binary) or "avss": fixes the classes, the audio
        encoder and the output stride where they are None.
      architecture: "deeplab" (DeepLabV3+), "hrnet" (HRNetV2) or "ocr" (HRNetV2 with object-contextual representations).
      backbone: "resnet50" or "resnet101" (also "resnet10", "resnet18"), with a deep stem and dilated; or "hrnet_w48".
      output_stride: 8 or 16, of the dilated ResNet.
      audio_encoder: "resnet18" (also "resnet10") or "vggish".
      num_classes: with background.
      fusion: "attention" (CAVP); "sum" and "concat" of table 4; "none", segmentation without sound (table 2).
      attention_gate: "sigmoid" (public code) or "softmax" (the paper; 1 everywhere with the one audio token there is).
      heads: of the attention.
      contrastive: weight of the pairing loss beside the cross-entropy; 0 needs no shuffled sounds.
      temperature, max_views, max_classes, groups: of the pairing loss (`avs_jax.losses.contrastive.pairing_loss`).
      ocr_aux_weight: of the cross-entropy on OCR's regions; the public code leaves it out.
      channels: of DeepLabV3+'s pyramid and head (256) or of OCR's pixels (512).
      low: channels of DeepLabV3+'s low-level map.
      projector: hidden channels of the visual projector.
      width: of the image encoder's stem or finest branch; None = the published one.
      audio_width, audio_hidden: of the audio encoder's first convolution and VGGish's hidden layers.
      audio_channels: 1, or 2 for stereo.
      remat: compute the image encoder, but for its products, again in the backward pass: less memory.
      compute_dtype: "float32" or "bfloat16"; parameters, statistics, losses and scores stay float32.
    Returns:
      A method that hears through "waveform". Batches hold `frames` (B, T, H, W, 3), any H and W, `audio` (B, T,
      samples) or (B, T, 2, samples), and for the loss `labels`, `labelled`, optionally `valid`, and with the pairing
      loss `audio_shuffled` like `audio` and `match` (B, K). Each frame is an image with a sound of its own (T = 1 in
      VPO). With `size` (B, 2), the height and width of a picture in the top left corner of its frames, prediction is
      what it would be of that picture alone, so that one compilation serves many sizes; labels and scores beyond the
      pictures mean nothing. Parameter groups: "encoder", "segment", "fusion" and "audio"; those of the first two
      without decay end in "/no_decay".
    Raises:
      InputError: an option out of its range.
    """
    options = dict(locals())
    return _method(build_network(options), options)


def build_network(options: Mapping[str, Any]) -> Network:
    """The network of `create`'s options.

    Raises:
      InputError: an option out of its range.
    """
    o = dict(options)
    for option, valid in (("setting", SETTINGS), ("architecture", ARCHITECTURES), ("fusion", FUSIONS),
                          ("attention_gate", GATES), ("compute_dtype", ("float32", "bfloat16"))):  # fmt: skip
        _one_of(option, o[option], valid)
    setting, residual = SETTINGS[o["setting"]], o["architecture"] == "deeplab"
    backbone = o["backbone"] or ("resnet50" if residual else "hrnet_w48")
    _one_of("backbone", backbone, RESNETS if residual else ("hrnet_w48",))
    stride = o["output_stride"] or setting.output_stride
    _one_of("output_stride", stride, (8, 16))
    audio = o["audio_encoder"] or setting.audio_encoder
    _one_of("audio_encoder", audio, ("resnet18", "resnet10", "vggish"))
    _one_of("audio_channels", o["audio_channels"], (1, 2) if audio != "vggish" else (1,))
    _check_losses(o)
    encoder = {} if o["width"] is None else {"width": _positive("width", o["width"])}
    if residual:
        encoder |= {"stem": "deep", "multi_grid": True, "output_stride": stride}
    channels = _positive("channels", o["channels"] or (256 if residual else 512))
    hearing = {"width": _positive("audio_width", o["audio_width"])}
    if audio == "vggish":
        hearing["hidden"] = _positive("audio_hidden", o["audio_hidden"])
    else:
        hearing["input_channels"] = o["audio_channels"]
    network = Network(
        architecture=o["architecture"],
        backbone=backbone,
        backbone_options=tuple(encoder.items()),
        audio_encoder=audio if audio == "vggish" else f"audio_{audio}",
        audio_options=tuple(hearing.items()),
        classes=_positive("num_classes", o["num_classes"] or setting.classes),
        channels=channels,
        low=_positive("low", o["low"]),
        projector=_positive("projector", o["projector"]),
        fusion=o["fusion"],
        gate=o["attention_gate"],
        heads=_positive("heads", o["heads"]),
        remat=o["remat"],
        dtype=jnp.dtype(o["compute_dtype"]),
    )
    if network.fusion == "attention" and network.width % network.heads:
        raise InputError("method.heads", expected=f"a divisor of the {network.width} fused channels",
                         found=str(network.heads))  # fmt: skip
    if network.classes < 2:
        raise InputError("method.num_classes", expected="at least 2, with background", found=str(network.classes))
    return network


def _one_of(option, value, valid):
    if value not in valid:
        raise InputError(f"method.{option}", expected=" | ".join(map(str, valid)), found=repr(value),
                         hint=nearest(str(value), map(str, valid)))  # fmt: skip


def _check_losses(o):
    for option in ("max_views", "groups"):
        _positive(option, o[option])
    if o["max_classes"] is not None:
        _positive("max_classes", o["max_classes"])
    for option in ("contrastive", "ocr_aux_weight"):
        if not 0 <= o[option] < float("inf"):
            raise InputError(f"method.{option}", expected="a weight of at least 0", found=repr(o[option]))
    if not 0 < o["temperature"] < float("inf"):
        raise InputError("method.temperature", expected="a number above 0", found=repr(o["temperature"]))


def _positive(option, value):
    if not isinstance(value, int) or value < 1:
        raise InputError(f"method.{option}", expected="a positive integer", found=repr(value))
    return value


def _method(network: Network, options: dict) -> Method:
    paired = network.fusion != "none" and options["contrastive"] > 0
    binary = network.classes == 2

    def init(rng, batch=None):
        """Random variables; their shapes depend on the options only, so `batch` is checked and not used."""
        if batch is not None:
            inputs_of(batch, network)
        return initialise(network, rng, *example_inputs(network))

    def loss(params, model_state, batch, rng, step):
        del step  # nothing here is scheduled
        images, sounds = inputs_of(batch, network)
        labels, mask = _images(jnp.asarray(batch["labels"])), _images(training_mask(batch))
        if binary:  # what sounds, whatever its class
            labels = jnp.minimum(labels, 1)
        drop, draw = (None, None) if rng is None else jax.random.split(rng)
        if paired:
            others, match = pairs_of(batch, network)
            sounds = jnp.concatenate([sounds, others])
        variables = {"params": params, **statistics(model_state)}
        rngs = None if drop is None else {"dropout": drop}
        output, updated = network.apply(variables, normalise(images), heard(sounds), True, mutable=["batch_stats"],
                                        rngs=rngs)  # fmt: skip
        metrics = {"ce": masked_cross_entropy(output.logits, labels, mask)}
        total = metrics["ce"]
        if options["ocr_aux_weight"] and output.region is not None:
            region = resize(output.region, labels.shape[1:])
            metrics["region_ce"] = masked_cross_entropy(region, labels, mask)
            total = total + options["ocr_aux_weight"] * metrics["region_ce"]
        if paired:
            choice = {k: options[k] for k in ("temperature", "max_views", "max_classes", "groups")}
            counted = jnp.where(mask, labels, IGNORE)
            metrics["pairing"], counts = pairing_loss(output.fused, counted, match, key=draw, **choice)
            total = total + options["contrastive"] * metrics["pairing"]
            metrics |= counts
        return total, ({**model_state, **updated}, {"loss": total, **metrics})

    @jax.jit
    def forward(variables, images, sounds, sizes):
        return network.apply(variables, normalise(images), heard(sounds), sizes=sizes)

    def run(variables, batch) -> Output:
        inputs = *inputs_of(batch, network), sizes_of(batch)
        return forward({"params": variables["params"], **statistics(variables)}, *inputs)

    def predict(variables, batch) -> Prediction:
        logits = run(variables, batch).logits
        logits = logits.reshape(*np.shape(batch["frames"])[:2], *logits.shape[1:])
        scores, labels = jax.nn.softmax(logits), jnp.argmax(logits, -1).astype(jnp.int32)
        return Prediction(logits, scores[..., 1:] if binary else scores, labels)

    def attention(variables, batch):
        gate = run(variables, batch).gate
        if gate is None:
            return {}
        return {"gate": gate.mean(-2).reshape(*np.shape(batch["frames"])[:2], *gate.shape[1:3], -1)}

    def features(variables, batch):
        output = run(variables, batch)

        def by_frame(**found):
            shape = np.shape(batch["frames"])[:2]
            return {name: x.reshape(*shape, *x.shape[1:]) for name, x in found.items() if x is not None}

        return {"visual": by_frame(image=output.visual, fused=output.fused), "audio": by_frame(embedding=output.heard)}

    return Method(
        name="cavp",
        options=options,
        num_classes=1 if binary else network.classes,
        front_end="waveform",
        init=init,
        loss=loss,
        predict=predict,
        param_groups=param_groups,
        torch_keys=torch_table(network),
        attention=attention if network.fusion == "attention" else None,
        features=features,
        paired=paired,
        canvases=True,
    )


def heard(sounds):
    """Samples (N, L), in stereo (N, 2, L) -> spectrograms (N, time, mel[, 2]), on the device; None passes."""
    if sounds is None:
        return None
    made = mel_spectrogram(sounds)
    return made if made.ndim == 3 else jnp.moveaxis(made, 1, -1)


def param_groups(params):
    """A label per parameter: "encoder", "segment", "fusion", "audio".

    In the encoder and the segmentation part norms' scales and all biases do not decay ("/no_decay"); in the fusion
    everything does, as in the public code.
    """
    part = {"encoder": "encoder", "features": "segment", "head": "segment", "audio": "audio"}

    def label(path, _):
        group = part.get(path[0].key, "fusion")
        decays = group in ("fusion", "audio") or path[-1].key == "kernel"
        return group if decays else f"{group}/no_decay"

    return jax.tree_util.tree_map_with_path(label, params)


def _images(x):
    """(B, T, ...) -> (B T, ...): every frame is an image of its own."""
    return x.reshape(-1, *x.shape[2:])


def inputs_of(batch, network: Network):
    """(images (N, H, W, 3), sounds (N[, 2], samples) or None) of a batch, checked; N = B T.

    Raises:
      InputError: a missing field or a wrong shape, named.
    """
    frames = checked_frames(batch)
    if network.fusion == "none":
        return _images(frames), None
    return _images(frames), _images(_sound(batch, "audio", network))


def sizes_of(batch):
    """(N, 2) int32, height and width of each picture on its canvas, from the batch's `size` (B, 2); None without it.

    Raises:
      InputError: another shape or dtype, or sizes beyond the canvas (where they are numbers, not traced).
    """
    if "size" not in batch:
        return None
    sizes, (b, t, *canvas_shape) = batch["size"], np.shape(batch["frames"])[:4]
    if np.shape(sizes) != (b, 2) or not jnp.issubdtype(sizes.dtype, jnp.integer):
        fail("size", f"({b}, 2) integers", f"{np.shape(sizes)} {sizes.dtype}")
    if not isinstance(sizes, jax.core.Tracer) and ((np.asarray(sizes) < 1) | (np.asarray(sizes) > canvas_shape)).any():
        fail("size", "1 x 1 to {} x {} pixels".format(*canvas_shape), str(np.asarray(sizes).tolist()))
    return jnp.repeat(jnp.asarray(sizes, jnp.int32), t, 0)


def pairs_of(batch, network: Network):
    """(sounds (N[, 2], samples) of other clips, match (N, K) bool) of a batch, checked.

    Raises:
      InputError: a missing field or a wrong shape, named.
    """
    others = _sound(batch, "audio_shuffled", network)
    if "match" not in batch:
        fail("match", "to be present: which classes the other sound holds", "fields " + ", ".join(sorted(batch)))
    b, t = np.shape(batch["frames"])[:2]
    if np.shape(batch["match"]) != (b, network.classes):
        fail("match", str((b, network.classes)), str(np.shape(batch["match"])))
    return _images(others), jnp.repeat(jnp.asarray(batch["match"], bool), t, 0)


def _sound(batch, field, network):
    if field not in batch:
        fail(field, "to be present", "fields " + ", ".join(sorted(batch)))
    audio, (b, t) = jnp.asarray(batch[field]), np.shape(batch["frames"])[:2]
    stereo = dict(network.audio_options).get("input_channels") == 2
    if audio.ndim != 3 + stereo or audio.shape[:-1] != (b, t, 2)[: 2 + stereo]:
        expected = f"({b}, {t}, " + "2, " * stereo + "samples)"
        hint = f"method.audio_channels is {1 + stereo}; data.stereo=True gives two channels, False one."
        raise InputError(f"batch field '{field}'", expected=expected, found=str(audio.shape), hint=hint)
    return audio


def example_inputs(network: Network):
    """The smallest inputs that touch every parameter."""
    channels = dict(network.audio_options).get("input_channels", 1)
    sound = jnp.zeros((1, 96, 64) if channels == 1 else (1, 96, 64, channels))
    return jnp.zeros((1, 32, 32, 3)), sound if network.fusion != "none" else None


def torch_table(network: Network) -> torch_keys.Table:
    """The public checkpoint's keys in their order: image encoder, segmentation, fusion, projector, audio encoder."""
    encoder = create_encoder(network.backbone, **dict(network.backbone_options)).torch_table()
    prefix = "backbone.backbone." if network.architecture == "deeplab" else "backbone."
    rules = torch_keys.prefixed(encoder.rules, prefix, ("encoder",))
    parts = {"encoder": torch_keys.part(encoder, prefix)}
    rules += torch_keys.prefixed(_segment_rules(network), "segment.")
    if network.fusion != "none":
        rules += torch_keys.prefixed(_fusion_rules(network), "cross_att.", ("fusion",))
        rules += torch_keys.prefixed(cross_attention.mlp_rules(), "visual_projector.", ("projector",))
        audio = create_encoder(network.audio_encoder, **dict(network.audio_options), features=network.width)
        rules += torch_keys.prefixed(audio.torch_table().rules, AUDIO_PREFIX, ("audio",))
        parts["audio"] = torch_keys.part(audio.torch_table(), AUDIO_PREFIX)
        for name, shape in (("weight", (2, network.width)), ("bias", (2,))):  # of a pretext task, never used
            key = f"audio_backbone.cls_head.{name}"
            rules.append(torch_keys.Rule(key, "unused", (key,), shape=shape, part="audio"))
    return torch_keys.Table(tuple(rules), parts=parts)


def _segment_rules(network: Network) -> list[torch_keys.Rule]:
    if network.architecture == "ocr":
        return ocr.feature_rules()
    if network.architecture == "hrnet":
        return torch_keys.prefixed(ocr.head_rules(), "upsample.", ("head",))
    head = torch_keys.prefixed(deeplab.head_rules(), "upsample.", ("head",))
    return torch_keys.prefixed(deeplab.feature_rules(), "", ("features",)) + head


def _fusion_rules(network: Network) -> list[torch_keys.Rule]:
    """The public cross-attention's keys; of the fusions that the public code lacks, names of our own."""
    if network.fusion == "attention":
        return cross_attention.torch_rules(network.width)
    return cross_attention.broadcast_rules(network.fusion)
