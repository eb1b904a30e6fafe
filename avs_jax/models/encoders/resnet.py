"""ResNet with the stride in the 3x3 convolution ("v1.5"), as torchvision publishes it.

He et al., Deep residual learning for image recognition, CVPR 2016.
"""

from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from avs_jax.models import torch_keys
from avs_jax.models.initialise import he_normal
from avs_jax.models.layers import BatchNorm, Conv, max_pool

SIZES = {  # name: (blocks per layer, bottleneck?)
    "resnet10": ((1, 1, 1, 1), False),  # for small experiments; torchvision has no such file
    "resnet18": ((2, 2, 2, 2), False),
    "resnet50": ((3, 4, 6, 3), True),
    "resnet101": ((3, 4, 23, 3), True),
}


class Block(nn.Module):
    """A residual block: two 3x3 convolutions, or 1x1, 3x3, 1x1 with four times the width at its end."""

    width: int
    bottleneck: bool
    stride: int = 1
    project: bool = False  # a strided 1x1 convolution and BatchNorm on the shortcut
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, train: bool = False):
        w = self.width
        layout = [(w, 3, self.stride), (w, 3, 1)]  # (features, kernel, stride) of each convolution
        if self.bottleneck:
            layout = [(w, 1, 1), (w, 3, self.stride), (4 * w, 1, 1)]
        y = x
        for i, (features, kernel, stride) in enumerate(layout, 1):
            y = _conv(features, kernel, stride, self.dtype, f"conv{i}")(y)
            y = BatchNorm(name=f"bn{i}")(y, train)
            if i < len(layout):
                y = jax.nn.relu(y)
        if self.project:
            x = _conv(layout[-1][0], 1, self.stride, self.dtype, "shortcut_conv")(x)
            x = BatchNorm(name="shortcut_bn")(x, train)
        return jax.nn.relu(x + y)


def _conv(features, kernel, stride, dtype, name):
    """A convolution without bias, initialised as torchvision does: N(0, 2 / fan_out)."""
    init = he_normal(kernel * kernel * features)
    return Conv(features, kernel, stride, use_bias=False, kernel_init=init, dtype=dtype, name=name)


class ResNet(nn.Module):
    """Feature maps at strides 4, 8, 16, 32.

    Args:
      size: a key of `SIZES`.
      width: channels of the stem; layer i has width * 2**(i-1), times 4 in the bottleneck sizes. torchvision: 64.
      dtype: compute dtype.
    Call:
      images: (N, H, W, 3) float32, normalised with the ImageNet mean and standard deviation; any H, W.
      train: normalise with batch statistics and update the running ones.
    Returns:
      Four maps (N, H/4, W/4, C1) ... (N, H/32, W/32, C4), sizes rounded up.
    """

    size: str = "resnet50"
    width: int = 64
    dtype: Any = jnp.float32

    strides: ClassVar = (4, 8, 16, 32)
    torch_prefix: ClassVar = "resnet."

    @property
    def channels(self) -> tuple[int, ...]:
        expansion = 4 if SIZES[self.size][1] else 1
        return tuple(self.width * 2**i * expansion for i in range(4))

    @nn.compact
    def __call__(self, images, train: bool = False):
        x = images.astype(self.dtype)
        x = _conv(self.width, 7, 2, self.dtype, "conv1")(x)
        x = jax.nn.relu(BatchNorm(name="bn1")(x, train))
        x = max_pool(x, 3, 2, 1)
        maps = []
        for i, j, block in self._blocks():
            x = Block(**block, dtype=self.dtype, name=f"layer{i}_{j}")(x, train)
            if j == SIZES[self.size][0][i - 1] - 1:
                maps.append(x)
        return tuple(maps)

    def _blocks(self):
        """(layer from 1, block from 0, arguments of `Block`) in order."""
        depths, bottleneck = SIZES[self.size]
        channels = self.width
        for i, depth in enumerate(depths, 1):
            width = self.width * 2 ** (i - 1)
            for j in range(depth):
                stride = 2 if i > 1 and j == 0 else 1
                out = width * (4 if bottleneck else 1)
                yield i, j, {"width": width, "bottleneck": bottleneck, "stride": stride,
                             "project": stride > 1 or channels != out}  # fmt: skip
                channels = out

    def example_input(self):
        return jnp.zeros((1, 32, 32, 3), jnp.float32)

    def torch_table(self) -> torch_keys.Table:
        """torchvision's keys."""
        rules = torch_keys.conv("conv1", ("conv1",), bias=False) + torch_keys.batch_norm("bn1", ("bn1",))
        for i, j, block in self._blocks():
            key, path = f"layer{i}.{j}", f"layer{i}_{j}"
            for k in range(1, 4 if block["bottleneck"] else 3):
                rules += torch_keys.conv(f"{key}.conv{k}", (path, f"conv{k}"), bias=False)
                rules += torch_keys.batch_norm(f"{key}.bn{k}", (path, f"bn{k}"))
            if block["project"]:
                rules += torch_keys.conv(f"{key}.downsample.0", (path, "shortcut_conv"), bias=False)
                rules += torch_keys.batch_norm(f"{key}.downsample.1", (path, "shortcut_bn"))
        return torch_keys.Table(tuple(rules), ignored=("fc.",))
