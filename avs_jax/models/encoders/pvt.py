"""Pyramid vision transformer, version 2, sizes b0 to b5.

Wang et al., PVT v2: improved baselines with pyramid vision transformer, Computational Visual Media 2022.
"""

from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from avs_jax.errors import InputError, nearest
from avs_jax.models import torch_keys
from avs_jax.models.depthwise import depthwise
from avs_jax.models.initialise import Random, he_normal
from avs_jax.models.layers import Conv, LayerNorm, stochastic_depth, wide

SIZES = {  # name: (blocks per stage, MLP ratios, channels of one head)
    "pvt_v2_b0": ((2, 2, 2, 2), (8, 8, 4, 4), 32),
    "pvt_v2_b1": ((2, 2, 2, 2), (8, 8, 4, 4), 64),
    "pvt_v2_b2": ((3, 4, 6, 3), (8, 8, 4, 4), 64),
    "pvt_v2_b3": ((3, 4, 18, 3), (8, 8, 4, 4), 64),
    "pvt_v2_b4": ((3, 8, 27, 3), (8, 8, 4, 4), 64),
    "pvt_v2_b5": ((3, 6, 40, 3), (4, 4, 4, 4), 64),
}
HEADS = (1, 2, 5, 8)
REDUCTIONS = (8, 4, 2, 1)  # keys and values come from a map this many times smaller
PATCHES = ((7, 4), (3, 2), (3, 2), (3, 2))  # kernel and stride of the convolution that opens each stage
BLOCK_EPS = 1e-6  # of the norms in and after the blocks; those of patches and of reduced maps have 1e-5
KEYS = ("timm", "official")

_linear_init = Random("normal", 0.02)  # published as truncated at 100 standard deviations


class Depthwise(nn.Module):
    """`depthwise` with bias: (N, h, w, C) -> the same, float32 at least."""

    @nn.compact
    def __call__(self, x):
        kernel = self.param("kernel", he_normal(9), (3, 3, 1, x.shape[-1]))
        return depthwise(x, kernel[:, :, 0]) + self.param("bias", nn.initializers.zeros, (x.shape[-1],))


class Reduce(nn.Module):
    """r x r convolution with stride r and no padding: a matrix product over patches. Rows and columns that do not
    fill a patch are dropped."""

    ratio: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):  # (N, h, w, C) -> (N, h // r, w // r, C)
        n, h, w, c = x.shape
        r = self.ratio
        kernel = self.param("kernel", he_normal(r * r * c), (r, r, c, c)).astype(self.dtype)
        bias = self.param("bias", nn.initializers.zeros, (c,)).astype(self.dtype)
        patches = x[:, : h // r * r, : w // r * r].astype(self.dtype).reshape(n, h // r, r, w // r, r, c)
        return jnp.einsum("nhiwjc,ijcd->nhwd", patches, kernel) + bias


class Attention(nn.Module):
    """Every position attends to the positions of a map `reduction` times smaller; softmax in float32."""

    heads: int
    reduction: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):  # (N, h, w, C) -> the same
        n, h, w, c = x.shape
        split = (self.heads, c // self.heads)
        q = _linear(c, self.dtype, "q")(x).reshape(n, h * w, *split)
        if self.reduction > 1:
            x = LayerNorm(name="norm")(Reduce(self.reduction, self.dtype, name="sr")(x))
        kv = _linear(2 * c, self.dtype, "kv")(x).reshape(n, -1, 2, *split)
        k, v = kv[:, :, 0], kv[:, :, 1]
        scores = jnp.einsum("nqhd,nkhd->nhqk", q * split[1] ** -0.5, k, preferred_element_type=wide(self.dtype))
        weights = jax.nn.softmax(scores).astype(self.dtype)
        y = jnp.einsum("nhqk,nkhd->nqhd", weights, v).reshape(n, h, w, c)
        return _linear(c, self.dtype, "proj")(y)


class MLP(nn.Module):
    """Linear, 3x3 depthwise convolution, exact GELU, linear."""

    ratio: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):  # (N, h, w, C) -> the same
        y = _linear(self.ratio * x.shape[-1], self.dtype, "fc1")(x)
        y = Depthwise(name="dwconv")(y).astype(self.dtype)  # what the backward pass keeps
        y = jax.nn.gelu(y.astype(wide(self.dtype)), approximate=False).astype(self.dtype)
        return _linear(x.shape[-1], self.dtype, "fc2")(y)


class Block(nn.Module):
    """x + attention(norm(x)), then x + MLP(norm(x)); x stays float32 when the compute dtype is smaller.

    `keep` (2, N) multiplies what the two branches add to each sample, or is None.
    """

    heads: int
    reduction: int
    ratio: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, keep=None):  # (N, h, w, C) float32 -> the same
        branches = (
            ("norm1", Attention(self.heads, self.reduction, self.dtype, name="attn")),
            ("norm2", MLP(self.ratio, self.dtype, name="mlp")),
        )
        for i, (norm, branch) in enumerate(branches):
            y = branch(LayerNorm(BLOCK_EPS, name=norm)(x)).astype(wide(self.dtype))
            x = x + (y if keep is None else y * keep[i, :, None, None, None])
        return x


def _linear(features, dtype, name):
    return nn.Dense(features, kernel_init=_linear_init, dtype=dtype, name=name)


