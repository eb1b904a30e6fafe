"""ResNet with the stride in the 3x3 convolution ("v1.5"), as torchvision publishes it, and its forms for segmentation.

He et al., Deep residual learning for image recognition, CVPR 2016; dilation and multi-grid: Chen et al., Rethinking
atrous convolution for semantic image segmentation, 2017.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from avs_jax.errors import InputError, nearest
from avs_jax.models import torch_keys
from avs_jax.models.initialise import he_normal
from avs_jax.models.layers import BatchNorm, Conv, MaxPool
from avs_jax.models.unfused import unfused

SIZES = {  # name: (blocks per layer, bottleneck?)
    "resnet10": ((1, 1, 1, 1), False),  # for small experiments; torchvision has no such file
    "resnet18": ((2, 2, 2, 2), False),
    "resnet50": ((3, 4, 6, 3), True),
    "resnet101": ((3, 4, 23, 3), True),
}
STEMS = ("plain", "deep")
_DEEP_KEYS = (0, 3, 6)  # of the deep stem's convolutions under conv1; a norm follows the first two
_DEEP_FILES = {
    "resnet50": ("timm/resnet50s.gluon_in1k", "gluon_resnet50_v1s-1762acc0.pth", "resnet50-imagenet.pth"),
    "resnet101": ("timm/resnet101s.gluon_in1k", "gluon_resnet101_v1s-60fe0cc1.pth", "resnet101-imagenet.pth"),
}
_MIT_STEM = {"conv1": "conv1.0", "bn1": "conv1.1", "conv2": "conv1.3", "bn2": "conv1.4", "conv3": "conv1.6",
             "bn3": "bn1"}  # fmt: skip


class Block(nn.Module):
    """A residual block: two 3x3 convolutions, or 1x1, 3x3, 1x1 with four times the width at its end.

    (N, h, w, C) -> (N, h / stride, w / stride, width or 4 width), sizes rounded up.
    """

    width: int
    bottleneck: bool
    stride: int = 1
    dilations: tuple[int, int] = (1, 1)  # of the 3x3 convolutions; a bottleneck has the first alone
    project: bool = False  # a strided 1x1 convolution and BatchNorm on the shortcut
    frozen_norm: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, train: bool = False):
        w, (first, second) = self.width, self.dilations
        # (features, kernel, stride, dilation) of each convolution
        layout = [(w, 3, self.stride, first), (w, 3, 1, second)]
        if self.bottleneck:
            layout = [(w, 1, 1, 1), (w, 3, self.stride, first), (4 * w, 1, 1, 1)]
        y = x
        for i, (features, kernel, stride, dilation) in enumerate(layout, 1):
            y = conv(features, kernel, stride, self.dtype, f"conv{i}", dilation)(y)
            norm = BatchNorm(frozen=self.frozen_norm, name=f"bn{i}")
            y = norm(y, train)
            if i < len(layout):
                y = jax.nn.relu(y)
        if self.project:
            x = conv(layout[-1][0], 1, self.stride, self.dtype, "shortcut_conv")(x)
            x = BatchNorm(frozen=self.frozen_norm, name="shortcut_bn")(x, train)
        return unfused(jax.nn.relu(x + y), norm.variables["params"]["scale"])


def conv(features, kernel, stride, dtype, name, dilation=1):
    """A convolution without bias, initialised as torchvision does: N(0, 2 / fan_out)."""
    init = he_normal(kernel * kernel * features)
    return Conv(features, kernel, stride, dilation, use_bias=False, kernel_init=init, dtype=dtype, name=name)


def blocks(size: str, width: int, inputs: int, output_stride: int = 32, multi_grid: bool = False):
    """(layer from 1, block from 0, arguments of `Block`) in order, for maps of `inputs` channels at stride 4."""
    depths, bottleneck = SIZES[size]
    channels, scale, dilation = inputs, 4, 1
    for i, depth in enumerate(depths, 1):
        out = width * 2 ** (i - 1) * (4 if bottleneck else 1)
        step = 1 if i == 1 else 2
        before = dilation
        if scale * step > output_stride:
            step, dilation = 1, 2 * dilation
        scale *= step
        for j in range(depth):
            stride = step if j == 0 else 1
            dilations = (dilation if j else before, dilation)  # what came before the step is not yet thinned out
            if multi_grid and i == len(depths):
                dilations = (2 ** (j + 1),) * 2
            yield i, j, {"width": width * 2 ** (i - 1), "bottleneck": bottleneck, "stride": stride,
                         "dilations": dilations,
                         "project": stride > 1 or channels != out}  # fmt: skip
            channels = out


def residual_layers(x, specs: Sequence, dtype, train: bool, frozen_norm: bool = False) -> tuple:
    """The outputs of the layers, for `blocks` given as a list; call it inside a compact method."""
    maps = {}
    for i, j, block in specs:
        maps[i] = x = Block(**block, frozen_norm=frozen_norm, dtype=dtype, name=f"layer{i}_{j}")(x, train)
    return tuple(maps.values())


def block_rules(specs) -> list[torch_keys.Rule]:
    """torchvision's keys of `residual_layers`."""
    rules = []
    for i, j, block in specs:
        key, path = f"layer{i}.{j}", f"layer{i}_{j}"
        for k in range(1, 4 if block["bottleneck"] else 3):
            rules += torch_keys.conv(f"{key}.conv{k}", (path, f"conv{k}"), bias=False)
            rules += torch_keys.batch_norm(f"{key}.bn{k}", (path, f"bn{k}"))
        if block["project"]:
            rules += torch_keys.conv(f"{key}.downsample.0", (path, "shortcut_conv"), bias=False)
            rules += torch_keys.batch_norm(f"{key}.downsample.1", (path, "shortcut_bn"))
    return rules


