"""Work on many items in processes: interruptible, and not stopped by an item that takes its process down."""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any


class Crashed:
    """In place of a result: the item ended its process (a decoder's fault, or the memory was not enough)."""


def run(work: Callable[[Any], Any], items: Sequence[Any], workers: int) -> Iterator[tuple[int, Any]]:
    """(position, work(item)) of every item, in the order they finish.

    Args:
      work: a function of a module, which fresh processes can import.
      items: what it is called with, pickled on the way.
      workers: processes; 0 does the work here.
    Raises:
      KeyboardInterrupt: Ctrl-C, before the next result is waited for; whatever `work` raises. Items not yet begun are
        dropped, those under way are finished. A second Ctrl-C ends this process and the others at once.
    """
    if workers == 0:
        for position, item in enumerate(items):
            yield position, work(item)
        return
    waiting = deque(enumerate(items))
    with _Interruption() as interruption:
        while waiting:
            # A process that dies takes its pool down: all that was under way is tried again, each item by itself.
            for entry in (yield from _until_crash(work, waiting, min(workers, len(waiting)), interruption)):
                if (yield from _until_crash(work, deque([entry]), 1, interruption)):
                    yield entry[0], Crashed
        interruption.check()


class _Interruption:
    """Keeps the signals that would raise KeyboardInterrupt until `check`, where no lock is held.

    By itself the exception comes between any two instructions. Where it hits the main thread while this holds the lock
    of a future, nobody gives the lock back: the pool's own thread waits for it, and the shutdown for that thread.
    """

    def __init__(self):
        self._came, self._previous = False, {}

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():  # Python allows handlers nowhere else
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) is signal.default_int_handler:
                    self._previous[number] = signal.signal(number, self._keep)
        return self

    def __exit__(self, *_):
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _keep(self, number, frame):
        if self._came:  # the user does not want to wait for what is under way
            os.write(2, b"\ninterrupted\n")
            os._exit(128 + number)
        self._came = True

    def check(self):
        if self._came:
            raise KeyboardInterrupt


def _until_crash(
    work, waiting: deque, workers: int, interruption: _Interruption
) -> Generator[tuple[int, Any], None, list[tuple[int, Any]]]:
    """Works `waiting` off; after a crash returns the entries that were under way."""
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_begin)
    running: dict[Any, tuple[int, Any]] = {}
    try:
        while waiting or running:
            interruption.check()
            while waiting and len(running) < 2 * workers:  # one ahead each: no process waits, and little is lost
                running[pool.submit(work, waiting[0][1])] = waiting[0]
                waiting.popleft()
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                result = future.result()
                yield running.pop(future)[0], result
    except BrokenProcessPool:
        return list(running.values())
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    return []


def _begin() -> None:
    """In a new process: Ctrl-C is the parent's to handle, and the parent's end, however it came, is the child's too."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_follow_parent, daemon=True).start()


def _follow_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)
