"""A ResNet that hears: one vector per spectrogram, as CAVP embeds the sound of its VPO benchmarks.

Chen et al., A closer look at audio-visual semantic segmentation, 2023; public code: ResNet-18, maximum over the map.
"""

from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from avs_jax.errors import InputError, nearest
from avs_jax.models import torch_keys
from avs_jax.models.encoders.resnet import SIZES, block_rules, blocks, conv, residual_layers
from avs_jax.models.layers import BatchNorm, Dense, max_pool, wide


class AudioResNet(nn.Module):
    """Spectrograms to embeddings.

    Args:
      size: a key of `resnet.SIZES` (public: "resnet18").
      features: width of the embedding: of the visual features it is fused with (304 for CAVP's DeepLabV3+).
      width: channels of the stem (public: 64).
      input_channels: 1, or 2 for stereo.
      dtype: compute dtype.
    Call:
      spectrograms: (N, time, mel) float32, or (N, time, mel, input_channels); public: 300 frames of 64 bands.
      train: normalise with batch statistics and update the running ones.
    Returns:
      (N, features) float32 of any sign: the last layer is linear, after the maximum over time and mel.
    Raises:
      InputError: an unknown size, or spectrograms of another number of channels.
    """

    size: str = "resnet18"
    features: int = 304
    width: int = 64
    input_channels: int = 1
    dtype: Any = jnp.float32

    torch_prefix: ClassVar = "audio_backbone.backbone."
    fresh: ClassVar = ("conv1.", "fc.")  # keys that ImageNet's files have in other shapes: to be learnt anew

    def __post_init__(self):
        if self.size not in SIZES:
            raise InputError("encoder option 'size'", expected=" | ".join(SIZES), found=repr(self.size),
                             hint=nearest(self.size, SIZES))  # fmt: skip
        super().__post_init__()

    @nn.compact
    def __call__(self, spectrograms, train: bool = False):
        x = spectrograms[..., None] if spectrograms.ndim == 3 else spectrograms
        if x.ndim != 4 or x.shape[-1] != self.input_channels:
            shape = "(N, time, mel)" if self.input_channels == 1 else f"(N, time, mel, {self.input_channels})"
            raise InputError("spectrograms", expected=shape, found=str(spectrograms.shape))
        x = conv(self.width, 7, 2, self.dtype, "conv1")(x.astype(self.dtype))
        x = max_pool(jax.nn.relu(BatchNorm(name="bn1")(x, train)), 3, 2, 1)
        x = residual_layers(x, self._blocks(), self.dtype, train)[-1].max((1, 2))
        return Dense(self.features, dtype=self.dtype, name="fc")(x).astype(wide(self.dtype))

    def _blocks(self) -> list:
        return list(blocks(self.size, self.width, self.width))

    def example_input(self):
        return jnp.zeros((1, 32, 32, self.input_channels), jnp.float32)

    def torch_table(self) -> torch_keys.Table:
        """torchvision's keys, with `fc` as the embedding; public files hold a pretext head beside them."""
        rules = torch_keys.conv("conv1", ("conv1",), bias=False) + torch_keys.batch_norm("bn1", ("bn1",))
        rules += block_rules(self._blocks()) + torch_keys.linear("fc", ("fc",))
        files = ("resnet18-f37072fd.pth", "resnet18-5c106cde.pth", "timm/resnet18.tv_in1k")
        kind = "an ImageNet ResNet-18, of which conv1 and fc stay unused"
        published = torch_keys.Published(kind, files) if self.size == "resnet18" else None
        return torch_keys.Table(tuple(rules), fresh=self.fresh, published=published)
