"""The folder of a run: found fit to be written to before anything is computed, and clear words when it no longer is."""

import contextlib
import errno
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

from avs_jax.errors import InputError, TrainingError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # disk, quota, limit of a file's size


def prepare(workdir: Path) -> None:
    """Makes the folder where there is none, and tries whether files can be written there.

    Raises:
      InputError: it cannot be made, or not be written to.
      TrainingError: the disk is full.
    """
    with writable(workdir):
        workdir.mkdir(parents=True, exist_ok=True)
        for folder in (workdir, workdir / "checkpoints"):
            if folder.exists():
                probe = folder / f".{uuid.uuid4().hex}"
                try:
                    probe.write_bytes(b"0")
                finally:
                    probe.unlink(missing_ok=True)


@contextlib.contextmanager
def writable(path: Path) -> Iterator[None]:
    """A block that writes to `path`, before the training.

    Raises:
      InputError: in place of an OSError, since another path would do.
      TrainingError: the disk is full.
    """
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            raise TrainingError(f"{path} could not be written: {reason(error)}. Make room there first.") from error
        raise InputError(path, expected="a path that can be written to", found=reason(error),
                         hint="Choose another --workdir.") from error  # fmt: skip


def reason(error: Exception) -> str:
    """Why something could not be written, in a few words: tensorstore tells it in a paragraph."""
    text = " ".join(str(error).split())
    known = [os.strerror(number) for number in (*FULL, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO)]
    short = getattr(error, "strerror", None) or f"{type(error).__name__}: {text[:200]}"
    return next((k for k in known if k in text), short)
