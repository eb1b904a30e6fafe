"""TPAVI: Zhou et al., Audio-visual segmentation, ECCV 2022 (settings S4 and MS3)."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from avs_jax.errors import InputError, nearest
from avs_jax.losses.bce import masked_bce
from avs_jax.losses.dice import soft_dice
from avs_jax.methods import Method, Prediction
from avs_jax.models import torch_keys
from avs_jax.models.decoders import fpn
from avs_jax.models.encoders import create_encoder
from avs_jax.models.encoders.vggish import EMBEDDING
from avs_jax.models.fusion import tpavi
from avs_jax.models.initialise import initialise
from avs_jax.models.layers import wide

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, of RGB in [0, 1]
SETTINGS = ("s4", "ms3")
BACKBONES = ("resnet10", "resnet18", "resnet50", "resnet101")
EXAMPLE = (96, 64)  # one second of sound as VGGish hears it: time by frequency band
IGNORE = 255


class Output(NamedTuple):
    """What the network makes of B clips of T frames.

    logits: (B, T, H, W, 1) float32.
    visual: four maps (B, T, h_i, w_i, C), after the decoder's first ReLU: what the audio-visual losses see.
    audio: per stage (B, T, C) float32, or None where the stage has no TPAVI.
    attention: per stage (B, T, h_i, w_i, T or 1) float32, or None.
    """

    logits: jax.Array
    visual: tuple
    audio: tuple
    attention: tuple


class Network(nn.Module):
    """Encoder, neck, TPAVI at the chosen stages, decoder, head. Fields as the options of `create`."""

    backbone: str
    stages: tuple[int, ...]
    fusion: str
    per_frame: bool
    channels: int
    dilations: tuple[int, ...]
    head_channels: tuple[int, int]
    encoder_options: Any
    audio_options: Any
    train_audio: bool
    output_bias: float | None
    dtype: Any

    @nn.compact
    def __call__(self, frames, audio, train: bool = False) -> Output:
        """frames: (B, T, H, W, 3) float32 normalised. audio: (B, T, 96, 64), (B, T, 128), or None without TPAVI."""
        b, t = frames.shape[:2]
        images = frames.reshape(-1, *frames.shape[2:])  # frame b * T + t, as BatchNorm sees them
        encoder = create_encoder(self.backbone, **dict(self.encoder_options), dtype=self.dtype)
        maps = encoder.copy(name="encoder")(images, train)
        embedding = self._hear(audio) if self.stages else None
        visual, audio_features, attention = [], [], []
        for i, x in enumerate(maps):
            x = fpn.Neck(self.channels, self.dilations, self.dtype, name=f"neck{i + 1}")(x)
            heard = looked = None
            if i in self.stages:
                x, heard, looked = self._fuse(x.reshape(b, t, *x.shape[1:]), embedding, i, train)
                x = x.reshape(-1, *x.shape[2:])
            visual.append(x)
            audio_features.append(heard)
            attention.append(looked)
        x = fpn.Decoder(self.channels, self.dtype, name="decoder")(visual)
        logits = fpn.Head(1, self.head_channels, self.output_bias, self.dtype, name="head")(x)
        return Output(
            logits.reshape(b, t, *logits.shape[1:]),
            tuple(jax.nn.relu(v).reshape(b, t, *v.shape[1:]) for v in visual),
            tuple(audio_features),
            tuple(attention),
        )

    def _hear(self, audio):
        if audio.ndim == 3:  # already embedded
            return audio.astype(wide(self.dtype))
        vggish = create_encoder("vggish", **dict(self.audio_options), dtype=self.dtype).copy(name="audio")
        embedding = vggish(audio.reshape(-1, *audio.shape[2:])).reshape(*audio.shape[:2], EMBEDDING)
        return embedding if self.train_audio else jax.lax.stop_gradient(embedding)

    def _fuse(self, visual, audio, stage, train):
        b, t, h, w, _ = visual.shape
        if self.per_frame:  # every frame is an item of its own with one token of sound
            visual, audio = visual.reshape(b * t, 1, *visual.shape[2:]), audio.reshape(b * t, 1, -1)
        x, heard, attention = tpavi.TPAVI(self.fusion, self.dtype, name=f"tpavi{stage + 1}")(visual, audio, train)
        if self.per_frame:
            x = x.reshape(b, t, h, w, -1)
            heard = None if heard is None else heard.reshape(b, t, -1)
            attention = None if attention is None else attention.reshape(b, t, h, w, 1)
        return x, heard, attention


def create(
    setting: str = "ms3",
    backbone: str = "resnet50",
    tpavi_stages: Sequence[int] = (0, 1, 2, 3),
    fusion: str = "va",
    attend: str = "clip",
    channels: int = 256,
    neck_dilations: Sequence[int] = (3, 6, 12, 18),
    head_channels: Sequence[int] = (128, 32),
    width: int = 64,
    audio_width: int = 64,
    audio_hidden: int = 4096,
    train_audio: bool = False,
    dice: float = 0.0,
    output_bias: float | None = None,
    compute_dtype: str = "float32",
) -> Method:
    """TPAVI as a `Method`. The defaults are the published system; the other values make it small or vary it.

    Args:
      setting: "s4" or "ms3": the same network; the loss is the mean binary cross-entropy over the labelled frames.
      backbone: "resnet50" (paper), "resnet10", "resnet18" or "resnet101".
      tpavi_stages: stages (0 is stride 4, 3 is stride 32) with audio-visual fusion; () uses no sound at all.
      fusion: "va" (paper), "vv", "both", or "none", which is `tpavi_stages=()`.
      attend: "clip": over all T frames (paper); "frame": every frame with the sound of its own second only.
      channels: of neck, fusion and decoder.
      neck_dilations: of the neck's parallel convolutions.
      head_channels: of the head's two hidden convolutions.
      width: of the ResNet's stem.
      audio_width, audio_hidden: VGGish's first convolution and hidden layers.
      train_audio: train VGGish too; frozen otherwise.
      dice: weight of the soft Dice loss added to the cross-entropy.
      output_bias: initial bias of the last layer; None = PyTorch's default.
      compute_dtype: "float32" or "bfloat16"; parameters, statistics, losses and scores stay float32.
    Returns:
      A method with num_classes = 1 that hears through "vggish". Batches hold `frames` (B, T, H, W, 3) with H and W
      multiples of 32, `audio` (B, T, 96, 64) or `audio_embedding` (B, T, 128), and for the loss `labels`, `labelled`
      and optionally `valid`. Parameter groups: "encoder", "audio" ("frozen" unless `train_audio`), "head".
    Raises:
      InputError: an option out of its range.
    """
    options = {k: list(v) if isinstance(v, list | tuple) else v for k, v in locals().items()}
    return _method(build_network(options), options)


def build_network(options: Mapping[str, Any]) -> Network:
    """The network of `create`'s options.

    Raises:
      InputError: an option out of its range.
    """
    o = dict(options)
    _one_of("setting", o["setting"], SETTINGS)
    _one_of("backbone", o["backbone"], BACKBONES)
    _one_of("fusion", o["fusion"], (*tpavi.MODES, "none"))
    _one_of("attend", o["attend"], ("clip", "frame"))
    _one_of("compute_dtype", o["compute_dtype"], ("float32", "bfloat16"))
    stages = tuple(sorted(o["tpavi_stages"])) if o["fusion"] != "none" else ()
    if len(set(stages)) != len(stages) or not set(stages) <= {0, 1, 2, 3}:
        raise InputError("method.tpavi_stages", expected="different stages in 0..3", found=str(o["tpavi_stages"]))
    if o["channels"] < 2 or o["channels"] % 2:
        raise InputError("method.channels", expected="an even number", found=str(o["channels"]))
    for option, number in (("neck_dilations", len(o["neck_dilations"])), ("head_channels", 2)):
        sizes = o[option]
        if not sizes or len(sizes) != number or any(not isinstance(n, int) or n < 1 for n in sizes):
            raise InputError(f"method.{option}", expected="positive integers" + ", two of them" * (number == 2),
                             found=str(sizes))  # fmt: skip
    return Network(
        backbone=o["backbone"],
        stages=stages,
        fusion=o["fusion"],
        per_frame=o["attend"] == "frame",
        channels=o["channels"],
        dilations=tuple(o["neck_dilations"]),
        head_channels=tuple(o["head_channels"]),
        encoder_options=(("width", o["width"]),),
        audio_options=(("width", o["audio_width"]), ("hidden", o["audio_hidden"])),
        train_audio=o["train_audio"],
        output_bias=o["output_bias"],
        dtype=jnp.dtype(o["compute_dtype"]),
    )


def _one_of(option, value, valid):
    if value not in valid:
        raise InputError(f"method.{option}", expected=" | ".join(valid), found=repr(value), hint=nearest(value, valid))


def _method(network: Network, options: dict) -> Method:
    dice = options["dice"]

    def init(rng, batch=None):
        """Random variables; their shapes depend on the options only, so `batch` is checked and not used."""
        if batch is not None:
            inputs_of(batch, network)
        return initialise(network, rng, *example_inputs(network))

    def loss(params, model_state, batch, rng, step):
        del rng, step  # nothing here is random or scheduled
        frames, audio = inputs_of(batch, network)
        variables = {"params": params, "batch_stats": model_state["batch_stats"]}
        output, updated = network.apply(variables, normalise(frames), audio, True, mutable=["batch_stats"])
        labels, mask = jnp.asarray(batch["labels"]), training_mask(batch)
        logits, targets = output.logits[..., 0], (labels > 0) & (labels != IGNORE)
        metrics = {"bce": masked_bce(logits, targets, mask)}
        total = metrics["bce"]
        if dice:
            metrics["dice"] = soft_dice(logits, targets, mask)
            total = total + dice * metrics["dice"]
        return total, ({**model_state, **updated}, {"loss": total, **metrics})

    @jax.jit
    def forward(variables, frames, audio):
        return network.apply(variables, normalise(frames), audio)

    def run(variables, batch) -> Output:
        used = {k: variables[k] for k in ("params", "batch_stats")}
        return forward(used, *inputs_of(batch, network))

    def predict(variables, batch) -> Prediction:
        logits = run(variables, batch).logits
        scores = jax.nn.sigmoid(logits)
        return Prediction(logits, scores, (scores[..., 0] > 0.5).astype(jnp.int32))

    def attention(variables, batch):
        maps = run(variables, batch).attention
        return {f"stage{i + 1}": m for i, m in enumerate(maps) if m is not None}

    def embed_audio(params, audio):
        vggish = create_encoder("vggish", **dict(network.audio_options), dtype=network.dtype)
        return vggish.apply({"params": params}, audio)

    def param_groups(params):
        audio = "audio" if network.train_audio else "frozen"
        labels = {"encoder": "encoder", "audio": audio}
        return jax.tree_util.tree_map_with_path(lambda path, _: labels.get(path[0].key, "head"), params)

    return Method(
        name="tpavi",
        options=options,
        num_classes=1,
        front_end="vggish",
        init=init,
        loss=loss,
        predict=predict,
        param_groups=param_groups,
        torch_keys=torch_table(network),
        attention=attention,
        embed_audio=embed_audio if network.stages else None,
    )


def normalise(frames):
    """uint8 RGB -> float32 with ImageNet's mean and deviation; float32 passes, being normalised already."""
    if frames.dtype != jnp.uint8:
        return frames.astype(wide(frames.dtype))
    return (frames.astype(jnp.float32) / 255 - jnp.asarray(MEAN)) / jnp.asarray(STD)


