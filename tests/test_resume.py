"""A run that is killed, interrupted and restarted ends bitwise as one that never was."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp
import pytest

ROOT = Path(__file__).parent.parent
RECIPE = ROOT / "tests" / "recipes" / "small.py"


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


def arrays(workdir, step):
    """Every array of a checkpoint, by path."""
    found = {}
    for item in ("variables", "optimizer"):
        with ocp.StandardCheckpointer() as reader:
            tree = reader.restore(workdir / "checkpoints" / str(step) / item)
        leaves = ocp.tree.to_flat_dict(tree, sep="/")
        found |= {f"{item}/{k}": np.asarray(v) for k, v in leaves.items() if v is not None}
    return found


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("whole")
    code, output = finish(start(workdir))
    assert code == 0, output
    return workdir


def assert_same_run(a, b, step=30):
    assert (a / "metrics.jsonl").read_bytes() == (b / "metrics.jsonl").read_bytes()
    first, second = arrays(a, step), arrays(b, step)
    assert first.keys() == second.keys() and len(first) > 20
    for name in first:
        assert first[name].dtype == second[name].dtype and first[name].tobytes() == second[name].tobytes(), name


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
    assert_same_run(uninterrupted, tmp_path)
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
    assert_same_run(uninterrupted, tmp_path)


def test_finished_run_stays_as_it_is(uninterrupted):
    before = (uninterrupted / "metrics.jsonl").read_bytes()
    code, output = finish(start(uninterrupted))
    assert code == 0 and "resuming at step 30" in output
    assert (uninterrupted / "metrics.jsonl").read_bytes() == before
