"""Leaving cleanly on SIGTERM and Ctrl-C: handlers only set a flag, which the loop and the evaluation look at.

Python runs a handler between two of its own instructions: while XLA compiles the first step, or waits for a device, the
signal is noted when that returns. Nothing is lost by it: before the first step there is nothing to save.
"""

import os
import signal
import threading

import jax


class Stopped(Exception):
    """The work in hand was left, because the run was asked to stop."""


class Interrupt:
    """Context in which SIGTERM and the first Ctrl-C ask to stop after the current step; a second Ctrl-C leaves at once.

    Attributes:
      signal: the number of the signal that asked, 0 for none. A command exits with status 128 + signal.
    """

    def __init__(self):
        self.signal = 0
        self._previous, self._asked = {}, 0

    def __enter__(self) -> "Interrupt":
        if threading.current_thread() is threading.main_thread():  # Python allows handlers nowhere else
            # Across processes they must agree where to stop: jax's own service hears SIGTERM then.
            signals = [] if jax.process_count() > 1 else [signal.SIGINT, signal.SIGTERM]
            self._previous = {s: signal.signal(s, self._handle) for s in signals}
        return self

    def __exit__(self, *_):
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def requested(self) -> bool:
        """Whether to stop here. Of several processes all must ask equally often: they agree at which time it is."""
        if jax.process_count() > 1 and not self.signal:
            from jax.experimental import multihost_utils

            self._asked += 1
            if multihost_utils.reached_preemption_sync_point(self._asked):
                self.signal = signal.SIGTERM
        return bool(self.signal)

    def check(self) -> None:
        """As `requested`, for work that is left in the middle.

        Raises:
          Stopped: stop here.
        """
        if self.requested():
            raise Stopped

    def _handle(self, number, frame):
        if self.signal and number == signal.SIGINT:
            os.write(2, b"\nleaving at once; the last checkpoint stands\n")
            os._exit(128 + number)
        self.signal = number
        # os.write: print may be half way through a line when the signal arrives
        os.write(2, f"\n{signal.Signals(number).name}: finishing the step and saving\n".encode())
