"""What was written so far, kept beside it, so that the same command goes on after an interruption."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

from avs_jax.data.prepare import vpo_write
from avs_jax.data.prepare.vpo_write import Written
from avs_jax.errors import InputError

JOURNAL, MANIFEST = ".progress.jsonl", "MANIFEST.json"
_HINT = "Name another --output, or remove that folder."


class Journal:
    """A line for each job that went well, after one with the fingerprint of inputs and options.

    Attributes:
      done: key of a job -> what it wrote, with paths relative to the output; files are there as it says.
    Raises:
      InputError: the folder holds something else, or another data set, or cannot be written.
    """

    def __init__(self, folder: Path, output: Path, fingerprint: str):
        self.path, self.output = folder / JOURNAL, output
        self.done: dict[str, Written] = {}
        if folder.exists():
            self._load(folder, fingerprint)
        lines = [fingerprint, *(_line(key, written) for key, written in self.done.items())]
        vpo_write.write_file(self.path, "".join(f"{line}\n" for line in lines))
        (folder / MANIFEST).unlink(missing_ok=True)  # it is to be written again, at the end
        self._file = self.path.open("a")

    def _load(self, folder: Path, fingerprint: str) -> None:
        if not folder.is_dir():
            raise InputError(folder, expected="a folder", found="a file", hint=_HINT)
        if self.path.is_file():
            found, *lines = self.path.read_text().splitlines() or [""]
        elif (folder / MANIFEST).is_file():
            found, lines = _fingerprint(folder / MANIFEST), []
        elif any(folder.iterdir()):
            expected = "an empty folder, or one that this command began"
            raise InputError(folder, expected=expected, found="other files", hint=_HINT)
        else:
            return
        if found != fingerprint:
            expected = "a data set of the same inputs and options"
            raise InputError(folder, expected=expected, found="one of others", hint=_HINT)
        for line in lines:
            with contextlib.suppress(ValueError, KeyError, TypeError):  # the last line may be cut short
                entry = json.loads(line)
                written = Written(entry["files"], tuple(entry["positions"]))
                if all(vpo_write.is_file(self.output / name, file) for name, file in written.files.items()):
                    self.done[entry["key"]] = written

    def add(self, key: str, written: Written) -> None:
        """Notes a job that went well."""
        files = {Path(name).relative_to(self.output).as_posix(): entry for name, entry in written.files.items()}
        self.done[key] = written._replace(files=files)
        self._file.write(_line(key, self.done[key]) + "\n")
        self._file.flush()

    def files(self) -> Iterator[tuple[str, dict]]:
        """(path, entry) of every file that was written."""
        for written in self.done.values():
            yield from written.files.items()

    def close(self) -> None:
        self._file.close()

    def remove(self) -> None:
        """At the end: the manifest says all from now on."""
        self.close()
        self.path.unlink(missing_ok=True)


def _line(key: str, written: Written) -> str:
    return json.dumps({"key": key, "files": written.files, "positions": written.positions})


def _fingerprint(manifest: Path) -> str | None:
    try:
        return json.loads(manifest.read_bytes())["fingerprint"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def is_complete(folder: Path, output: Path, fingerprint: str) -> bool:
    """Whether the folder's manifest has this fingerprint, and all of its files are there as it says."""
    if _fingerprint(folder / MANIFEST) != fingerprint:
        return False
    outputs = json.loads((folder / MANIFEST).read_bytes()).get("outputs", {})
    return bool(outputs) and all(vpo_write.is_file(output / name, entry) for name, entry in outputs.items())
