"""Fields of a clip as bytes and back: what a record of a packed data set holds. Reading executes and copies nothing.

A record is a magic number, the version and two lengths (`_START`), the clip's id in UTF-8, a JSON list with an entry
[name, dtype, shape, codec, bytes] for every field, and the fields' bytes in that order, each from the next multiple of
`ALIGN` on. Codecs, all lossless:

    raw     the array as it lies in memory
    runs    of n equal values in a row: n lengths (uint32), then n values (uint8). Labels: a fiftieth of their size, and
            faster to read than all of them
    across  differences of neighbours along a row (uint8), which a general compression then shrinks
"""

import json
import struct
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from avs_jax.errors import InputError

VERSION = 1
ALIGN = 64
LARGEST = 1 << 30  # bytes of a field: 100 times those of a clip at 1024 x 1024
_MAGIC = b"AVSJCLIP"
_START = struct.Struct("<8sIII")  # magic, version, bytes of the id, bytes of the list of fields
_DTYPES = {"uint8": np.dtype("u1"), "bool": np.dtype("?"), "int32": np.dtype("<i4"), "float32": np.dtype("<f4")}
_CODECS = ("raw", "runs", "across")


class _Field(NamedTuple):
    name: str
    dtype: np.dtype
    shape: tuple[int, ...]
    codec: str
    size: int  # bytes in the record

    @property
    def whole(self) -> int:
        """Bytes of the array."""
        total = self.dtype.itemsize
        for n in self.shape:
            total *= n
        return total


def encode(identity: str, fields: Mapping[str, np.ndarray], across: tuple[str, ...] = ()) -> bytes:
    """A record.

    Args:
      identity: the clip's id.
      fields: arrays of uint8, bool, int32 or float32.
      across: uint8 fields (..., W, C) to be written as differences of neighbours.
    Raises:
      InputError: an array of another type, or larger than `LARGEST`.
    """
    entries, parts = [], []
    for name, array in fields.items():
        array = np.asarray(array)
        if array.dtype.name not in _DTYPES or array.nbytes > LARGEST:
            raise InputError(f"clip '{identity}', field '{name}'", found=f"{array.dtype}, {array.nbytes} bytes",
                             expected=f"{', '.join(_DTYPES)}, at most {LARGEST} bytes")  # fmt: skip
        codec, content = _encoded(array, name in across)
        entries.append([name, array.dtype.name, list(array.shape), codec, len(content)])
        parts.append(content)
    own, listed = identity.encode(), json.dumps(entries, separators=(",", ":")).encode()
    record = bytearray(_START.pack(_MAGIC, VERSION, len(own), len(listed)) + own + listed)
    for content in parts:
        record += bytes(-len(record) % ALIGN)
        record += content
    return bytes(record)


def _encoded(array: np.ndarray, across: bool) -> tuple[str, bytes]:
    array = np.ascontiguousarray(array, _DTYPES[array.dtype.name])
    if across and array.dtype == np.uint8 and array.ndim >= 2:
        steps = array.copy()
        steps[..., 1:, :] -= array[..., :-1, :]
        return "across", steps.tobytes()
    if array.dtype == np.uint8 and array.size:
        flat = array.ravel()
        begins = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1])
        if begins.size * 5 < array.nbytes // 4:  # long runs: of frames they would be no gain
            lengths = np.diff(begins, append=flat.size).astype("<u4")
            return "runs", lengths.tobytes() + flat[begins].tobytes()
    return "raw", array.tobytes()


def decode(record: bytes, where: str) -> tuple[str, dict[str, np.ndarray]]:
    """(id, fields) of a record. Arrays that were written raw are read-only views of it.

    Args:
      where: what to call the record in an error.
    Raises:
      InputError: it is none, of another version, or says of itself what cannot be.
    """
    identity, entries, at = _head(record, where)
    fields = {}
    for entry in entries:
        at += -at % ALIGN
        if at + entry.size > len(record):
            raise _wrong(where, f"field '{entry.name}' to end within {len(record)} bytes", f"{at + entry.size}")
        fields[entry.name] = _decoded(record, at, entry, where)
        at += entry.size
    if at != len(record):
        raise _wrong(where, f"{at} bytes, which its fields have", f"{len(record)}")
    return identity, fields


def _head(record: bytes, where: str) -> tuple[str, list[_Field], int]:
    """The id, the list of fields, checked, and where it ends."""
    if len(record) < _START.size or record[: len(_MAGIC)] != _MAGIC:
        raise _wrong(where, "a record of a clip", f"{len(record)} bytes that begin with {bytes(record[:8])!r}")
    _, version, own, listed = _START.unpack_from(record)
    if version != VERSION:
        raise InputError(where, expected=f"a record of version {VERSION}", found=f"version {version}",
                         hint="It was packed by another version of avs_jax: pack the data set again.")  # fmt: skip
    end = _START.size + own + listed
    if end > len(record):
        raise _wrong(where, f"a list of fields within {len(record)} bytes", f"one that ends at {end}")
    try:
        identity = record[_START.size : _START.size + own].decode()
        entries = json.loads(record[_START.size + own : end])
        fields = [_field(*entry) for entry in entries]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise _wrong(where, "a list of fields", f"another: {error}") from None
    if len({field.name for field in fields}) != len(fields):
        raise _wrong(where, "every field once", f"{[field.name for field in fields]}")
    return identity, fields, end


def _field(name, dtype, shape, codec, size) -> _Field:
    whole = isinstance(shape, list) and len(shape) <= 8 and all(type(n) is int and 0 <= n <= LARGEST for n in shape)
    if not (isinstance(name, str) and whole and codec in _CODECS and type(size) is int and 0 <= size <= LARGEST):
        raise ValueError(f"{[name, dtype, shape, codec, size]!r:.200}")
    field = _Field(name, _DTYPES[dtype], tuple(shape), codec, size)
    if field.whole > LARGEST:
        raise ValueError(f"'{name}' of {field.whole} bytes, more than {LARGEST}")
    if (codec != "runs" and size != field.whole) or (codec != "raw" and dtype != "uint8"):
        raise ValueError(f"{dtype} '{name}' of shape {shape} in {size} bytes, {codec}")
    if (codec == "across" and len(shape) < 2) or (codec == "runs" and size % 5):
        raise ValueError(f"'{name}' of shape {shape} in {size} bytes, {codec}")
    return field


def _decoded(record: bytes, at: int, field: _Field, where: str) -> np.ndarray:
    if field.codec == "runs":
        count = field.size // 5
        lengths = np.frombuffer(record, "<u4", count, at)
        if int(lengths.sum(dtype=np.uint64)) != field.whole:
            raise _wrong(where, f"runs of {field.whole} values in '{field.name}'", f"{lengths.sum(dtype=np.uint64)}")
        return np.repeat(np.frombuffer(record, np.uint8, count, at + 4 * count), lengths).reshape(field.shape)
    array = np.frombuffer(record, np.uint8, field.size, at)
    if field.dtype == np.bool_ and array.size and array.max() > 1:
        raise _wrong(where, f"0 and 1 in '{field.name}'", str(array.max()))
    array = array.view(field.dtype).reshape(field.shape)
    return array if field.codec == "raw" else np.cumsum(array, axis=-2, dtype=np.uint8)


def _wrong(where: str, expected: str, found: str) -> InputError:
    return InputError(where, expected=expected, found=found, hint="The file is damaged: pack the data set again.")
