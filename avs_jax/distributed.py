"""Several processes as one run: how they find each other, and how all stop when one does.

`jax.distributed` brings them together, over a service that process 0 runs. It has two manners this file makes up for:
what goes wrong while joining, or when a process dies, aborts the others from C++ in a screenful of stack; and a process
that leaves by an error of its own waits for the others, which wait for it. Here every process tells the others, through
the service's table of keys, that it lives (`<ROOM>/alive/<process>`) and why it stops (`<ROOM>/stopped/<process>`), and
a thread in each looks: they stop within LOST_AFTER and a few seconds, with one line that names the process.
"""

import contextlib
import ctypes
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from typing import NamedTuple

from avs_jax.errors import InputError

ROOM = "avs_jax"
JOIN_WITHIN = 300.0  # seconds in which all processes must come; another number: AVS_JAX_JOIN_WITHIN
LOST_AFTER = 60.0  # seconds without a sign of life after which a process is lost; another number: AVS_JAX_LOST_AFTER
LOOK_EVERY = 2.0  # seconds
LINGER = 10.0  # seconds that process 0 stays to tell why it stops
# In the text of an error: another process, or the way to it, failed. Who it was is known a little later.
OTHERS = ("Gloo", "NCCL", "UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED", "ABORTED", "coordination service",
          "Connection ", "arrier", "eartbeat")  # fmt: skip
HOW = (
    "Give --coordinator=<host:port of process 0> --process_count=<N> --process_id=<0..N-1>, or the variables "
    "JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID, or start under SLURM, Open MPI or Kubernetes, or "
    "on a TPU pod."
)


class Asked(NamedTuple):
    """What a command was told of its processes; None: the environment knows."""

    coordinator: str | None = None
    count: int | None = None
    index: int | None = None


def add_arguments(add) -> None:
    """Adds the options to a command; add(name, kind, help) for kind bool, int or str."""
    add("distributed", bool, "Join the other processes of a TPU pod, SLURM, MPI or Kubernetes job.")
    add("coordinator", str, "host:port of process 0, where nothing else says so; with the next two.")
    add("process_count", int, "Number of processes.")
    add("process_id", int, "Which of them this is: 0 to process_count - 1.")


def requested(options) -> Asked | None:
    """What `add_arguments`' options, attributes of `options`, ask for; None: a process on its own.

    Raises:
      InputError: only some of them are given, or one makes no sense.
    """
    given = Asked(options.coordinator, options.process_count, options.process_id)
    if not options.distributed and given == Asked():
        return None
    if given == Asked():
        return _from_environment()
    for name, value in zip(("coordinator", "process_count", "process_id"), given, strict=True):
        if value is None:
            raise InputError(f"--{name}", expected="to be given, as the other two are", found="nothing", hint=HOW)
    return _checked(given, ("--coordinator", "--process_count", "--process_id"))


def _from_environment() -> Asked:
    names = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    coordinator, *texts = (os.environ.get(name) or None for name in names)
    numbers = []
    for name, text in zip(names[1:], texts, strict=True):
        if text is not None and not text.isdecimal():
            raise InputError(name, expected="a whole number", found=repr(text))
        numbers.append(None if text is None else int(text))
    return _checked(Asked(coordinator, *numbers), names)


def _checked(asked: Asked, names) -> Asked:
    coordinator, count, index = asked
    if coordinator is not None:
        host, _, port = coordinator.rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
            raise InputError(
                names[0], expected="host:port of process 0, such as 10.0.0.1:8476", found=repr(coordinator)
            )
    if count is not None and count < 1:
        raise InputError(names[1], expected="at least 1", found=str(count))
    if index is not None and not 0 <= index < (count or index + 1):
        expected = "0" if count == 1 else f"0 to {count - 1}" if count else "at least 0"
        raise InputError(names[2], expected=expected, found=str(index))
    return asked


@contextlib.contextmanager
def joined(asked: Asked | None, *, preemption: bool = True) -> Iterator[None]:
    """A block that runs as one of several processes, or, with None, on its own.

    It must come before any use of a device. An error in the block, or in another process, ends this process: it is told
    in one line, and what has not been closed by then stays as it is on disk, which a later run copes with.

    Args:
      preemption: SIGTERM does not end the process, but is noted by `multihost_utils.reached_preemption_sync_point`.
    Raises:
      InputError: the processes cannot find each other.
    """
    if asked is None:
        yield
        return
    watch = _join(asked, preemption)
    try:
        yield
    except BaseException as error:  # Ctrl-C, too
        watch.leave_by(error)
    watch.finish()


