"""Audio queries that look at a picture: each second's sound becomes N queries, attention layers turn them into masks.

"TransAVS: End-to-end audio-visual segmentation with transformer", equations 1 to 8, in the form of DETR (Carion et al.,
ECCV 2020) and Mask2Former (Cheng et al., CVPR 2022) where the paper is silent.
"""

import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from avs_jax.models.initialise import Random
from avs_jax.models.layers import Conv, Dense, LayerNorm, wide
from avs_jax.models.positions import sine_positions
from avs_jax.models.unfused import unfused

QUERY_INITS = ("frame", "clip", "shared", "learned")
ATTENTIONS = ("einsum", "dot_product", "cudnn")
ROUND_ROBINS = ("coarse_first", "paper")
LEVELS = 3  # that the decoder looks at: strides 32, 16, 8

_embedding_init = Random("normal", 1.0)


def _xavier(inputs: int, outputs: int) -> Random:
    return Random("uniform", math.sqrt(6 / (inputs + outputs)))


def attention_weights(q, k, mask=None):
    """softmax(q k / sqrt(c)) over keys, float32 at least: (F, N, heads, c), (F, P, heads, c) -> (F, heads, N, P).

    mask: (F, N, P) bool, which queries may look where; each query must be allowed at least one place. None = all.
    """
    scores = jnp.einsum("fnhc,fphc->fhnp", q, k, preferred_element_type=wide(q.dtype)) * q.shape[-1] ** -0.5
    if mask is not None:
        scores = jnp.where(mask[:, None], scores, jnp.finfo(scores.dtype).min)
    return jax.nn.softmax(scores)


def attend(q, k, v, mask=None, how: str = "einsum"):
    """Values (F, P, heads, c) as the queries mix them, (F, N, heads, c); other arguments as `attention_weights`.

    how: "einsum"; "dot_product": `jax.nn.dot_product_attention`; "cudnn": the latter by cuDNN's kernel, which never
    writes the weights down, where that can run, else in XLA's form. The same up to rounding.
    """
    if how == "einsum":
        return jnp.einsum("fhnp,fphc->fnhc", attention_weights(q, k, mask).astype(v.dtype), v)
    kernel = "cudnn" if how == "cudnn" and mask is None and _cudnn_runs(q, k) else "xla"
    mask = None if mask is None else mask[:, None]
    return jax.nn.dot_product_attention(q, k, v, mask=mask, implementation=kernel)


def _cudnn_runs(q, k) -> bool:
    """The one place where the kernel is chosen: NVIDIA's GPUs from Ampere on have it, in half precision, for heads of
    up to 128 channels, a multiple of 8. JAX refuses odd lengths in training."""
    channels, lengths = q.shape[-1], (q.shape[1], k.shape[1])
    if q.dtype not in (jnp.bfloat16, jnp.float16) or channels % 8 or channels > 128 or any(n % 2 for n in lengths):
        return False
    device = jax.devices()[0]
    return "cuda" in device.client.platform_version and float(device.compute_capability) >= 8


class Style(NamedTuple):
    """What all layers share.

    heads: of every attention. ffn: hidden channels. dropout: rate on what every sublayer adds, and inside the FFN.
    attention: see `attend`. literal: layers to the letter of equations 3 and 6: one head, x + attention and no more.
    decoder_self_attention: queries see each other in the decoder too. train: drop. dtype: compute dtype.
    """

    heads: int = 8
    ffn: int = 2048
    dropout: float = 0.0
    attention: str = "einsum"
    literal: bool = False
    decoder_self_attention: bool = True
    train: bool = False
    dtype: Any = jnp.float32


