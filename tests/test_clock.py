"""Where a run's time goes: every second belongs to one part."""

import json

import pytest

from avs_jax.training.clock import PARTS, START_UP, Clock, describe


class Hands:
    """A clock that stands still until it is told to go on."""

    def __init__(self):
        self.time = 0.0

    def __call__(self):
        return self.time


def test_every_second_belongs_to_one_part():
    hands = Hands()
    clock = Clock(hands)
    hands.time = 1.0
    clock.enter("data")
    hands.time = 3.0
    clock.enter("step")
    with clock.part("input wait"):
        hands.time = 3.5
        with clock.part("host to device"):
            hands.time = 3.75
        hands.time = 4.0
    hands.time = 10.0
    seconds = clock.seconds()
    assert {k: v for k, v in seconds.items() if v} == {
        "imports": 1.0, "data": 2.0, "input wait": 0.75, "host to device": 0.25, "step": 6.0,
    }  # fmt: skip
    assert sum(seconds.values()) == hands.time and tuple(seconds) == PARTS


def test_a_part_ends_with_an_error():
    hands = Hands()
    clock = Clock(hands)
    clock.enter("step")
    with pytest.raises(OSError), clock.part("checkpoint"):
        hands.time = 2.0
        raise OSError
    hands.time = 5.0
    assert clock.seconds()["checkpoint"] == 2.0 and clock.seconds()["step"] == 3.0
    with pytest.raises(ValueError, match="no part of a run: 'lunch'"):
        clock.enter("lunch")


def test_the_text():
    seconds = dict.fromkeys(PARTS, 0.0) | {"imports": 1.0, "first step": 19.0, "step": 90.0, "evaluation": 10.0}
    start, loop = describe(seconds).splitlines()
    assert start == "time to the end of the first step 20.0 s: imports 1.0 s, first step 19.0 s"
    assert loop.startswith("time after it 100.0 s: step 90.0%, input wait 0.0%, ") and "evaluation 10.0%" in loop


def test_a_run_tells_it(tmp_path, capsys):
    from test_training import recipe

    from avs_jax.train import train

    train(recipe(steps=7), tmp_path)
    assert "time to the end of the first step" in capsys.readouterr().out
    lines = [json.loads(line) for line in (tmp_path / "timing.jsonl").read_text().splitlines()]
    assert lines[-1]["step"] == 7
    seconds = lines[-1]["seconds"]
    assert seconds.keys() == set(PARTS)
    assert all(seconds[k] > 0 for k in ("first step", "step", "input wait", "host to device", "evaluation",
                                        "checkpoint", "logging"))  # fmt: skip
    assert sum(seconds[k] for k in START_UP) > 0
