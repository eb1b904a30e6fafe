"""Is one system better than another, given a few runs of each? The one-sided z-test of CAVP's section 5.2."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Moments(NamedTuple):
    """Of the figures of `count` runs; spread: their standard deviation (n - 1)."""

    mean: float
    spread: float
    count: int


class Z(NamedTuple):
    """z and the probability of one at least as large if both systems were alike."""

    z: float
    p: float


def moments(figures: Sequence[float]) -> Moments:
    """Of the figures of two runs or more.

    Raises:
      ValueError: fewer.
    """
    if len(figures) < 2:
        raise ValueError(f"{len(figures)} runs have no standard deviation")
    return Moments(float(np.mean(figures)), float(np.std(figures, ddof=1)), len(figures))


def one_sided_z(a: Sequence[float] | Moments, b: Sequence[float] | Moments) -> Z:
    """Tests whether `a` is higher than `b`.

    z = (mean_a - mean_b) / sqrt(s_a^2 / n_a + s_b^2 / n_b), p = its upper tail under a normal distribution (Chen et
    al., 2023, section 5.2, with three runs each). With so few runs the normal's tails are too thin: p is on the small
    side. Runs that do not vary at all give an infinite z, or NaN where the means are equal too.

    Args:
      a, b: figures of two runs or more, or their moments.
    Raises:
      ValueError: fewer.
    """
    a, b = (x if isinstance(x, Moments) else moments(x) for x in (a, b))
    error = math.sqrt(a.spread**2 / a.count + b.spread**2 / b.count)
    gain = a.mean - b.mean
    z = gain / error if error else math.copysign(math.inf, gain) if gain else math.nan
    return Z(z, math.erfc(z / math.sqrt(2)) / 2)