def _join(asked: Asked, preemption: bool) -> "_Watch":
    import jax
    import numpy as np
    from jax._src import distributed  # the client has no public name
    from jax.experimental import multihost_utils

    within = _seconds("AVS_JAX_JOIN_WITHIN", JOIN_WITHIN)
    lost_after = _seconds("AVS_JAX_LOST_AFTER", LOST_AFTER)
    jax.config.update("jax_enable_preemption_service", preemption)
    timer = threading.Timer(within, _give_up, [asked, within])  # jax's own timeout aborts
    timer.daemon = True
    timer.start()
    try:
        jax.distributed.initialize(
            *asked, initialization_timeout=int(within) + 60, heartbeat_timeout_seconds=int(lost_after) + 40
        )  # fmt: skip
    except (ValueError, TypeError, RuntimeError, KeyError, IndexError, OSError) as error:
        text = " ".join(str(error).split())
        if "start RPC server" in text:
            raise InputError(asked.coordinator or "coordinator", expected="a free port, on which process 0 can listen",
                             found="one that is in use", hint="Does an earlier run still live?") from error  # fmt: skip
        raise InputError(
            "--distributed", expected="processes that can find each other", found=text, hint=HOW
        ) from error
    finally:
        timer.cancel()
    state = distributed.global_state
    watch = _Watch(state.client, state.process_id, state.num_processes, lost_after)
    watch.start()
    meet(lambda: multihost_utils.process_allgather(np.zeros(1, np.float32)), "gather")
    return watch


def meet(collective: Callable[[], object], name: str) -> None:
    """Runs a first, small collective when all processes have come to it. On CPUs processes that meet for the first time
    wait 30 s for each other and no longer, which is less than one may need to compile a step that another has cached.

    Args:
      collective: between the same groups of devices as the later, large ones.
      name: another one for each call.
    """
    from jax._src import distributed

    client = distributed.global_state.client
    if client is not None:
        client.wait_at_barrier(f"{ROOM} {name}", int(1000 * _seconds("AVS_JAX_JOIN_WITHIN", JOIN_WITHIN)))
        collective()


def _seconds(name: str, default: float) -> float:
    text = os.environ.get(name, "")
    try:
        value = float(text or default)
    except ValueError:
        value = 0.0
    if not 1 <= value < 1e6:
        raise InputError(name, expected="seconds, at least 1", found=repr(text))
    return value


def _give_up(asked: Asked, within: float) -> None:
    """Not all have come in time."""
    where, found = asked.coordinator or "the coordinator", "not all processes came"
    if asked.coordinator and asked.index:
        host, _, port = asked.coordinator.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=2).close()
            found += f", though somebody answers at {where}"
        except OSError as error:
            found = f"nobody answers at {where} ({error.strerror or error})"
    count = f"all {asked.count} processes" if asked.count else "all processes"
    who = "" if asked.index is None else f"process {asked.index}: "
    expected = f"{count} to join at {where} within {within:.0f} s"
    hint = "Is process 0 running, its address right, its port open, every process_id given once?"
    _exit(f"error: {InputError(who + '--distributed', expected=expected, found=found, hint=hint)}", 2)


