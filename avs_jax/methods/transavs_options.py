"""TransAVS's options: the benchmarks, what is in range, and from options to the network."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp

from avs_jax.errors import InputError, nearest
from avs_jax.models import query_decoder, query_masks
from avs_jax.models.decoders.pixel import DECODERS
from avs_jax.models.transavs import Network

RESNETS = ("resnet10", "resnet18", "resnet50", "resnet101")
SWINS = {
    **{f"swin_{size[0]}": f"swin_{size}_patch4_window7_224" for size in ("tiny", "small", "base", "large")},
    **{f"swin_{size[0]}_384": f"swin_{size}_patch4_window12_384" for size in ("base", "large")},
}
BACKBONES = (*RESNETS, *SWINS, *SWINS.values(), *(f"pvt_v2_b{i}" for i in range(6)))


class Setting(NamedTuple):
    """A benchmark: classes with background (as many as a query tells apart, "no object" in place of background), frames
    of a clip, targets of a frame at most."""

    classes: int
    frames: int
    targets: int


SETTINGS = {
    "s4": Setting(2, 5, 1),
    "ms3": Setting(2, 5, 1),
    "avss": Setting(71, 10, 8),
    **{name: Setting(22, 1, 8) for name in ("vpo_ss", "vpo_ms", "vpo_msmi")},
    "single_plus": Setting(24, 1, 8),
    "salient": Setting(2, 1, 1),
}
CHOICES = {
    "setting": SETTINGS,
    "backbone": BACKBONES,
    "query_init": query_decoder.QUERY_INITS,
    "pixel_decoder": DECODERS,
    "round_robin": query_decoder.ROUND_ROBINS,
    "attention": query_decoder.ATTENTIONS,
    "train_frames": ("auto", "all", "first"),
    "aqdl_on": ("encoder", "decoder"),
    "inference_rule": query_masks.RULES,
    "compute_dtype": ("float32", "bfloat16"),
}
LEAST = {  # of integers
    "num_queries": 1, "num_classes": 2, "max_targets": 1, "num_frames": 1, "dim": 4, "heads": 1, "ffn": 1,
    "encoder_layers": 0, "decoder_layers": 1, "audio_width": 1, "audio_hidden": 1, "max_iter": 1,
}  # fmt: skip


def resolved(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options with `num_classes`, `max_targets` and `num_frames` as the setting has them, where they are None.

    Raises:
      InputError: an option that is none of its choices, naming the nearest one.
    """
    o = dict(options)
    for option, valid in CHOICES.items():
        if o[option] not in valid:
            _refuse(option, " | ".join(valid), repr(o[option]), nearest(str(o[option]), valid))
    setting = SETTINGS[o["setting"]]
    fixed = {"num_classes": setting.classes, "max_targets": setting.targets, "num_frames": setting.frames}
    return o | {k: v for k, v in fixed.items() if o[k] is None}


def build_network(options: Mapping[str, Any]) -> Network:
    """The network of `create`'s options.

    Raises:
      InputError: an option out of its range.
    """
    o = resolved(options)
    _check_numbers(o)
    if o["query_init"] == "clip" and o["num_frames"] == 1:
        _refuse("query_init", "'frame' or 'shared' for clips of one frame", "'clip'",
                "All mixtures of one second's sound are multiples of it.")  # fmt: skip
    style = query_decoder.Style(
        heads=o["heads"], ffn=o["ffn"], dropout=o["dropout"], attention=o["attention"], literal=o["literal_attention"],
        decoder_self_attention=o["decoder_self_attention"], dtype=jnp.dtype(o["compute_dtype"]),
    )  # fmt: skip
    transformer = ("encoder_layers", "decoder_layers", "round_robin", "masked_attention", "mask_mlp", "class_prior")
    return Network(
        backbone=SWINS.get(o["backbone"], o["backbone"]),
        encoder_options=tuple(_encoder_options(o).items()),
        freeze_encoder=o["freeze_encoder"],
        pixel_decoder=o["pixel_decoder"],
        pixel_options=tuple(o["pixel_options"].items()),
        audio_options=(("width", o["audio_width"]), ("hidden", o["audio_hidden"])),
        train_audio=o["train_audio"],
        query_init=o["query_init"],
        num_queries=o["num_queries"],
        num_frames=o["num_frames"],
        dim=o["dim"],
        classes=o["num_classes"],
        style=style,
        transformer_options=tuple((k, o[k]) for k in transformer),
        remat=o["remat"],
        dtype=jnp.dtype(o["compute_dtype"]),
    )


def _encoder_options(o) -> dict:
    found = {} if o["width"] is None else {"width": o["width"]}
    if o["backbone"] in RESNETS:
        found["frozen_norm"] = o["frozen_norm"]
    else:
        found["drop_path"] = o["drop_path"]
    if o["backbone"].startswith("pvt"):
        found["keys"] = "official"
    if o["backbone"].startswith("swin"):
        found |= {"output_norms": True, "remat": o["remat"]}
        found |= {"depths": tuple(o["depths"])} if o["depths"] else {}
    elif o["depths"]:
        _refuse("depths", "None, or a Swin as backbone", str(o["depths"]))
    return found


def _check_numbers(o):
    for option, least in LEAST.items():
        if not isinstance(o[option], int) or o[option] < least:
            _refuse(option, f"an integer of at least {least}", repr(o[option]))
    if o["width"] is not None and (not isinstance(o["width"], int) or o["width"] < 1):
        _refuse("width", "a positive integer, or None", repr(o["width"]))
    if o["dim"] % 4:
        _refuse("dim", "a multiple of 4 (sine positions)", str(o["dim"]))
    if o["dim"] % o["heads"]:
        _refuse("heads", f"a divisor of the {o['dim']} channels", str(o["heads"]))
    for option in ("dropout", "inference_threshold"):
        if not 0 <= o[option] < 1:
            _refuse(option, "a number in [0, 1)", repr(o[option]))
    if not 0 < o["class_prior"] < 1:
        _refuse("class_prior", "a number between 0 and 1", repr(o["class_prior"]))


def _refuse(option, expected, found, hint=""):
    raise InputError(f"method.{option}", expected=expected, found=found, hint=hint)
