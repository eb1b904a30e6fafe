"""What a cell of a table shows, from the results of its runs: figures, intervals, and differences on the same clips."""

import functools
import json
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from avs_jax.metrics.bootstrap import resamples
from avs_jax.metrics.confusion import confusion_figures
from avs_jax.metrics.figures import Resampling
from experiments.running import State
from experiments.tables import FIGURES, Cell, Job, Run

RESAMPLES = 1000


class Answer(NamedTuple):
    """Our side of a cell, in the table's unit: mean of the seeds that are done, the ends of its interval (95 % over
    resampled clips for one seed, the seeds' range for several), and how many seeds are done."""

    value: float
    low: float
    high: float
    seeds: int


Done = Mapping[Run, Sequence[tuple[Job, State]]]  # every seed's job and how far it is


def values(cell: Cell, done: Done) -> dict[int, float]:
    """Seed -> our figure in the table's unit, of the seeds that are done; NaN where the data do not define it."""
    figure = FIGURES[cell.figure]
    found = {job.seed: state.result["figures"][figure.key] for job, state in done.get(cell.run, ()) if
             state.kind == "done"}  # fmt: skip
    return {seed: _number(value) * figure.factor for seed, value in found.items()}


def answer(cell: Cell, done: Done) -> Answer | None:
    """Our side of a cell, or None where no run of it is done. The number of parameters needs no training."""
    figure = FIGURES[cell.figure]
    if figure.key == "parameters":
        jobs = done.get(cell.run, ())
        count = figure.factor * parameters(jobs[0][0].config) if jobs else math.nan
        return Answer(count, count, count, len(jobs)) if jobs else None
    found = list(values(cell, done).values())
    if not found:
        return None
    if len(found) > 1:
        return Answer(sum(found) / len(found), min(found), max(found), len(found))
    (result,) = [state.result for _, state in done[cell.run] if state.kind == "done"]
    low, high = (figure.factor * _number(end) for end in result["intervals"][figure.key])
    return Answer(found[0], low, high, 1)


def difference(cell: Cell, base: Cell, done: Done) -> Answer | None:
    """A cell's figure minus another's on the same clips, in percent, with its 95 % interval over resampled clips; seeds
    are paired, and their mean is taken for each resampling.

    Of "miou" it is the mean over clips of the difference of J; figures of a confusion matrix are taken of the data set,
    and of each resampling, as a whole. None where one of them is not done, and for other figures.
    """
    figure = FIGURES[cell.figure]
    wanted = "confusions" if figure.pooled else "clips"
    if not figure.pooled and figure.key != "miou":
        return None
    sides = []
    for one in (cell, base):
        results = [(job.seed, state.result) for job, state in done.get(one.run, ()) if state.kind == "done"]
        sides.append({seed: result for seed, result in results if wanted in result})
    seeds = sorted(sides[0].keys() & sides[1].keys())
    if not seeds:
        return None
    clips = sorted(set.intersection(*(set(side[seed][wanted]) for side in sides for seed in seeds)))
    order = resamples(len(clips), RESAMPLES, 0)
    if figure.pooled:
        gain, gains = (
            np.mean([np.subtract(*(_pooled(side[s], clips, figure.key, data) for side in sides)) for s in seeds], 0)
            for data in (Resampling(len(clips)), Resampling(len(clips), order))
        )
    else:
        by_clip = np.mean([[sides[0][s]["clips"][c] - sides[1][s]["clips"][c] for c in clips] for s in seeds], 0)
        gain, gains = by_clip.mean(keepdims=True), by_clip[order].mean(1)
    low, high = np.percentile(figure.factor * gains, [2.5, 97.5])
    return Answer(float(figure.factor * gain[0]), float(low), float(high), len(seeds))


def _pooled(result: Mapping, clips: Sequence[str], key: str, data: Resampling) -> np.ndarray:
    """(R,) a figure of each of R resamplings of the clips."""
    matrices = np.zeros((len(clips), result["classes"], result["classes"]))
    for matrix, clip in zip(matrices, clips, strict=True):
        for truth, predicted, pixels in result["confusions"][clip]:
            matrix[truth, predicted] = pixels
    return confusion_figures(data.total(matrices))[key]


def parameters(config) -> int:
    """Numbers that the config's method learns or keeps frozen; statistics of norms are none."""
    return _parameters(json.dumps(config.method.to_dict(), sort_keys=True))


@functools.cache
def _parameters(options: str) -> int:
    import jax

    import avs_jax

    shapes = jax.eval_shape(avs_jax.create(**json.loads(options)).init, jax.random.key(0))
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes["params"]))


def _number(value: float | None) -> float:
    return math.nan if value is None else value
