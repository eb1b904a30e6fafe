"""Fixed position encodings of feature maps."""

import jax.numpy as jnp
import numpy as np

from avs_jax.errors import InputError

TEMPERATURE = 10_000.0


def sine_positions(h: int, w: int, channels: int):
    """The sine position encoding of an h x w map, (h, w, channels) float32: the row's half first, then the column's.

    Rows and columns count from 1 and are divided by (their number + 1e-6), so that a map of any size spans
    (0, 2 pi]. Feature i of a half is the sine (i even) or the cosine (i odd) of the position over
    10000^(2 floor(i / 2) / (channels / 2)).

    Carion et al., End-to-end object detection with transformers, ECCV 2020, normalised as in its code.

    Raises:
      InputError: channels is no positive multiple of 4 (sine and cosine of two axes).
    """
    if channels <= 0 or channels % 4:
        raise InputError("channels", expected="a positive multiple of 4 for sine positions", found=str(channels))
    half = channels // 2
    rows, columns = jnp.asarray(_axis(h, half)), jnp.asarray(_axis(w, half))
    # two small constants and a broadcast: the whole map would weigh megabytes in the compiled program
    y, x = jnp.broadcast_to(rows[:, None], (h, w, half)), jnp.broadcast_to(columns[None], (h, w, half))
    return jnp.concatenate([y, x], -1)


def _axis(n: int, features: int) -> np.ndarray:
    """Encoding of one axis, (n, features) float32, computed in float64."""
    position = np.arange(1, n + 1) / (n + 1e-6) * 2 * np.pi
    angle = position[:, None] / TEMPERATURE ** (2 * np.arange(features // 2) / features)
    return np.stack([np.sin(angle), np.cos(angle)], -1).reshape(n, features).astype(np.float32)
