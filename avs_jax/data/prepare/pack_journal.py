"""Which shards of a packed data set are written, kept beside them until the index says so."""

import contextlib
import fcntl
import json
import os
from collections.abc import Sequence
from pathlib import Path

from avs_jax.data.pipeline import difference
from avs_jax.data.prepare.pack_shards import Job, Shard, is_there
from avs_jax.data.sources import packed_index
from avs_jax.errors import InputError

JOURNAL = ".progress.jsonl"
_HINT = "Name another --output, or remove that folder."


class Journal:
    """A line for each finished shard, after one with what is packed and how. It is one process's at a time.

    Args:
      folder: of the shards; made where there is none.
      identity: what is packed and how: what is there already must be of the same.
      jobs: of every shard.
    Attributes:
      done: position in `jobs` -> a shard whose file is there as it was written.
      complete: whether the index is there too, and all of its shards.
    Raises:
      InputError: the folder holds something else, or another data set, or is being written by another process.
    """

    def __init__(self, folder: Path, identity: dict, jobs: Sequence[Job]):
        self.folder, self.path, self.done = folder, folder / JOURNAL, {}
        index = folder / packed_index.INDEX
        if folder.exists() and not folder.is_dir():
            raise InputError(folder, expected="a folder", found="a file", hint=_HINT)
        strangers = not (self.path.exists() or index.exists()) and folder.exists() and any(folder.iterdir())
        if strangers:
            expected = "an empty folder, or one that this command began"
            raise InputError(folder, expected=expected, found="other files", hint=_HINT)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("a+")
        except OSError as error:
            raise InputError(folder, expected="a place to write to", found=str(error)) from None
        self._lock()
        try:
            known = _of_index(index, identity, jobs) if index.exists() else self._of_lines(identity)
            self.done = {k: shard for k, shard in known.items() if k < len(jobs) and is_there(folder, shard)}
            self.complete = index.exists() and len(self.done) == len(jobs)
            for part in folder.glob(".*.part"):
                part.unlink(missing_ok=True)
            self._write_anew(identity)
        except BaseException:
            self.close(keep=not index.exists())
            raise

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            hint = "Wait for it, or end it; the same command then goes on."
            raise InputError(self.folder, expected="no other process that packs here", found="one", hint=hint) from None

    def _of_lines(self, identity: dict) -> dict[int, Shard]:
        """The shards that the journal names."""
        self._file.seek(0)
        lines = self._file.read().splitlines()
        if lines and (begun := _line(lines[0])):
            _compare(self.folder, begun, identity)
        shards = {}
        for entry in filter(None, map(_line, lines[1:])):
            with contextlib.suppress(TypeError, KeyError, ValueError):
                number = int(entry.pop("number"))
                shards[number] = Shard(**entry)
        return shards

    def _write_anew(self, identity: dict) -> None:
        """Without what was cut short. In place: the lock is this file's; a kill meanwhile costs shards, no more."""
        self._file.seek(0)
        self._file.truncate()
        for line in (identity, *({"number": k, **shard._asdict()} for k, shard in sorted(self.done.items()))):
            self._file.write(json.dumps(line) + "\n")
        self._file.flush()

    def add(self, number: int, shard: Shard) -> None:
        """Notes a finished shard."""
        self.done[number] = shard
        self._file.write(json.dumps({"number": number, **shard._asdict()}) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def finish(self, index: dict) -> None:
        """Writes the index, in one piece, which says all from now on."""
        path, content = self.folder / packed_index.INDEX, packed_index.write(index)
        part = path.with_name(f".{path.name}.part")
        try:
            with open(part, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
        except OSError as error:
            raise InputError(path, expected="a place to write to", found=str(error)) from None
        self.close(keep=False)

    def close(self, keep: bool = True) -> None:
        """keep: the journal, to go on from."""
        if not keep:
            self.path.unlink(missing_ok=True)
        self._file.close()


def _line(text: str) -> dict | None:
    """A line of the journal; None where a kill has cut it short."""
    try:
        found = json.loads(text)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _of_index(path: Path, identity: dict, jobs: Sequence[Job]) -> dict[int, Shard]:
    """The shards that a finished index names."""
    index = packed_index.read(path)
    _compare(path.parent, index["plan"], identity)
    files = {shard["file"]: shard for shard in index["shards"]}
    shards, at = {}, 0
    for number, job in enumerate(jobs):
        entry = files.get(job.path.name, {"file": "", "clips": 0, "bytes": 0, "sha256": ""})
        own = slice(at, at + entry["clips"])
        tables = {name: {**found, "rows": found["rows"][own]} for name, found in index["tables"].items()}
        bad = [item for item in index["left_out"] if job.first <= item[0] < job.last]
        shards[number] = Shard(**entry, ids=index["ids"][own], audio=index["audio"][own], tables=tables, bad=bad)
        at = own.stop
    return shards


def _compare(folder: Path, found: dict, identity: dict) -> None:
    other = difference(found, identity)
    if other:
        name, was, now = other
        raise InputError(folder, expected=f"the packed data set of this command, with {now!r:.60} as '{name}'",
                         found=f"one with {was!r:.60}", hint=_HINT)  # fmt: skip
