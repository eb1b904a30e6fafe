"""What `forked_commands` puts into a command's process to disturb it at a chosen moment; most of all to kill it.

The process sends SIGKILL to itself: no handler, no `finally`, no flush, as in a power cut. It says where on standard
error.
"""

import os
import resource
import signal
import sys
import threading
import time

# What Python tells an audit hook of, just before it is done; Orbax writes arrays in C++, which a clock hits.
WRITES = {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "shutil.rmtree"}


def install(moment: str = "", n: int = 1, delay: float = 0.0, inside: str = "", number: int = signal.SIGKILL,
            only: str = "", full: int = 0, crash: str = "", devices: int = 0):  # fmt: skip
    """Arms one disturbance.

    Args:
      moment: "step": when the n-th step of this process has been handed to the devices.
        "evaluation": in the n-th clip that is evaluated.
        "save": when the n-th save begins.
        "saving": in the background of the n-th save, all files written but none renamed yet, `delay` seconds later;
          the training goes on meanwhile.
        "files": before the n-th change of a file or folder under `inside`; with `only`, of those that begin so.
        "line": in the middle of the n-th line of metrics or timings.
        "clock": after `delay` seconds.
      number: of the signal. Another one than SIGKILL is sent once, and the process goes on.
      full: in place of a signal: from now on no file can grow beyond so many bytes, as on a full disk.
      crash: in place of a signal: RuntimeError with this message.
      devices: simulated CPU devices; 0: one.
    """
    if devices:
        os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={devices}"
    if moment:
        count = _Count(n, lambda: _disturb(number, full, crash))
        globals()[f"_{moment}"](count, delay, inside, only)


def _disturb(number, full, crash):
    if crash:
        raise RuntimeError(crash)
    if full:  # Python ignores SIGXFSZ, so that writes fail with EFBIG
        resource.setrlimit(resource.RLIMIT_FSIZE, (full, resource.RLIM_INFINITY))
    else:
        os.kill(os.getpid(), number)


class _Count:
    """Acts at the n-th time that it is told of something."""

    def __init__(self, n, act):
        self.left, self.act, self.lock = n, act, threading.Lock()

    def __call__(self, what):
        with self.lock:
            self.left -= 1
            now = self.left == 0
        if now:
            os.write(2, f"\n<{what}>\n".encode())
            self.act()


def _step(count, *_):
    from avs_jax.training.loop import Loop

    run = Loop.run

    def counted(self, *args, **options):
        step = self._step

        def stepped(state, batch):
            result = step(state, batch)
            count("step")
            return result

        self._step = stepped
        return run(self, *args, **options)

    Loop.run = counted


def _evaluation(count, *_):
    from avs_jax.metrics import streaming

    fetch = streaming._fetch

    def counted(*args):
        os.write(2, b"<clip>\n")
        count("evaluation")
        return fetch(*args)

    streaming._fetch = counted


def _save(count, *_):
    from avs_jax.training.checkpoint import Checkpoints

    def save(self, *args, save=Checkpoints.save, **options):
        self.wait()
        count("save")
        return save(self, *args, **options)

    Checkpoints.save = save


def _saving(count, delay, *_):
    from orbax.checkpoint import CheckpointManager

    finalize = CheckpointManager._finalize

    def slow(*args):
        if count.left == 1:
            time.sleep(delay)
        count("saving")
        return finalize(*args)

    CheckpointManager._finalize = slow


def _files(count, _, inside, only):
    def heard(event, args):
        if event not in WRITES or not args:
            return
        path = os.fspath(args[0]) if isinstance(args[0], str | os.PathLike) else ""
        here = inside in path if os.path.isabs(path) else len(args) > 1 and isinstance(args[-1], int) and args[-1] >= 0
        if event == "open":
            writes = isinstance(args[1], str) and set(args[1]) & set("wax+")
            here = inside in path and bool(writes)
        what = f"{event} {path.rpartition(inside)[2]}"
        if here and what.startswith(only):
            count(f"files: {what}")

    sys.addaudithook(heard)


def _line(count, *_):
    from avs_jax.training import logging

    def torn(self, file, values, whole=logging.Log._line):
        if count.left == 1:
            file.write('{"step": 12, "lo')
            file.flush()
        count("line")
        whole(self, file, values)

    logging.Log._line = torn


def _clock(count, delay, *_):
    def wait():
        time.sleep(delay)
        count("clock")

    threading.Thread(target=wait, daemon=True).start()
