"""TPAVI: Zhou et al., Audio-visual segmentation, ECCV 2022 (settings S4 and MS3), and its semantic setting AVSS
(Zhou et al., Audio-visual segmentation with semantics, 2023)."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from avs_jax.errors import InputError, nearest
from avs_jax.losses import avm
from avs_jax.losses.bce import masked_bce
from avs_jax.losses.cross_entropy import masked_cross_entropy
from avs_jax.losses.dice import soft_dice
from avs_jax.methods import Method, Prediction
from avs_jax.methods.batch import (
    IGNORE,
    checked_frames,
    checked_present,
    fail,
    normalise,
    refuse_canvas,
    statistics,
    training_mask,
    vggish_sound,
)
from avs_jax.models import remat, torch_keys
from avs_jax.models.decoders import fpn
from avs_jax.models.encoders import create_encoder
from avs_jax.models.encoders.vggish import EMBEDDING, EXAMPLE, vggish_embedding
from avs_jax.models.fusion import tpavi
from avs_jax.models.initialise import initialise

CLASSES = {"s4": 2, "ms3": 2, "avss": 71}  # with background
AVM = {"s4": "none", "ms3": "av", "avss": "av"}  # what "auto" stands for: the public scripts' choices
ATTEND = {"clip": None, "halves": 5, "frame": 1}  # frames that attend to each other; None = all of the clip
BACKBONES = ("resnet10", "resnet18", "resnet50", "resnet101", *(f"pvt_v2_b{i}" for i in range(6)))


class Output(NamedTuple):
    """What the network makes of B clips of T frames.

    logits: (B, T, H, W, K) float32.
    visual: four maps (B, T, h_i, w_i, C), after the decoder's first ReLU: what the audio-visual losses see.
    audio: per stage (B, T, C) float32, or None where no sound comes in.
    attention: per stage (B, T, h_i, w_i, frames that attend to each other) float32, or None.
    """

    logits: jax.Array
    visual: tuple
    audio: tuple
    attention: tuple


class Network(nn.Module):
    """Encoder, neck, TPAVI at the chosen stages, decoder, head. Fields as the options of `create`."""

    backbone: str
    classes: int  # channels of the logits
    stages: tuple[int, ...]
    fusion: str
    attend: str
    align_bias: bool
    channels: int
    dilations: tuple[int, ...]
    head_channels: tuple[int, int]
    encoder_options: Any
    audio_options: Any
    train_audio: bool
    output_bias: float | None
    remat: bool
    dtype: Any

    @nn.compact
    def __call__(self, frames, audio, present=None, train: bool = False) -> Output:
        """frames: (B, T, H, W, 3) float32 normalised. audio: (B, T, 96, 64), (B, T, 128), or None without TPAVI.

        present: (B, T) float32, 0 for frames that only fill up a short clip, or None. As in AVSS's public code it
        multiplies the embeddings, the neck's, the fusion's and the decoder's maps, and the logits.
        """
        b, t = frames.shape[:2]
        images = frames.reshape(-1, *frames.shape[2:])  # frame b * T + t, as BatchNorm sees them
        here = None if present is None else present.reshape(-1, 1, 1, 1)
        keep = (lambda x: x) if present is None else (lambda x: x * here.astype(x.dtype))
        encoder = create_encoder(self.backbone, **dict(self.encoder_options), dtype=self.dtype)
        again = self.remat and train
        maps = remat.call(encoder.copy(name="encoder"), images, again=again, train=train)
        embedding = self._hear(audio, present) if self.stages else None
        visual, audio_features, attention = [], [], []
        for i, x in enumerate(maps):
            x = keep(fpn.Neck(self.channels, self.dilations, self.dtype, name=f"neck{i + 1}")(x))
            heard = looked = None
            if i in self.stages:
                x, heard, looked = self._fuse(x.reshape(b, t, *x.shape[1:]), embedding, i, train)
                x = keep(x.reshape(-1, *x.shape[2:]))
            visual.append(x)
            audio_features.append(heard)
            attention.append(looked)
        x = remat.call(fpn.Decoder(self.channels, self.dtype, name="decoder"), visual, here, again=again)
        head = fpn.Head(self.classes, self.head_channels, self.output_bias, self.dtype, name="head")
        logits = keep(remat.call(head, x, again=again))
        return Output(
            logits.reshape(b, t, *logits.shape[1:]),
            tuple(jax.nn.relu(v).reshape(b, t, *v.shape[1:]) for v in visual),
            tuple(audio_features),
            tuple(attention),
        )

    def _hear(self, audio, present):
        vggish = create_encoder("vggish", **dict(self.audio_options), dtype=self.dtype).copy(name="audio")
        return vggish_embedding(vggish, audio, present, self.train_audio)

    def _fuse(self, visual, audio, stage, train):
        """Every run of frames that attend to each other is an item of its own."""
        b, t = visual.shape[:2]
        window = ATTEND[self.attend] or t
        visual = visual.reshape(b * t // window, window, *visual.shape[2:])
        block = tpavi.TPAVI(self.fusion, self.align_bias, self.dtype, name=f"tpavi{stage + 1}")
        parts = block(visual, audio.reshape(b * t // window, window, -1), train)
        return tuple(None if x is None else x.reshape(b, t, *x.shape[2:]) for x in parts)


def create(
    setting: str = "ms3",
    backbone: str = "resnet50",
    tpavi_stages: Sequence[int] = (0, 1, 2, 3),
    fusion: str = "va",
    attend: str = "auto",
    num_classes: int | None = None,
    channels: int = 256,
    neck_dilations: Sequence[int] = (3, 6, 12, 18),
    head_channels: Sequence[int] = (128, 32),
    width: int | None = None,
    drop_path: float = 0.1,
    audio_width: int = 64,
    audio_hidden: int = 4096,
    train_audio: bool = False,
    avm: str = "auto",
    avm_weight: float = 0.5,
    avm_stages: Sequence[int] | None = None,
    avm_distance: str = "kl",
    avm_norm: bool = False,
    avm_threshold: bool = False,
    avm_pool: str = "avg",
    dice: float = 0.0,
    output_bias: float | None = None,
    remat: bool = False,
    compute_dtype: str = "float32",
) -> Method:
    """TPAVI as a `Method`. The defaults are the published system; the other values make it small or vary it.

    Args:
      setting: "s4" or "ms3": where the sounding pixels are (one network); or "avss": of which of 71 classes each is,
        for 10-frame clips. Trained with the mean cross-entropy over the labelled frames, and `avm`.
      backbone: "resnet50" or "pvt_v2_b5" (paper), "resnet10", "resnet18", "resnet101", "pvt_v2_b0" ... "pvt_v2_b4".
      tpavi_stages: stages (0 is stride 4, 3 is stride 32) with audio-visual fusion; () uses no sound at all.
      fusion: "va" (paper); "vv", pixels with pixels; "both"; "add", the sound added to every pixel (table 4's A(+)V);
        "no_projection", "va" without its four 1x1x1 convolutions; or "none", which is `tpavi_stages=()`.
      attend: "clip": over all T frames (paper); "halves": over each 5 of the clip's frames (AVSS's public code);
        "frame": every frame with the sound of its own second only; "auto": "halves" for AVSS, else "clip".
      num_classes: with background; 2 gives one channel of logits. None = the setting's.
      channels: of neck, fusion and decoder.
      neck_dilations: of the neck's parallel convolutions.
      head_channels: of the head's two hidden convolutions.
      width: of the ResNet's stem or of the PVT's attention heads; None = the published one.
      drop_path: the PVT's rate of stochastic depth.
      audio_width, audio_hidden: VGGish's first convolution and hidden layers.
      train_audio: train VGGish too; frozen otherwise.
      avm: the audio-visual mapping loss: "av" (each frame's sound and what its mask selects), "vv" (what the masks of
        two frames that sound alike select; AVSS's public code computes "av" under this name), "cosine" (S4's optional
        loss), "none", or "auto": "av" for MS3 and AVSS, "none" for S4 and wherever no stage has sound.
      avm_weight: its weight beside the cross-entropy.
      avm_stages: the stages it sees; None = all with sound.
      avm_distance, avm_norm, avm_threshold, avm_pool: "kl" or "euclid", vectors of length 1, masks cut at 0.5, "avg"
        or "max" pooling; the defaults are the published run's. See `avs_jax.losses.avm`.
      dice: weight of the soft Dice loss added to the binary cross-entropy.
      output_bias: initial bias of the last layer; None = PyTorch's default.
      remat: compute encoder and decoder, but for their products, again in the backward pass: less memory.
      compute_dtype: "float32" or "bfloat16"; parameters, statistics, losses and scores stay float32.
    Returns:
      A method that hears through "vggish", with num_classes = 1 for the binary settings. Batches hold `frames` (B, T,
      H, W, 3) with H and W multiples of 32, `audio` (B, T, 96, 64) or `audio_embedding` (B, T, 128), optionally
      `present` (B, T), False for frames that fill up a short clip, and for the loss `labels`, `labelled` and
      optionally `valid`. Parameter groups: "encoder", "audio" ("frozen" unless `train_audio`), "head".
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
    _one_of("setting", o["setting"], CLASSES)
    _one_of("backbone", o["backbone"], BACKBONES)
    _one_of("fusion", o["fusion"], (*tpavi.MODES, "none"))
    _one_of("attend", o["attend"], (*ATTEND, "auto"))
    _one_of("compute_dtype", o["compute_dtype"], ("float32", "bfloat16"))
    _one_of("avm", o["avm"], ("auto", "none", "av", "vv", "cosine"))
    semantic = o["setting"] == "avss"
    stages = _stages("tpavi_stages", o["tpavi_stages"]) if o["fusion"] != "none" else ()
    classes = _positive("num_classes", o["num_classes"] or CLASSES[o["setting"]])
    if classes < 2 or (classes > 2) != semantic:
        raise InputError("method.num_classes", expected="above 2" if semantic else f"2 in setting {o['setting']!r}",
                         found=str(classes))  # fmt: skip
    if o["channels"] < 2 or o["channels"] % 2:
        raise InputError("method.channels", expected="an even number", found=str(o["channels"]))
    for option, number in (("neck_dilations", len(o["neck_dilations"])), ("head_channels", 2)):
        sizes = o[option]
        if not sizes or len(sizes) != number or any(not isinstance(n, int) or n < 1 for n in sizes):
            raise InputError(f"method.{option}", expected="positive integers" + ", two of them" * (number == 2),
                             found=str(sizes))  # fmt: skip
    for option in ("audio_width", "audio_hidden"):
        _positive(option, o[option])
    if not 0 <= o["drop_path"] < 1:
        raise InputError("method.drop_path", expected="a number in [0, 1)", found=repr(o["drop_path"]))
    encoder = {} if o["width"] is None else {"width": _positive("width", o["width"])}
    if o["backbone"].startswith("pvt"):
        encoder |= {"drop_path": o["drop_path"], "keys": "official"}
    return Network(
        backbone=o["backbone"],
        classes=classes if semantic else 1,
        stages=stages,
        fusion=o["fusion"],
        attend=("halves" if semantic else "clip") if o["attend"] == "auto" else o["attend"],
        align_bias=not semantic,
        channels=o["channels"],
        dilations=tuple(o["neck_dilations"]),
        head_channels=tuple(o["head_channels"]),
        encoder_options=tuple(encoder.items()),
        audio_options=(("width", o["audio_width"]), ("hidden", o["audio_hidden"])),
        train_audio=o["train_audio"],
        output_bias=o["output_bias"],
        remat=o["remat"],
        dtype=jnp.dtype(o["compute_dtype"]),
    )


