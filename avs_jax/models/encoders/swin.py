"""Swin transformer, tiny to large: attention within windows that are shifted in every second block.

Liu et al., Swin transformer: hierarchical vision transformer using shifted windows, ICCV 2021.
"""

import dataclasses
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from avs_jax.errors import InputError, nearest
from avs_jax.models import torch_keys
from avs_jax.models.initialise import Random, uniform_fan_in
from avs_jax.models.layers import LayerNorm, stochastic_depth, wide

_SHAPES = {"tiny": (96, (2, 2, 6, 2)), "small": (96, (2, 2, 18, 2)), "base": (128, (2, 2, 18, 2)),
           "large": (192, (2, 2, 18, 2))}  # fmt: skip
SIZES = {  # name: (channels of the first stage, blocks per stage, side of a window)
    **{f"swin_{size}_patch4_window7_224": (*_SHAPES[size], 7) for size in _SHAPES},
    **{f"swin_{size}_patch4_window12_384": (*_SHAPES[size], 12) for size in ("base", "large")},
}
PATCH = 4
HEAD = 32  # channels of an attention head
RATIO = 4  # of an MLP's hidden channels to its input's
MASKED = -100.0  # added to the score of two positions that the cyclic shift brought together
MODES = ("dense", "cls")
KEYS = ("timm", "official")

_linear_init = Random("normal", 0.02)  # published as truncated at 100 standard deviations


def relative_index(window: tuple[int, int], side: int) -> np.ndarray:
    """(L, L) int32: for query a and key b of a window of L = height * width positions, the row of a bias table that
    holds (2 * side - 1)**2 offsets. A smaller window uses the offsets it has."""
    y, x = (i.ravel() for i in np.indices(window))
    rows, columns = y[:, None] - y[None] + side - 1, x[:, None] - x[None] + side - 1
    return (rows * (2 * side - 1) + columns).astype(np.int32)


def shift_regions(size: tuple[int, int], window: tuple[int, int], shift: tuple[int, int]) -> np.ndarray | None:
    """(windows, L) int32: which positions of a window were neighbours before a map of `size` was shifted: those of
    equal number. None where nothing is shifted."""
    if not any(shift):
        return None
    labels = []
    for n, w, s in zip(size, window, shift, strict=True):
        at = np.arange(n)
        labels.append((at >= n - w).astype(np.int32) + (at >= n - s) if s else np.zeros(n, np.int32))
    region = 3 * labels[0][:, None] + labels[1][None]
    return np.asarray(to_windows(region[None, :, :, None], window)[0, :, :, 0])


