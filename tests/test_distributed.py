"""Processes that are one run: how they are asked for, how the state is split, that they train as one, how they stop."""

import os
import re
import signal
import types

import distributed_runs as runs
import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from avs_jax.distributed import Asked, requested
from avs_jax.errors import InputError
from avs_jax.training import sharding


def options(**given):
    return types.SimpleNamespace(
        **{"distributed": False, "coordinator": None, "process_count": None, "process_id": None} | given
    )


@pytest.fixture(autouse=True)
def no_environment(monkeypatch):
    for name in ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"):
        monkeypatch.delenv(name, raising=False)


# ---- What is asked for


def test_flags_and_environment_ask_for_processes(monkeypatch):
    assert requested(options()) is None
    assert requested(options(distributed=True)) == Asked()  # a cluster knows the rest
    given = options(coordinator="10.0.0.1:8476", process_count=4, process_id=3)
    assert requested(given) == Asked("10.0.0.1:8476", 4, 3)
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "[::1]:99")
    monkeypatch.setenv("JAX_NUM_PROCESSES", "2")
    monkeypatch.setenv("JAX_PROCESS_ID", "0")
    assert requested(options()) is None
    assert requested(options(distributed=True)) == Asked("[::1]:99", 2, 0)
    assert requested(given) == Asked("10.0.0.1:8476", 4, 3)


@pytest.mark.parametrize(
    "given, where",
    [
        ({"coordinator": "a:1"}, "--process_count"),
        ({"coordinator": "a:1", "process_count": 2}, "--process_id"),
        ({"process_count": 2, "process_id": 0}, "--coordinator"),
        ({"coordinator": "nowhere", "process_count": 2, "process_id": 0}, "--coordinator"),
        ({"coordinator": "a:70000", "process_count": 2, "process_id": 0}, "--coordinator"),
        ({"coordinator": "a:1", "process_count": 0, "process_id": 0}, "--process_count"),
        ({"coordinator": "a:1", "process_count": 2, "process_id": 2}, "--process_id"),
        ({"coordinator": "a:1", "process_count": 2, "process_id": -1}, "--process_id"),
    ],
    ids=str,
)
def test_half_a_request_is_refused(given, where):
    with pytest.raises(InputError) as error:
        requested(options(**given))
    assert error.value.where == where


@pytest.mark.parametrize("name, value", [("JAX_NUM_PROCESSES", "two"), ("JAX_PROCESS_ID", "-1")])
def test_a_bad_variable_is_refused(monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=f"^{name}: "):
        requested(options(distributed=True))


# ---- How the state is split


@pytest.mark.parametrize(
    "shape, fsdp, found",
    [
        ((3, 3, 64, 128), 4, P(None, None, None, "fsdp")),
        ((3, 3, 128, 64), 4, P(None, None, "fsdp")),
        ((3, 3, 128, 128), 4, P(None, None, None, "fsdp")),  # of equal ones the last
        ((130, 64), 4, P(None, "fsdp")),  # 4 divides the smaller one only
        ((130, 66), 4, P()),
        ((8, 4), 4, P()),  # small
        ((4096,), 4, P("fsdp")),
        ((4096,), 1, P()),
        ((), 4, P()),
    ],
    ids=str,
)
def test_the_largest_dimension_that_can_be_is_split(shape, fsdp, found):
    assert sharding.partition(shape, fsdp, min_size=64) == found


def test_devices_that_cannot_be_grouped():
    with pytest.raises(InputError) as error:
        sharding.layout(4, fsdp=jax.device_count() + 1)
    assert error.value.where == "mesh.fsdp"


@pytest.mark.parametrize("count", [2, 3])
def test_the_checksum_of_a_whole_is_that_of_its_shares(count):
    array = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)
    shares = [np.zeros_like(array) for _ in range(count)]
    for i in range(6):
        shares[i % count][:, i] = array[:, i]
    found = sharding.combined(np.array([sharding.crc(share) for share in shares], np.uint32), array.shape, array.dtype)
    assert found == sharding.crc(array)
    shares[0][1, 0] += 1
    assert sharding.combined([sharding.crc(share) for share in shares], array.shape, array.dtype) != found


# ---- Several processes train as one


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("one") / "run"
    runs.train(workdir)
    return workdir


def test_two_processes_train_as_one_device(one, tmp_path):
    """Found as SLURM's tasks find each other; the state split over both; with BatchNorm, dropout and augmentation."""
    (_, first), (_, second) = runs.train(tmp_path, "small", "--config.mesh.fsdp=2", count=2, slurm=True)
    assert "step 3/3" in first and "step" not in second  # only the first one speaks
    runs.assert_same_run(tmp_path, one)


def test_a_process_that_is_killed_stops_the_other(tmp_path):
    processes = runs.endless(tmp_path)
    try:
        runs.wait_for_a_step(processes[0])
        os.kill(processes[1].pid, signal.SIGKILL)
    finally:
        (status, output), _ = runs.ends(processes)
    assert status == 1
    line = [line for line in output.splitlines() if line.startswith("error: ")]
    assert len(line) == 1 and "process 1 of 2 was lost" in line[0] and "goes on from the last checkpoint" in line[0]
    assert "Traceback" not in output and "stack trace" not in output


def test_a_coordinator_that_is_not_there(tmp_path):
    flags = (f"--coordinator=127.0.0.1:{runs.free_port()}", "--process_count=2", "--process_id=1")
    [(status, output)] = runs.ends(
        runs.start(
            "train",
            f"--config={runs.RECIPE}",
            f"--workdir={tmp_path}",
            *flags,
            environment={"AVS_JAX_JOIN_WITHIN": "2"},
        )
    )
    assert status == 2
    assert re.fullmatch(
        r"error: process 1: --distributed: expected all 2 processes .* found nobody answers at .*\n", output
    )
    assert not list(tmp_path.iterdir())
