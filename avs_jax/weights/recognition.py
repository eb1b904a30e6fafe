"""Which TransAVS a state dict is of: its options, read off keys and shapes."""

import inspect
import math
from collections.abc import Mapping
from typing import Any

from avs_jax.methods import transavs
from avs_jax.models.encoders import create_encoder, swin

Shapes = Mapping[str, tuple[int, ...]]

TRANSAVS_KEYS = ("transformer.query_positions", "transformer.class_head.weight")  # (N, d) and (K, d)
_SWIN_STEM, _SWIN_BIASES = "patch_embed.proj.weight", "layers.0.blocks.0.attn.relative_position_bias_table"
_DEFORMABLE = {"groups": 32, "layers": 6, "heads": 8, "hidden": 1024}  # the pixel decoder's defaults


def transavs_options(shapes: Shapes) -> tuple[dict[str, Any], list[str]]:
    """Options of `avs_jax.methods.transavs.create`, and the other settings with the same network.

    What leaves no trace in keys and shapes is left out: round_robin, masked_attention, and how many heads and groups
    there are, which are the defaults or the most that divide the channels.

    Args:
      shapes: of the whole state dict, under the public keys.
    """

    def size(key, axis=0):
        shape = shapes.get(key, ())
        return shape[axis] if axis < len(shape) else None

    (n, dim), classes = (size(TRANSAVS_KEYS[0], i) for i in (0, 1)), size(TRANSAVS_KEYS[1])
    seconds = size("queries.mix.weight", 1)  # that the queries of a clip mix
    same = [k for k, s in transavs.SETTINGS.items() if s.classes == classes and seconds in (None, s.frames)]
    setting = "ms3" if "ms3" in same or not same else same[0]
    published, ffn = transavs.SETTINGS[setting], size("transformer.decoder0.ffn.linear1.weight")
    found = {
        "num_classes": None if classes == published.classes else classes,
        "num_frames": None if seconds in (None, published.frames) else seconds,
        "query_init": "clip" if seconds else "shared" if "queries.embedding" in shapes else "frame",
        **_pixel_decoder(shapes, dim),
        "dim": dim,
        "heads": math.gcd(dim or 0, 8),
        "ffn": ffn,
        "encoder_layers": _count(shapes, "transformer.encoder"),
        "decoder_layers": _count(shapes, "transformer.decoder"),
        "literal_attention": ffn is None,
        "decoder_self_attention": ffn is None or "transformer.decoder0.self_attention.q.weight" in shapes,
        "mask_mlp": "transformer.mask_mlp0.weight" in shapes,
        "audio_width": size("features.0.weight"),
        "audio_hidden": size("embeddings.0.weight"),
    }
    usual = {name: p.default for name, p in inspect.signature(transavs.create).parameters.items()}
    changed = {k: v for k, v in found.items() if v is not None and v != usual[k]}
    encoder = _image_encoder({k.removeprefix("encoder."): s for k, s in shapes.items() if k.startswith("encoder.")})
    return {"setting": setting, **encoder, "num_queries": n, **changed}, [name for name in same if name != setting]


def _count(shapes: Shapes, prefix: str) -> int:
    """Of layers prefix0, prefix1, ..."""
    return len({key.removeprefix(prefix).partition(".")[0] for key in shapes if key.startswith(prefix)})


def _pixel_decoder(shapes: Shapes, dim: int | None) -> dict:
    name, start = "fpn", "pixel_decoder.encoder.layer0."
    options = {"groups": math.gcd(dim or 0, 32)}
    if start + "attention.offsets.bias" in shapes:
        name, (offsets, *_) = "msdeform", (*shapes[start + "attention.offsets.bias"], 0)
        options["layers"] = _count(shapes, "pixel_decoder.encoder.layer")
        options["heads"] = offsets // (3 * 4 * 2)  # of three levels, four points each, in x and y
        options["hidden"] = (*shapes.get(start + "fc1.weight", ()), 1024)[0]
    elif "pixel_decoder.stride4.lateral.conv.weight" not in shapes:
        name, options = "none", {}
    options = {k: v for k, v in options.items() if v != _DEFORMABLE[k]}
    return {"pixel_decoder": name, "pixel_options": options or None}


def _image_encoder(shapes: Shapes) -> dict:
    """Options of the image encoder whose keys come nearest, without prefix; none where TransAVS has none such."""
    if _SWIN_STEM in shapes:
        return _swin(shapes)
    found = []
    for name in transavs.BACKBONES:
        if name.startswith(("resnet", "pvt")):
            encoder = create_encoder(name, **({"keys": "official"} if name.startswith("pvt") else {}))
            rules = encoder.torch_table().rules
            faults = len(set(shapes) ^ {rule.key for rule in rules if rule.layout != "count" or rule.key in shapes})
            width = (*shapes.get(rules[0].key, ()), 0)[0]
            own = width == (encoder.width or encoder.channels[0])
            found.append((faults, {"backbone": name} if own else {"backbone": name, "width": width}))
    faults, options = min(found, key=lambda pair: (pair[0], len(pair[1])))  # of equals that of its published width
    return options if faults * 2 < len(shapes) else {}


def _swin(shapes: Shapes) -> dict:
    """The Swin of the windows' size that is nearest."""
    width, rows = ((*shapes.get(key, ()), 0)[0] for key in (_SWIN_STEM, _SWIN_BIASES))
    blocks = tuple(_count(shapes, f"layers.{i}.blocks.") for i in range(4))
    found = []
    for name, full in transavs.SWINS.items():
        channels, depths, window = swin.SIZES[full]
        if rows == (2 * window - 1) ** 2:
            options = {"width": width} if width != channels else {}
            options |= {"depths": list(blocks)} if blocks != tuple(depths) else {}
            found.append({"backbone": name, **options})
    return min(found, key=len, default={})
