"""The index of a packed data set, `<root>/<split>/index.json`: what was packed, how, and what its shards are."""

import dataclasses
import hashlib
import inspect
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from avs_jax.data import audio
from avs_jax.errors import InputError, check_options

INDEX = "index.json"
VERSION = 1
PLACES = ("root", "sounds")  # options that say where files lie: no part of what was packed
PACK_AGAIN = "Pack the data set again (python -m avs_jax.prepare pack)."
_FIELDS = {
    "version": int, "record_version": int, "split": str, "splits": list, "source": str, "options": dict,
    "fingerprint": dict, "codec": str, "ids": list, "num_frames": int, "image_size": list, "own_size": bool,
    "class_names": list, "front_end": dict, "audio": list, "tables": dict, "left_out": list, "shards": list,
    "plan": dict,
}  # fmt: skip
_SHARD = {"file": str, "clips": int, "bytes": int, "sha256": str}


def options_of(cls, options: Mapping) -> dict:
    """The options that clips of a source were made with, defaults and all but `PLACES`, as JSON gives them back."""
    bound = inspect.signature(cls).bind(**options)
    bound.apply_defaults()
    return plain({name: value for name, value in bound.arguments.items() if name not in PLACES})


def plain(value):
    """As JSON gives it back."""
    return json.loads(json.dumps(value, default=str))


def described(source) -> dict:
    """The entries of an index that a source tells by itself."""
    front_end = getattr(source, "front_end", None)
    known = type(front_end) in audio.FRONT_ENDS.values()
    return plain({
        "num_frames": source.num_frames,
        "image_size": source.image_size,
        "own_size": bool(getattr(source, "own_size", False)),
        "class_names": source.class_names,
        "front_end": dataclasses.asdict(front_end) if known else {},
    })  # fmt: skip


def front_end_of(path: Path, index: Mapping):
    """The front end that the packed sounds went through; None where it is none of `audio.FRONT_ENDS`.

    Raises:
      InputError: it has changed since.
    """
    told = dict(index["front_end"])
    if not told:
        return None
    name, version = told.pop("name", None), told.pop("version", None)
    try:
        found = audio.front_end(name, **told)
    except (InputError, TypeError) as error:
        raise damaged(path, f"front end {name!r}: {error}") from None
    if found.version != version:
        raise InputError(path, expected=f"sounds of version {found.version} of the front end '{name}'",
                         found=f"version {version}", hint=PACK_AGAIN)  # fmt: skip
    return found


def write(index: dict) -> bytes:
    """The content of an index file, which ends with its own checksum."""
    body = json.dumps(index, indent=1, sort_keys=True)
    return json.dumps({**index, "checksum": _checksum(body)}, indent=1, sort_keys=True).encode() + b"\n"


def read(path: Path) -> dict:
    """The index.

    Raises:
      InputError: it is missing, damaged, or of another version.
    """
    try:
        index = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise InputError(
            path, expected="the index of a packed data set", found="no such file", hint=PACK_AGAIN
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise damaged(path, str(error)) from None
    if not isinstance(index, dict) or type(index.get("version")) is not int:
        raise damaged(path, "JSON of something else")
    if index["version"] != VERSION:
        raise InputError(path, expected=f"version {VERSION} of packed data sets", found=f"version {index['version']}",
                         hint=PACK_AGAIN)  # fmt: skip
    checksum = index.pop("checksum", None)
    if checksum != _checksum(json.dumps(index, indent=1, sort_keys=True)):
        raise damaged(path, "a checksum that is not its content's")
    for name, kind in _FIELDS.items():
        if type(index.get(name)) is not kind:
            raise damaged(path, f"{index.get(name)!r:.40} as '{name}'")
    _check_clips(path, index)
    return index


def _check_clips(path: Path, index: dict) -> None:
    for shard in index["shards"]:
        if not isinstance(shard, dict) or any(type(shard.get(name)) is not kind for name, kind in _SHARD.items()):
            raise damaged(path, f"{shard!r:.80} as a shard")
        if shard["clips"] < 1 or shard["bytes"] < 0 or Path(shard["file"]).name != shard["file"]:
            raise damaged(path, f"{shard!r:.80} as a shard")
    clips = sum(shard["clips"] for shard in index["shards"])
    texts = [*index["ids"], *index["audio"], *index["class_names"], *index["splits"]]
    if not all(isinstance(text, str) for text in texts) or len(index["image_size"]) != 2:
        raise damaged(path, "something else as ids, checksums, classes, splits or size")
    if not len(index["ids"]) == len(index["audio"]) == clips or clips < 1:
        found = f"{len(index['ids'])} ids and {len(index['audio'])} checksums for {clips} clips"
        raise damaged(path, found)


def check_given(root, index: Mapping, cls, given: Mapping) -> None:
    """Refuses options that contradict what was packed. None stands for whatever it was.

    Args:
      cls: the class of the source that was packed, whose options are known.
    Raises:
      InputError: naming the option.
    """
    check_options("data", f"the packed '{index['source']}' source", given, list(inspect.signature(cls).parameters))
    for name, value in given.items():
        packed = index["options"].get(name)
        if value is None or name in PLACES or plain(value) == packed:
            continue
        raise InputError(f"data.{name}", expected=f"{packed!r}, as {root} was packed", found=repr(value),
                         hint=f"Leave data.{name} out, or pack the data set again with it.")  # fmt: skip


# ---- Tables: a row of bool for every clip


def table(rows: list[np.ndarray], names=()) -> dict:
    """A table of bool arrays of one shape, as the index holds it. names: of the columns."""
    return {
        "names": list(names),
        "shape": list(rows[0].shape),
        "rows": [np.packbits(row).tobytes().hex() for row in rows],
    }


def row_of(path: Path, name: str, found: Mapping, index: int) -> np.ndarray:
    """The row of clip `index`, bool.

    Raises:
      InputError: the table is damaged.
    """
    try:
        shape = tuple(int(n) for n in found["shape"])
        bits = np.unpackbits(np.frombuffer(bytes.fromhex(found["rows"][index]), np.uint8))
        return bits[: int(np.prod(shape))].astype(bool).reshape(shape)
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise damaged(path, f"a table '{name}' without row {index}: {error}") from None


def damaged(path: Path, found: str) -> InputError:
    return InputError(path, expected="the whole index of a packed data set", found=found, hint=PACK_AGAIN)


def _checksum(body: str) -> str:
    return hashlib.sha256(body.encode()).hexdigest()
