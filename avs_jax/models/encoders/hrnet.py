"""HRNetV2: parallel branches at strides 4, 8, 16 and 32 that keep exchanging their maps.

Wang et al., Deep high-resolution representation learning for visual recognition, TPAMI 2020.
"""

from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from avs_jax.errors import InputError, nearest
from avs_jax.models import torch_keys
from avs_jax.models.encoders.resnet import Block, conv
from avs_jax.models.layers import BatchNorm, Resize

UPSAMPLE = ("bilinear", "nearest")
_HEADS = ("incre_modules.", "downsamp_modules.", "final_layer.", "classifier.")  # of the classification network
_PUBLISHED = torch_keys.Published(
    "an ImageNet HRNetV2-W48", ("timm/hrnet_w48.ms_in1k", "timm/hrnet_w48_ssld.paddle_in1k", "hrnetv2_w48-abd2e6ab.pth",
                                "HRNet_W48_C_ssld_pretrained.pth"),
)  # fmt: skip


class Fuse(nn.Module):
    """Branch `target` of an exchange: the sum of all branches brought to its size and channels, then ReLU.

    Finer branches come through strided 3x3 convolutions, coarser ones through a 1x1 convolution and a resize.
    """

    target: int
    upsample: str
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, maps, train: bool = False):
        i = self.target
        *size, features = maps[i].shape[1:]
        total = None
        for j, x in enumerate(maps):  # summed in the public order, in which rounding repeats
            if j < i:
                for k in range(i - j):
                    last = k == i - j - 1
                    x = conv(features if last else x.shape[-1], 3, 2, self.dtype, f"from{j}_conv{k}")(x)
                    x = BatchNorm(name=f"from{j}_bn{k}")(x, train)
                    x = x if last else jax.nn.relu(x)
            elif j > i:
                x = conv(features, 1, 1, self.dtype, f"from{j}_conv0")(x)
                x = _resize(BatchNorm(name=f"from{j}_bn0")(x, train), size, self.upsample)
            total = x if total is None else total + x
        return jax.nn.relu(total)


def _resize(x, size, upsample):
    if upsample == "bilinear":
        return Resize(aligned=True)(x, size)
    factor = size[0] // x.shape[1]
    return x.repeat(factor, 1).repeat(factor, 2)


class Exchange(nn.Module):
    """`blocks` residual blocks on every branch, then a `Fuse` for each: maps of all branches -> the same shapes."""

    blocks: int
    upsample: str
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, maps, train: bool = False):
        out = []
        for b, x in enumerate(maps):
            for j in range(self.blocks):
                x = Block(x.shape[-1], bottleneck=False, dtype=self.dtype, name=f"branch{b}_{j}")(x, train)
            out.append(x)
        fuse = lambda i: Fuse(i, self.upsample, self.dtype, name=f"fuse{i}")(out, train)  # noqa: E731
        return tuple(fuse(i) for i in range(len(out)))


