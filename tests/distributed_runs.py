"""Runs of tests/recipes/layouts.py as commands of one or several processes, and what they leave behind."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

ROOT = Path(__file__).parent.parent
RECIPE = ROOT / "tests" / "recipes" / "layouts.py"
LOST_AFTER = 4  # seconds; a run's own are a minute


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def start(module, *flags, count=1, devices=1, slurm=False, environment=None):
    """`count` processes of `python -m avs_jax.<module>`, of so many simulated devices each."""
    port, processes = free_port(), []
    for index in range(count):
        own = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
               "JAX_PLATFORMS": "cpu", "PYTHONUNBUFFERED": "1", "AVS_JAX_LOST_AFTER": str(LOST_AFTER)}  # fmt: skip
        command = [sys.executable, "-m", f"avs_jax.{module}", *flags]
        if slurm:  # as its tasks find them; the port is by the job's number otherwise
            own |= {"SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "127.0.0.1", "SLURM_NTASKS": str(count),
                    "SLURM_PROCID": str(index), "SLURM_LOCALID": str(index),
                    "JAX_COORDINATOR_PORT": str(port)}  # fmt: skip
            command += ["--distributed"]
        elif count > 1:
            command += [f"--coordinator=127.0.0.1:{port}", f"--process_count={count}", f"--process_id={index}"]
        whole = {**os.environ, **own, **(environment or {})}
        processes.append(subprocess.Popen(command, cwd=ROOT, env=whole, text=True, stdout=subprocess.PIPE,
                                          stderr=subprocess.STDOUT, start_new_session=True))  # fmt: skip
    return processes


def ends(processes, timeout=120):
    """(status, output) of each; they are killed if they do not end."""
    try:
        outputs = [process.communicate(timeout=timeout)[0] for process in processes]
    finally:
        for process in processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    return [(process.returncode, output) for process, output in zip(processes, outputs, strict=True)]


def train(workdir, method="small", *flags, steps=3, **options):
    found = ends(start("train", f"--config={RECIPE}:method={method},steps={steps}", f"--workdir={workdir}", *flags,
                       **options))  # fmt: skip
    assert [status for status, _ in found] == [0] * len(found), "\n".join(output for _, output in found)
    return found


def evaluate(workdir, output, *flags, **options):
    found = ends(start("evaluate", f"--workdir={workdir}", f"--output={output}", "--pictures=0", "--checkpoint=latest",
                       "--conditions=true,swap", *flags, **options))  # fmt: skip
    assert [status for status, _ in found] == [0] * len(found), "\n".join(output for _, output in found)
    return json.loads((output / "test.json").read_text()), (output / "test_clips.csv").read_text()


def rows(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def arrays(workdir, step):
    """Every array of a checkpoint, by path, whatever it was split over."""
    device, found = jax.sharding.SingleDeviceSharding(jax.devices()[0]), {}
    for item in ("variables", "optimizer"):
        with ocp.StandardCheckpointer() as reader:
            folder = workdir.resolve() / "checkpoints" / str(step) / item
            tree = reader.metadata(folder).item_metadata.tree
            shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=device), tree)
            read = ocp.tree.to_flat_dict(reader.restore(folder, shapes), sep="/")
        found |= {f"{item}/{k}": np.asarray(v) for k, v in read.items() if v is not None}
    return found


def assert_same_run(found, wanted, step=3, since=0):
    """The losses of every step within 1e-5 of each other, and the arrays at the end, up to rounding."""
    pairs = [
        pair for pair in zip(rows(found), rows(wanted), strict=True) if "loss" in pair[0] and pair[0]["step"] > since
    ]
    assert len(pairs) == step - since
    for a, b in pairs:
        assert a["step"] == b["step"]
        np.testing.assert_allclose(a["loss"], b["loss"], rtol=1e-5)
        np.testing.assert_allclose(a["grad_norm"], b["grad_norm"], rtol=1e-3)
    found, wanted = arrays(found, step), arrays(wanted, step)
    assert found.keys() == wanted.keys()
    for name, array in wanted.items():
        scale = max(float(np.abs(array).max()), 1e-3)
        np.testing.assert_allclose(found[name], array, rtol=0, atol=1e-3 * scale, err_msg=name)


def endless(workdir):
    """Two processes of a run that does not end by itself."""
    return start(
        "train", f"--config={RECIPE}:steps=100000", f"--workdir={workdir}", "--config.log.every_steps=5", count=2
    )


def wait_for_a_step(process):
    """Reads what the first process says until it has trained some steps."""
    for line in process.stdout:
        if re.match(r"step \d*0/", line):
            break