def _one_of(option, value, valid):
    if value not in valid:
        raise InputError(f"method.{option}", expected=" | ".join(valid), found=repr(value), hint=nearest(value, valid))


def _positive(option, value):
    if not isinstance(value, int) or value < 1:
        raise InputError(f"method.{option}", expected="a positive integer", found=repr(value))
    return value


def _stages(option, stages):
    if len(set(stages)) != len(stages) or not set(stages) <= {0, 1, 2, 3}:
        raise InputError(f"method.{option}", expected="different stages in 0..3", found=str(stages))
    return tuple(sorted(stages))


def _method(network: Network, options: dict) -> Method:
    objective = make_objective(network, options)

    def init(rng, batch=None):
        """Random variables; their shapes depend on the options only, so `batch` is checked and not used."""
        if batch is not None:
            inputs_of(batch, network)
        return initialise(network, rng, *example_inputs(network))

    def loss(params, model_state, batch, rng, step):
        refuse_canvas(batch)
        del step  # nothing here is scheduled
        frames, audio, present = inputs_of(batch, network)
        variables = {"params": params, **statistics(model_state)}
        rngs = None if rng is None else {"dropout": rng}  # stochastic depth
        output, updated = network.apply(variables, normalise(frames, present), audio, present, True,
                                        mutable=["batch_stats"], rngs=rngs)  # fmt: skip
        total, metrics = objective(output, batch, present)
        return total, ({**model_state, **updated}, {"loss": total, **metrics})

    @jax.jit
    def forward(variables, frames, audio, present):
        return network.apply(variables, normalise(frames, present), audio, present)

    def run(variables, batch) -> Output:
        refuse_canvas(batch)
        return forward({"params": variables["params"], **statistics(variables)}, *inputs_of(batch, network))

    def predict(variables, batch) -> Prediction:
        logits = run(variables, batch).logits
        if network.classes > 1:  # a frame that does not exist has logits of zero: background
            return Prediction(logits, jax.nn.softmax(logits), jnp.argmax(logits, -1).astype(jnp.int32))
        scores = jax.nn.sigmoid(logits)
        return Prediction(logits, scores, (scores[..., 0] > 0.5).astype(jnp.int32))

    def attention(variables, batch):
        return by_stage(run(variables, batch).attention)

    def features(variables, batch):
        output = run(variables, batch)
        heard = by_stage(output.audio)
        if network.stages:
            heard["embedding"] = batch.get("audio_embedding")
            if heard["embedding"] is None:
                audio = batch["audio"]
                embedded = embed_audio(variables["params"]["audio"], audio.reshape(-1, *audio.shape[2:]))
                heard["embedding"] = embedded.reshape(*audio.shape[:2], EMBEDDING)
        return {"visual": by_stage(output.visual), "audio": heard}

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
        num_classes=network.classes,
        front_end="vggish",
        init=init,
        loss=loss,
        predict=predict,
        param_groups=param_groups,
        torch_keys=torch_table(network),
        attention=attention,
        features=features,
        embed_audio=embed_audio if network.stages else None,
    )


