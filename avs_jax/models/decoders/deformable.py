"""Multi-scale deformable attention in plain XLA: every token looks at a few points of every level.

Zhu et al., Deformable DETR: deformable transformers for end-to-end object detection, ICLR 2021, equations 2 and 3; the
encoder, its positions and its initial values are those of Mask2Former's pixel decoder (Cheng et al., Masked-attention
mask transformer for universal image segmentation, CVPR 2022).

The tokens of all levels stand in one axis: level after level, each row by row.
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from avs_jax.errors import InputError
from avs_jax.models.initialise import Random
from avs_jax.models.layers import Dense, LayerNorm, wide
from avs_jax.models.positions import sine_positions


def xavier_uniform(fan_in: int, fan_out: int) -> Random:
    """U(-1, 1) * sqrt(6 / (fan_in + fan_out)): Glorot and Bengio, AISTATS 2010."""
    return Random("uniform", (6 / (fan_in + fan_out)) ** 0.5)


def sample_levels(values, locations, weights, sizes):
    """The weighted sum of values read off L maps at fractional points.

    A point is blended from the four pixels around it; what lies outside a map is zero. This is PyTorch's `grid_sample`
    (bilinear, zero padding, corners not aligned) of 2 * locations - 1, times the weights, summed.

    Args:
      values: (F, S, heads, D), the tokens of all maps, S = sum of h * w.
      locations: (F, Q, heads, L, P, 2) float32, (x, y) in units of a map's width and height: pixel (i, j) has its
        centre at ((j + 1/2) / w, (i + 1/2) / h).
      weights: (F, Q, heads, L, P) float32.
      sizes: ((h, w), ...) of the L maps, the same for all frames.
    Returns:
      (F, Q, heads, D), float32 at least: thousands of points may read one pixel, and its gradient is their sum.
    """
    values = values.astype(wide(values.dtype))
    total, start = 0.0, 0
    for level, (h, w) in enumerate(sizes):
        table = values[:, start : start + h * w]
        total = total + _sample(table, locations[:, :, :, level], weights[:, :, :, level], h, w)
        start += h * w
    return total


def _sample(values, locations, weights, h, w):
    """One level: a single gather of whole heads (rows of D numbers) for the four corners of all points.

    Frames stay a batch axis of the gather, so that a mesh can divide them. Levels go one by one: the rows of one level
    are all that must exist at a time where the compiler does not fuse the gather into the sum.
    """
    f, _, heads, d = values.shape
    # One pixel outside, where all is zero already, stands for any distance: indices cannot overflow.
    x = jnp.clip(locations[..., 0] * w - 0.5, -1.0, w)
    y = jnp.clip(locations[..., 1] * h - 0.5, -1.0, h)
    left, top = jnp.floor(x), jnp.floor(y)
    right_share, low_share = x - left, y - top
    left, top = left.astype(jnp.int32), top.astype(jnp.int32)
    head = np.arange(heads)[:, None]
    rows, shares = [], []
    for row, vertical in ((top, 1 - low_share), (top + 1, low_share)):
        for column, horizontal in ((left, 1 - right_share), (left + 1, right_share)):
            inside = (row >= 0) & (row < h) & (column >= 0) & (column < w)
            shares.append(jnp.where(inside, vertical * horizontal * weights, 0.0))
            rows.append((jnp.clip(row, 0, h - 1) * w + jnp.clip(column, 0, w - 1)) * heads + head)
    rows, shares = jnp.concatenate(rows, -1), jnp.concatenate(shares, -1)  # (F, Q, heads, 4 P)
    read = jax.vmap(lambda table, index: table.at[index].get(mode="promise_in_bounds"))
    return (read(values.reshape(f, h * w * heads, d), rows) * shares[..., None]).sum(-2)


def pixel_centres(sizes) -> np.ndarray:
    """(S, 2) float32: (x, y) of every token's pixel, in units of its own map's width and height."""
    centres = []
    for h, w in sizes:
        y, x = np.meshgrid((np.arange(h) + 0.5) / h, (np.arange(w) + 0.5) / w, indexing="ij")
        centres.append(np.stack([x.ravel(), y.ravel()], -1))
    return np.concatenate(centres).astype(np.float32)


def initial_offsets(heads: int, levels: int, points: int) -> np.ndarray:
    """(heads, levels, points, 2) float32, (x, y) in pixels: head i looks in direction 2 pi i / heads.

    Directions are scaled to a largest coordinate of 1; point k lies k + 1 times as far. The public Deformable DETR's.
    """
    angle = 2 * np.pi * np.arange(heads) / heads
    direction = np.stack([np.cos(angle), np.sin(angle)], -1)
    direction /= np.abs(direction).max(-1, keepdims=True)
    offsets = direction[:, None, None] * np.arange(1, points + 1)[:, None]
    return np.broadcast_to(offsets, (heads, levels, points, 2)).astype(np.float32)


class DeformableAttention(nn.Module):
    """Every token reads `points` points near its own place on every level, head by head, and blends what it finds.

    Where and how much is a linear function of the token. At first all points weigh the same and lie in the pattern of
    `initial_offsets`. Places and weights are float32 whatever the compute dtype: bfloat16 has eight bits for a place.

    Args:
      heads: attention heads; they divide the channels.
      points: that each head reads of each level.
      dtype: compute dtype of the projections of values and results.
    Call:
      query: (F, Q, C). tokens: (F, S, C), what is read. centres: (Q, 2), see `pixel_centres`. sizes: of the levels.
    Returns:
      (F, Q, C) in the compute dtype.
    Raises:
      InputError: the heads do not divide the channels.
    """

    heads: int = 8
    points: int = 4
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, query, tokens, centres, sizes):
        (f, q, c), heads, levels = query.shape, self.heads, len(sizes)
        if c % heads:
            raise InputError("heads", expected=f"a divisor of the {c} channels", found=str(heads))
        full, zeros = wide(self.dtype), nn.initializers.zeros
        each = (heads, levels, self.points)

        def from_query(name, numbers, bias):
            dense = Dense(numbers, kernel_init=zeros, bias_init=bias, dtype=full, name=name)
            return dense(query)

        pattern = initial_offsets(*each).ravel()
        offsets = from_query("offsets", pattern.size, lambda key, shape: jnp.asarray(pattern))
        offsets = offsets.reshape(f, q, *each, 2)  # pixels of the level that is read
        weights = jax.nn.softmax(from_query("weights", pattern.size // 2, zeros).reshape(f, q, heads, -1))
        extent = np.array([[w, h] for h, w in sizes], np.float32)[:, None]  # (L, 1, 2)
        locations = centres[:, None, None, None] + offsets / extent
        values = self._project("values", c, tokens).reshape(f, -1, heads, c // heads)
        # Gradients gather again: four corners of every point would be 16 times as much to keep as the tokens.
        sample = jax.checkpoint(partial(sample_levels, sizes=sizes))
        y = sample(values, locations, weights.reshape(f, q, *each))
        return self._project("output", c, y.reshape(f, q, c))

    def _project(self, name, c, x):
        return Dense(c, kernel_init=xavier_uniform(c, c), bias_init=nn.initializers.zeros, dtype=self.dtype,
                     name=name)(x)  # fmt: skip


class Layer(nn.Module):
    """Deformable self-attention and an MLP, each added to its input and followed by LayerNorm.

    x, positions: (F, S, C) and (S, C) float32; positions join what asks, not what is read.
    """

    heads: int = 8
    points: int = 4
    hidden: int = 1024
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, positions, centres, sizes):
        c = x.shape[-1]
        attention = DeformableAttention(self.heads, self.points, self.dtype, name="attention")
        x = LayerNorm(name="norm1")(x + attention(x + positions, x, centres, sizes).astype(x.dtype))
        init = xavier_uniform(c, self.hidden)
        y = jax.nn.relu(Dense(self.hidden, kernel_init=init, dtype=self.dtype, name="fc1")(x))
        y = Dense(c, kernel_init=init, dtype=self.dtype, name="fc2")(y)
        return LayerNorm(name="norm2")(x + y.astype(x.dtype))


class Encoder(nn.Module):
    """`layers` layers over the tokens of all maps at once; sine positions and a learned embedding of the level.

    Args:
      layers: number of layers.
      heads, points: of the attention.
      hidden: channels of the MLPs.
    Call:
      maps: L maps (F, h, w, C) of any sizes.
    Returns:
      The same number of maps of the same shapes, float32 at least: sums and norms keep full precision.
    """

    layers: int = 6
    heads: int = 8
    points: int = 4
    hidden: int = 1024
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, maps):
        f, c, sizes = maps[0].shape[0], maps[0].shape[-1], tuple(x.shape[1:3] for x in maps)
        embedding = self.param("level_embedding", Random("normal", 1.0), (len(maps), c))
        positions = [sine_positions(h, w, c).reshape(-1, c) + embedding[i] for i, (h, w) in enumerate(sizes)]
        positions, centres = jnp.concatenate(positions), pixel_centres(sizes)
        x = jnp.concatenate([m.reshape(f, -1, c) for m in maps], 1).astype(wide(self.dtype))
        for i in range(self.layers):
            layer = Layer(self.heads, self.points, self.hidden, self.dtype, name=f"layer{i}")
            x = layer(x, positions, centres, sizes)
        ends = np.cumsum([h * w for h, w in sizes])[:-1]
        return tuple(part.reshape(f, h, w, c) for part, (h, w) in zip(jnp.split(x, ends, 1), sizes, strict=True))
