"""Scalars for TensorBoard: a view of metrics.jsonl, whose loss never ends or stops a run.

tensorboardX's own writer hands events to a thread, which a full disk kills and whose full queue then blocks the run for
ever. Here they are written at once.
"""

import os
import time
from collections.abc import Mapping

from avs_jax.training.progress import say
from avs_jax.training.workdir import reason


class Events:
    """Writes an event file. After the first failure it says so once and writes no more.

    Args:
      folder: where TensorBoard looks for event files.
      purge_step: steps from here on in older event files are of a run that was killed, and are hidden; 0: none.
    """

    def __init__(self, folder, purge_step: int = 0):
        self._folder, self._writer = folder, None
        self._guarded(self._open, purge_step)

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """One step's values by name."""
        self._guarded(self._add, step, values)

    def flush(self) -> None:
        self._guarded(lambda: self._writer and self._writer.flush())

    def close(self) -> None:
        self._guarded(lambda: self._writer and self._writer.close())
        self._writer = None

    def _guarded(self, write, *args):
        try:
            write(*args)
        except Exception as error:  # whatever file system or cloud library is behind it
            self._writer = None
            say(f"TensorBoard's events are not written to {self._folder} any more: {reason(error)}", error=True)

    def _open(self, purge_step):
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog
        from tensorboardX.record_writer import directory_check

        directory_check(str(self._folder))
        # The name holds the time in seconds: two starts within one must not write to the same file.
        self._writer = EventsWriter(f"{self._folder}/events", f".{os.getpid()}")
        if purge_step:
            start = SessionLog(status=SessionLog.START)
            self._writer.write_event(Event(wall_time=time.time(), step=purge_step, session_log=start))

    def _add(self, step, values):
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.summary import scalar

        if self._writer is None:
            return
        for name, value in values.items():
            self._writer.write_event(Event(wall_time=time.time(), step=step, summary=scalar(name, value)))
