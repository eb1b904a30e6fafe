"""DeepLabV3+ as CAVP's public code has it: atrous spatial pyramid pooling, a low-level map, a head.

Chen et al., Encoder-decoder with atrous separable convolution for semantic image segmentation, ECCV 2018; the pyramid's
in-place-norm form of the TorchSeg lineage (one norm over all branches, leaky ReLU, the pooled branch added).
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from avs_jax.models import torch_keys
from avs_jax.models.initialise import he_normal
from avs_jax.models.layers import BatchNorm, Conv, Resize, SpatialMean, wide

SLOPE = 0.01  # of the leaky ReLU


class ASPP(nn.Module):
    """(N, h, w, C) -> (N, h, w, channels).

    In training the pooled branch's BatchNorm sees one value per image: with a single image it passes its bias alone.
    """

    channels: int = 256
    dilations: tuple[int, ...] = (6, 12, 18)
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, train: bool = False):
        c, dtype = self.channels, self.dtype
        leaky = lambda x: jax.nn.leaky_relu(x, SLOPE)  # noqa: E731
        branches = [_conv(c, 1, 1, dtype, "map0")(x)]
        branches += [_conv(c, 3, d, dtype, f"map{i}")(x) for i, d in enumerate(self.dilations, 1)]
        y = leaky(BatchNorm(name="map_bn")(jnp.concatenate(branches, -1), train))
        y = _conv(c, 1, 1, dtype, "reduce")(y)
        pool = _conv(c, 1, 1, dtype, "pool")(SpatialMean()(x))
        pool = leaky(BatchNorm(name="pool_bn")(pool, train))
        y = y + _conv(c, 1, 1, dtype, "pool_reduce")(pool)
        return leaky(BatchNorm(name="reduce_bn")(y, train))


class Features(nn.Module):
    """Four maps -> (N, h1, w1, channels + low): the pyramid on the last, resized with aligned corners; the first."""

    channels: int = 256
    low: int = 48
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, maps, train: bool = False):
        x = ASPP(self.channels, dtype=self.dtype, name="aspp")(maps[-1], train)
        low = _conv(self.low, 1, 1, self.dtype, "low")(maps[0])
        low = jax.nn.relu(BatchNorm(name="low_bn")(low, train))
        return jnp.concatenate([Resize(aligned=True)(x, low.shape[1:3]), low], -1)


class Head(nn.Module):
    """(N, h, w, C) -> logits (N, h, w, classes) float32."""

    classes: int
    channels: int = 256
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, train: bool = False):
        for i in range(2):
            x = _conv(self.channels, 3, 1, self.dtype, f"conv{i}")(x)
            x = jax.nn.relu(BatchNorm(name=f"bn{i}")(x, train))
        return Conv(self.classes, 1, dtype=self.dtype, name="classifier")(x).astype(wide(self.dtype))


def _conv(features, kernel, dilation, dtype, name):
    init = he_normal(kernel * kernel * features)
    return Conv(features, kernel, dilation=dilation, use_bias=False, kernel_init=init, dtype=dtype, name=name)


def feature_rules() -> list[torch_keys.Rule]:
    """Keys of `Features` under `segment.`."""
    conv, bn = lambda key, *path: torch_keys.conv(key, path, bias=False), torch_keys.batch_norm
    rules = []
    for i in range(4):
        rules += conv(f"aspp.map_convs.{i}", "aspp", f"map{i}")
    rules += bn("aspp.map_bn", ("aspp", "map_bn"))
    rules += conv("aspp.global_pooling_conv", "aspp", "pool") + bn("aspp.global_pooling_bn", ("aspp", "pool_bn"))
    rules += conv("aspp.red_conv", "aspp", "reduce") + conv("aspp.pool_red_conv", "aspp", "pool_reduce")
    rules += bn("aspp.red_bn", ("aspp", "reduce_bn"))
    return rules + conv("reduce.0", "low") + bn("reduce.1", ("low_bn",))


def head_rules() -> list[torch_keys.Rule]:
    """Keys of `Head` under `segment.upsample.`."""
    rules = torch_keys.conv("classifier", ("classifier",))
    for i in range(2):
        rules += torch_keys.conv(f"last_conv.{3 * i}", (f"conv{i}",), bias=False)
        rules += torch_keys.batch_norm(f"last_conv.{3 * i + 1}", (f"bn{i}",))
    return rules
