"""TransAVS's pixel decoders: an encoder's four maps to three levels that queries attend to, and the features of masks.

The paper ("TransAVS: End-to-end audio-visual segmentation with transformer") speaks of features at three scales and of
the finest one upsampled, all with one number of channels, and names no network that makes them. "none" is just that;
"fpn" is MaskFormer's (Cheng et al., Per-pixel classification is not all you need, NeurIPS 2021) and the default;
"msdeform" is Mask2Former's. The paper's W_2, the last 1x1 convolution, belongs to the method.

Convolutions start as in those public codes: U(-1, 1) * sqrt(3 / fan_in), which detectron2 calls Xavier, without bias
where a norm follows; "msdeform" projects with Xavier uniform kernels and zero biases before its norms.
"""

import inspect
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from avs_jax.errors import InputError, check_options, nearest
from avs_jax.models.decoders import deformable
from avs_jax.models.initialise import Random
from avs_jax.models.layers import Conv, GroupNorm, resize, upsample2x


def create_pixel_decoder(name: str = "fpn", channels: int = 256, dtype: Any = jnp.float32, **options):
    """The unbound linen module called `name`; all parameters, no other variables, no random numbers but at `init`.

    Call: (maps, train=False) -> (levels, masks).
      maps: four (F, h, w, C_i) of an encoder, the finest first (strides 4, 8, 16, 32); any sizes and depths.
      levels: three (F, h, w, channels) of the sizes of the maps at strides 32, 16, 8, in this order.
      masks: (F, h, w, channels) of the size of the map at stride 4. All results have the compute dtype.
      train: ignored: nothing here depends on it.

    Args:
      name: "fpn": sums from the coarse levels down, see `FPN`. "none": 1x1 projections, see `Projections`.
        "msdeform": deformable attention among the three levels, see `MSDeform`.
      channels: of every result.
      dtype: compute dtype; norms are computed in float32.
      **options: groups (of the norms; "fpn", "msdeform"), layers, heads, points, hidden ("msdeform").
    Raises:
      InputError: an unknown name or option, naming the nearest valid one; when called, no four maps, or channels that
        the norms' groups or the heads do not divide.
    """
    if name not in DECODERS:
        raise InputError("pixel_decoder", expected="the name of a pixel decoder", found=repr(name),
                         hint=nearest(name, DECODERS))  # fmt: skip
    cls = DECODERS[name]
    valid = [p for p in inspect.signature(cls).parameters if p not in ("channels", "dtype", "parent", "name")]
    check_options("pixel_decoder", f"'{name}'", options, valid)
    return cls(channels=channels, dtype=dtype, **options)


class ConvNorm(nn.Module):
    """Convolution without bias, GroupNorm, ReLU where `relu`."""

    features: int
    kernel: int = 1
    relu: bool = False
    groups: int = 32
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        init = _detectron_xavier(self.kernel**2 * x.shape[-1])
        x = Conv(self.features, self.kernel, use_bias=False, kernel_init=init, dtype=self.dtype, name="conv")(x)
        x = GroupNorm(self.groups, name="norm")(x)
        return jax.nn.relu(x) if self.relu else x


class TopDown(nn.Module):
    """A step down the pyramid: 1x1 + norm of an encoder's map, plus the level above, resized; 3x3 + norm + ReLU."""

    features: int
    groups: int = 32
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, above=None):
        x = ConvNorm(self.features, 1, False, self.groups, self.dtype, name="lateral")(x)
        x = x if above is None else x + enlarge(above, x.shape[1:3])
        return ConvNorm(self.features, 3, True, self.groups, self.dtype, name="output")(x)


class FPN(nn.Module):
    """The feature pyramid of MaskFormer: what a level makes after its 3x3 convolution goes down to the next one.

    Unlike MaskFormer's, the coarsest level has a 1x1 convolution too, as in Lin et al., Feature pyramid networks for
    object detection, CVPR 2017, which keeps its 3x3 convolution at `channels` inputs for any encoder; and maps are
    resized bilinearly to the next level's own size.
    """

    channels: int = 256
    groups: int = 32
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, maps, train: bool = False):
        _check(maps)
        out, x = [], None
        for stride, m in zip((32, 16, 8, 4), reversed(maps), strict=True):
            x = TopDown(self.channels, self.groups, self.dtype, name=f"stride{stride}")(m, x)
            out.append(x)
        return tuple(out[:3]), out[3]


class Projections(nn.Module):
    """The paper to the letter: a 1x1 convolution of each of three scales; the finest one, upsampled, is for masks."""

    channels: int = 256
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, maps, train: bool = False):
        _check(maps)
        levels = []
        for stride, m in zip((32, 16, 8), reversed(maps[1:]), strict=True):
            conv = Conv(self.channels, 1, kernel_init=_detectron_xavier(m.shape[-1]), bias_init=nn.initializers.zeros,
                        dtype=self.dtype, name=f"stride{stride}")  # fmt: skip
            levels.append(conv(m))
        return tuple(levels), enlarge(levels[2], maps[0].shape[1:3])


class MSDeform(nn.Module):
    """Mask2Former's: 1x1 + norm of three scales, deformable attention among them, one step down to stride 4.

    Args:
      layers, heads, points, hidden: of `deformable.Encoder`.
    """

    channels: int = 256
    groups: int = 32
    layers: int = 6
    heads: int = 8
    points: int = 4
    hidden: int = 1024
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, maps, train: bool = False):
        _check(maps)
        levels = []
        for stride, m in zip((32, 16, 8), reversed(maps[1:]), strict=True):
            init = deformable.xavier_uniform(m.shape[-1], self.channels)
            conv = Conv(self.channels, 1, kernel_init=init, bias_init=nn.initializers.zeros, dtype=self.dtype,
                        name=f"stride{stride}")  # fmt: skip
            levels.append(GroupNorm(self.groups, name=f"norm{stride}")(conv(m)))
        encoder = deformable.Encoder(self.layers, self.heads, self.points, self.hidden, self.dtype, name="encoder")
        levels = tuple(x.astype(self.dtype) for x in encoder(levels))
        return levels, TopDown(self.channels, self.groups, self.dtype, name="stride4")(maps[0], levels[2])


DECODERS = {"fpn": FPN, "none": Projections, "msdeform": MSDeform}


def enlarge(x, size: tuple[int, int]):
    """Bilinear enlargement of (N, h, w, C) to (N, *size, C), half-pixel centres."""
    if tuple(size) == (2 * x.shape[1], 2 * x.shape[2]):  # the same numbers, faster
        return upsample2x(x, align_corners=False)
    return resize(x, size)


def _detectron_xavier(fan_in: int) -> Random:
    """detectron2's `c2_xavier_fill`: Kaiming's uniform rule with slope 1, whose variance is 1 / fan_in."""
    return Random("uniform", (3 / fan_in) ** 0.5)


def _check(maps):
    if len(maps) != 4:
        raise InputError("maps", expected="four maps, at strides 4, 8, 16 and 32", found=f"{len(maps)} maps")
