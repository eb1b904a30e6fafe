"""The one place where text becomes a path: local, or in a bucket as gs://bucket/... or s3://bucket/...

A local path stays a `pathlib.Path`. A remote one is a `RemotePath`, with the part of pathlib's interface that this
package uses; it has no `__fspath__`, so that nothing can take 'gs://bucket/x' for the local folder 'gs:/bucket/x'.
fsspec's clients are found by their own means: credentials and settings are those of the cloud's usual files and
environment variables (AWS_ENDPOINT_URL, GOOGLE_APPLICATION_CREDENTIALS), or fsspec's (FSSPEC_S3_ANON=true).
"""

import contextlib
import functools
import io
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from types import SimpleNamespace
from typing import Any

from avs_jax.errors import InputError

EXTRAS = {"gs": "gcs", "s3": "s3"}  # scheme -> the extra of this package that brings its client
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/(/?)")
_COLLAPSED = ("gs:/", "s3:/")  # what pathlib makes of them


def to_path(text) -> "Path | RemotePath":
    """The path that a user's text means; `~` is the home folder. Nothing is looked up yet.

    Raises:
      InputError: a scheme other than gs:// and s3://, or one without a bucket.
    """
    if isinstance(text, RemotePath):
        return text
    if isinstance(text, Path) and not str(text).startswith(_COLLAPSED):
        return text  # first in line because every frame of every clip passes here
    text = os.fspath(text)
    match = _SCHEME.match(text)
    if match is None:
        return Path(text).expanduser()
    scheme, slashes = match[1], match[2]
    if scheme not in EXTRAS and not slashes:  # a folder may be called 'x:'
        return Path(text).expanduser()
    bucket = text[match.end() :].strip("/")
    if scheme not in EXTRAS or not bucket:
        hint = f"Write {scheme.lower()}://." if scheme.lower() in EXTRAS and scheme not in EXTRAS else ""
        hint = hint or {"file": "Leave out file://.", "gcs": "Write gs://.", "s3a": "Write s3://."}.get(scheme, "")
        raise InputError(text, expected="a local path, or one that begins with gs://bucket or s3://bucket",
                         found=f"'{scheme}://'" if scheme not in EXTRAS else "no bucket", hint=hint)  # fmt: skip
    return RemotePath(scheme, PurePosixPath(bucket))


def local_path(text, where: str) -> Path:
    """As `to_path`, for what has to lie on a disk.

    Args:
      where: the option, for the error.
    Raises:
      InputError: it lies in a bucket.
    """
    path = to_path(text)
    if isinstance(path, RemotePath):
        hint = "Copy it (gcloud storage cp -r, aws s3 cp --recursive), or mount the bucket."
        raise InputError(where, expected="a path on this machine", found=str(path), hint=hint)
    return path


def is_remote(path) -> bool:
    """Whether a path, or the text of one, lies in a bucket."""
    return isinstance(to_path(path), RemotePath)


def readable(path: "Path | RemotePath") -> "Path | io.BytesIO":
    """What a reader of files can open: a local path itself, the content of a remote one, fetched whole.

    Raises:
      FileNotFoundError: a remote file is not there. InputError: it cannot be got at.
    """
    return io.BytesIO(path.read_bytes()) if isinstance(path, RemotePath) else path


def fetched(path: "Path | RemotePath") -> Path:
    """A local file or folder with the content of `path`: itself, or a copy that lasts as long as the process, for what
    is read more than once."""
    return path if isinstance(path, Path) else _fetched(path)[0]


@functools.cache
def _fetched(path: "RemotePath") -> tuple[Path, tempfile.TemporaryDirectory]:
    folder = tempfile.TemporaryDirectory(prefix="avs_jax-")  # deletes itself when the process ends
    copy = Path(folder.name) / (path.name or "copy")
    download(path, copy)
    return copy, folder