class Attention(nn.Module):
    """Multi-head attention; to the letter of equation 2 one head, without biases and without an output layer.

    Stores the weights, averaged over heads (F, N, P), where the collection "intermediates" is asked for.
    """

    style: Style

    @nn.compact
    def __call__(self, queries, keys, values, mask=None):  # (F, N, d), (F, P, d), (F, P, d) -> (F, N, d)
        d = queries.shape[-1]
        heads = 1 if self.style.literal else self.style.heads

        def split(x, name):
            return self._linear(d, name)(x).reshape(*x.shape[:2], heads, d // heads)

        q, k, v = split(queries, "q"), split(keys, "k"), split(values, "v")
        if self.is_mutable_collection("intermediates"):
            self.sow("intermediates", "weights", attention_weights(q, k, mask).mean(1))
        out = attend(q, k, v, mask, self.style.attention).reshape(queries.shape)
        return out if self.style.literal else self._linear(d, "out")(out)

    def _linear(self, d, name):
        zeros = nn.initializers.zeros
        return Dense(d, not self.style.literal, _xavier(d, d), zeros, self.style.dtype, name=name)


class FFN(nn.Module):
    """Linear, ReLU, linear."""

    style: Style

    @nn.compact
    def __call__(self, x):  # (F, N, d) -> the same
        d, s = x.shape[-1], self.style
        y = jax.nn.relu(Dense(s.ffn, kernel_init=_xavier(d, s.ffn), dtype=s.dtype, name="linear1")(x))
        y = nn.Dropout(s.dropout, deterministic=not s.train)(y)
        return Dense(d, kernel_init=_xavier(s.ffn, d), dtype=s.dtype, name="linear2")(y)


class _Layer(nn.Module):
    """Post-norm residual sublayers; the sum stays float32 when the compute dtype is smaller."""

    style: Style

    def add(self, x, y, name):
        """norm(x + y), to the letter x + y."""
        s = self.style
        x = x + nn.Dropout(s.dropout, deterministic=not s.train)(y.astype(x.dtype))
        if s.literal:
            return x
        norm = LayerNorm(name=f"{name}_norm")
        x = norm(x)
        return unfused(x, norm.variables["params"]["scale"])


class EncoderLayer(_Layer):
    """Self-attention of the queries, FFN. Positions are added to queries and keys, not to values."""

    @nn.compact
    def __call__(self, x, positions):  # (F, N, d) float32, (N, d) -> (F, N, d)
        at = x + positions
        x = self.add(x, Attention(self.style, name="self_attention")(at, at, x), "self_attention")
        return x if self.style.literal else self.add(x, FFN(self.style, name="ffn")(x), "ffn")


class DecoderLayer(_Layer):
    """Cross-attention to a level of the picture, self-attention, FFN.

    x: (F, N, d) float32. positions: (N, d), of the queries. memory: (F, P, d) pixels of a level; places: (P, d), their
    positions, which are added to keys and not to values. mask: (F, N, P) bool or None, see `attention_weights`.
    """

    @nn.compact
    def __call__(self, x, positions, memory, places, mask=None):
        s = self.style
        y = Attention(s, name="cross_attention")(x + positions, memory + places.astype(memory.dtype), memory, mask)
        x = self.add(x, y, "cross_attention")
        if s.literal:
            return x
        if s.decoder_self_attention:
            at = x + positions
            x = self.add(x, Attention(s, name="self_attention")(at, at, x), "self_attention")
        return self.add(x, FFN(s, name="ffn")(x), "ffn")


class AudioQueries(nn.Module):
    """N queries of every frame from its clip's sounds, normalised.

    Args:
      kind: "frame": one linear layer from a second's embedding to its frame's N queries. "clip", equation 1 to the
        letter: every second through one layer to d, then N mixtures of the T seconds, which all frames share. "shared":
        one layer to d, added to N learned queries. "learned": these alone, the same for all frames: no sound is heard.
      number: N.
      channels: d.
    """

    kind: str
    number: int
    channels: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, audio):  # (B, T, D) -> (B, T, N, d) float32; D may be 0 where queries are learned
        b, t, width = audio.shape
        n, d = self.number, self.channels
        norm = LayerNorm(name="norm")
        if self.kind == "learned":
            return jnp.broadcast_to(norm(self.param("embedding", _embedding_init, (n, d))), (b, t, n, d))
        init = Random("normal", width**-0.5)
        # the bias is drawn at random: it sets the queries apart where a silent second's embedding is zero
        x = Dense(n * d if self.kind == "frame" else d, kernel_init=init, dtype=self.dtype, name="linear")(audio)
        x = x.astype(wide(self.dtype))
        if self.kind == "frame":
            x = x.reshape(b, t, n, d)
        elif self.kind == "shared":
            x = x[:, :, None] + self.param("embedding", _embedding_init, (n, d))
        else:
            mixed = Dense(n, use_bias=False, name="mix")(x.swapaxes(1, 2)).swapaxes(1, 2)
            x = jnp.broadcast_to(mixed[:, None], (b, t, n, d))
        return norm(x)


class Decoded(NamedTuple):
    """L sets of N queries of F frames: those that enter the decoder, then those of every layer of it.

    class_logits: (L, F, N, K) float32, "no object" last.
    embeddings: (L, F, N, d), of which masks are made: `avs_jax.losses.query_set.dot_masks(embeddings[l], features)`.
    features: (F, h, w, d), W_2 f4.
    encoded, decoded: (F, N, d) float32: A_q after the encoder, and F_av, the last layer's, normalised.
    projection: (d, d), the kernel of h, which AQDL measures distances after.
    """

    class_logits: jax.Array
    embeddings: jax.Array
    features: jax.Array
    encoded: jax.Array
    decoded: jax.Array
    projection: jax.Array


