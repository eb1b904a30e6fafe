"""The three methods train, evaluate and resume alike on one device, on eight and in two processes."""

import os
import shutil
import signal
import subprocess
import sys

import distributed_runs as runs
import pytest

METHODS = ("tpavi", "cavp", "transavs")
LAYOUTS = {
    "eight devices": {"devices": 8},
    "eight devices, fsdp": {"devices": 8, "flags": ["--config.mesh.fsdp=2"]},
    "two processes": {"count": 2},
    "two processes, fsdp": {"count": 2, "flags": ["--config.mesh.fsdp=2"]},
}
pytestmark = pytest.mark.slow


def train(workdir, method, *flags, **options):
    return runs.train(workdir, method, *options.pop("flags", ()), *flags, **options)


@pytest.fixture(scope="module", params=METHODS)
def one(request, tmp_path_factory):
    workdir = tmp_path_factory.mktemp(request.param) / "run"
    train(workdir, request.param)
    return request.param, workdir


@pytest.mark.parametrize("layout", ["eight devices", "two processes, fsdp"])
def test_the_same_losses(one, layout, tmp_path):
    """BatchNorm, CAVP's pairs and anchors, TransAVS's dropout, matching and normalisers included."""
    method, wanted = one
    train(tmp_path, method, **LAYOUTS[layout])
    runs.assert_same_run(tmp_path, wanted)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("small") / "run"
    train(workdir, "small", "--config.checkpoint.every_steps=1", "--config.checkpoint.keep=3")
    return workdir


@pytest.mark.parametrize("layout", ["eight devices, fsdp", "two processes"])
def test_the_small_method(small, layout, tmp_path):
    train(tmp_path, "small", **LAYOUTS[layout])
    runs.assert_same_run(tmp_path, small)


def test_evaluation_is_the_same_to_the_bit(small, tmp_path):
    """Five clips are no multiple of two processes, nor of eight devices."""
    wanted, table = runs.evaluate(small, tmp_path / "one")
    for name, options in (("eight", {"devices": 8}), ("two", {"count": 2}), ("two of two", {"count": 2, "devices": 2})):
        found, other = runs.evaluate(small, tmp_path / name, **options)
        assert found["figures"] == wanted["figures"] and found["intervals"] == wanted["intervals"], name
        assert other == table, name


def test_a_run_goes_on_elsewhere_and_back(small, tmp_path):
    """One device, then two processes that split the state, then one device: each a step."""
    train(tmp_path, "small", steps=1)
    train(tmp_path, "small", steps=2, **LAYOUTS["two processes, fsdp"])
    train(tmp_path, "small", steps=3)
    wanted = [row for row in runs.rows(small) if "loss" in row]
    found = [row for row in runs.rows(tmp_path) if "loss" in row]
    assert [row["loss"] for row in found] == pytest.approx([row["loss"] for row in wanted], rel=1e-5)


def test_process_zero_is_killed(tmp_path):
    """jax aborts the other then; it still says what happened, and stops in order."""
    processes = runs.endless(tmp_path)
    try:
        runs.wait_for_a_step(processes[0])
        os.kill(processes[0].pid, signal.SIGKILL)
    finally:
        _, (status, output) = runs.ends(processes)
    assert status == 1
    assert "error: process 0 of 2 was lost" in output.splitlines()[-1], output


def test_an_error_in_one_process_stops_all(small, tmp_path):
    """A folder that only one of them cannot read: here, a file where its metrics should go."""
    shutil.copytree(small, tmp_path / "run")
    (tmp_path / "run" / "metrics.jsonl").unlink()
    (tmp_path / "run" / "metrics.jsonl").mkdir()
    flags = (f"--config={runs.RECIPE}:steps=6", f"--workdir={tmp_path / 'run'}")
    (first, said), (second, heard) = runs.ends(runs.start("train", *flags, count=2))
    assert first in (1, 2) and second == 1
    assert "metrics.jsonl" in said and "process 0 of 2 stopped: " in heard and "metrics.jsonl" in heard


def test_the_local_launcher(tmp_path):
    command = [sys.executable, "experiments/launch/local.py", "2", "-m", "avs_jax.train", f"--config={runs.RECIPE}"]
    environment = {**os.environ, "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    done = subprocess.run([*command, f"--workdir={tmp_path / 'run'}"], cwd=runs.ROOT, env=environment, text=True,
                          capture_output=True, timeout=240)  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert "[0] step 3/3" in done.stdout
    done = subprocess.run([*command, f"--workdir={tmp_path / 'bad'}", "--config.mesh.fsdp=3"], cwd=runs.ROOT,
                          env=environment, text=True, capture_output=True, timeout=240)  # fmt: skip
    assert done.returncode == 2 and "[1] error: mesh.fsdp: expected " in done.stdout, done.stdout