class _Watch(threading.Thread):
    """Tells the other processes of this one, and looks after them."""

    def __init__(self, client, index: int, count: int, lost_after: float):
        super().__init__(name="watch", daemon=True)
        self._client, self.index, self.count, self.lost_after = client, index, count, lost_after
        self._every = min(LOOK_EVERY, lost_after / 4)
        self._finishing, self._leaving, self._done = False, False, threading.Event()
        self._beats = {i: ("", time.monotonic()) for i in range(count)}  # process -> its last beat, seen when
        self._looked = time.monotonic()
        _abort_later()
        if index:
            threading.Thread(target=self._doubt, name="doubt", daemon=True).start()

    def _doubt(self):
        """jax's client answers nothing once it has begun to abort. Is process 0 there at all?"""
        from jax._src import distributed

        host, _, port = distributed.global_state.coordinator_address.rpartition(":")
        while not self._done.wait(0.5):
            if time.monotonic() - self._looked > self._every + 1.5 and not self._finishing:
                try:
                    socket.create_connection((host.strip("[]"), int(port)), timeout=2).close()
                except ConnectionRefusedError as error:
                    self._gone(error)
                except OSError:
                    pass  # slow is not gone

    def _gone(self, error):
        line = self._words(0, f"was lost, and with it the service of all ({_line(error)})")
        _exit(line, 1)  # there is nobody left to tell

    def run(self):
        beat = 0
        while not self._done.wait(self._every):
            beat += 1
            try:
                self._client.key_value_set(f"{ROOM}/alive/{self.index}", str(beat), allow_overwrite=True)
                stopped = self._read("stopped")
                if self.index == 0 and not stopped:
                    self._look()
                self._looked = time.monotonic()
            except Exception as error:
                if self._finishing or self._done.is_set():
                    return
                self._gone(error)
            for index in sorted(stopped.keys() - {self.index} if not self._leaving else ()):
                self._follow(index, stopped[index])

    def _read(self, what: str) -> dict[int, str]:
        found = self._client.key_value_dir_get(f"{ROOM}/{what}/")
        return {int(key.rpartition("/")[2]): value for key, value in found}

    def _look(self):
        """Process 0: whose beats have ceased?"""
        now, beats = time.monotonic(), self._read("alive")
        for index in range(1, self.count):
            beat = beats.get(index, "")
            if beat != self._beats[index][0]:
                self._beats[index] = beat, now
            elif now - self._beats[index][1] > self.lost_after:
                self._tell(index, f"was lost: no sign of life for {self.lost_after:.0f} s. It was killed, ran out of "
                           "memory, or its host is down")  # fmt: skip

    def _tell(self, index: int, why: str):
        with contextlib.suppress(Exception):  # told already, or nobody is there to be told
            self._client.key_value_set(f"{ROOM}/stopped/{index}", why)

    def _follow(self, index: int, why: str):
        self._leave(self._words(index, why), 1)

    def _words(self, index: int, why: str) -> str:
        return (
            f"error: process {index} of {self.count} {why}; process {self.index} stops too. "
            "The same command, for all processes, goes on from the last checkpoint."
        )

    def _leave(self, line: str, status: int):
        """Process 0 goes last: the others could not ask any more."""
        print(line, file=sys.stderr, flush=True)
        self._tell_left()
        end = time.monotonic() + LINGER
        while self.index == 0 and time.monotonic() < end:
            with contextlib.suppress(Exception):
                left = self._read("left")
                lost = [i for i, why in self._read("stopped").items() if "was lost" in why]
                if len({*left, *lost}) >= self.count:
                    break
            time.sleep(0.2)
        _exit("", status)

    def _tell_left(self):
        with contextlib.suppress(Exception):
            self._client.key_value_set(f"{ROOM}/left/{self.index}", "", allow_overwrite=True)

    def leave_by(self, error: BaseException):
        """Ends this process by its error, and the others by its telling; never returns. If the error looks as if
        another process had failed, that one is waited for to be found out, which ends this one as well."""
        from avs_jax import cli

        others = any(word in _texts(error) for word in OTHERS)
        if others:
            self._done.wait(self.lost_after + 3 * self._every)
        self._leaving = True
        if isinstance(error, SystemExit | KeyboardInterrupt):
            status = error.code if isinstance(getattr(error, "code", None), int) else 1
        else:
            try:
                status = cli.status_of(lambda: _raise(error))
            except Exception:  # what nobody foresaw
                status = 1
                if others:
                    print(f"error: the processes could not work together: {_line(error)}", file=sys.stderr)
                else:
                    traceback.print_exception(error)
        self._tell(self.index, f"stopped: {_line(error)}")
        self._leave(f"process {self.index} of {self.count} stops, and the others with it.", status)

    def finish(self):
        """Waits for the others to come to their end, too."""
        import jax

        self._finishing = True
        try:
            jax.distributed.shutdown()
        finally:
            self._done.set()
        signal.signal(signal.SIGABRT, signal.SIG_DFL)


def _raise(error: BaseException):
    raise error


def _texts(error: BaseException | None) -> str:
    """What it says, and what it was caused by."""
    found = []
    while error is not None:
        found.append(str(error))
        error = error.__cause__ or error.__context__
    return "\n".join(found)


def _line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    kind = "" if isinstance(error, InputError) else f"{type(error).__name__}: "
    return f"{kind}{text[:300]}".removesuffix(".")


def _abort_later() -> None:
    """If jax's client aborts the process, because process 0 is gone, it sleeps first: the watch then says so and ends
    the process in order. The handler is C's `sleep` itself, called with the signal's number: 6 seconds."""
    if os.name != "posix" or threading.current_thread() is not threading.main_thread():
        return
    libc = ctypes.CDLL(None)
    libc.signal.argtypes, libc.signal.restype = [ctypes.c_int, ctypes.c_void_p], ctypes.c_void_p
    libc.signal(signal.SIGABRT, ctypes.cast(libc.sleep, ctypes.c_void_p))


def _exit(line: str, status: int) -> None:
    """At once: an orderly end would wait for the others."""
    if line:
        print(line, file=sys.stderr)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(status)