def by_stage(values) -> dict:
    """Those of four stages' values that are not None, under "stage1" to "stage4"."""
    return {f"stage{i + 1}": value for i, value in enumerate(values) if value is not None}


def make_objective(network: Network, options: Mapping[str, Any]):
    """(Output, batch, present) -> (scalar, {name: scalar}): cross-entropy, audio-visual mapping, Dice by the options.

    Raises:
      InputError: an option of the mapping loss out of its range, or one that asks for sound where none comes in.
    """
    heard = network.stages if network.fusion != "vv" else ()
    kind, weight, dice = options["avm"], options["avm_weight"], options["dice"]
    if kind == "auto":
        kind = AVM[options["setting"]] if heard else "none"
    stages = heard if options["avm_stages"] is None else _stages("avm_stages", options["avm_stages"])
    if kind != "none" and (not stages or not set(stages) <= set(heard)):
        raise InputError("method.avm", expected="'none', or stages whose fusion hears the sound", found=repr(kind),
                         hint=f"avm_stages is {list(stages)}; sound comes in at {list(heard)}.")  # fmt: skip
    if kind == "cosine" and network.classes > 1:
        raise InputError("method.avm", expected="'av', 'vv' or 'none' in setting 'avss'", found=repr(kind))
    choice = {"measure": options["avm_distance"], "normalise": options["avm_norm"], "pooling": options["avm_pool"],
              "stages": stages}  # fmt: skip
    _one_of("avm_distance", choice["measure"], avm.MEASURES)
    _one_of("avm_pool", choice["pooling"], avm.POOLINGS)
    if options["avm_threshold"] and kind == "vv":
        raise InputError("method.avm_threshold", expected="False with avm='vv'", found="True")
    mapping = {
        "av": lambda *parts, **frames: avm.avm_av(*parts, **choice, **frames, threshold=options["avm_threshold"]),
        "vv": lambda *parts, **frames: avm.avm_vv(*parts, **choice, **frames),
        "cosine": lambda *parts, **frames: avm.avm_cosine(*parts, stages=stages, **frames),
    }

    def objective(output: Output, batch, present):
        labels, mask = jnp.asarray(batch["labels"]), training_mask(batch)
        if network.classes > 1:
            metrics = {"ce": masked_cross_entropy(output.logits, labels, mask)}
        else:
            logits, targets = output.logits[..., 0], (labels > 0) & (labels != IGNORE)
            metrics = {"bce": masked_bce(logits, targets, mask)}
            if dice:
                metrics["dice"] = soft_dice(logits, targets, mask)
        total = sum(
            metrics[name] * factor for name, factor in (("ce", 1), ("bce", 1), ("dice", dice)) if name in metrics
        )
        if kind != "none":
            # AVSS's public code maps the labelled frames only; the binary settings' all frames
            frames = jnp.any(mask, (2, 3)) if network.classes > 1 else present
            metrics[f"avm_{kind}"] = mapping[kind](output.logits, output.visual, output.audio, present=frames)
            total = total + weight * metrics[f"avm_{kind}"]
        return total, metrics

    return objective


