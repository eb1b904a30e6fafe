"""The training loop: steps, metrics one step late, evaluations, checkpoints, and a clean way out."""

import math
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax

from avs_jax.errors import TrainingError
from avs_jax.training.checkpoint import Checkpoints
from avs_jax.training.clock import Clock
from avs_jax.training.interrupt import Interrupt, Stopped
from avs_jax.training.logging import Log
from avs_jax.training.progress import say
from avs_jax.training.state import TrainState


class Schedule(NamedTuple):
    """When the loop does what, in steps.

    total: where the run ends. log, save, evaluate: periods; all three also happen at the end.
    first: the first step that may be evaluated.
    """

    total: int
    log: int
    save: int
    evaluate: int
    first: int

    @classmethod
    def of(cls, config, total: int) -> "Schedule":
        """As the config says; a period of 0 or less is never."""
        never = total + 1
        periods = config.log.every_steps, config.checkpoint.every_steps, config.eval.every_steps
        log, save, evaluate = (p if p > 0 else never for p in periods)
        return cls(total, log, save, evaluate, config.eval.first_step)


class Loop:
    """One run's loop. Everything it does after step n is a function of n and the state, never of where it started.

    Args:
      step: the compiled training step; it takes the state's buffers.
      schedule: when to log, evaluate and save.
      evaluate: TrainState -> figures; raises `Stopped` where it was asked to stop.
      checkpoints, log, clock, interrupt: where to save, what to write to, where time is counted, who asks to stop.
      identity: saved with every checkpoint.
      ids: step (0-based) -> the ids of the clips it trains on, to name them.
    """

    def __init__(self, step: Callable, schedule: Schedule, *, evaluate: Callable, checkpoints: Checkpoints, log: Log,
                 clock: Clock, interrupt: Interrupt, identity: dict, ids: Callable):  # fmt: skip
        self._step, self._schedule, self._evaluate = step, schedule, evaluate
        self._checkpoints, self._log, self._clock, self._interrupt = checkpoints, log, clock, interrupt
        self._identity, self._ids = identity, ids
        self._pending = None  # (step, metrics on the device) not yet fetched

    def run(self, state: TrainState, batches: Iterator, *, figures: dict | None = None):
        """Trains from `state.step` to the end, or until asked to stop; the last state is saved either way.

        It is also saved when a batch cannot be read, and on any other error that leaves it whole.

        Args:
          state: donated to the first step.
          batches: on the devices, the first being that of step `state.step`.
          figures: the evaluation that was saved with `state`, if there was one.
        Returns:
          (state, the last evaluation's figures or None).
        Raises:
          TrainingError: loss or gradient was not finite; metrics or checkpoints cannot be written.
        """
        begin = step = int(state.step)
        if self._evaluation_due(step) and figures is None:  # stopped between a step and its evaluation
            figures = self._evaluated(step, state)
        self._log.restart_clock(step)
        self._clock.enter("first step")
        try:
            while step < self._schedule.total and not self._interrupt.requested():
                batch = self._next(batches)
                if batch is None:
                    break
                state, metrics = self._step(state, batch)
                step += 1
                if step == begin + 1:
                    jax.block_until_ready(metrics)  # the one step that is waited for: it tells how long a start takes
                    self._log.first_step(step)
                    self._clock.enter("step")
                self._flush()  # the step before is done, or nearly: the devices already have this one
                if step % self._schedule.log == 0 or step in (1, self._schedule.total):
                    self._pending = step, metrics
                evaluate = self._evaluation_due(step) and not self._interrupt.signal
                if evaluate or step % self._schedule.save == 0:
                    figures = self._pause(step, state, evaluate=evaluate) or figures
        except TrainingError:
            raise
        except Exception:
            if step > begin:
                self._rescue(step, state)
            raise
        if step > begin and self._checkpoints.latest() != step:  # asked to stop
            self._pause(step, state, evaluate=False)
        return state, figures

    def _rescue(self, step, state):
        """Saves the state of the last step before an error ends the run, if that has left it whole."""
        taken = any(leaf.is_deleted() for leaf in jax.tree.leaves(state))  # by the step that failed
        if taken or jax.process_count() > 1 or self._checkpoints.latest() == step:  # processes save together or never
            return
        try:
            self._pause(step, state, evaluate=False)
            self._checkpoints.wait()
            say(f"the state of step {step} was saved before this error:", error=True)
        except Exception as error:
            say(f"the state of step {step} could not be saved: {error}", error=True)

    def _next(self, batches):
        """The next batch, or None where the data processes died of the signal that asks this one to stop."""
        try:
            with self._clock.part("input wait"):
                return next(batches)
        except Exception:
            if not self._interrupt.signal:
                raise
            return None

    def _evaluation_due(self, step: int) -> bool:
        schedule = self._schedule
        return step > 0 and (step == schedule.total or (step >= schedule.first and step % schedule.evaluate == 0))

    def _pause(self, step, state, *, evaluate):
        """Saves first, then evaluates: whatever happens in a long evaluation, the state is safe."""
        self._flush()
        self._check(int(state.bad_step))
        with self._clock.part("checkpoint"):
            self._log.sync()
            self._checkpoints.save(step, state, identity=self._identity)
        figures = self._evaluated(step, state) if evaluate else None
        self._log.restart_clock(step)
        return figures

    def _evaluated(self, step, state):
        """The figures of a saved state, which its checkpoint has from now on; None if asked to stop meanwhile."""
        start = time.perf_counter()
        try:
            with self._clock.part("evaluation"):
                figures = {k: float(v) for k, v in self._evaluate(state).items() if math.isfinite(v)}
        except Stopped:
            return None
        self._log.evaluation(step, figures, time.perf_counter() - start)
        with self._clock.part("checkpoint"):
            self._log.sync()
            self._checkpoints.evaluated(step, figures)
        return figures

    def _flush(self):
        """Fetches and writes the metrics that wait."""
        if self._pending is None:
            return
        (step, metrics), self._pending = self._pending, None
        metrics = {k: float(v) for k, v in jax.device_get(metrics).items()}
        self._check(int(metrics.pop("bad_step")))
        with self._clock.part("logging"):
            self._log.train(step, metrics)
            self._checkpoints.check()

    def _check(self, bad_step: int):
        if bad_step < 0:
            return
        last = self._checkpoints.latest()
        good = f"the last good checkpoint is that of step {last}" if last is not None else "no checkpoint was saved yet"
        clips = ", ".join(self._ids(bad_step))
        raise TrainingError(
            f"step {bad_step + 1}: loss or gradient is not finite, on clips {clips}; {good}. "
            "Lower optimizer.lr, set optimizer.clip_norm, or look at these clips."
        )