class HRNet(nn.Module):
    """Feature maps at strides 4, 8, 16, 32.

    Args:
      width: channels of the finest branch; the others have 2, 4 and 8 times as many. W48: 48.
      modules: exchanges in stages 2, 3 and 4, which have 2, 3 and 4 branches.
      blocks: residual blocks in layer1, and of each branch before each exchange.
      stem: channels of the two first convolutions; layer1 has four times as many.
      upsample: how coarse branches reach finer ones: "bilinear" with aligned corners (segmentation code, CAVP; any
        image size) or "nearest" (classification code; H and W multiples of 32). The weights are the same.
      dtype: compute dtype.
    Call:
      images: (N, H, W, 3) float32, normalised with the ImageNet mean and standard deviation.
      train: normalise with batch statistics and update the running ones.
    Returns:
      Four maps (N, H/4, W/4, width) ... (N, H/32, W/32, 8 width), sizes rounded up.
    Raises:
      InputError: an option out of its range, or images that "nearest" cannot resize.
    """

    width: int = 48
    modules: tuple[int, int, int] = (1, 4, 3)
    blocks: int = 4
    stem: int = 64
    upsample: str = "bilinear"
    dtype: Any = jnp.float32

    strides: ClassVar = (4, 8, 16, 32)
    torch_prefix: ClassVar = "backbone."

    def __post_init__(self):
        if self.upsample not in UPSAMPLE:
            raise InputError("encoder option 'upsample'", expected=" | ".join(UPSAMPLE), found=repr(self.upsample),
                             hint=nearest(self.upsample, UPSAMPLE))  # fmt: skip
        if len(self.modules) != 3 or min(*self.modules, self.blocks) < 1:
            raise InputError("encoder options 'modules', 'blocks'", expected="three counts and one, of at least 1",
                             found=f"{self.modules}, {self.blocks}")  # fmt: skip
        super().__post_init__()

    @property
    def channels(self) -> tuple[int, ...]:
        return tuple(self.width * 2**i for i in range(4))

    @nn.compact
    def __call__(self, images, train: bool = False):
        if self.upsample == "nearest" and (images.shape[1] % 32 or images.shape[2] % 32):
            raise InputError("images", expected="height and width that are multiples of 32", found=str(images.shape),
                             hint='Or upsample="bilinear".')  # fmt: skip
        x = images.astype(self.dtype)
        for i in (1, 2):
            x = self._step(x, self.stem, 2, f"{i}", train)
        for j in range(self.blocks):
            x = Block(self.stem, bottleneck=True, project=j == 0, dtype=self.dtype, name=f"layer1_{j}")(x, train)
        maps = (self._step(x, self.channels[0], 1, "_transition1_0", train),)
        for stage, modules in enumerate(self.modules, 2):
            source = x if stage == 2 else maps[-1]
            maps += (self._step(source, self.channels[stage - 1], 2, f"_transition{stage - 1}_{stage - 1}", train),)
            for m in range(modules):
                maps = Exchange(self.blocks, self.upsample, self.dtype, name=f"stage{stage}_{m}")(maps, train)
        return maps

    def _step(self, x, features, stride, name, train):
        x = conv(features, 3, stride, self.dtype, f"conv{name}")(x)
        return jax.nn.relu(BatchNorm(name=f"bn{name}")(x, train))

    def example_input(self):
        return jnp.zeros((1, 32, 32, 3), jnp.float32)

    def torch_table(self) -> torch_keys.Table:
        """The public code's keys, which timm shares; the classifier's are passed over."""
        rules = _conv_bn("conv1", "bn1", "1") + _conv_bn("conv2", "bn2", "2")
        for j in range(self.blocks):
            rules += _block_rules(f"layer1.{j}", (f"layer1_{j}",), 3, j == 0)
        rules += _conv_bn("transition1.0.0", "transition1.0.1", "_transition1_0")
        for stage, modules in enumerate(self.modules, 2):
            new = stage - 1  # the branch that this stage adds
            key = f"transition{new}.{new}.0"
            rules += _conv_bn(f"{key}.0", f"{key}.1", f"_transition{new}_{new}")
            for m in range(modules):
                rules += _exchange_rules(f"stage{stage}.{m}", f"stage{stage}_{m}", stage, self.blocks)
        return torch_keys.Table(tuple(rules), ignored=_HEADS, published=_PUBLISHED)


def _conv_bn(conv_key, bn_key, name, path=()):
    """A convolution and its norm, `conv<name>` and `bn<name>`."""
    return torch_keys.conv(conv_key, (*path, f"conv{name}"), bias=False) + torch_keys.batch_norm(
        bn_key, (*path, f"bn{name}")
    )


def _block_rules(key, path, convolutions, project=False):
    rules = []
    for k in range(1, convolutions + 1):
        rules += _conv_bn(f"{key}.conv{k}", f"{key}.bn{k}", f"{k}", path)
    if project:
        rules += torch_keys.conv(f"{key}.downsample.0", (*path, "shortcut_conv"), bias=False)
        rules += torch_keys.batch_norm(f"{key}.downsample.1", (*path, "shortcut_bn"))
    return rules


def _exchange_rules(key, name, branches, blocks):
    rules = []
    for b in range(branches):
        for j in range(blocks):
            rules += _block_rules(f"{key}.branches.{b}.{j}", (name, f"branch{b}_{j}"), 2)
    for i in range(branches):
        for j in range(branches):
            fuse, path = f"{key}.fuse_layers.{i}.{j}", (name, f"fuse{i}")
            for k in range(max(i - j, 0) or int(j > i)):
                where = fuse if j > i else f"{fuse}.{k}"
                rules += torch_keys.conv(f"{where}.0", (*path, f"from{j}_conv{k}"), bias=False)
                rules += torch_keys.batch_norm(f"{where}.1", (*path, f"from{j}_bn{k}"))
    return rules