class PVT(nn.Module):
    """Feature maps at strides 4, 8, 16, 32.

    Args:
      size: a key of `SIZES`.
      width: channels of one attention head; stage i has width * (1, 2, 5, 8)[i]. None = the published one, 32 for b0
        and 64 for the others.
      drop_path: rate of stochastic depth at the last block, growing linearly from 0 at the first. Each branch of each
        image is dropped by itself, and what is kept is divided by the chance of keeping it. 0.1 as AVSBench trains.
      keys: public names that `to_torch` writes, "timm" or "official" (AVSBench's too); both are read.
      dtype: compute dtype; the sum that runs through the blocks, norms' statistics and softmaxes are float32 at
        least.
    Call:
      images: (N, H, W, 3) float32, normalised with the ImageNet mean and standard deviation; H, W >= 29.
      train: drop branches; needs an rng named "dropout" unless `drop_path` is 0.
    Returns:
      Four maps (N, H/4, W/4, C1) ... (N, H/32, W/32, C4) in `dtype`, sizes rounded up; each has passed its stage's
      LayerNorm, after which the next stage too continues.
    Raises:
      InputError: an unknown size or kind of keys; images too small for the spatial reduction.
    """

    size: str = "pvt_v2_b5"
    width: int | None = None
    drop_path: float = 0.1
    keys: str = "timm"
    dtype: Any = jnp.float32

    strides: ClassVar = (4, 8, 16, 32)
    torch_prefix: ClassVar = "encoder_backbone."

    def __post_init__(self):
        for field, valid in (("size", SIZES), ("keys", KEYS)):
            value = getattr(self, field)
            if value not in valid:
                raise InputError(f"encoder option '{field}'", expected=" | ".join(valid), found=repr(value),
                                 hint=nearest(value, valid))  # fmt: skip
        if not 0 <= self.drop_path < 1:
            raise InputError("encoder option 'drop_path'", expected="0 <= rate < 1", found=str(self.drop_path))
        super().__post_init__()

    @property
    def channels(self) -> tuple[int, ...]:
        return tuple((self.width or SIZES[self.size][2]) * heads for heads in HEADS)

    @nn.compact
    def __call__(self, images, train: bool = False):
        depths, ratios, _ = SIZES[self.size]
        keep = [None] * sum(depths)
        if train and self.drop_path:
            keep = stochastic_depth(self.make_rng("dropout"), self.drop_path, sum(depths), images.shape[0])
        x, maps, number = images, [], 0
        for i, (kernel, stride) in enumerate(PATCHES):
            fan_out = kernel * kernel * self.channels[i]
            x = Conv(self.channels[i], kernel, stride, kernel_init=he_normal(fan_out),
                     bias_init=nn.initializers.zeros, dtype=self.dtype, name=f"patch_embed{i + 1}_proj")(x)  # fmt: skip
            if min(x.shape[1:3]) < REDUCTIONS[i]:
                raise InputError("images", expected="height and width of at least 29", found=str(images.shape[1:3]))
            x = LayerNorm(name=f"patch_embed{i + 1}_norm")(x.astype(wide(self.dtype)))
            for j in range(depths[i]):
                block = Block(HEADS[i], REDUCTIONS[i], ratios[i], self.dtype, name=f"block{i + 1}_{j}")
                x, number = block(x, keep[number]), number + 1
            x = LayerNorm(BLOCK_EPS, name=f"norm{i + 1}")(x)
            maps.append(x.astype(self.dtype))
        return tuple(maps)

    def example_input(self):
        return jnp.zeros((1, 32, 32, 3), jnp.float32)

    def torch_table(self) -> torch_keys.Table:
        """timm's or the official keys, as `keys` says; the other kind as aliases."""
        rules = {kind: self._rules(kind) for kind in KEYS}
        other = rules[KEYS[1 - KEYS.index(self.keys)]]
        names = {rule.path: rule.key for rule in rules[self.keys]}
        return torch_keys.Table(
            tuple(rules[self.keys]), {rule.key: (names[rule.path],) for rule in other}, ignored=("head.",)
        )

    def _rules(self, kind: str) -> list[torch_keys.Rule]:
        """The keys of one kind, in its file's order."""
        timm, rules = kind == "timm", []
        for i, depth in enumerate(SIZES[self.size][0]):
            patch = ("patch_embed" if i == 0 else f"stages.{i}.downsample") if timm else f"patch_embed{i + 1}"
            rules += torch_keys.conv(f"{patch}.proj", (f"patch_embed{i + 1}_proj",))
            rules += torch_keys.layer_norm(f"{patch}.norm", (f"patch_embed{i + 1}_norm",))
            for j in range(depth):
                key = f"stages.{i}.blocks.{j}." if timm else f"block{i + 1}.{j}."
                rules += torch_keys.prefixed(_block_rules(REDUCTIONS[i], timm), key, (f"block{i + 1}_{j}",))
            norm = f"stages.{i}.norm" if timm else f"norm{i + 1}"
            rules += torch_keys.layer_norm(norm, (f"norm{i + 1}",))
        return rules


def _block_rules(reduction: int, timm: bool) -> list[torch_keys.Rule]:
    rules = torch_keys.layer_norm("norm1", ("norm1",))
    for name in ("q", "kv", "proj"):
        rules += torch_keys.linear(f"attn.{name}", ("attn", name))
    if reduction > 1:
        rules += torch_keys.conv("attn.sr", ("attn", "sr"))
        rules += torch_keys.layer_norm("attn.norm", ("attn", "norm"))
    rules += torch_keys.layer_norm("norm2", ("norm2",))
    rules += torch_keys.linear("mlp.fc1", ("mlp", "fc1"))
    rules += torch_keys.conv("mlp.dwconv" if timm else "mlp.dwconv.dwconv", ("mlp", "dwconv"))
    return rules + torch_keys.linear("mlp.fc2", ("mlp", "fc2"))
