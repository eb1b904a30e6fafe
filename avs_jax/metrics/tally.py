"""The accumulator: a table of exact counts with one row per clip. Merging is putting rows together, in any order."""

from collections.abc import Mapping, Sequence

import numpy as np

from avs_jax.metrics.confusion import class_areas
from avs_jax.metrics.fmeasure import clip_curves

Tally = dict[str, np.ndarray]
"""N clips of T frames, K classes; every array has a leading N:

| key                  | shape, dtype         | meaning                                                             |
|----------------------|----------------------|---------------------------------------------------------------------|
| `index`              | (N,) int64           | the clip's position in its source; rows are sorted by it            |
| `truth`, `pixels`    | (N, T) int64         | area of the truth, of all pixels that count                         |
| `present`            | (N, T) int64         | 0 for frames that only fill up a short clip, else 1                 |
| `<sound>.inter`      | (N, T) int64         | area of the intersection; <sound> is true, swap, silence or noise   |
| `<sound>.pred`       | (N, T) int64         | area of the prediction                                              |
| `<sound>.areas`      | (N, T, K, 3) int64   | K > 1: per class intersection, prediction, truth                    |
| `hist`               | (N, 2, 256) int64    | scores over the clip's frames, see `fmeasure.score_histograms`      |
| `curves`             | (N, 255) float64     | sum of F at each threshold over non-empty frames                    |
| `confusion`          | (N, K, K) int64      | K > 1: over the clip's frames, rows are the truth                   |

The last three belong to the true sound and to the frames that are present.
"""


def tally(index: np.ndarray, counts: Mapping[str, Mapping[str, np.ndarray]]) -> Tally:
    """One row per clip from the counts of its frames.

    Args:
      index: (N,) positions of the clips in their source.
      counts: for each sound, "true" among them, what `counts.frame_counts` returns, fetched from the device.
    """
    true = {name: np.asarray(x, np.int64) for name, x in counts["true"].items()}
    hist = true["hist"] * true["present"][..., None, None]
    rows = {
        "index": np.asarray(index, np.int64),
        "truth": true["truth"],
        "pixels": true["pixels"],
        "present": true["present"],
        "hist": hist.sum(1),
        "curves": clip_curves(hist),
    }
    if "confusion" in true:
        rows["confusion"] = (true["confusion"] * true["present"][..., None, None]).sum(1)
    for sound, part in counts.items():
        rows[f"{sound}.inter"], rows[f"{sound}.pred"] = (np.asarray(part[k], np.int64) for k in ("inter", "pred"))
        if "confusion" in part:
            rows[f"{sound}.areas"] = class_areas(np.asarray(part["confusion"], np.int64))
    return rows


def merge(parts: Sequence[Tally]) -> Tally:
    """All rows of `parts` in the order of the source, each clip once; rows with index -1 (padding) are left out.

    Rows are exact and sorted here, so figures do not depend on how clips were spread over batches or processes.
    """
    rows = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    index, first = np.unique(rows["index"], return_index=True)
    keep = first[index >= 0]
    return {name: values[keep] for name, values in rows.items()}


def gather(rows: Tally) -> Tally:
    """The rows of all processes, on every process (collective: every process must call it).

    Rows travel as bytes: device arrays would round int64 and float64 to 32 bits.
    """
    import jax

    if jax.process_count() == 1:
        return merge([rows])
    from jax.experimental import multihost_utils

    most = int(np.max(multihost_utils.process_allgather(np.int32(len(rows["index"])))))
    gathered = {}
    for name in sorted(rows):  # the same order of collectives on every process
        values = rows[name]
        padded = np.full((most, *values.shape[1:]), -1, values.dtype)  # index -1: padding
        padded[: len(values)] = values
        sent = np.ascontiguousarray(padded).reshape(most, -1).view(np.uint8)
        received = np.ascontiguousarray(multihost_utils.process_allgather(sent), np.uint8)
        gathered[name] = received.view(values.dtype).reshape(-1, *values.shape[1:])
    return merge([gathered])
