"""The loop hands steps to the devices and looks at none of their results but where it logs, evaluates or saves."""

import numpy as np

from avs_jax.training.clock import Clock
from avs_jax.training.interrupt import Interrupt
from avs_jax.training.loop import Loop, Schedule


class OnDevice:
    """A number that notes at which step of the loop it was looked at."""

    def __init__(self, value, now, looks):
        self.value, self.now, self.looks = value, now, looks

    def __array__(self, dtype=None, copy=None):
        self.looks.append(self.now[0])
        return np.asarray(self.value, dtype)

    def __int__(self):
        return int(self.__array__())

    def block_until_ready(self):
        self.looks.append(self.now[0])
        return self


class State:
    def __init__(self, step, bad_step):
        self.step, self.bad_step = step, bad_step


class Nothing:
    """Checkpoints and a log that do nothing, whatever they are asked."""

    def __getattr__(self, name):
        return lambda *_, **__: None


def test_nothing_is_waited_for_between_logs():
    now, looks, logged = [0], [], []

    def step(state, batch):
        now[0] += 1
        made = {name: OnDevice(value, now, looks) for name, value in (("loss", 1.5), ("bad_step", -1))}
        return State(now[0], OnDevice(-1, now, looks)), made

    log = Nothing()
    log.train = lambda step, metrics: logged.append((step, metrics))
    schedule = Schedule(total=20, log=5, save=8, evaluate=99, first=0)
    loop = Loop(step, schedule, evaluate=lambda state: {"miou": 0.5}, checkpoints=Nothing(), log=log, clock=Clock(),
                interrupt=Interrupt(), identity={}, ids=None)  # fmt: skip
    loop.run(State(0, -1), iter(range(100)), figures={})
    assert logged == [(step, {"loss": 1.5}) for step in (1, 5, 10, 15, 20)]
    # At 1 the start is over; each log is written once the next step runs; 8 and 16 are saved; 20 is the end.
    assert set(looks) == {1, 2, 6, 8, 11, 16, 20}
