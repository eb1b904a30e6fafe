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
      whatever `work` raises; items not yet begun are dropped, those under way are finished, as on a KeyboardInterrupt.
    """
    if workers == 0:
        for position, item in enumerate(items):
            yield position, work(item)
        return
    waiting = deque(enumerate(items))
    while waiting:
        # A process that dies takes its pool down: all that was under way is tried again, each item by itself.
        for entry in (yield from _until_crash(work, waiting, min(workers, len(waiting)))):
            if (yield from _until_crash(work, deque([entry]), 1)):
                yield entry[0], Crashed


def _until_crash(work, waiting: deque, workers: int) -> Generator[tuple[int, Any], None, list[tuple[int, Any]]]:
    """Works `waiting` off; after a crash returns the entries that were under way."""
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_begin)
    running: dict[Any, tuple[int, Any]] = {}
    try:
        while waiting or running:
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
