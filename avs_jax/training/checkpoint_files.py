"""What a checkpoint's files hold beside Orbax's arrays: meta data and checksums, by which damage is noticed.

Orbax reads an array with a flipped bit without a word; here every array has a CRC-32 in the meta data, and the meta
data have one of their own.
"""

import contextlib
import json
import math
import sys
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import jax

from avs_jax.errors import InputError
from avs_jax.training.embedding_cache import write_whole
from avs_jax.training.sharding import checksums

# In the text of an error: the files could not be read now, which says nothing about what they hold.
NO_DAMAGE = ("RESOURCE_EXHAUSTED", "UNAVAILABLE", "DEADLINE_EXCEEDED", "PERMISSION_DENIED", "UNAUTHENTICATED")


class DamagedError(Exception):
    """What is on disk is not what was written."""


def quiet_orbax() -> None:
    """Keeps what Orbax logs of its errors from standard error, as commands want it: it raises them as well, and its
    threads log one failed save in 300 lines."""
    from absl import logging

    logging.get_absl_logger().addFilter(_not_told_twice)  # a second time changes nothing
    if not isinstance(sys.unraisablehook, _NoClosedLoop):
        sys.unraisablehook = _NoClosedLoop(sys.unraisablehook)


def _not_told_twice(record) -> bool:
    from absl import logging

    return "orbax" not in record.pathname or logging.get_verbosity() > logging.ERROR


class _NoClosedLoop:
    """tensorstore's threads report to asyncio loops that Orbax has closed after an error."""

    def __init__(self, hook):
        self.hook = hook

    def __call__(self, raised):
        if not (isinstance(raised.exc_value, RuntimeError) and str(raised.exc_value) == "Event loop is closed"):
            self.hook(raised)


def sealed(meta: Mapping) -> dict:
    """The meta data with their checksum, as JSON gives them back."""
    plain = json.loads(json.dumps({**meta}))
    return {**plain, "checksum": _checksum(plain)}


def read_meta(folder: Path) -> dict:
    """The meta data in a checkpoint's folder: step, identity, figures, arrays.

    Raises:
      DamagedError: they are missing or not what was written.
      InputError: they cannot be read.
    """
    with damage(folder):
        meta = json.loads(_meta_file(folder).read_text())
        checksum = meta.pop("checksum", None)  # older runs have none
        if checksum not in (None, _checksum(meta)):
            raise DamagedError("checksum of its meta data")
        if meta["step"] != int(folder.name) or not meta["arrays"]:
            raise DamagedError("its meta data is another's")
        return meta


def write_figures(folder: Path, figures: Mapping[str, float]) -> None:
    """Adds an evaluation to a checkpoint: a kill leaves the meta data with it or without it, and whole.

    Raises:
      OSError: they cannot be written.
    """
    meta = sealed({**read_meta(folder), "figures": dict(figures)})
    write_whole(_meta_file(folder), json.dumps(meta).encode())


def _meta_file(folder: Path) -> Path:
    return folder / "meta" / "metadata"  # Orbax's name for a JSON item


def _checksum(meta: Mapping) -> int:
    return zlib.crc32(json.dumps(meta, sort_keys=True).encode())


@contextlib.contextmanager
def damage(folder: Path) -> Iterator[None]:
    """Whatever goes wrong in reading a checkpoint means that it is damaged, unless the machine or the user is at fault.

    Raises:
      DamagedError: in place of what was raised.
      InputError: no permission, no memory, no connection: the checkpoint may be as good as ever.
    """
    try:
        yield
    except (DamagedError, InputError):
        raise
    except Exception as error:
        text = " ".join(str(error).split())
        if isinstance(error, PermissionError | MemoryError) or any(word in text for word in NO_DAMAGE):
            raise InputError(folder, expected="a checkpoint that can be read",
                             found=f"{type(error).__name__}: {text[:200]}") from error  # fmt: skip
        raise DamagedError(f"{type(error).__name__}: {text[:120]}") from error


def describe(tree, *, checksum: bool = False) -> dict[str, list]:
    """Path -> [shape, dtype] of every array, and with `checksum` its CRC-32, which Orbax does not keep.

    With checksums all processes must call it.
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    described = {_path(path): [list(leaf.shape), str(leaf.dtype)] for path, leaf in leaves}
    if checksum:
        for (path, _), found in zip(leaves, checksums([leaf for _, leaf in leaves]), strict=True):
            described[_path(path)].append(found)
    return described


def _path(path) -> str:
    return "/".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path)


def verify(found: dict, expected: dict) -> None:
    """Compares what `describe` says of the arrays read with what it said of those written.

    Raises:
      DamagedError: naming the first array that differs.
    """
    bad = sorted(k for k in found.keys() | expected.keys() if found.get(k) != expected.get(k))
    if bad:
        raise DamagedError(f"checksum of {bad[0]}" + (f" and {len(bad) - 1} more arrays" if len(bad) > 1 else ""))


def score(figures: Mapping[str, float] | None, name: str) -> float:
    """The figure `name` of an evaluation, to be ranked by; that of none, and one that is not defined, is the least."""
    value = (figures or {}).get(name, -math.inf)
    return value if value is not None and not math.isnan(value) else -math.inf