def inputs_of(batch, network: Network):
    """(frames, audio or None, present as float32 or None) of a batch, checked.

    Raises:
      InputError: a missing field or a wrong shape, named.
    """

    frames = checked_frames(batch)
    t, h, w = frames.shape[1:4]
    if h % 32 or w % 32 or not h or not w:
        fail("frames", "height and width that are multiples of 32", f"{h} x {w}")
    window = ATTEND[network.attend] or t
    if network.stages and t % window:
        fail("frames", f"a multiple of {window} frames, which attend to each other", f"{t} frames")
    return frames, vggish_sound(batch) if network.stages else None, checked_present(batch, network.dtype)


def example_inputs(network: Network):
    """The smallest inputs that touch every parameter."""
    t = ATTEND[network.attend] or 1
    return jnp.zeros((1, t, 32, 32, 3)), jnp.zeros((1, t, *EXAMPLE)) if network.stages else None


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
        block = tpavi.torch_rules(network.fusion, network.align_bias)
        rules += torch_keys.prefixed(block, f"tpavi_b{i + 1}.", (f"tpavi{i + 1}",))
    rules += torch_keys.prefixed(fpn.head_rules(), "output_conv.", ("head",))
    vggish = create_encoder("vggish", **dict(network.audio_options)).torch_table()
    ignored = encoder.torch_table().ignored + vggish.ignored
    if network.stages:
        rules += torch_keys.prefixed(vggish.rules, "", ("audio",))
    else:  # without fusion nothing hears, but the same list of files may be given
        ignored += tuple(rule.key for rule in vggish.rules)
    return torch_keys.Table(tuple(rules), aliases, ignored)