def training_mask(batch):
    """(B, T, H, W) bool: pixels of labelled frames of real clips that are not marked to be ignored."""
    labels = jnp.asarray(batch["labels"])
    mask = (labels != IGNORE) & jnp.asarray(batch["labelled"])[:, :, None, None]
    if "valid" in batch:
        mask = mask & jnp.asarray(batch["valid"])[:, None, None, None]
    return mask


def inputs_of(batch, network: Network):
    """(frames, audio or None) of a batch, checked.

    Raises:
      InputError: a missing field or a wrong shape, named.
    """

    def fail(field, expected, found):
        raise InputError(f"batch field '{field}'", expected=expected, found=found)

    if "frames" not in batch:
        fail("frames", "to be present", "fields " + ", ".join(sorted(batch)))
    frames = batch["frames"]
    if np.ndim(frames) != 5 or np.shape(frames)[-1] != 3:
        fail("frames", "(B, T, H, W, 3)", str(np.shape(frames)))
    if frames.dtype != np.uint8 and not jnp.issubdtype(frames.dtype, jnp.floating):
        fail("frames", "uint8 RGB, or floats already normalised", str(frames.dtype))
    b, t, h, w, _ = frames.shape
    if h % 32 or w % 32 or not h or not w:
        fail("frames", "height and width that are multiples of 32", f"{h} x {w}")
    if not network.stages:
        return frames, None
    if "audio_embedding" in batch:
        field, shape = "audio_embedding", (b, t, EMBEDDING)
    elif "audio" in batch:
        field, shape = "audio", (b, t, *EXAMPLE)
    else:
        fail("audio", "'audio' or 'audio_embedding' to be present", "fields " + ", ".join(sorted(batch)))
    if np.shape(batch[field]) != shape:
        fail(field, str(shape), str(np.shape(batch[field])))
    return frames, batch[field]