class QueryTransformer(nn.Module):
    """Self-attention among a frame's queries, then attention to its picture's levels in turn, then heads.

    Args:
      classes: K, with "no object".
      style: of the layers.
      encoder_layers, decoder_layers: N1, N2.
      round_robin: "coarse_first": strides 32, 16, 8, 32, ...; "paper": the letter of equation 4, 16, 8, 32, 16, ...
      masked_attention: a query looks only where its mask of the layer before says more than 0.5, or everywhere if that
        is nowhere (Mask2Former).
      mask_mlp: three layers between a query and its mask embedding (Mask2Former); equation 7 has none.
      class_prior: initial probability of an object, which biases the class head.
      all_layers: return every layer's outputs, else the last's alone (L = 1).
      remat: recompute each layer in the backward pass rather than keep what is inside it.
    Call:
      queries: (F, N, d) float32. levels: maps (F, h, w, d) at strides 32, 16, 8. masks: f4, (F, h, w, C) at stride 4.
    """

    classes: int
    style: Style = Style()
    encoder_layers: int = 6
    decoder_layers: int = 9
    round_robin: str = "coarse_first"
    masked_attention: bool = False
    mask_mlp: bool = False
    class_prior: float = 0.01
    all_layers: bool = True
    remat: bool = False

    @nn.compact
    def __call__(self, queries, levels, masks) -> Decoded:
        n, d = queries.shape[1:]
        dtype = self.style.dtype
        again = self.remat and not self.is_initializing()  # `initialise` must see what initialisers return
        wrap = nn.remat if again else (lambda layer: layer)
        positions = self.param("query_positions", _embedding_init, (n, d))
        level_embedding = self.param("level_embedding", _embedding_init, (LEVELS, d))
        # with norm-sqrt(d) queries and pixels of order 1, mask logits start at order 1
        features = Conv(d, 1, kernel_init=Random("normal", 1 / d), bias_init=nn.initializers.zeros, dtype=dtype,
                        name="mask_features")(masks)  # fmt: skip
        x = queries
        for i in range(self.encoder_layers):
            x = wrap(EncoderLayer)(self.style, name=f"encoder{i}")(x, positions)
        encoded, predict = x, self._heads(d)
        memory = [
            m.reshape(m.shape[0], -1, d) + e.astype(m.dtype) for m, e in zip(levels, level_embedding, strict=True)
        ]
        places = [sine_positions(*m.shape[1:3], d).reshape(-1, d) for m in levels]
        seen = [_shrunk(features, m.shape[1:3]) for m in levels] if self.masked_attention else None
        outputs = [predict(x)]
        for i in range(self.decoder_layers):
            level = level_of(i, self.round_robin)
            mask = _allowed(outputs[-1][1], seen[level]) if self.masked_attention else None
            layer = wrap(DecoderLayer)(self.style, name=f"decoder{i}")
            x = layer(x, positions, memory[level], places[level], mask)
            outputs.append(predict(x))
        logits, embeddings, normed = zip(*(outputs if self.all_layers else outputs[-1:]), strict=True)
        projection = _Kernel(name="diversity")(d)
        return Decoded(jnp.stack(logits), jnp.stack(embeddings), features, encoded, normed[-1], projection)

    def _heads(self, d):
        """x (F, N, d) -> (class logits, mask embeddings, x normalised); the same weights for every layer."""
        dtype = self.style.dtype
        norm = LayerNorm(name="norm")
        bias = jnp.zeros(self.classes).at[-1].set(prior_bias(self.class_prior, self.classes))
        classify = Dense(self.classes, bias_init=lambda *_: bias, dtype=wide(dtype), name="class_head")
        mlp = [Dense(d, dtype=dtype, name=f"mask_mlp{i}") for i in range(3)] if self.mask_mlp else []

        def predict(x):
            x = norm(x)
            y = x.astype(dtype)
            for i, layer in enumerate(mlp):
                y = layer(y if i == 0 else jax.nn.relu(y))
            return classify(x), y, x

        return predict


def prior_bias(prior: float, classes: int) -> float:
    """The logit of "no object" beside zeros of the K - 1 others that gives objects the probability `prior`."""
    return math.log((1 - prior) * (classes - 1) / prior)


def level_of(layer: int, round_robin: str) -> int:
    """Which level (0 = stride 32) decoder layer `layer`, from 0, looks at."""
    return (layer + (round_robin == "paper")) % LEVELS


class _Kernel(nn.Module):
    """The kernel of a linear layer without bias that runs elsewhere."""

    @nn.compact
    def __call__(self, d):
        return self.param("kernel", Random("uniform", d**-0.5), (d, d))


def _shrunk(features, size):
    """Bilinear at half-pixel centres, not antialiased, as the family resizes masks; commutes with the dot product."""
    return jax.image.resize(features, (len(features), *size, features.shape[-1]), "bilinear", antialias=False)


def _allowed(embeddings, features):
    """(F, N, P) bool: places of a level where each query's mask is at least 0.5, all where there are none."""
    e, f = lax.stop_gradient((embeddings, features.reshape(len(features), -1, features.shape[-1])))
    inside = jnp.einsum("fnd,fpd->fnp", e, f, preferred_element_type=wide(f.dtype)) >= 0
    return inside | ~inside.any(-1, keepdims=True)