def to_windows(x, window: tuple[int, int]):
    """(N, H, W, C) -> (N, windows, L, C); windows and the L positions in each row by row. H, W fill whole windows."""
    (n, h, w, c), (wh, ww) = x.shape, window
    x = x.reshape(n, h // wh, wh, w // ww, ww, c).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(n, -1, wh * ww, c)


def from_windows(x, size: tuple[int, int], window: tuple[int, int]):
    """The inverse of `to_windows`, for a map of `size`."""
    (n, _, _, c), (h, w), (wh, ww) = x.shape, size, window
    x = x.reshape(n, h // wh, w // ww, wh, ww, c).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(n, h, w, c)


def pad_to(x, height: int, width: int):
    """Zeros below and to the right of (N, h, w, C), to multiples of `height` and `width`."""
    h, w = x.shape[1:3]
    if h % height == 0 and w % width == 0:
        return x
    return jnp.pad(x, ((0, 0), (0, -h % height), (0, -w % width), (0, 0)))


class WindowAttention(nn.Module):
    """Every position attends to those of its window, after the map has been shifted up and left by `shift`.

    The map is padded with zeros to whole windows; the padding takes part as keys do (its values are the bias), as in
    all published code. Softmax in float32.
    """

    heads: int
    side: int  # of the windows that the bias table is for
    window: tuple[int, int]
    shift: tuple[int, int]
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):  # (N, h, w, C) -> the same
        h, w, c = x.shape[1:]
        x = pad_to(x.astype(self.dtype), *self.window)
        size = x.shape[1:3]
        if any(self.shift):
            x = jnp.roll(x, (-self.shift[0], -self.shift[1]), (1, 2))
        x = to_windows(x, self.window)
        x = from_windows(self._attend(x, shift_regions(size, self.window, self.shift)), size, self.window)
        if any(self.shift):
            x = jnp.roll(x, self.shift, (1, 2))
        return _linear(c, self.dtype, "proj")(x[:, :h, :w])

    def _attend(self, x, region):  # (N, windows, L, C) -> the same
        n, count, length, c = x.shape
        table = self.param("bias_table", _linear_init, ((2 * self.side - 1) ** 2, self.heads))
        bias = table[relative_index(self.window, self.side)].transpose(2, 0, 1)  # (heads, L, L)
        qkv = _linear(3 * c, self.dtype, "qkv")(x).reshape(n, count, length, 3, self.heads, c // self.heads)
        q, k, v = qkv[..., 0, :, :], qkv[..., 1, :, :], qkv[..., 2, :, :]
        q = q * (c // self.heads) ** -0.5
        scores = jnp.einsum("nwqhd,nwkhd->nwhqk", q, k, preferred_element_type=wide(self.dtype)) + bias
        if region is not None:
            together = region[:, :, None] == region[:, None, :]
            scores = scores + jnp.where(together, 0.0, MASKED).astype(scores.dtype)[:, None]
        weights = jax.nn.softmax(scores).astype(self.dtype)
        return jnp.einsum("nwhqk,nwkhd->nwqhd", weights, v).reshape(x.shape)


class MLP(nn.Module):
    """Linear, exact GELU, linear."""

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):  # (N, h, w, C) -> the same
        y = _linear(RATIO * x.shape[-1], self.dtype, "fc1")(x)
        y = jax.checkpoint(_gelu)(y)  # keeps its input alone, not three float32 maps: a quarter of a model's memory
        return _linear(x.shape[-1], self.dtype, "fc2")(y)


class Block(nn.Module):
    """x + attention(norm(x)), then x + MLP(norm(x)); x stays float32 when the compute dtype is smaller.

    `keep` (2, N) multiplies what the two branches add to each sample, or is None. Other fields: of `WindowAttention`.
    """

    heads: int
    side: int
    window: tuple[int, int]
    shift: tuple[int, int]
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, keep=None):  # (N, h, w, C) float32 -> the same
        attention = WindowAttention(self.heads, self.side, self.window, self.shift, self.dtype, name="attn")
        for i, (norm, branch) in enumerate((("norm1", attention), ("norm2", MLP(self.dtype, name="mlp")))):
            y = branch(LayerNorm(name=norm)(x)).astype(wide(self.dtype))
            x = x + (y if keep is None else y * keep[i, :, None, None, None])
        return x


class PatchEmbed(nn.Module):
    """Every 4x4 patch through one linear layer, then LayerNorm; zeros fill the last row and column of patches."""

    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images):  # (N, H, W, 3) -> (N, H / 4, W / 4, features) float32, sizes rounded up
        x = pad_to(images.astype(self.dtype), PATCH, PATCH)
        n, h, w, c = x.shape
        init = uniform_fan_in(PATCH * PATCH * c)
        kernel = self.param("kernel", init, (PATCH, PATCH, c, self.features)).astype(self.dtype)
        bias = self.param("bias", init, (self.features,)).astype(self.dtype)
        patches = x.reshape(n, h // PATCH, PATCH, w // PATCH, PATCH, c)
        x = jnp.einsum("nhiwjc,ijcd->nhwd", patches, kernel) + bias
        return LayerNorm(name="norm")(x.astype(wide(self.dtype)))


class PatchMerging(nn.Module):
    """Two by two positions become one of twice the channels; zeros make height and width even."""

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):  # (N, h, w, C) float32 -> (N, h / 2, w / 2, 2 C) float32, sizes rounded up
        x = pad_to(x, 2, 2)
        n, h, w, c = x.shape
        # channels of the upper left, lower left, upper right, lower right position
        x = x.reshape(n, h // 2, 2, w // 2, 2, c).transpose(0, 1, 3, 4, 2, 5).reshape(n, h // 2, w // 2, 4 * c)
        x = LayerNorm(name="norm")(x)
        x = nn.Dense(2 * c, use_bias=False, kernel_init=_linear_init, dtype=self.dtype, name="reduction")(x)
        return x.astype(wide(self.dtype))


def _gelu(x):
    return jax.nn.gelu(x.astype(wide(x.dtype)), approximate=False).astype(x.dtype)


def _linear(features, dtype, name):
    return nn.Dense(features, kernel_init=_linear_init, dtype=dtype, name=name)


class Swin(nn.Module):
    """Feature maps at strides 4, 8, 16, 32.

    Args:
      size: a key of `SIZES`.
      mode: "dense", as detection and segmentation code runs it: windows of the full side and shifted ones in every
        second block, on maps of any size, padded to whole windows in each block. "cls", as the classifier was trained:
        along an axis where a map is no longer than a window, the window has the map's length and is not shifted; longer
        maps must be whole windows. At 224 the two differ in the last stage alone.
      drop_path: rate of stochastic depth at the last block, growing linearly from 0 at the first. Each branch of each
        image is dropped by itself, and what is kept is divided by the chance of keeping it. 0.3 as in Mask2Former.
      output_norms: a LayerNorm of its own for every returned map, as segmentation code adds them; a classifier's file
        has none, so that they start at scale 1 and bias 0. The next stage continues from the map before it.
      final_norm: the classifier's own last LayerNorm, for the last map; else its file's is passed over.
      width, depths, heads: channels of the first stage (doubled in every next), blocks and attention heads of each.
        None = the published ones; heads: one for every 32 channels.
      remat: recompute every block in the backward pass rather than keep what is inside it.
      keys: public names that `to_torch` writes, "timm" or "official" (Microsoft's); both are read, and those of
        segmentation code that puts "backbone." first.
      dtype: compute dtype; the sum that runs through the blocks, norms' statistics and softmaxes are float32 at least.
    Call:
      images: (N, H, W, 3) float32, normalised with the ImageNet mean and standard deviation.
      train: drop branches; needs an rng named "dropout" unless `drop_path` is 0.
    Returns:
      Four maps (N, H/4, W/4, C1) ... (N, H/32, W/32, 8 C1) in `dtype`, sizes rounded up.
    Raises:
      InputError: an option out of its range; maps that "cls" cannot cut into windows.
    """

    size: str = "swin_base_patch4_window7_224"
    mode: str = "dense"
    drop_path: float = 0.3
    output_norms: bool = False
    final_norm: bool = False
    width: int | None = None
    depths: tuple[int, int, int, int] | None = None
    heads: tuple[int, int, int, int] | None = None
    remat: bool = False
    keys: str = "timm"
    dtype: Any = jnp.float32

    strides: ClassVar = (4, 8, 16, 32)
    torch_prefix: ClassVar = "backbone."

    def __post_init__(self):
        for field, valid in (("size", SIZES), ("mode", MODES), ("keys", KEYS)):
            value = getattr(self, field)
            if value not in valid:
                raise InputError(f"encoder option '{field}'", expected=" | ".join(valid), found=repr(value),
                                 hint=nearest(value, valid))  # fmt: skip
        if not 0 <= self.drop_path < 1:
            raise InputError("encoder option 'drop_path'", expected="0 <= rate < 1", found=str(self.drop_path))
        if self.output_norms and self.final_norm:
            raise InputError("encoder option 'final_norm'", expected="False with output_norms", found="True")
        for field in ("depths", "heads"):
            value = getattr(self, field)
            if value is not None and (len(value) != 4 or min(value) < 1):
                raise InputError(f"encoder option '{field}'", expected="four counts of at least 1", found=str(value))
        super().__post_init__()
        if any(c % n for c, n in zip(self.channels, self._heads(), strict=True)):
            raise InputError("encoder options 'width', 'heads'", expected="channels that the heads divide",
                             found=f"{self.channels} and {self._heads()}")  # fmt: skip

    @property
    def channels(self) -> tuple[int, ...]:
        return tuple((self.width or SIZES[self.size][0]) * 2**i for i in range(4))

    def _heads(self) -> tuple[int, ...]:
        return tuple(self.heads or (max(1, c // HEAD) for c in self.channels))

    def _depths(self) -> tuple[int, ...]:
        return tuple(self.depths or SIZES[self.size][1])

    @nn.compact
    def __call__(self, images, train: bool = False):
        blocks = sum(self._depths())
        keep = [None] * blocks
        if train and self.drop_path:
            keep = stochastic_depth(self.make_rng("dropout"), self.drop_path, blocks, images.shape[0])
        x, maps, number = PatchEmbed(self.channels[0], self.dtype, name="patch_embed")(images), [], 0
        for i, depth in enumerate(self._depths(), 1):
            if i > 1:
                x = PatchMerging(self.dtype, name=f"merge{i}")(x)
            for j in range(depth):
                again = self.remat and not self.is_initializing()  # `initialise` must see what initialisers return
                block = (nn.remat(Block) if again else Block)(
                    self._heads()[i - 1], *self._windows(x.shape[1:3], j), self.dtype, name=f"block{i}_{j}"
                )
                x, number = block(x, keep[number]), number + 1
            out = x
            if self.output_norms or (self.final_norm and i == 4):
                out = LayerNorm(name=f"norm{i}")(x)
            maps.append(out.astype(self.dtype))
        return tuple(maps)

    def _windows(self, size, block: int):
        """(side, window, shift) of a block on a map of `size`."""
        side = SIZES[self.size][2]
        shift = side // 2 if block % 2 else 0
        if self.mode == "dense":
            return side, (side, side), (shift, shift)
        if any(n > side and n % side for n in size):
            raise InputError("images", expected=f"maps that are whole windows of {side} (mode 'cls')",
                             found=f"a map of {size}", hint="mode='dense' takes any size.")  # fmt: skip
        return side, tuple(min(n, side) for n in size), tuple(shift if n > side else 0 for n in size)

    def example_input(self):
        side = PATCH * SIZES[self.size][2]  # the smallest that "cls" takes
        return jnp.zeros((1, side, side, 3), jnp.float32)

    def torch_table(self) -> torch_keys.Table:
        """timm's or the official keys, as `keys` says, and how to read the other kind and segmentation code's.

        Both kinds know `layers.1.downsample`, and mean different layers by it: timm's opens stage 2, the official one
        closes it. Only timm has `layers.3.downsample`, only the official kind `layers.0.downsample`.
        """
        rules = {kind: self._rules(kind) for kind in KEYS}
        own = {rule.path: rule.key for rule in rules[self.keys]}
        buffers = self._buffers()
        namings = {}
        for prefix in ("", self.torch_prefix):
            for kind, stage in zip(KEYS, (3, 0), strict=True):
                names = {prefix + rule.key: own[rule.path] for rule in rules[kind]}
                names |= {prefix + key: key for key in (*buffers, "norm.weight", "norm.bias")} if prefix else {}
                if prefix or kind != self.keys:
                    namings[f"{prefix}layers.{stage}.downsample.reduction.weight"] = names
        ignored = ("head.", *_SEGMENTATION_HEADS, *buffers)
        if not self.final_norm:
            ignored += ("norm.",)
        return torch_keys.Table(tuple(rules[self.keys]), ignored=ignored, namings=namings)

    def _rules(self, kind: str) -> list[torch_keys.Rule]:
        """The keys of one kind, in its file's order."""
        rules = torch_keys.conv("patch_embed.proj", ("patch_embed",))
        rules += torch_keys.layer_norm("patch_embed.norm", ("patch_embed", "norm"))
        for i, depth in enumerate(self._depths()):
            if kind == "timm" and i > 0:
                rules += torch_keys.layer_norm(f"layers.{i}.downsample.norm", (f"merge{i + 1}", "norm"))
                rules += _reduction(i, f"merge{i + 1}")
            for j in range(depth):
                rules += torch_keys.prefixed(_block_rules(), f"layers.{i}.blocks.{j}.", (f"block{i + 1}_{j}",))
            if kind == "official" and i < 3:
                rules += _reduction(i, f"merge{i + 2}")
                rules += torch_keys.layer_norm(f"layers.{i}.downsample.norm", (f"merge{i + 2}", "norm"))
        if self.final_norm:
            rules += torch_keys.layer_norm("norm", ("norm4",))
        if self.output_norms:
            for i in range(4):
                norm = torch_keys.layer_norm(f"norm{i}", (f"norm{i + 1}",))
                rules += [dataclasses.replace(rule, optional=True) for rule in norm]
        return rules

    def _buffers(self) -> tuple[str, ...]:
        """What official files store of the windows: constants that are computed here."""
        blocks = [f"layers.{i}.blocks.{j}." for i, depth in enumerate(self._depths()) for j in range(depth)]
        return tuple(block + name for block in blocks for name in ("attn.relative_position_index", "attn_mask"))


_SEGMENTATION_HEADS = ("sem_seg_head.", "criterion.", "decode_head.", "auxiliary_head.")


def _reduction(layer, name):
    return torch_keys.linear(f"layers.{layer}.downsample.reduction", (name, "reduction"), bias=False)


def _block_rules() -> list[torch_keys.Rule]:
    rules = torch_keys.layer_norm("norm1", ("norm1",))
    rules += [torch_keys.Rule("attn.relative_position_bias_table", "params", ("attn", "bias_table"))]
    for name in ("attn.qkv", "attn.proj"):
        rules += torch_keys.linear(name, tuple(name.split(".")))
    rules += torch_keys.layer_norm("norm2", ("norm2",))
    return rules + torch_keys.linear("mlp.fc1", ("mlp", "fc1")) + torch_keys.linear("mlp.fc2", ("mlp", "fc2"))
