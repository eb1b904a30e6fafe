"""Feature maps beside the golden ones."""

import goldens
import numpy as np
from goldens import detweights

TOLERANCE = 5e-6  # of the largest value; the reference's own float32 is within 1.3e-6 of its float64


def check_maps(g, tag, found):
    """Compares {tap: (N, h, w, C)} with the taps of a golden file's case: samples, borders, channel statistics."""
    for tap, x in found.items():
        x = np.moveaxis(np.asarray(x, np.float64), -1, 1)
        assert x.shape == tuple(g[f"{tag}/{tap}/shape"]), tap
        c, h, w = g[f"{tag}/{tap}/stride"]
        some, largest = max(1, x.shape[1] // 8), g[f"{tag}/{tap}/absmax_gap32"][0]
        for name, got in {
            "slice": x[:, ::c, ::h, ::w],
            "last_row": x[:, ::some, -1],
            "last_col": x[:, ::some, :, -1],
            "mean": x.mean((0, 2, 3)),
            "std": x.std((0, 2, 3)),
        }.items():
            assert np.abs(got - g[f"{tag}/{tap}/{name}"]).max() < TOLERANCE * largest, (tap, name)


def case(g, tag):
    """The input of a case, (N, H, W, 3)."""
    return goldens.nhwc(goldens.image(tuple(g[f"{tag}/input_shape"]), g[f"{tag}/seed"]))


def part(manifest, prefix):
    """The weights of a part of a network, without its prefix: {key: array}."""
    shapes = goldens.manifest(manifest)
    return {k[len(prefix) :]: detweights.tensor(k, shape) for k, shape in shapes.items() if k.startswith(prefix)}


def same_state_dict(got, want):
    """The same keys in the same order with the same bits."""
    assert list(got) == list(want)
    for key, value in got.items():
        np.testing.assert_array_equal(value, want[key], strict=True)
