"""CAVP's fusion: every pixel asks each audio token how much of it it hears.

Chen et al., A closer look at audio-visual semantic segmentation, 2023, section 3.2.1, as the public code computes it.
With S audio tokens (the published system has one) the query and output projections fold into the tokens, so a pixel
costs 2 S heads D multiply-adds in place of 2 D^2. The result is exact.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from avs_jax.models import torch_keys
from avs_jax.models.layers import Dense, LayerNorm, wide

GATES = ("sigmoid", "softmax")


class MLP(nn.Module):
    """Linear, exact GELU, linear over the last axis. CAVP's visual projector is one with 256 hidden channels."""

    hidden: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        y = Dense(self.hidden, dtype=self.dtype, name="fc1")(x)
        y = jax.nn.gelu(y.astype(wide(self.dtype)), approximate=False)
        return Dense(x.shape[-1], dtype=self.dtype, name="fc2")(y)


class CrossAttention(nn.Module):
    """One block of audio-to-pixel attention and a LayerNorm.

    Args:
      heads: attention heads.
      gate: "sigmoid", element by element (public code); or "softmax" over tokens (the paper), which is 1 for a single
        token, so that every pixel receives the same sound.
      mlp_ratio: hidden channels of the MLP over D.
      dtype: compute dtype of the products over pixels; norms, gates and token algebra are float32.
    Call:
      visual: (N, h, w, D). audio: (M, S, D), M = N or a multiple of it: all images again with other sounds.
    Returns:
      fused (M, h, w, D) float32; gate (M, h, w, heads, S) float32.
    """

    heads: int = 4
    gate: str = "sigmoid"
    mlp_ratio: int = 4
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, visual, audio):
        d = visual.shape[-1]
        full = wide(self.dtype)
        norm1 = LayerNorm(name="norm1")
        visual = norm1(Dense(d, dtype=self.dtype, name="embed_visual")(visual).astype(full))
        visual = again(visual, audio)
        audio = norm1(Dense(d, dtype=full, name="embed_audio")(audio))
        y, gate = self._attend(visual, audio, d)
        visual = visual + y  # the residual is the normed input
        mlp = MLP(self.mlp_ratio * d, self.dtype, name="mlp")
        visual = visual + mlp(LayerNorm(name="norm2")(visual)).astype(full)
        return LayerNorm(name="norm")(visual), gate

    def _attend(self, visual, audio, d):
        heads, width, full = self.heads, d // self.heads, wide(self.dtype)
        init = nn.initializers.xavier_uniform()
        q, k, v, o = (self.param(name, init, (d, d)) for name in ("q", "k", "v", "out"))
        bias = self.param("out_bias", nn.initializers.zeros, (d,))
        tokens = (*audio.shape[:2], heads, width)
        keys, values = (audio @ k).reshape(tokens), (audio @ v).reshape(tokens)
        query = jnp.einsum("dhe,nshe->nhsd", q.reshape(d, heads, width), keys) / width**0.5
        value = jnp.einsum("nshe,hed->nhsd", values, o.reshape(heads, width, d))
        pixels = visual.astype(self.dtype)
        score = jnp.einsum("nxyd,nhsd->nxyhs", pixels, query.astype(self.dtype), preferred_element_type=full)
        gate = jax.nn.sigmoid(score) if self.gate == "sigmoid" else jax.nn.softmax(score, -1)
        y = jnp.einsum("nxyhs,nhsd->nxyd", gate.astype(self.dtype), value.astype(self.dtype),
                       preferred_element_type=full)  # fmt: skip
        return y + bias, gate


class Broadcast(nn.Module):
    """The fusions that table 4 compares with (no code was published; this is our reading).

    "sum": LayerNorm(V + a); "concat": LayerNorm(Linear([V, a])), the sound a repeated over the pixels.

    (N, h, w, D), (M, D) -> (M, h, w, D) float32, M a multiple of N.
    """

    kind: str
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, visual, audio):
        full = wide(self.dtype)
        if self.kind == "sum":
            fused = again(visual.astype(full), audio) + audio[:, None, None]
        else:  # the linear layer over both, without writing the repeated sound down
            seen = Dense(visual.shape[-1], use_bias=False, dtype=self.dtype, name="visual")(visual).astype(full)
            fused = again(seen, audio) + Dense(visual.shape[-1], dtype=full, name="audio")(audio)[:, None, None]
        return LayerNorm(name="norm")(fused)


def again(visual, audio):
    """(N, ...) repeated as a whole to the number of sounds."""
    return jnp.concatenate([visual] * (audio.shape[0] // visual.shape[0]))


def mlp_rules(key: str = "", path: tuple[str, ...] = ()) -> list[torch_keys.Rule]:
    return torch_keys.linear(f"{key}fc1", (*path, "fc1")) + torch_keys.linear(f"{key}fc2", (*path, "fc2"))


def torch_rules(d: int, positions: int = 128 * 128) -> list[torch_keys.Rule]:
    """The public `cross_att`'s keys, in its order; the position embeddings are stored there and never used."""
    block = "blocks.0."
    unused = [("pos_embed_v", (1, positions, d)), ("pos_embed_a", (1, 1, d))]
    return [
        *(torch_keys.Rule(key, "unused", (key,), shape=shape) for key, shape in unused),
        *torch_keys.linear("patch_embed_v.proj", ("embed_visual",)),
        *torch_keys.linear("patch_embed_a.proj", ("embed_audio",)),
        *torch_keys.layer_norm(f"{block}norm1", ("norm1",)),
        *(torch_keys.Rule(f"{block}attn.{name}.weight", "params", (name,), "linear") for name in "qkv"),
        torch_keys.Rule(f"{block}attn.proj.weight", "params", ("out",), "linear"),
        torch_keys.Rule(f"{block}attn.proj.bias", "params", ("out_bias",)),
        *torch_keys.layer_norm(f"{block}norm2", ("norm2",)),
        *mlp_rules(f"{block}mlp.", ("mlp",)),
        *torch_keys.layer_norm("norm", ("norm",)),
    ]


def broadcast_rules(kind: str) -> list[torch_keys.Rule]:
    """Keys of `Broadcast`, which no public file has."""
    norm = torch_keys.layer_norm("norm", ("norm",))
    if kind == "sum":
        return norm
    return torch_keys.linear("visual", ("visual",), bias=False) + torch_keys.linear("audio", ("audio",)) + norm
