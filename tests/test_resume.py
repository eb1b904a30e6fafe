"""A run that is killed, interrupted and restarted ends bitwise as one that never was."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time

import pytest
from runs import RECIPE, ROOT, assert_same_run


def start(workdir, *flags, steps=30):
    command = [sys.executable, "-m", "avs_jax.train", f"--config={RECIPE}:steps={steps}", f"--workdir={workdir}",
               "--config.checkpoint.every_steps=5", "--config.eval.every_steps=12", *flags]  # fmt: skip
    return subprocess.Popen(command, cwd=ROOT, env={**os.environ, "PYTHONUNBUFFERED": "1"}, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT)  # fmt: skip


def finish(process):
    output, _ = process.communicate(timeout=300)
    return process.returncode, output


def wait_for_step(process, step):
    """Reads the progress until a step of at least `step` is reported; False when the run ended before."""
    for line in process.stdout:
        found = re.match(r"step (\d+)/", line)
        if found and int(found[1]) >= step:
            return True
    return False


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("whole")
    code, output = finish(start(workdir))
    assert code == 0, output
    return workdir


def test_killed_at_random_moments(uninterrupted, tmp_path):
    draw = random.Random(0)
    killed = 0
    for at in (0, 6, 15):
        process = start(tmp_path, f"--config.loader.threads={draw.choice([0, 2])}")
        assert wait_for_step(process, at)
        time.sleep(draw.uniform(0, 0.6))  # in a step, in an evaluation, in a save
        process.kill()
        finish(process)
        killed += process.returncode == -signal.SIGKILL
    code, output = finish(start(tmp_path))
    assert code == 0, output
    assert killed >= 2 and "resuming at step" in output
    assert_same_run(uninterrupted, tmp_path, 30)
    steps = [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(steps) and steps[-1] == 30


def test_interrupted_politely(uninterrupted, tmp_path):
    process = start(tmp_path)
    assert wait_for_step(process, 9)
    process.send_signal(signal.SIGTERM)
    code, output = finish(process)
    assert code == 143 and "SIGTERM: finishing the step and saving" in output and "Traceback" not in output
    saved = max(int(p.name) for p in (tmp_path / "checkpoints").iterdir())
    assert saved >= 9
    process = start(tmp_path, "--config.loader.workers=1")
    assert wait_for_step(process, saved + 3)
    process.send_signal(signal.SIGINT)
    code, output = finish(process)
    assert code == 130 and "SIGINT" in output and "Traceback" not in output
    code, output = finish(start(tmp_path))
    assert code == 0 and "resuming at step" in output
    assert_same_run(uninterrupted, tmp_path, 30)


def test_finished_run_stays_as_it_is(uninterrupted):
    before = (uninterrupted / "metrics.jsonl").read_bytes()
    code, output = finish(start(uninterrupted))
    assert code == 0 and "resuming at step 30" in output
    assert (uninterrupted / "metrics.jsonl").read_bytes() == before