class ResNet(nn.Module):
    """Feature maps at strides 4, 8, 16, 32, the last ones finer where `output_stride` says so.

    Args:
      size: a key of `SIZES`.
      width: channels of the stem; layer i has width * 2**(i-1), times 4 in the bottleneck sizes. torchvision: 64.
      output_stride: 32, or 16 or 8: the strides of layer4, or of layer3 and layer4, are replaced by dilation, so that
        the same weights give the same values at every pixel that the stride would have kept. A layer's first 3x3
        convolution keeps the dilation of the layer before, the others double it: torchvision's rule, which it has for
        the bottleneck sizes alone.
      multi_grid: dilations 2, 4, 8 in the blocks of layer4; needs an output stride of 16 or 8 (TorchSeg, CAVP).
      stem: "plain", one 7x7 convolution; "deep", three 3x3 ones, the last of twice the width (TorchSeg, CAVP).
      frozen_norm: every BatchNorm normalises with its running statistics, also in training, and never changes: no
        update of the statistics, no gradient to scale and bias (DETR, Mask2Former).
      input_channels: of the images.
      dtype: compute dtype.
    Call:
      images: (N, H, W, input_channels) float32, normalised with the ImageNet mean and standard deviation; any H, W.
      train: normalise with batch statistics and update the running ones.
    Returns:
      Four maps (N, H/4, W/4, C1) ... (N, H/32, W/32, C4), sizes rounded up; `strides` are theirs.
    Raises:
      InputError: an option out of its range, or images of another number of channels.
    """

    size: str = "resnet50"
    width: int = 64
    output_stride: int = 32
    multi_grid: bool = False
    stem: str = "plain"
    frozen_norm: bool = False
    input_channels: int = 3
    dtype: Any = jnp.float32

    torch_prefix: ClassVar = "resnet."

    def __post_init__(self):
        for field, valid in (("size", SIZES), ("stem", STEMS), ("output_stride", (32, 16, 8))):
            value = getattr(self, field)
            if value not in valid:
                raise InputError(f"encoder option '{field}'", expected=" | ".join(map(str, valid)), found=repr(value),
                                 hint=nearest(str(value), map(str, valid)))  # fmt: skip
        if self.multi_grid and self.output_stride == 32:
            raise InputError("encoder option 'output_stride'", expected="16 | 8 with multi_grid", found="32")
        super().__post_init__()

    @property
    def channels(self) -> tuple[int, ...]:
        expansion = 4 if SIZES[self.size][1] else 1
        return tuple(self.width * 2**i * expansion for i in range(4))

    @property
    def strides(self) -> tuple[int, ...]:
        return tuple(min(stride, self.output_stride) for stride in (4, 8, 16, 32))

    @nn.compact
    def __call__(self, images, train: bool = False):
        if images.shape[-1] != self.input_channels:
            raise InputError("images", expected=f"(N, H, W, {self.input_channels})", found=str(images.shape))
        x = self._stem(images.astype(self.dtype), train)
        x = jax.nn.relu(BatchNorm(frozen=self.frozen_norm, name="bn1")(x, train))
        return residual_layers(MaxPool(3, 2, 1)(x), self._blocks(), self.dtype, train, self.frozen_norm)

    def _stem(self, x, train):
        if self.stem == "plain":
            return conv(self.width, 7, 2, self.dtype, "conv1")(x)
        for i in range(2):
            x = conv(self.width, 3, 2 if i == 0 else 1, self.dtype, f"stem_conv{i}")(x)
            x = jax.nn.relu(BatchNorm(frozen=self.frozen_norm, name=f"stem_bn{i}")(x, train))
        return conv(2 * self.width, 3, 1, self.dtype, "stem_conv2")(x)

    def _blocks(self) -> list:
        inputs = self.width * (2 if self.stem == "deep" else 1)
        return list(blocks(self.size, self.width, inputs, self.output_stride, self.multi_grid))

    def example_input(self):
        return jnp.zeros((1, 32, 32, self.input_channels), jnp.float32)

    def torch_table(self) -> torch_keys.Table:
        """torchvision's keys; for the deep stem TorchSeg's and timm's, or those of MIT's segmentation code."""
        namings, published = {}, None
        if self.stem == "plain":
            rules = torch_keys.conv("conv1", ("conv1",), bias=False)
        else:
            rules = []
            for i, key in enumerate(_DEEP_KEYS):
                rules += torch_keys.conv(f"conv1.{key}", (f"stem_conv{i}",), bias=False)
                if i < 2:
                    rules += torch_keys.batch_norm(f"conv1.{key + 1}", (f"stem_bn{i}",))
            namings["conv3.weight"] = _mit_naming([*rules, *torch_keys.batch_norm("bn1", ())])
            name = self.size.replace("resnet", "ResNet-")
            kind = f"an ImageNet {name} with a deep stem (conv1.0, conv1.3, conv1.6: 3x3), not torchvision's 7x7"
            published = torch_keys.Published(kind, _DEEP_FILES.get(self.size, ()))
        rules += torch_keys.batch_norm("bn1", ("bn1",)) + block_rules(self._blocks())
        return torch_keys.Table(tuple(rules), ignored=("fc.",), namings=namings, published=published)


def _mit_naming(stem) -> dict[str, str]:
    """The keys of the deep stem's rules in MIT's segmentation code, which numbers convolutions and norms -> ours."""
    names = {ours: theirs for theirs, ours in _MIT_STEM.items()}
    parts = ((rule.key, *rule.key.rsplit(".", 1)) for rule in stem)
    return {f"{names[module]}.{kind}": key for key, module, kind in parts}
