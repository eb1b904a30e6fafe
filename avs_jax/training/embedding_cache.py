"""What a frozen audio encoder made of clips' sounds, on disk: no run computes it again.

    <folder>/<encoder>/<checksum>.npy   keys of clips and their embeddings; `encoder` stands for weights and program
    <folder>/sound-files.json           checksums of sound files, with the sizes and times they were taken at

Files of embeddings are only ever added, each in one piece: a kill, or two runs that write at once, can repeat work but
spoil none. The folder may be deleted at any time.
"""

import contextlib
import hashlib
import io
import json
import os
import sys
import time
import uuid
from pathlib import Path
from typing import NamedTuple

import numpy as np

from avs_jax.paths import is_remote

SETTLED_NS = 2_000_000_000  # a file that changes again so soon may keep its times


class Origin(NamedTuple):
    """Where a clip's sound comes from.

    key: 32 bytes; others whenever the sound may be another.
    file, stamp: the file it is read from and what `SoundFiles.stamp` said of it, or None.
    """

    key: bytes
    file: Path | None = None
    stamp: tuple | None = None

    def holds(self) -> bool:
        """Whether the file is still the one whose key this is."""
        return self.file is None or SoundFiles.stamp(self.file) == self.stamp


def origin(source, index: int, files: "SoundFiles") -> Origin:
    """The origin of the sound of clip `index`, which is computed only for a source that has no `audio_origin`.

    Raises:
      InputError: from the source, of a sound that cannot be read.
    """
    stated = source.audio_origin(index) if hasattr(source, "audio_origin") else None
    if stated is not None:
        options, file = stated
        try:
            checksum, stamp = ("", None) if file is None else files.checksum(file)
            return Origin(_key("origin", json.dumps(options, sort_keys=True), checksum), file, stamp)
        except OSError:
            pass  # the source tells what is wrong with its file
    audio = np.ascontiguousarray(source.audio(index))
    return Origin(_key("audio", f"{audio.dtype} {audio.shape}", hashlib.sha256(audio.tobytes()).hexdigest()))


def _key(*texts: str) -> bytes:
    return hashlib.sha256("\0".join(texts).encode()).digest()


class SoundFiles:
    """SHA-256 checksums of files, remembered in a JSON file: a file with its old size and times is not read again.

    Times are those of content and of the inode, which no copying tool can set back.
    """

    def __init__(self, path: Path):
        self._path, self._changed = path, {}
        self._known = self._read()

    @staticmethod
    def stamp(file: Path) -> tuple[int, int, int, int]:
        """Size, both times in ns, and number of a file: others after every change."""
        status = file.stat()
        return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino

    def checksum(self, file: Path) -> tuple[str, tuple]:
        """(hexadecimal checksum, stamp) of a file. From any thread.

        Raises:
          OSError: it cannot be read.
        """
        stamp = self.stamp(file)
        name = str(file.absolute())
        known = self._known.get(name)
        if known and tuple(known[1:]) == stamp:
            return known[0], stamp
        with file.open("rb") as opened:
            checksum = hashlib.file_digest(opened, "sha256").hexdigest()
        if time.time_ns() - max(stamp[1:3]) > SETTLED_NS and self.stamp(file) == stamp:
            self._changed[name] = [checksum, *stamp]
        return checksum, stamp

    def save(self) -> None:
        """Adds what was learnt to the file. Of two runs that save at once, one's may be lost, and is learnt again.

        Raises:
          OSError: the file cannot be written.
        """
        if self._changed:
            text = json.dumps(self._read() | self._changed)
            write_whole(self._path, text.encode())
            self._known, self._changed = self._known | self._changed, {}

    def _read(self) -> dict[str, list]:
        try:
            read = json.loads(self._path.read_bytes())
            return {name: entry for name, entry in read.items() if isinstance(entry, list) and len(entry) == 5}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, AttributeError, RecursionError):
            _tell(f"{self._path} is damaged; sound files are read again")
            return {}


class Shards:
    """The embeddings of one encoder: key -> (T, D) float32.

    Args:
      folder: the encoder's own.
      shape: (T, D).
    """

    def __init__(self, folder: Path, shape: tuple[int, ...]):
        self._folder, self._parts = folder, {}
        self._dtype = np.dtype([("key", "V32"), ("embedding", "<f4", shape)])

    def read(self) -> dict[bytes, np.ndarray]:
        """Everything there is. A damaged file is told of and removed."""
        found = {}
        for path in sorted(self._folder.glob("*.npy")):
            try:
                rows = self._rows(path)
            except FileNotFoundError:  # another run has just put its parts together
                continue
            except OSError as error:
                _tell(f"{path} is not read: {error}")
                continue
            except (ValueError, EOFError) as error:
                _tell(f"{path} is damaged ({error}); its clips are embedded again")
                with contextlib.suppress(OSError):
                    path.unlink()
                continue
            found |= {row["key"].tobytes(): row["embedding"] for row in rows}
        return found

    def add(self, embeddings: dict[bytes, np.ndarray]) -> None:
        """Writes a new file.

        Raises:
          OSError: it cannot be written.
        """
        if not embeddings:
            return
        rows = np.zeros(len(embeddings), self._dtype)
        rows["key"] = [np.void(key) for key in embeddings]
        rows["embedding"] = list(embeddings.values())
        file = io.BytesIO()
        np.save(file, rows, allow_pickle=False)
        content = file.getvalue()
        path = self._folder / f"{_checksum(content)}.npy"
        write_whole(path, content)
        self._parts[path] = embeddings

    def merge(self) -> None:
        """Puts what this object has written into one file.

        Raises:
          OSError: it cannot be written.
        """
        if len(self._parts) > 1:
            parts, self._parts = self._parts, {}
            self.add({key: embedding for part in parts.values() for key, embedding in part.items()})
            for path in parts.keys() - self._parts.keys():
                path.unlink(missing_ok=True)  # another run may have written the same, and put it together first

    def _rows(self, path: Path) -> np.ndarray:
        content = path.read_bytes()
        if _checksum(content) != path.stem:
            raise ValueError("checksum")
        file = io.BytesIO(content)
        if np.lib.format.read_magic(file) != (1, 0):
            raise ValueError("another version")
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        if dtype != self._dtype or len(shape) != 1:
            raise ValueError(f"{dtype} of shape {shape}")
        return np.frombuffer(content, dtype, shape[0], file.tell())  # `np.load` would make room for what is declared


def write_whole(path: Path, content: bytes) -> None:
    """Writes a file so that it is there whole or not at all.

    Raises:
      OSError: it cannot be written.
    """
    if is_remote(path):
        return path.write_bytes(content)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with open(part, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def _checksum(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:32]


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
