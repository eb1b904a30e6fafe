"""Where a command is to write: refused before the work, not after it."""

import os
from pathlib import Path

from avs_jax.errors import InputError
from avs_jax.paths import is_remote, to_path


def check_folder(path, option: str = "--output") -> None:
    """Refuses a folder that could not be made, or not be written to. Nothing is made; a bucket is not asked.

    Raises:
      InputError: it is a file, lies in one, or may not be written to.
    """
    if is_remote(path):
        return
    path = to_path(path)
    try:
        place = next(p for p in (path, *path.absolute().parents) if p.exists())
    except OSError as error:
        raise _refused(option, path, error.strerror or str(error)) from None
    if not place.is_dir():
        raise _refused(option, path, f"the file {place}")
    if not os.access(place, os.W_OK | os.X_OK):
        raise _refused(option, path, f"no permission to write in {place}")


def _refused(option, path, found) -> InputError:
    return InputError(f"{option}, {path}", expected="a folder to write to", found=found)


def check_file(path, option: str = "--output") -> None:
    """Refuses a file that could not be written, as `check_folder`.

    Raises:
      InputError: it is a folder, or lies where nothing can be written.
    """
    if is_remote(path):
        return
    path = Path(to_path(path))
    if path.is_dir():
        raise InputError(f"{option}, {path}", expected="a file to write", found="a folder")
    check_folder(path.absolute().parent, option)
