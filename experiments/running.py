"""Trains and evaluates the jobs of a table that are not done, each once, whichever table asks first.

A job's folder is a run's workdir, so that a second call resumes where a kill has left it; `result.json`, written last,
says that it is done. The folder's name carries a hash of the resolved recipe: a changed recipe never finds old figures.
"""

import gc
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from avs_jax.errors import TrainingError
from experiments.tables import Job

RESULT = "result.json"
CONDITIONS = ("true", "swap")  # the second one tells what the sound is worth


class Stopped(Exception):
    """A signal asked to stop; the state is saved. `signal`: its number."""

    def __init__(self, signal: int):
        super().__init__(signal)
        self.signal = signal


class State(NamedTuple):
    """How far a job is. kind: "missing", "partial", "failed", or "done"; step: of the newest checkpoint; result: of
    `result.json`, if done; message: what went wrong, if failed."""

    kind: str
    step: int = 0
    result: dict | None = None
    message: str = ""

    def __str__(self):
        if self.kind == "failed":
            return f"failed: {self.message}"
        return f"{self.kind}, step {self.step}" if self.kind in ("partial", "done") else self.kind


def state_of(job: Job, runs: Path) -> State:
    """What lies in the job's folder under `runs`."""
    folder = runs / job.folder
    try:
        result = json.loads((folder / RESULT).read_text())
        return State("done", result["step"], result)
    except (OSError, ValueError, KeyError):
        pass
    saved = [int(p.name) for p in (folder / "checkpoints").glob("*") if p.name.isdigit()]
    return State("partial", max(saved)) if saved else State("missing")


def complete(jobs: Sequence[Job], runs: Path) -> dict[str, State]:
    """Trains and evaluates those of `jobs`, in their order, that are not done.

    Args:
      jobs: those that others start from first (as `Table.runs` has them).
      runs: the folder of the jobs' folders.
    Returns:
      key -> State of every job; a run that diverged is "failed", and so are those that start from it.
    Raises:
      InputError: data or weights that are missing or do not fit.
      Stopped: see there.
    """
    states: dict[str, State] = {}
    for number, job in enumerate(jobs, 1):
        state = state_of(job, runs)
        if state.kind != "done":
            print(f"\n[{number}/{len(jobs)}] {job.folder}: {state}", flush=True)
            if job.start and states[job.start.key].kind != "done":
                state = State("failed", message=f"it starts from {job.start.folder}, which failed")
            else:
                state = _complete(job, runs)
        states[job.key] = state
    return states


def sparse(confusion) -> list[list[int]]:
    """(K, K) counts -> [true class, predicted class, pixels] of the pairs that occur: what a result keeps of a clip."""
    return [[t, p, n] for t, row in enumerate(confusion.tolist()) for p, n in enumerate(row) if n]


def _complete(job: Job, runs: Path) -> State:
    import jax

    from avs_jax.evaluate import evaluate_run
    from avs_jax.train import train
    from experiments import hearing

    folder, config = runs / job.folder, job.config.copy_and_resolve_references()
    if job.start:
        config.pretrained.method = str(runs / job.start.folder)
    elif config.tagging.steps:
        config.pretrained.audio = str(hearing.taught(config, runs / "hearing"))
        config.tagging.steps = 0
    try:
        result = train(config, folder)
    except TrainingError as error:
        print(f"{job.folder}: {error}", flush=True)
        return State("failed", message=str(error))
    if result.stopped_by:
        raise Stopped(result.stopped_by)
    step = int(result.state.step)
    parameters = sum(x.size for x in jax.tree.leaves(result.state.params))
    report = evaluate_run(folder, checkpoint=job.run.checkpoint, split="test", conditions=CONDITIONS, progress=False,
                          pictures=2)  # fmt: skip
    written = {"name": job.run.name, "seed": job.seed, "key": job.key, "step": step, "parameters": parameters,
               "start": job.start.folder if job.start else "",
               "clips": {row["id"]: row["j"] for row in report.rows if math.isfinite(row["j"])},
               **{k: v for k, v in report.to_json().items() if k in ("figures", "intervals", "settings")}}  # fmt: skip
    if report.confusions is not None:
        written["classes"] = len(report.classes)
        written["confusions"] = {
            row["id"]: sparse(matrix) for row, matrix in zip(report.rows, report.confusions, strict=True)
        }
    part = folder / f"{RESULT}.new"
    part.write_text(json.dumps(written) + "\n")
    part.replace(folder / RESULT)
    del result, report
    jax.clear_caches()  # the next run compiles its own programs; these would only take memory
    gc.collect()
    return state_of(job, runs)
