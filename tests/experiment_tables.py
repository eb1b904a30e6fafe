"""A paper's tables by name, and what finished runs would have left."""

import dataclasses
import importlib

from experiments import running
from experiments.tables import Setup, job_of


@dataclasses.dataclass(frozen=True)
class Tables:
    """The modules `experiments.<paper>_<name>`; tables are made for `setup` unless another one is asked for."""

    paper: str
    setup: Setup

    def table(self, name, setup=None):
        return importlib.import_module(f"experiments.{self.paper}_{name}").table(setup or self.setup)

    def cell(self, name, row, column, setup=None):
        return next(cell for r, c, cell in self.table(name, setup).cells() if (r, c) == (row, column))

    def job(self, name, row, column, setup=None):
        """The job of a cell's run with seed 0."""
        return job_of(self.cell(name, row, column, setup).run, setup or self.setup, 0)


def results(values, run, setup, margin=(0, 0), **more):
    """Done jobs with seeds 0, 1, ...

    Args:
      values: a dict of figures for each.
      margin: how far the intervals go below and above the figures.
      **more: other fields of the results.
    """
    out = []
    for seed, found in enumerate(values):
        intervals = {k: [v - margin[0], v + margin[1]] for k, v in found.items()}
        result = {"figures": found, "intervals": intervals, "clips": {}, "parameters": 5, "settings": {"clips": 2}}
        out.append((job_of(run, setup, seed), running.State("done", 4, {**result, **more})))
    return out
