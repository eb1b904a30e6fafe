"""Public checkpoints to our parameters and back."""

from avs_jax.weights.convert import load_torch, to_torch

__all__ = ["load_torch", "to_torch"]
