"""VGGSound's table and its folder of clips -> the sounds that VPO may take, by split and class."""

import csv
import io
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from avs_jax.data import audio
from avs_jax.data.prepare.vpo_classes import VPOClass
from avs_jax.data.prepare.vpo_rejections import Rejections
from avs_jax.errors import InputError

SPLITS = ("train", "test")
SUFFIXES = (".wav", ".flac", ".ogg")  # the first that a clip has is taken
_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
SILENT = 1e-4  # peak below which nothing is heard (-80 dB)


class Sound(NamedTuple):
    """One clip. stem: <YouTube id>_<start in six digits>, the name of its file."""

    stem: str
    path: Path
    label: str


def find_table(root: Path) -> Path:
    """VGGSound's table in its folder: vggsound.csv, or else the only vggsound*.csv.

    Raises:
      InputError: there is none, or several.
    """
    exact = root / "vggsound.csv"
    if exact.is_file():
        return exact
    found = sorted(root.glob("vggsound*.csv"))
    if len(found) == 1:
        return found[0]
    text = ", ".join(path.name for path in found) or "no vggsound*.csv"
    raise InputError(root, expected="VGGSound's table, vggsound.csv", found=text, hint="Name it with --table.")


def read_table(path: Path, rejected: Rejections) -> dict[str, tuple[str, str]]:
    """VGGSound's table: lines of YouTube id, start second, label, split, with no header.

    Returns:
      stem -> (label, split). Clips that the table has in both splits, or under two labels, are left out.
    Raises:
      InputError: the file is missing, is no UTF-8 CSV, or has no good line; it names the first bad one.
    """
    expected = "lines of YouTube id, start second, label, train or test"
    try:
        text = path.read_bytes().decode("utf-8-sig")
        lines = [row for row in csv.reader(io.StringIO(text, newline=""), strict=True)]
    except FileNotFoundError:
        raise InputError(path, expected="VGGSound's table", found="no such file") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(path, expected=expected, found=str(error)) from None
    found: dict[str, set[tuple[str, str]]] = {}
    first_bad = ""
    for number, row in enumerate(lines, 1):
        problem = _problem(row)
        if problem:
            first_bad = first_bad or f"line {number}: {problem}"
            if row:
                rejected.add("malformed line of the table of sounds", f"{path.name}, line {number}", detail=problem)
            continue
        stem = f"{row[0].strip()}_{int(row[1]):06d}"
        found.setdefault(stem, set()).add((" ".join(row[2].split()), row[3].strip()))
    if not found:
        raise InputError(path, expected=expected, found=first_bad or "an empty file")
    table = {}
    for stem, entries in sorted(found.items()):
        if len({split for _, split in entries}) > 1:
            rejected.add("sound in both splits", stem)
        elif len(entries) > 1:
            rejected.add("sound under two labels", stem)
        else:
            table[stem] = next(iter(entries))
    return table


def _problem(row: list[str]) -> str:
    if len(row) != 4:
        return f"{len(row)} values"
    identity, start, label, split = (field.strip() for field in row)
    if not _ID.fullmatch(identity):
        return f"YouTube id {identity!r:.40}"
    if not (start.isascii() and start.isdigit() and len(start) <= 6):
        return f"start {start!r:.40}"
    if not label:
        return "no label"
    return "" if split in SPLITS else f"split {split!r:.40}"


def find_clips(root: Path, rejected: Rejections) -> dict[str, Path]:
    """Stem -> its file, anywhere below `root`. Of several the best format is taken, then the first by path."""
    found: dict[str, list[Path]] = {}
    for folder, _, names in os.walk(root):
        for name in names:
            stem, suffix = os.path.splitext(name)
            if suffix.lower() in SUFFIXES and not name.startswith("."):
                found.setdefault(stem, []).append(Path(folder) / name)

    def order(path):
        return SUFFIXES.index(path.suffix.lower()), path.relative_to(root).as_posix()

    for stem, paths in found.items():
        if len({path.suffix.lower() for path in paths}) < len(paths):
            rejected.add("further file of the same sound", stem, detail=f"{len(paths)} files")
    return {stem: min(paths, key=order) for stem, paths in sorted(found.items())}


def sounds_by_class(
    table: Mapping[str, tuple[str, str]],
    clips: Mapping[str, Path],
    classes: tuple[VPOClass, ...],
    rejected: Rejections,
) -> dict[str, dict[int, list[Sound]]]:
    """Split -> class id -> its sounds, in the order of their stems."""
    owner = {label.casefold(): entry for entry in classes for label in entry.sounds}
    found = {split: {entry.id: [] for entry in classes} for split in SPLITS}
    for stem, (label, split) in sorted(table.items()):
        entry = owner.get(label.casefold())
        if entry is None:
            continue
        if stem not in clips:
            rejected.add("sound without a file", stem, entry.name)
            continue
        found[split][entry.id].append(Sound(stem, clips[stem], label))
    return found


def fault_of(path: Path, min_seconds: float) -> tuple[str, str]:
    """Why a sound cannot be used and the particulars, or two empty texts. The whole file is read."""
    try:
        samples, rate = audio.read_audio(path)
    except InputError as error:
        return "sound that does not decode", f"expected {error.expected}; found {error.found}"
    if len(samples) < min_seconds * rate:
        return "sound too short", f"{len(samples) / rate:.2f} s"
    peak = float(np.abs(samples).max())
    return ("silent sound", f"peak {peak:.1e}") if peak < SILENT else ("", "")
