"""Leaving cleanly on SIGTERM and Ctrl-C: handlers only set a flag, which the loop looks at between steps."""

import os
import signal
import threading


class Interrupt:
    """Context in which SIGTERM and the first Ctrl-C ask to stop after the current step; a second Ctrl-C leaves at once.

    Attributes:
      signal: the number of the signal that asked, 0 for none. A command exits with status 128 + signal.
    """

    def __init__(self):
        self.signal = 0
        self._previous = {}

    def __enter__(self) -> "Interrupt":
        if threading.current_thread() is threading.main_thread():  # Python allows handlers nowhere else
            import jax

            # Across processes they must agree where to stop: jax's own service hears SIGTERM then (see the loop).
            signals = [] if jax.process_count() > 1 else [signal.SIGINT, signal.SIGTERM]
            self._previous = {s: signal.signal(s, self._handle) for s in signals}
        return self

    def __exit__(self, *_):
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number, frame):
        if self.signal and number == signal.SIGINT:
            os.write(2, b"\nleaving at once; the last checkpoint stands\n")
            os._exit(128 + number)
        self.signal = number
        # os.write: print may be half way through a line when the signal arrives
        os.write(2, f"\n{signal.Signals(number).name}: finishing the step and saving\n".encode())
