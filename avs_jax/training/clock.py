"""Where a run's wall-clock time goes: every second belongs to exactly one part."""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping

# In the order in which they are told. "step" is what remains of the loop: handing steps to the devices and waiting for
# them; since nothing waits for the input meanwhile, a run that is limited by its devices spends nearly all of it there.
PARTS = (
    "imports",
    "data",  # opening the data set, checking its tables
    "initialise",  # random or pretrained weights, or the checkpoint that is resumed
    "embeddings",  # of frozen audio encoders; teaching them
    "first step",  # compiled, or found compiled
    "step",
    "input wait",
    "host to device",
    "evaluation",
    "checkpoint",
    "logging",
)
START_UP = PARTS[:5]


class Clock:
    """Adds up seconds by part. Parts nest: an inner one's seconds are not the outer one's.

    Args:
      now: a clock in seconds.
    """

    def __init__(self, now: Callable[[], float] = time.perf_counter):
        self._now, self._since, self._parts = now, now(), ["imports"]
        self._seconds = dict.fromkeys(PARTS, 0.0)

    def enter(self, part: str) -> None:
        """From now on time belongs to `part`, in place of the outermost part so far."""
        self._switch()
        self._parts[:1] = [self._known(part)]

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """A block whose time belongs to part `name`."""
        self._switch()
        self._parts.append(self._known(name))
        try:
            yield
        finally:
            self._switch()
            self._parts.pop()

    def seconds(self) -> dict[str, float]:
        """{part: seconds so far}."""
        self._switch()
        return dict(self._seconds)

    def _switch(self):
        now = self._now()
        self._seconds[self._parts[-1]] += now - self._since
        self._since = now

    def _known(self, part):
        if part not in self._seconds:
            raise ValueError(f"no part of a run: {part!r}")
        return part


def describe(seconds: Mapping[str, float]) -> str:
    """Two lines for a person: seconds of the start, shares of the loop.

    Args:
      seconds: as of `Clock.seconds`.
    """
    start = {k: seconds[k] for k in START_UP}
    loop = {k: seconds[k] for k in PARTS if k not in START_UP}
    whole = max(sum(loop.values()), 1e-9)
    text = ", ".join(f"{k} {v:.1f} s" for k, v in start.items() if v >= 0.05)
    lines = [f"time to the end of the first step {sum(start.values()):.1f} s: {text}"]
    shares = ", ".join(f"{k} {v / whole:.1%}" for k, v in loop.items())
    return "\n".join([*lines, f"time after it {whole:.1f} s: {shares}"])
