"""Encoders by name: images to feature maps, sound to embeddings."""

import importlib
import inspect

from avs_jax.errors import InputError, nearest

ENCODERS = {  # name: (module, class, options the name fixes)
    **{name: ("resnet", "ResNet", {"size": name}) for name in ("resnet10", "resnet18", "resnet50", "resnet101")},
    **{f"pvt_v2_b{i}": ("pvt", "PVT", {"size": f"pvt_v2_b{i}"}) for i in range(6)},
    **{
        name: ("swin", "Swin", {"size": name})
        for name in (
            *(f"swin_{size}_patch4_window7_224" for size in ("tiny", "small", "base", "large")),
            *(f"swin_{size}_patch4_window12_384" for size in ("base", "large")),
        )
    },
    **{f"audio_{name}": ("audio_resnet", "AudioResNet", {"size": name}) for name in ("resnet10", "resnet18")},
    "hrnet_w48": ("hrnet", "HRNet", {}),
    "vggish": ("vggish", "VGGish", {}),
}


def create_encoder(name: str, **options):
    """The linen module called `name`.

    `encoder.apply(variables, images)` of a visual encoder maps images (N, H, W, 3) float32, normalised with the
    ImageNet mean and standard deviation, to a tuple of maps at strides 4, 8, 16, 32, or `encoder.strides`;
    `encoder.channels` are their depths. "vggish" maps (N, 96, 64) log-mel examples to (N, 128), "audio_resnet18" (N,
    time, mel) spectrograms to (N, features). `avs_jax.load_torch(encoder, weights)` makes
    variables; `encoder.init(rng, encoder.example_input())` random ones.

    Args:
      name: "resnet10", "resnet18", "resnet50", "resnet101", "pvt_v2_b0" ... "pvt_v2_b5", "hrnet_w48",
        "swin_tiny_patch4_window7_224", "swin_small_...", "swin_base_...", "swin_large_...",
        "swin_base_patch4_window12_384", "swin_large_...", "vggish", "audio_resnet10" or "audio_resnet18".
      **options: the module's own fields, e.g. `width`, `dtype`.
    Raises:
      InputError: an unknown encoder or option, naming the nearest valid one.
    """
    if name not in ENCODERS:
        raise InputError("encoder", expected="the name of an encoder", found=repr(name), hint=nearest(name, ENCODERS))
    module, cls, fixed = ENCODERS[name]
    cls = getattr(importlib.import_module(f"avs_jax.models.encoders.{module}"), cls)
    valid = [p for p in inspect.signature(cls).parameters if p not in (*fixed, "parent", "name")]
    for option in options:
        if option not in valid:
            raise InputError(f"encoder option '{option}'", expected=f"an option of '{name}'", found=repr(option),
                             hint=nearest(option, valid))  # fmt: skip
    return cls(**fixed, **options)
