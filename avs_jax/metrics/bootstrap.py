"""How far a figure could move with other clips: percentile intervals over resampled clips (Efron, 1979)."""

import numpy as np

from avs_jax.metrics.figures import Resampling, figures, summarise
from avs_jax.metrics.tally import Tally

LEVEL = 0.95
_CHUNK = 2**22  # numbers held at once: resamplings x clips x 255 thresholds


def resamples(clips: int, count: int, seed: int) -> np.ndarray:
    """(count, clips) int64: rows drawn with replacement. A function of its arguments alone."""
    return np.random.default_rng(seed).integers(0, clips, size=(count, clips))


def intervals(rows: Tally, clips_per_batch: int, count: int = 1000, seed: int = 0) -> dict[str, tuple[float, float]]:
    """The central 95 % of every figure over `count` resamplings of the clips.

    Clips are what is drawn, because the frames of one clip are alike. A resampling that does not define a figure (no
    silent frame, say) is left out of it.

    Returns:
      {figure: (low, high)}; NaN where no resampling defines it.
    """
    clips, summary = len(rows["index"]), summarise(rows)
    order = resamples(clips, count, seed)
    step = max(1, _CHUNK // (255 * clips))
    parts = [figures(summary, clips_per_batch, Resampling(clips, order[i : i + step])) for i in range(0, count, step)]
    tail = 100 * (1 - LEVEL) / 2
    out = {}
    for name in parts[0]:
        values = np.concatenate([part[name] for part in parts])
        values = values[~np.isnan(values)]
        low, high = np.percentile(values, [tail, 100 - tail]) if values.size else (np.nan, np.nan)
        out[name] = (float(low), float(high))
    return out