def _encoder_rules(encoder):
    """The encoder's public keys as AVSBench's files have them, and as aliases those of its ImageNet files.

    In the public ResNet layer3 and layer4 are called layer3_1 and layer4_1, and a copy that never runs follows;
    ImageNet's names fill both copies.
    """
    table, prefix = encoder.torch_table(), encoder.torch_prefix
    if prefix != "resnet.":
        aliases = {rule.key: (prefix + rule.key,) for rule in table.rules}
        aliases |= {name: tuple(prefix + key for key in keys) for name, keys in table.aliases.items()}
        return torch_keys.prefixed(table.rules, prefix, ("encoder",)), aliases
    rules, dead, aliases = [], [], {}
    for rule in table.rules:
        layer, _, rest = rule.key.partition(".")
        renamed = f"{layer}_1.{rest}" if layer in ("layer3", "layer4") else rule.key
        rules += torch_keys.prefixed([_rename(rule, renamed)], prefix, ("encoder",))
        aliases[rule.key] = (prefix + renamed,)
        if renamed != rule.key:
            copy, live = f"{prefix}{layer}_2.{rest}", prefix + renamed
            layout = "count" if rule.layout == "count" else "same"
            dead.append(torch_keys.Rule(copy, "unused", (copy,), layout, like=live))
            aliases[rule.key] += (copy,)
    return rules + dead, aliases


def _rename(rule, key):
    path = (key,) if rule.collection == "unused" else rule.path
    return torch_keys.Rule(key, rule.collection, path, rule.layout)
