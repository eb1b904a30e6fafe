"""What a run writes down: metrics that resuming reproduces byte for byte, timings, TensorBoard, a progress line.

`metrics.jsonl` holds nothing but functions of (config, step); what the clock says goes to `timing.jsonl`.
"""

import contextlib
import json
import math
import os
import time
from pathlib import Path

from avs_jax.errors import TrainingError
from avs_jax.paths import is_remote, to_path
from avs_jax.training.bucket import LogFolder
from avs_jax.training.clock import START_UP, Clock, describe
from avs_jax.training.events import Events
from avs_jax.training.progress import say
from avs_jax.training.workdir import reason, writable


class Log:
    """Writes a run's metrics. Only the first process writes; on the others every method does nothing.

    Args:
      workdir: an existing folder, or one in a bucket, where files lag behind by up to a minute between checkpoints.
      step: the step the run resumes from (0 afresh): lines beyond it, and a line that a kill tore, are cut off.
      evaluated: whether that step's evaluation is in its checkpoint; if not, it is done again and its line cut off too.
      total: steps of the whole run, for the time left.
      batch_size: clips a step, for the rate.
      clock: where the run's time is counted.
      tensorboard: also write events for TensorBoard.
    Raises:
      InputError: the files cannot be written to. TrainingError: the disk is full; from every method that writes.
    """

    def __init__(self, workdir, *, step: int, evaluated: bool, total: int, batch_size: int, clock: Clock,
                 tensorboard: bool = True, active: bool = True):  # fmt: skip
        self.active, self.total, self.batch_size, self._clock = active, total, batch_size, clock
        self._events = self._bucket = None
        if not active:
            return
        workdir, names = to_path(workdir), ("metrics.jsonl", "timing.jsonl")
        if is_remote(workdir):
            self._bucket = LogFolder(workdir, names)
            workdir = self._bucket.local
        paths = [workdir / name for name in names]
        self._files = []
        for path in paths:
            with writable(path):
                self._files.append(_resume_lines(path, step, evaluated))
        if tensorboard:
            # The event file of a killed run may hold steps that are done again now: they are marked as purged.
            self._events = Events(workdir / "tensorboard", purge_step=step + 1 if step else 0)
        self.restart_clock(step)

    def restart_clock(self, step: int) -> None:
        """Starts a new interval for the rate: what lies before (compilation, evaluation, saving) is not training."""
        self._start, self._step, self._waited = time.perf_counter(), step, self._waiting()

    def _waiting(self) -> float:
        seconds = self._clock.seconds()
        return seconds["input wait"] + seconds["host to device"]

    def first_step(self, step: int) -> None:
        """Tells how long a start took, and keeps it out of the rates: the first step compiles."""
        if not self.active:
            return
        parts = self._clock.seconds()
        seconds = sum(parts[name] for name in START_UP)
        self._line(self._files[1], {"step": step, "first_step_s": seconds})
        say(f"first step after {_duration(seconds)} of loading and compiling")
        self.restart_clock(step)

    def train(self, step: int, metrics: dict[str, float]) -> None:
        """One step's metrics, and the rate since the last call."""
        if not self.active:
            return
        elapsed = max(time.perf_counter() - self._start, 1e-9)
        steps = max(step - self._step, 1)
        timing = {
            "clips_per_s": steps * self.batch_size / elapsed,
            "input_wait": (self._waiting() - self._waited) / elapsed,
            "eta_s": (self.total - step) * elapsed / steps,
        }
        self.restart_clock(step)
        self._write(step, metrics, timing)
        say(
            f"step {step}/{self.total}  loss {metrics['loss']:.4f}  {timing['clips_per_s']:.1f} clips/s  "
            f"eta {_duration(timing['eta_s'])}  input wait {timing['input_wait']:.0%}"
        )

    def evaluation(self, step: int, figures: dict[str, float], seconds: float) -> None:
        """The figures of an evaluation after `step`."""
        if not self.active:
            return
        self._write(step, {f"eval/{k}": v for k, v in figures.items()}, {"eval_s": seconds})
        head = (
            ("miou", "fscore", "audio_gain", "miou_all_classes", "f1", "fdr")
            if "f1" in figures
            else ("miou", "fscore", "audio_gain")
        )
        shown = {k: figures[k] for k in head if k in figures} or dict(list(figures.items())[:3])
        text = "  ".join(f"{k} {v:.4f}" for k, v in shown.items())
        say(f"eval at step {step}:  {text}  ({_duration(seconds)})")

    def breakdown(self, step: int) -> None:
        """Where the time of the run up to `step`, its end, went."""
        if not self.active:
            return
        seconds = self._clock.seconds()
        self._line(self._files[1], {"step": step, "seconds": seconds})
        say(describe(seconds))

    def _write(self, step, metrics, timing):
        for file, values in zip(self._files, (metrics, timing), strict=True):
            self._line(file, {"step": step, **{k: _json(v) for k, v in values.items()}})
        if self._events:
            values = {**metrics, **{f"timing/{k}": v for k, v in timing.items()}}
            self._events.add(step, {name if "/" in name else f"train/{name}": v for name, v in values.items()})
        if self._bucket:
            self._bucket.push_sometimes()

    def _line(self, file, values):
        with _written(file):
            file.write(json.dumps(values) + "\n")
            file.flush()

    def sync(self) -> None:
        """Makes sure of what was written: called before a checkpoint of the same step is."""
        if not self.active:
            return
        for file in self._files:
            with _written(file):
                file.flush()
                os.fsync(file.fileno())
        if self._events:
            self._events.flush()
        if self._bucket:
            self._bucket.push()

    def close(self) -> None:
        if not self.active:
            return
        for file in self._files:
            with contextlib.suppress(OSError):  # every line was flushed when it was written, and told of if not
                file.close()
        if self._events:
            self._events.close()
        if self._bucket:
            self._bucket.close()


@contextlib.contextmanager
def _written(file):
    try:
        yield
    except OSError as error:
        raise TrainingError(
            f"{file.name} could not be written: {reason(error)}; the checkpoints are as they were. "
            "When this is put right, the same command goes on from the last one."
        ) from error


def _resume_lines(path: Path, step: int, evaluated: bool):
    """Opens a file of JSON lines for appending, cut after the last whole line that the resumed run will not repeat."""
    file = open(path, "a+b")
    file.seek(0)
    end = 0
    for line in file:
        try:
            values = json.loads(line)
            repeated = any(k.startswith("eval") for k in values) and not evaluated and values["step"] == step
            if repeated or values["step"] > step or not line.endswith(b"\n"):
                break
        except (ValueError, KeyError, TypeError):  # a torn or foreign line, and all that follows it
            break
        end += len(line)
    file.truncate(end)
    file.close()
    return open(path, "a")


def _json(value: float) -> float | None:
    """JSON knows no NaN: an undefined figure is null."""
    return value if math.isfinite(value) else None


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds + 0.5), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"
