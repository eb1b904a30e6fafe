"""TPAVI: temporal pixel-wise audio-visual interaction, in time linear in the number of pixels.

Zhou et al., Audio-visual segmentation, ECCV 2022, equation 1, with what the public code adds to it: biases, a
BatchNorm on the residual branch and a LayerNorm after the sum. The paper's similarity matrix has (T h w)^2 entries, but
it is divided by a constant rather than put through a softmax, so the products may be bracketed at will, and the audio
is the same for all pixels of a frame: T audio tokens stand for the T h w of them. The result is exact.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from avs_jax.models import torch_keys
from avs_jax.models.initialise import uniform_fan_in
from avs_jax.models.layers import BatchNorm, Dense, LayerNorm, wide

MODES = ("va", "vv", "both", "add", "no_projection")


class Affine(nn.Module):
    """The weights of a pointwise linear map, (in, out) and (out,), for products that fold them together."""

    features: int

    @nn.compact
    def __call__(self, inputs: int):
        init = uniform_fan_in(inputs)
        return self.param("kernel", init, (inputs, self.features)), self.param("bias", init, (self.features,))


class TPAVI(nn.Module):
    """One stage's fusion of sight and sound.

    Args:
      mode: "va" (pixels attend to sound, the paper), "vv" (pixels attend to pixels, the same weights), "both" (the
        mean of the two; BatchNorm's running statistics then update twice, "vv" first), "no_projection" ("va" without
        the four 1x1x1 convolutions: the paper's ablation in section 5.3), or "add" (the sound is added to every pixel,
        with nothing after it: "A(+)V" of table 4).
      align_bias: of the linear layer on the sound; AVSS has none, so that silence stays zero.
      dtype: compute dtype of the products over pixels; statistics and the T-token algebra are float32.
    Call:
      visual: (B, T, h, w, C). Attention runs over all T frames of an item: fold frames into B for one frame at a time.
      audio: (B, T, D).
      train: use and update batch statistics.
    Returns:
      fused: (B, T, h, w, C) in `dtype`.
      audio_features: (B, T, C) float32, the audio in the visual space (None in mode "vv").
      attention: (B, T, h, w, T) float32, theta . phi / (T h w) of every pixel with every second (None in modes "vv"
        and "add").
    """

    mode: str = "va"
    align_bias: bool = True
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, visual, audio, train: bool = False):
        c = visual.shape[-1]
        visual = visual.astype(self.dtype)
        heard = attention = None
        if self.mode != "vv" or self.is_initializing():
            align = Dense(c, use_bias=self.align_bias, dtype=wide(self.dtype), name="align")
            heard = align(audio.astype(wide(self.dtype)))
        if self.mode == "add":
            return (visual + heard[:, :, None, None].astype(self.dtype)), heard, None
        if self.mode != "no_projection":
            theta, phi, g = (Affine(c // 2, name=n)(c) for n in ("theta", "phi", "g"))
            out = Affine(c, name="out")(c // 2)
        bn = BatchNorm(scale_init=nn.initializers.zeros, name="bn")  # a fresh block is the LayerNorm alone
        norm = LayerNorm(name="norm")

        def finish(y):
            return norm(bn(y, train) + visual.astype(wide(self.dtype)))

        results = []
        if self.mode in ("vv", "both"):
            results.append(finish(_pixels_to_pixels(visual, theta, phi, g, out)))
        if self.mode in ("va", "both"):
            y, attention = _pixels_to_audio(visual, heard, theta, phi, g, out)
            results.append(finish(y))
        if self.mode == "no_projection":
            y, attention = _attend(visual, heard, 0.0, visual.sum((2, 3), dtype=wide(self.dtype)))
            results.append(finish(y))
        heard = None if self.mode == "vv" else heard
        return (sum(results) / len(results)).astype(self.dtype), heard, attention


def _pixels_to_audio(visual, audio, theta, phi, g, out):
    """y_n = sum_t s_nt G_t with s_nt = theta(V_n) . phi(A_t) / N and G_t = sum of g(V) over frame t, then `out`.

    theta and `out` are folded into the T tokens, so that a pixel costs 2 T C multiply-adds.
    """
    h, w = visual.shape[2:4]
    tokens = audio @ phi[0] + phi[1]  # (B, T, C')
    sums = visual.sum((2, 3), dtype=wide(visual.dtype)) @ g[0] + h * w * g[1]  # (B, T, C')
    query_bias = (tokens @ theta[1])[:, None, None, None]
    y, s = _attend(visual, tokens @ theta[0].T, query_bias, sums @ out[0])
    return y + out[1], s


def _attend(visual, query, query_bias, values):
    """(B, T, h, w, C) with T queries and values (B, T, C): (sum_t s_nt value_t, s) with s = (V . query + bias) / N."""
    _, t, h, w, _ = visual.shape
    dtype = visual.dtype
    s = jnp.einsum("bthwc,bsc->bthws", visual, query.astype(dtype), preferred_element_type=wide(dtype))
    s = (s + query_bias) / (t * h * w)
    y = jnp.einsum("bthws,bsc->bthwc", s.astype(dtype), values.astype(dtype), preferred_element_type=wide(dtype))
    return y, s


def _pixels_to_pixels(visual, theta, phi, g, out):
    """y_n = theta(V_n) K with K = phi(V)^T g(V) / N, then `out`: a C x C matrix for each item."""
    b, t, h, w, c = visual.shape
    dtype = visual.dtype
    v = visual.reshape(b, t * h * w, c)
    keys = v @ phi[0].astype(dtype) + phi[1].astype(dtype)
    values = v @ g[0].astype(dtype) + g[1].astype(dtype)
    k = jnp.einsum("bnc,bnd->bcd", keys, values, preferred_element_type=wide(dtype)) / (t * h * w)  # (B, C', C')
    k = k @ out[0]  # (B, C', C)
    y = jnp.einsum("bnc,bcd->bnd", v, (theta[0] @ k).astype(dtype), preferred_element_type=wide(dtype))
    y = y + (theta[1] @ k)[:, None] + out[1]
    return y.reshape(visual.shape)


def torch_rules(mode: str = "va", align_bias: bool = True) -> list[torch_keys.Rule]:
    """The public block's keys, in its order; of the modes that the public code lacks, those of the parts they keep."""
    align = torch_keys.linear("align_channel", ("align",), bias=align_bias)
    if mode == "add":
        return align
    norm, bn = torch_keys.layer_norm("norm_layer", ("norm",)), torch_keys.batch_norm("W_z.1", ("bn",))
    if mode == "no_projection":
        return [*align, *norm, *bn]
    return [
        *align,
        *norm,
        *torch_keys.pointwise("g", ("g",)),
        *torch_keys.pointwise("W_z.0", ("out",)),
        *bn,
        *torch_keys.pointwise("theta", ("theta",)),
        *torch_keys.pointwise("phi", ("phi",)),
    ]
