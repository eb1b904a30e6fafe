"""Heads on HRNet's maps as CAVP's public code has them: the plain one, and object-contextual representations (OCR).

Wang et al., Deep high-resolution representation learning for visual recognition, TPAMI 2020; Yuan et al.,
Object-contextual representations for semantic segmentation, ECCV 2020.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from avs_jax.models import torch_keys
from avs_jax.models.layers import BatchNorm, Conv, Resize, SpatialSoftmax, wide


class ConvNorm(nn.Module):
    """Convolution with bias, BatchNorm, ReLU."""

    features: int
    kernel: int = 1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, train: bool = False):
        x = Conv(self.features, self.kernel, dtype=self.dtype, name="conv")(x)
        return jax.nn.relu(BatchNorm(name="bn")(x, train))


def concatenate(maps):
    """All maps at the first one's size, bilinear with aligned corners, one after the other."""
    size = maps[0].shape[1:3]
    return jnp.concatenate([maps[0], *(Resize(aligned=True)(x, size) for x in maps[1:])], -1)


class Head(nn.Module):
    """HRNet's: (N, h, w, C) -> logits (N, h, w, classes) float32. Training drops whole channels; rng "dropout"."""

    classes: int
    dropout: float = 0.1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, train: bool = False):
        x = ConvNorm(x.shape[-1], 3, self.dtype, name="block")(x, train)
        x = drop_channels(x, self.dropout, train)
        return Conv(self.classes, 1, use_bias=False, dtype=self.dtype, name="classifier")(x).astype(wide(self.dtype))


def drop_channels(x, rate, train):
    """PyTorch's Dropout2d: every channel of every image is dropped by itself."""
    return nn.Dropout(rate, broadcast_dims=(1, 2), deterministic=not train)(x)


class Features(nn.Module):
    """OCR's pixel features.

    Args:
      classes: regions, one per class.
      channels: of the result; keys have half as many.
      dropout: of whole channels, in training.
    Call:
      x: (N, h, w, C), `concatenate`d maps.
    Returns:
      (N, h, w, channels), and the region logits (N, h, w, classes) float32, which OCR's own recipe supervises too.
    """

    classes: int
    channels: int = 512
    dropout: float = 0.05
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, train: bool = False):
        c, key, full = self.channels, self.channels // 2, wide(self.dtype)

        def block(features, name, kernel=1):
            module = ConvNorm(features, kernel, self.dtype, name=name)
            return lambda x: module(x, train)

        region = block(x.shape[-1], "region", 3)(x)
        region = Conv(self.classes, 1, dtype=self.dtype, name="region_classifier")(region).astype(full)
        pixels = block(c, "pixels", 3)(x)
        share = SpatialSoftmax()(region).astype(self.dtype)  # of every class over the image
        objects = jnp.einsum("nhwk,nhwc->nkc", share, pixels)[:, :, None]  # (N, K, 1, C)
        query = block(key, "query1")(block(key, "query0")(pixels))
        keys = block(key, "key1")(block(key, "key0")(objects))[:, :, 0]
        values = block(key, "value")(objects)[:, :, 0]
        score = jnp.einsum("nhwc,nkc->nhwk", query, keys, preferred_element_type=full) / key**0.5
        context = jnp.einsum("nhwk,nkc->nhwc", jax.nn.softmax(score).astype(self.dtype), values)
        context = block(c, "up")(context)
        out = block(c, "fuse")(jnp.concatenate([context, pixels], -1))
        return drop_channels(out, self.dropout, train), region


class PointHead(nn.Module):
    """OCR's: one 1x1 convolution to logits float32."""

    classes: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, train: bool = False):
        return Conv(self.classes, 1, dtype=self.dtype, name="classifier")(x).astype(wide(self.dtype))


def _block(key: str, number: int, *path: str) -> list[torch_keys.Rule]:
    conv = torch_keys.conv(f"{key}.{number}", (*path, "conv"))
    return conv + torch_keys.batch_norm(f"{key}.{number + 1}", (*path, "bn"))


def head_rules() -> list[torch_keys.Rule]:
    """Keys of HRNet's `Head` under `segment.upsample.`."""
    return torch_keys.conv("classifier", ("classifier",), bias=False) + _block("last_conv", 0, "block")


def feature_rules() -> list[torch_keys.Rule]:
    """Keys of OCR's `Features` and `PointHead` (path "head", key `upsample`) under `segment.`, in the public order;
    the parts of `Features` come with the path "features"."""
    block = "ocr_distri_head.object_context_block."
    rules = _block("conv3x3", 0, "features", "pixels")
    for name, key in (("f_pixel", "query"), ("f_object", "key")):
        for i in range(2):
            rules += _block(f"{block}{name}", 3 * i, "features", f"{key}{i}")
    rules += _block(f"{block}f_down", 0, "features", "value") + _block(f"{block}f_up", 0, "features", "up")
    rules += _block("ocr_distri_head.conv_bn_dropout", 0, "features", "fuse")
    rules += torch_keys.conv("upsample", ("head", "classifier"))
    rules += _block("aux_head", 0, "features", "region")
    return rules + torch_keys.conv("aux_head.3", ("features", "region_classifier"))
