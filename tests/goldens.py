"""The reference numbers under tests/golden, and the weights and inputs that made them."""

import importlib.util
import json
from functools import cache
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).parent / "golden"
_spec = importlib.util.spec_from_file_location("detweights", FOLDER / "detweights.py")
detweights = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(detweights)

image = detweights.image  # (shape, seed) -> standard-normal float32


def load(name):
    """A golden file as a dict of arrays, scalars as Python numbers."""
    with np.load(FOLDER / f"{name}.npz", allow_pickle=False) as z:
        return {k: z[k].item() if z[k].ndim == 0 else z[k] for k in z.files}


def manifest(name):
    """Public keys and their shapes."""
    return json.loads((FOLDER / f"{name}.json").read_text())["state_dict"]


@cache
def weights(name):
    """{public key: array} of a manifest; shared between tests, so read only."""
    return detweights.state_dict(manifest(name))


def audio(n, seed):
    """(n, 128) non-negative embeddings."""
    return np.maximum(image((n, 128), seed), 0)


def nhwc(x):
    """(N, C, H, W) or (N, C, T, H, W) -> channels last."""
    return np.ascontiguousarray(np.moveaxis(x, 1, -1))


def error(got, want):
    """Largest absolute difference over the largest absolute value of the golden array."""
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    assert got.shape == want.shape, (got.shape, want.shape)
    return np.abs(got - want).max() / np.abs(want).max()