def example_inputs(network: Network):
    """The smallest inputs that touch every parameter."""
    return jnp.zeros((1, 1, 32, 32, 3)), jnp.zeros((1, 1, *EXAMPLE)) if network.stages else None


def torch_table(network: Network) -> torch_keys.Table:
    """The public checkpoint's keys in their order, then VGGish's (a file of its own)."""
    encoder = create_encoder(network.backbone, **dict(network.encoder_options))
    rules, aliases = _encoder_rules(encoder)
    for i in (4, 3, 2, 1):
        rules += torch_keys.prefixed(fpn.neck_rules(len(network.dilations)), f"conv{i}.", (f"neck{i}",))
    for i in (4, 3, 2, 1):
        block = fpn.fusion_block_rules(i < 4, network.channels)
        rules += torch_keys.prefixed(block, f"path{i}.", ("decoder", f"path{i}"))
    for i in network.stages:
        rules += torch_keys.prefixed(tpavi.torch_rules(), f"tpavi_b{i + 1}.", (f"tpavi{i + 1}",))
    rules += torch_keys.prefixed(fpn.head_rules(), "output_conv.", ("head",))
    ignored = encoder.torch_table().ignored
    vggish = create_encoder("vggish", **dict(network.audio_options))
    if network.stages:
        rules += torch_keys.prefixed(vggish.torch_table().rules, "", ("audio",))
    else:  # without fusion nothing hears, but the same list of files may be given
        ignored += tuple(rule.key for rule in vggish.torch_table().rules)
    return torch_keys.Table(tuple(rules), aliases, ignored)


def _encoder_rules(encoder):
    """The public ResNet: layer3 and layer4 are called layer3_1 and layer4_1, and a copy that never runs follows.

    Aliases: the encoder's own ImageNet names, which fill both copies.
    """
    rules, dead, aliases = [], [], {}
    for rule in encoder.torch_table().rules:
        layer, _, rest = rule.key.partition(".")
        renamed = f"{layer}_1.{rest}" if layer in ("layer3", "layer4") else rule.key
        rules += torch_keys.prefixed([_rename(rule, renamed)], encoder.torch_prefix, ("encoder",))
        aliases[rule.key] = (encoder.torch_prefix + renamed,)
        if renamed != rule.key:
            copy, live = f"{encoder.torch_prefix}{layer}_2.{rest}", encoder.torch_prefix + renamed
            layout = "count" if rule.layout == "count" else "same"
            dead.append(torch_keys.Rule(copy, "unused", (copy,), layout, like=live))
            aliases[rule.key] += (copy,)
    return rules + dead, aliases


def _rename(rule, key):
    path = (key,) if rule.collection == "unused" else rule.path
    return torch_keys.Rule(key, rule.collection, path, rule.layout)
