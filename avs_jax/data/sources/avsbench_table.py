"""AVSBench's tables of clips (s4_meta_data.csv, ms3_meta_data.csv, AVSS's metadata.csv), read with suspicion."""

import csv
import io
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from avs_jax.data.sources.files import is_plain
from avs_jax.errors import InputError, nearest
from avs_jax.paths import to_path

SPLITS = ("train", "val", "test")
MAX_BYTES = 1 << 26  # of a table; VGGSound's, the largest there is, has 10 MB


class Row(NamedTuple):
    """One clip of a table.

    category: "" where the table has none; in AVSS its label, the part of the benchmark it comes from.
    also: where another split names the clip too.
    """

    id: str
    split: str
    category: str
    line: int
    also: str = ""


def read_table(path: str | Path, columns: tuple[str, ...], split: str, labels: tuple[str, ...] = ()) -> tuple[Row, ...]:
    """The clips of one split, in the table's order.

    Args:
      columns: the names the header must begin with; the first holds the clip's id.
      labels: AVSS's tables: the columns may be anywhere among others, column 'label' must hold one of these, and an id
        is unique among the clips of its label only.
    Raises:
      InputError: the file is missing or not UTF-8 CSV, its columns are others or in another order, a row has missing
        or swapped values, an id or category that is no plain name, an id twice, or the split is empty.
    """
    path = to_path(path)
    lines = read_lines(path)
    header = tuple(lines[0][1]) if lines else ()
    _check_header(path, header, columns, anywhere=bool(labels))
    places = [header.index(column) for column in columns]
    rows = []
    for line, fields in lines[1:]:
        fields = _exact(path, line, fields, header)
        rows.append(_parse(path, line, {c: fields[p] for c, p in zip(columns, places, strict=True)}, labels))

    def key(row):
        return (row.category, row.id) if labels else row.id

    first: dict[object, Row] = {}
    chosen = []
    for row in rows:
        earlier = first.setdefault(key(row), row)
        if earlier is not row and earlier.split == row.split == split:
            raise InputError(
                f"{path}, line {row.line}",
                expected="every clip once",
                found=f"'{row.id}' again, first in line {earlier.line}",
            )
        if row.split == split:
            chosen.append(row)
    if not chosen:
        counts = Counter(row.split for row in rows)
        found = ", ".join(f"{n} of '{name}'" for name, n in counts.items()) or "no clips at all"
        raise InputError(path, expected=f"clips of split '{split}'", found=found)
    elsewhere = {key(row): row for row in rows if row.split != split}
    return tuple(row._replace(also=_place(elsewhere[key(row)]) if key(row) in elsewhere else "") for row in chosen)


def _check_header(path: Path, header: tuple[str, ...], columns: tuple[str, ...], anywhere: bool) -> None:
    found = ", ".join(header) or "an empty file"
    if anywhere:
        missing = [column for column in columns if header.count(column) != 1]
        if missing:
            raise InputError(path, expected=f"columns {', '.join(columns)}, each once", found=found)
    elif header[: len(columns)] != columns:
        raise InputError(
            path,
            expected=f"columns {', '.join(columns)}, in this order",
            found=found,
            hint="They are swapped." if set(header) >= set(columns) else "",
        )


def _place(row: Row) -> str:
    return f"'{row.split}' (line {row.line})"


def read_lines(path: Path) -> list[tuple[int, list[str]]]:
    """(line number, fields without surrounding blanks) of every line that is not blank.

    Raises:
      InputError: the file is missing, larger than `MAX_BYTES`, or no UTF-8 CSV.
    """
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise InputError(path, expected=f"a table of at most {MAX_BYTES} bytes", found=f"{size}")
        raw = path.read_bytes()
    except FileNotFoundError:
        raise InputError(path, expected="the table of clips", found="no such file") from None
    except OSError as error:
        raise InputError(path, expected="a readable table of clips", found=str(error)) from None
    try:
        text = raw.decode("utf-8-sig")  # a byte order mark, as spreadsheets write it, is no part of the first name
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise InputError(
            f"{path}, line {line}", expected="UTF-8 text", found=f"byte 0x{raw[error.start]:02x}"
        ) from None
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        return [(reader.line_num, [field.strip() for field in row]) for row in reader if any(row)]
    except csv.Error as error:
        raise InputError(
            f"{path}, line {reader.line_num}", expected="comma-separated values", found=str(error)
        ) from None


def _exact(path: Path, line: int, fields: list[str], header: tuple[str, ...]) -> list[str]:
    if len(fields) != len(header):
        raise InputError(f"{path}, line {line}", expected=f"{len(header)} values", found=f"{len(fields)}")
    return fields


def _parse(path: Path, line: int, values: dict[str, str], labels: tuple[str, ...]) -> Row:
    where = f"{path}, line {line}"
    if values["split"] not in SPLITS:
        swapped = next((name for name, value in values.items() if value in SPLITS), None)
        hint = f"Columns '{swapped}' and 'split' are swapped." if swapped else ""
        raise InputError(where, expected="train, val or test in column 'split'", found=repr(values["split"]), hint=hint)
    if "start" in values:
        try:
            float(values["start"])
        except ValueError:
            expected = "seconds in column 'start'"
            raise InputError(
                where, expected=expected, found=repr(values["start"]), hint="Are columns swapped?"
            ) from None
    if labels and values["label"] not in labels:
        hint = nearest(values["label"], labels)
        expected = f"{', '.join(labels[:-1])} or {labels[-1]} in column 'label'"
        raise InputError(where, expected=expected, found=repr(values["label"]), hint=hint)
    id_column = next(iter(values))
    for column in filter(values.__contains__, (id_column, "category")):
        name = values[column]
        if not is_plain(name):
            expected = f"a plain name in column '{column}'"
            raise InputError(where, expected=expected, found=repr(name), hint="It becomes part of a path.")
    return Row(values[id_column], values["split"], values.get("label" if labels else "category", ""), line)
