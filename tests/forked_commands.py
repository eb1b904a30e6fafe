"""Runs commands (`python -m avs_jax.train ...`) in processes of their own without paying for their imports each time.

One process imports the libraries once and forks a child for every command: what a test sees (exit status, output, what
is on disk) is that of a real process, in a fraction of a second. Children of root give up its right to ignore
permissions, so that a read-only folder is one.
"""

import contextlib
import ctypes
import json
import os
import runpy
import signal
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

LIBRARIES = (
    "absl.app", "av", "flax.linen", "grain", "jax.numpy", "ml_collections.config_flags", "optax",
    "orbax.checkpoint", "PIL.Image", "safetensors.numpy", "soundfile", "soxr", "tqdm", "avs_jax.training.embeddings",
    "avs_jax.training.checkpoint", "avs_jax.training.loop", "avs_jax.weights.conversion", "avs_jax.metrics",
    "avs_jax.data.pipeline", "avs_jax.methods.cavp", "avs_jax.methods.tpavi", "avs_jax.methods.transavs",
)  # fmt: skip


class Done(NamedTuple):
    """A command that has ended: its exit status (negative: the signal that ended it) and what it printed."""

    status: int
    out: str
    err: str


class Commands:
    """The process that forks the commands."""

    def __init__(self):
        root = Path(__file__).parent.parent
        env = {**os.environ, "PYTHONPATH": str(root), "PYTHONUNBUFFERED": "1", "JAX_PLATFORMS": "cpu"}
        self._server = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env
        )

    def run(self, *argv, cwd, timeout: float = 120, hook: tuple[str, dict] | None = None) -> Done:
        """Runs `python -m avs_jax.<argv[0]> argv[1:]` in the folder `cwd`.

        hook: (module of the tests, options): its `install(**options)` is called in the child before the command.
        """
        command = [str(a) for a in argv]
        request = {"argv": command, "cwd": str(cwd), "timeout": timeout, "hook": hook}
        self._server.stdin.write(json.dumps(request) + "\n")
        self._server.stdin.flush()
        reply = self._server.stdout.readline()
        assert reply, f"the process that forks commands died of {command}"
        return Done(**json.loads(reply))

    def close(self) -> None:
        self._server.stdin.close()
        self._server.wait(timeout=30)


def _serve() -> None:
    requests, replies = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    with open(os.devnull) as null:
        os.dup2(null.fileno(), 0)
    os.dup2(2, 1)  # a library that prints when it is imported
    for name in LIBRARIES:
        __import__(name)
    for line in requests:
        request = json.loads(line)
        pipes = [os.memfd_create(name) for name in ("out", "err")]
        child = os.fork()
        if child == 0:
            _become(request, pipes)
        status = _wait(child, request["timeout"])
        out, err = (_content(pipe) for pipe in pipes)
        replies.write(json.dumps({"status": status, "out": out, "err": err}) + "\n")
        replies.flush()


def _become(request, pipes) -> None:
    """The child: ends as the command does."""
    os.dup2(pipes[0], 1)
    os.dup2(pipes[1], 2)
    os.chdir(request["cwd"])
    _obey_permissions()
    name, *rest = request["argv"]
    sys.argv = [name, *rest]
    sys.path.insert(0, request["cwd"])  # as `python -m` does
    for module in [m for m in sys.modules if m == f"avs_jax.{name}"]:
        del sys.modules[module]  # or runpy warns
    signal.alarm(request["timeout"].__ceil__() + 5)
    status = 1
    try:
        if request["hook"]:
            name_of_hook, options = request["hook"]
            __import__(name_of_hook).install(**options)
        runpy.run_module(f"avs_jax.{name}", run_name="__main__", alter_sys=True)
        status = 0
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def _obey_permissions() -> None:
    """Gives up CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH and CAP_FOWNER (Linux), which let root write anywhere."""
    if os.geteuid() or not sys.platform.startswith("linux"):
        return
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    data = (ctypes.c_uint32 * 6)()
    if libc.capget(header, data) == 0:
        for capability in (1, 2, 3):
            data[0] &= ~(1 << capability)  # effective
            data[1] &= ~(1 << capability)  # permitted
        libc.capset(header, data)


def _wait(child: int, timeout: float) -> int:
    import time

    until = time.monotonic() + timeout
    while time.monotonic() < until:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _content(pipe: int) -> str:
    os.lseek(pipe, 0, os.SEEK_SET)
    with os.fdopen(pipe, "rb") as file:
        return file.read().decode(errors="replace")


if __name__ == "__main__":
    _serve()
