"""What sources that read folders of images share: checked options, folders that must hold certain images, problems."""

import dataclasses
import hashlib
import operator
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from avs_jax.data import audio
from avs_jax.data.clip import Clip
from avs_jax.errors import InputError, nearest


class FileSource:
    """A random-access source of clips that a table lists and files hold (see `avs_jax.data.sources.Source`).

    A subclass sets `ids` and `_rows`, one entry per clip, and has `visual(index)`, `_audio(row)` and `_checks(row)`,
    whose functions each raise what they find wrong.
    """

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Clip:
        """Clip `index` as the record of `avs_jax.data.clip`.

        Raises:
          InputError: naming the first file of the clip that is missing or wrong.
        """
        return {**self.visual(index), "audio": self.audio(index)}

    def audio(self, index: int) -> np.ndarray:
        """The record's `audio` of clip `index`."""
        return self._audio(self._row(index))

    def problems(self, index: int) -> list[InputError]:
        """Everything that is wrong with clip `index`, not only the first."""
        return problems(self._checks(self._row(index)))

    def _row(self, index):
        return self._rows[position(index, len(self))]


def choice(option: str, value, valid):
    """`value`, one of `valid`; otherwise an InputError that names `data.<option>` and the nearest valid value."""
    if value not in tuple(valid):
        raise InputError(
            f"data.{option}", expected=f"one of {', '.join(valid)}", found=repr(value), hint=nearest(value, valid)
        )
    return value


def size_of(image_size: int | Sequence[int]) -> tuple[int, int]:
    """(height, width) of the option `data.image_size`: a side in pixels, or both."""
    size = (image_size, image_size) if np.ndim(image_size) == 0 else tuple(image_size)
    if len(size) != 2 or any(isinstance(n, bool) or not isinstance(n, int) or n < 1 for n in size):
        raise InputError("data.image_size", expected="a side in pixels, or (height, width)", found=repr(image_size))
    return size


def front_end_of(name: str, **options):
    """The front end `data.front_end`. Options that are None are left to its defaults.

    Raises:
      InputError: an unknown name, or `data.<option>` for a front end that has no such option.
    """
    choice("front_end", name, audio.FRONT_ENDS)
    fields = {field.name for field in dataclasses.fields(audio.FRONT_ENDS[name]) if field.init}
    given = {option: value for option, value in options.items() if value is not None}
    for option, value in given.items():
        if option not in fields:
            hint = f"Leave it out, or choose another of data.front_end: {', '.join(audio.FRONT_ENDS)}."
            raise InputError(
                f"data.{option}", expected=f"nothing with front end '{name}'", found=repr(value), hint=hint
            )
    return audio.front_end(name, **given)


def heard_through(front_end) -> dict:
    """What a fingerprint says of a front end: its name, and the seconds that it hears where these are an option."""
    seconds = {"seconds": front_end.seconds} if hasattr(front_end, "seconds") else {}
    return {"front_end": front_end.name, **seconds}


def is_plain(name: str) -> bool:
    """Whether a name out of a table may become part of a path: it leads nowhere else, and file systems take it."""
    try:
        short = 0 < len(name.encode()) <= 200
    except UnicodeEncodeError:
        return False
    return short and name not in (".", "..") and not set(name) & set("/\\\0")


def position(index, length: int) -> int:
    """`index` in 0..length-1 as an int.

    Raises:
      IndexError: it is outside.
    """
    index = operator.index(index)
    if not 0 <= index < length:
        raise IndexError(f"clip {index} of {length}")
    return index


def digest(texts: Iterable[str]) -> str:
    """16 hexadecimal digits that identify a list of texts."""
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16]


def check_images(folder: Path, names: Sequence[str], more: bool = False) -> None:
    """Compares the images in a folder with those expected, by name; they are not opened.

    Args:
      names: file names, in order, all of one extension.
      more: further images of that extension may be there.
    Raises:
      InputError: naming what is missing, or else what is too many.
    """
    count = len(names)
    several = f"{count} image{'s' * (count != 1)}"
    try:
        found = {entry.name for entry in folder.iterdir()}
    except OSError:
        reason = "no such folder" if not folder.exists() else "something that cannot be listed"
        raise InputError(folder, expected=f"a folder of {several}", found=reason) from None
    missing = sorted(set(names) - found)
    extra = {name for name in found - set(names) if _is_image(name, Path(names[0]).suffix)}
    if not missing and (more or not extra):
        return
    if missing:
        text = f"{count - len(missing)} of them: {', '.join(missing)} missing"
    else:
        text = f"{count + len(extra)}: {', '.join(sorted(extra))} too many"
    expected = f"{several}, {names[0]}" + (f" to {names[-1]}" if count > 1 else "")
    raise InputError(folder, expected=expected, found=text)


def _is_image(name: str, suffix: str) -> bool:
    return name.lower().endswith(suffix) and not name.startswith(".")


def problems(checks: Iterable[Callable[[], object]]) -> list[InputError]:
    """The errors that `checks` raise, each text once."""
    found: dict[str, InputError] = {}
    for check in checks:
        try:
            check()
        except InputError as error:
            found.setdefault(str(error), error)
    return list(found.values())


def check_split(table: Path, row, split: str) -> None:
    """Refuses a clip (an `avsbench_table.Row`) that another split names too."""
    if row.also:
        raise InputError(
            f"{table}, clip '{row.id}'",
            expected="every clip in one split",
            found=f"it in '{split}' and in {row.also}",
            hint="Keep it out of one of them, or scores are not to be trusted.",
        )
