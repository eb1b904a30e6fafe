"""Audio-visual segmentation in JAX. The names below are the stable API; everything loads on first use."""

import importlib

_API = {
    "create": "avs_jax.methods",
    "create_encoder": "avs_jax.models.encoders",
    "create_source": "avs_jax.data.sources",
    "load_torch": "avs_jax.weights",
    "to_torch": "avs_jax.weights",
    "load_checkpoint": "avs_jax.training.checkpoint",
    "InputError": "avs_jax.errors",
}
__all__ = [*_API, "metrics"]
__version__ = "0.1.0"


def __getattr__(name):  # data workers import this package: no jax until it is used
    if name in _API:
        return getattr(importlib.import_module(_API[name]), name)
    if name == "metrics":
        return importlib.import_module("avs_jax.metrics")
    raise AttributeError(f"module 'avs_jax' has no attribute '{name}'")