@contextlib.contextmanager
def local_copy(path: "Path | RemotePath") -> Iterator[Path]:
    """A local file or folder with the content of `path`: itself, or a copy that is gone after the block.

    Errors in the block that name the copy name the remote path instead. Where there is no such file or folder, neither
    is there a copy.
    """
    if not isinstance(path, RemotePath):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="avs_jax-") as folder:
        copy = Path(folder) / (path.name or "copy")
        try:
            download(path, copy)
            yield copy
        except InputError as error:
            where, found, hint = (t.replace(str(copy), str(path)) for t in (error.where, error.found, error.hint))
            raise InputError(where, expected=error.expected, found=found, hint=hint) from None


def download(path: "RemotePath", local: Path, skip: Callable[[str], bool] = lambda name: False) -> None:
    """Copies a file, or all files of a folder, to local ones; nothing where nothing is there.

    Args:
      skip: of a file's path below `path`: whether to leave it out.
    """
    with _told(path):
        files = path.filesystem.find(path.key)
        names = [name[len(path.key) :].lstrip("/") for name in files]
        pairs = [(file, local / name) for file, name in zip(files, names, strict=True) if not skip(name)]
        for _, target in pairs:
            target.parent.mkdir(parents=True, exist_ok=True)
        if pairs:
            path.filesystem.get([file for file, _ in pairs], [str(target) for _, target in pairs])


def upload(local: Path, path: "RemotePath", names: list[str]) -> None:
    """Copies the files called `names` below the folder `local` to the same names below `path`."""
    if names:
        with _told(path):
            path.filesystem.put([str(local / name) for name in names], [(path / name).key for name in names])


class RemotePath:
    """A path in a bucket: immutable, picklable, and cheap until it is looked at.

    The methods are pathlib's. Folders are no more than the names of files: `mkdir` does nothing, and a folder is there
    as soon as a file is in it. Files appear whole or not at all; `rename` copies.

    Raises (every method that looks):
      InputError: the client is not installed, there are no credentials, access is denied, or no connection.
    """

    __slots__ = ("_key", "_scheme")

    def __init__(self, scheme: str, key: PurePosixPath):
        self._scheme, self._key = scheme, key

    # --- names ---

    scheme = property(lambda self: self._scheme)
    key = property(lambda self: str(self._key), doc="bucket/name, as fsspec wants it")
    name = property(lambda self: self._key.name)
    stem = property(lambda self: self._key.stem)
    suffix = property(lambda self: self._key.suffix)
    parts = property(lambda self: (f"{self._scheme}://", *self._key.parts))

    @property
    def parent(self) -> "RemotePath":
        return self if len(self._key.parts) == 1 else self._of(self._key.parent)  # a bucket is its own

    def _of(self, key: PurePosixPath) -> "RemotePath":
        return RemotePath(self._scheme, key)

    def __truediv__(self, part) -> "RemotePath":
        return self._of(self._key / str(part))

    def with_name(self, name: str) -> "RemotePath":
        return self._of(self._key.with_name(name))

    def with_suffix(self, suffix: str) -> "RemotePath":
        return self._of(self._key.with_suffix(suffix))

    def is_relative_to(self, other) -> bool:
        return isinstance(other, RemotePath) and self._key.is_relative_to(other._key) and self._scheme == other._scheme

    def expanduser(self) -> "RemotePath":
        return self

    resolve = absolute = expanduser

    def __str__(self) -> str:
        return f"{self._scheme}://{self._key}"

    def __repr__(self) -> str:
        return f"RemotePath('{self}')"

    def __eq__(self, other) -> bool:
        return isinstance(other, RemotePath) and str(self) == str(other)

    def __lt__(self, other) -> bool:
        return str(self) < str(other)

    def __hash__(self) -> int:
        return hash(str(self))

    # --- files ---

    @property
    def filesystem(self) -> Any:
        """fsspec's client of this process."""
        with _told(self):
            return _filesystem(self._scheme, os.getpid())

    def stat(self) -> SimpleNamespace:
        """st_size; and as st_ino what the cloud tells versions of a file apart by, in place of times.

        Raises:
          FileNotFoundError: there is nothing of this name.
        """
        info = self._info()
        version = next((info[k] for k in ("ETag", "etag", "generation", "md5Hash") if info.get(k)), 0)
        return SimpleNamespace(st_size=info.get("size") or 0, st_mtime_ns=0, st_ctime_ns=0, st_ino=str(version))

    def _info(self) -> dict:
        with _told(self):
            return self.filesystem.info(self.key)

    def _kind(self) -> str | None:
        try:
            return self._info()["type"]
        except FileNotFoundError:
            return None

    def exists(self) -> bool:
        return self._kind() is not None

    def is_file(self) -> bool:
        return self._kind() == "file"

    def is_dir(self) -> bool:
        return self._kind() == "directory"

    def iterdir(self) -> Iterator["RemotePath"]:
        with _told(self):
            names = self.filesystem.ls(self.key, detail=False)
        keys = [PurePosixPath(name.rstrip("/")) for name in names]
        if keys == [self._key]:
            raise NotADirectoryError(str(self))
        return iter([self._of(key) for key in keys if key != self._key])  # some tools leave a file for the folder

    def glob(self, pattern: str) -> Iterator["RemotePath"]:
        """Of one folder: no ** and no / in the pattern."""
        try:
            return iter([path for path in self.iterdir() if path._key.match(pattern)])
        except FileNotFoundError:
            return iter([])

    def open(self, mode: str = "r", **options):
        with _told(self):
            return self.filesystem.open(self.key, mode, **options)

    def read_bytes(self) -> bytes:
        once = {"max_concurrency": 1} if self._scheme == "s3" else {}  # s3fs would ask for the size of every file first
        with _told(self):
            return self.filesystem.cat_file(self.key, **once)

    def read_text(self, encoding: str = "utf-8") -> str:
        return self.read_bytes().decode(encoding)

    def write_bytes(self, content: bytes) -> None:
        with _told(self):
            self.filesystem.pipe_file(self.key, content)

    def write_text(self, text: str, encoding: str = "utf-8") -> None:
        self.write_bytes(text.encode(encoding))

    def mkdir(self, parents: bool = False, exist_ok: bool = False) -> None:
        """Nothing: a folder is there with its first file."""

    def unlink(self, missing_ok: bool = False) -> None:
        try:
            with _told(self):
                self.filesystem.rm_file(self.key)
        except FileNotFoundError:
            if not missing_ok:
                raise

    def rename(self, target: "RemotePath") -> "RemotePath":
        """A file, or a folder with all that is in it; both are there for a moment."""
        with _told(self):
            files = self.filesystem.find(self.key)
            if not files:
                raise FileNotFoundError(str(self))
            for file in files:
                self.filesystem.cp_file(file, target.key + file[len(self.key) :])
            self.filesystem.rm(files)
        return target

    replace = rename


