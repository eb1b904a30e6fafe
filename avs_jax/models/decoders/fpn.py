"""TPAVI's neck, top-down decoder and head (the public code of Zhou et al., ECCV 2022)."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from avs_jax.models import torch_keys
from avs_jax.models.fast_conv import dilated_sum
from avs_jax.models.fast_resize import conv3x3_doubled
from avs_jax.models.initialise import Random, uniform_fan_in
from avs_jax.models.layers import Conv, upsample2x, wide


class Neck(nn.Module):
    """The sum of parallel dilated 3x3 convolutions ("ASPP" in the paper): no norm, no activation, no projection.

    (N, h, w, C) -> (N, h, w, channels).
    """

    channels: int = 256
    dilations: tuple[int, ...] = (3, 6, 12, 18)
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        bias_init = uniform_fan_in(9 * x.shape[-1])
        shape = (3, 3, x.shape[-1], self.channels)
        names = range(len(self.dilations))
        kernels = [self.param(f"kernel{i}", Random("normal", 0.01), shape) for i in names]
        biases = [self.param(f"bias{i}", bias_init, shape[-1:]) for i in names]
        y = dilated_sum(x.astype(self.dtype), [k.astype(self.dtype) for k in kernels], self.dilations)
        return y + sum(biases).astype(self.dtype)


class ResidualUnit(nn.Module):
    """conv(relu(conv(relu(x)))) + relu(x): the public code's first ReLU works in place, so the shortcut sees it too."""

    channels: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        x = jax.nn.relu(x)
        y = jax.nn.relu(Conv(self.channels, dtype=self.dtype, name="conv1")(x))
        return Conv(self.channels, dtype=self.dtype, name="conv2")(y) + x


class FusionBlock(nn.Module):
    """Adds a skip map, refines, doubles the resolution (bilinear, aligned corners).

    x: (N, h, w, C); skip: the same or None -> (N, 2h, 2w, C).
    """

    channels: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, skip=None):
        if skip is not None:
            x = x + ResidualUnit(self.channels, self.dtype, name="unit1")(skip)
        x = ResidualUnit(self.channels, self.dtype, name="unit2")(x)
        return upsample2x(x, align_corners=True)


class Decoder(nn.Module):
    """Four maps at strides 4, 8, 16, 32, coarse to fine, to one at stride 2.

    `present` (N, 1, 1, 1), if given, multiplies what every block makes: 0 for frames that do not exist.
    """

    channels: int = 256
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, maps, present=None):
        x = None
        for i in (4, 3, 2, 1):
            block = FusionBlock(self.channels, self.dtype, name=f"path{i}")
            x = block(maps[i - 1]) if x is None else block(x, maps[i - 1])
            x = x if present is None else x * present.astype(x.dtype)
        return x


class DoubledConv(nn.Module):
    """A 3x3 convolution of the map resized to twice its size (bilinear, corners not aligned), which is not made where
    that is slow. (N, h, w, C) -> (N, 2h, 2w, features)."""

    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        init = uniform_fan_in(9 * x.shape[-1])
        kernel = self.param("kernel", init, (3, 3, x.shape[-1], self.features))
        y = conv3x3_doubled(x.astype(self.dtype), kernel.astype(self.dtype))
        return y + self.param("bias", init, (self.features,)).astype(self.dtype)


class Head(nn.Module):
    """(N, H/2, W/2, C) -> logits (N, H, W, classes) float32.

    Args:
      classes: output channels.
      channels: of the two hidden convolutions (public: 128 and 32).
      output_bias: initial value of the last bias; None = PyTorch's default.
    """

    classes: int
    channels: tuple[int, int] = (128, 32)
    output_bias: float | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        x = Conv(self.channels[0], dtype=self.dtype, name="conv0")(x)
        x = jax.nn.relu(DoubledConv(self.channels[1], dtype=self.dtype, name="conv1")(x))
        bias = None if self.output_bias is None else nn.initializers.constant(self.output_bias)
        return Conv(self.classes, 1, bias_init=bias, dtype=self.dtype, name="conv2")(x).astype(wide(self.dtype))


def neck_rules(number: int) -> list[torch_keys.Rule]:
    """Keys of a neck of `number` branches."""
    rules = []
    for i in range(number):
        key = f"conv2d_list.{i}"
        rules.append(torch_keys.Rule(f"{key}.weight", "params", (f"kernel{i}",), "conv"))
        rules.append(torch_keys.Rule(f"{key}.bias", "params", (f"bias{i}",)))
    return rules


def fusion_block_rules(has_skip: bool, channels: int) -> list[torch_keys.Rule]:
    """Keys of a fusion block. Without a skip map the first unit never runs, but the public file stores it."""
    rules = []
    for conv in ("conv1", "conv2"):
        if has_skip:
            rules += torch_keys.conv(f"resConfUnit1.{conv}", ("unit1", conv))
        else:
            for name, shape in (("weight", (channels, channels, 3, 3)), ("bias", (channels,))):
                key = f"resConfUnit1.{conv}.{name}"
                rules.append(torch_keys.Rule(key, "unused", (key,), shape=shape))
    for conv in ("conv1", "conv2"):
        rules += torch_keys.conv(f"resConfUnit2.{conv}", ("unit2", conv))
    return rules


def head_rules() -> list[torch_keys.Rule]:
    rules = []
    for i in range(3):
        rules += torch_keys.conv(str(2 * i), (f"conv{i}",))
    return rules
