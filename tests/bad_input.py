"""What a row of bad input is, ways to break a file, and what is left behind."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from avs_jax.errors import InputError


def nothing(here: Path) -> None:
    pass


class Row(NamedTuple):
    """One way in which input can be bad.

    fault: names it. told: words of the error, with "; " between them.
    attempt: what a user does about it: a command's line without `python -m avs_jax.`, or a function of the folder.
    make: makes the fault in a folder. world: what the folder holds before, a name in `bad_input_worlds.WORLDS`.
    report: the error may have several lines.
    """

    fault: str
    told: str
    attempt: str | Callable[[Path], object]
    make: Callable[[Path], object] = nothing
    world: str = "run"
    report: bool = False


def check_told(message: str, row: Row) -> None:
    """Every word that should be told is in the message, which is one line."""
    assert row.report or "\n" not in message, message
    for word in row.told.split("; "):
        assert word in message, f"{word!r} is not in: {message}"


def contents(folder: Path) -> dict[str, bytes | None]:
    """Relative path -> content of everything in a folder; None for folders."""
    found = (p for p in sorted(folder.rglob("*")) if "__pycache__" not in p.parts)
    return {p.relative_to(folder).as_posix(): p.read_bytes() if p.is_file() else None for p in found}


# --- ways to break a file: functions of the folder; those of one path go through `at` ---


def at(name: str, *changes: Callable[[Path], object]):
    """The changes, made to the file or folder `name`."""

    def make(here: Path):
        for change in changes:
            change(here / name)

    return make


def all_of(*makes):
    def make(here: Path):
        for one in makes:
            one(here)

    return make


def delete(path: Path):
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def cut(share: float):
    return lambda path: path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])


def put(data: bytes | str):
    def change(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data.encode() if isinstance(data, str) else data)

    return change


def text(old: str, new: str, count: int = -1):
    def change(path):
        before = path.read_text()
        assert old in before
        path.write_text(before.replace(old, new, count))

    return change


def folder(path: Path):
    """In place of a file."""
    path.unlink(missing_ok=True)
    path.mkdir()


def read_only(path: Path):
    path.mkdir(exist_ok=True)
    path.chmod(0o555)


def locked(path: Path):
    path.chmod(0)


def image(mode: str = "RGB", size: tuple[int, int] = (48, 32), **options):
    return lambda path: Image.new(mode, size).save(path, **options)


def as_problems(source, index: int):
    """Reads a clip, which is refused; the check of the data set finds the same, and nothing else."""
    try:
        source[index]
    except InputError as error:
        problems = source.problems(index)
        assert [str(problem) for problem in problems] == [str(error)], problems
        raise