def remove_tree(path: "Path | RemotePath") -> None:
    """Removes a folder with all that is in it, where it is there."""
    if isinstance(path, RemotePath):
        with _told(path):
            files = path.filesystem.find(path.key)
            if files:
                path.filesystem.rm(files)
    else:
        import shutil

        shutil.rmtree(path, ignore_errors=True)


@functools.cache
def _filesystem(scheme: str, pid: int):
    """One client a process: a data process must not use what belongs to the one that started it. Nothing is remembered
    of what folders hold: other processes write to them."""
    import fsspec

    return fsspec.filesystem(scheme, use_listings_cache=False)


@contextlib.contextmanager
def _told(path: RemotePath) -> Iterator[None]:
    """What goes wrong outside of the file itself becomes one line on what to do."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, FileExistsError, InputError):
        raise
    except ImportError as error:
        hint, found = f"pip install 'avs_jax[{EXTRAS[path.scheme]}]'", " ".join(str(error).split())[:120]
        raise InputError(path, expected=f"the client of {path.scheme}:// installed", found=found, hint=hint) from None
    except Exception as error:  # the clouds' libraries have hundreds of kinds, few of them OSErrors
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise InputError(path, expected="access to it", found=reason, hint=_HINTS[path.scheme]) from error


_HINTS = {
    "gs": "Are the bucket's name, the network and the credentials right (gcloud auth application-default login)?",
    "s3": "Are the bucket's name, the network and the credentials right (AWS_PROFILE, AWS_ACCESS_KEY_ID and "
    "AWS_SECRET_ACCESS_KEY; AWS_ENDPOINT_URL for another service than Amazon's; FSSPEC_S3_ANON=true for public data)?",
}
