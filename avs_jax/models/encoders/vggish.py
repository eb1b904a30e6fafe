"""VGGish: one vector per 0.96 s of sound, 128 long as published.

Hershey et al., CNN architectures for large-scale audio classification, ICASSP 2017; the public PyTorch port's layout.
"""

from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from avs_jax.models import torch_keys
from avs_jax.models.initialise import he_normal
from avs_jax.models.layers import Conv, Dense, max_pool, wide

_STAGES = ((1,), (2,), (4, 4), (8, 8))  # multiples of the width; a 2x2 max-pool ends each stage
_CONV_KEYS = (0, 3, 6, 8, 11, 13)
EMBEDDING = 128
EXAMPLE = (96, 64)  # one second of sound as it hears it: time by frequency band


class VGGish(nn.Module):
    """Log-mel examples to embeddings.

    From scratch the convolutions and linear layers start with He's normal initialiser: PyTorch's default loses the
    signal on the way through nine layers (public weights replace it anyway).

    Args:
      width: channels of the first convolution (public: 64).
      hidden: width of the two hidden linear layers (public: 4096).
      features: width of the embedding. Other than the published 128, the last layer is a fresh one, as CAVP has it: its
        bias starts at zero, and AudioSet's weights fit everything else (`avs_jax.load_torch(..., partial=True)` without
        their keys `embeddings.4.*`).
      dtype: compute dtype.
    Call:
      examples: (N, 96, 64) float32 log-mel, time by frequency band. `train` changes nothing here.
    Returns:
      (N, features) float32, not negative: the last layer too ends in a ReLU.
    """

    width: int = 64
    hidden: int = 4096
    features: int = EMBEDDING
    dtype: Any = jnp.float32

    torch_prefix: ClassVar = ""

    @nn.compact
    def __call__(self, examples, train: bool = False):
        x = examples[..., None].astype(self.dtype)
        number = 0
        for stage in _STAGES:
            for multiple in stage:
                he, zero = he_normal(9 * x.shape[-1]), nn.initializers.zeros
                conv = Conv(
                    self.width * multiple, kernel_init=he, bias_init=zero, dtype=self.dtype, name=f"conv{number}"
                )
                x, number = jax.nn.relu(conv(x)), number + 1
            x = max_pool(x, 2, 2)
        x = x.reshape(x.shape[0], -1)  # (time, frequency, channel), as the public weights expect
        for i, features in enumerate((self.hidden, self.hidden, self.features)):
            he, zero = he_normal(x.shape[-1]), i == 2 and self.features != EMBEDDING
            bias = nn.initializers.zeros if zero else None
            x = jax.nn.relu(Dense(features, kernel_init=he, bias_init=bias, dtype=self.dtype, name=f"dense{i}")(x))
        return x.astype(wide(self.dtype))

    def example_input(self):
        return jnp.zeros((1, 96, 64), jnp.float32)

    def torch_table(self) -> torch_keys.Table:
        rules = []
        for i, key in enumerate(_CONV_KEYS):
            rules += torch_keys.conv(f"features.{key}", (f"conv{i}",))
        for i in range(3):
            rules += torch_keys.linear(f"embeddings.{2 * i}", (f"dense{i}",))
        fresh = () if self.features == EMBEDDING else ("embeddings.4.",)
        published = torch_keys.Published("AudioSet's VGGish", ("vggish-10086976.pth",))
        ignored = ("pproc.",)  # the port's PCA of embeddings: unused here
        return torch_keys.Table(tuple(rules), ignored=ignored, fresh=fresh, published=published)


def vggish_embedding(vggish: VGGish, audio, present=None, learns: bool = False):
    """Each second's embedding, (B, T, 128) float32.

    Args:
      vggish: runs only where the sound is not embedded yet.
      audio: (B, T, 96, 64) log-mel examples, or (B, T, 128), already embedded.
      present: (B, T) float32, 0 for seconds that only fill up a clip and become zero; None: all are there.
      learns: gradients reach `vggish`.
    """
    if audio.ndim == 3:
        embedding = audio.astype(wide(vggish.dtype))
    else:
        embedding = vggish(audio.reshape(-1, *audio.shape[2:])).reshape(*audio.shape[:2], -1)
        embedding = embedding if learns else jax.lax.stop_gradient(embedding)
    return embedding if present is None else embedding * present[..., None]


def rescaled(params, factor: float):
    """Parameters whose embeddings are `factor` (above 0) times as large: the last layer is linear up to its ReLU."""
    return {**params, "dense2": jax.tree.map(lambda p: p * factor, params["dense2"])}
