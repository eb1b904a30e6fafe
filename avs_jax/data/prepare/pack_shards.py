"""One shard of a packed data set: clips i to j of a source as an ArrayRecord file, whole or not at all."""

import hashlib
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from avs_jax.check import problems_of
from avs_jax.data import clip_bytes
from avs_jax.data.clip import validate
from avs_jax.data.sources import packed_index
from avs_jax.errors import InputError

# What ArrayRecord does with records, by our codecs: one in a group, so that one is read at a time. All options are
# named, since they are written into the file and its bytes should be the same everywhere.
CODECS = {
    "raw": "group_size:1,uncompressed,max_parallelism:1",
    "compressed": "group_size:1,zstd:1,max_parallelism:1",
}
TABLES = ("sounds", "image_classes")


class Job(NamedTuple):
    """Clips `first` to `last` - 1 of a source, to be written to `path`.

    skip_bad: leave bad clips out, in place of ending with the error of the first.
    """

    source: Any
    first: int
    last: int
    path: Path
    codec: str
    skip_bad: bool


class Shard(NamedTuple):
    """What was written.

    Attributes:
      file: name of the file, or "" where every clip is bad.
      clips, bytes, sha256: of the file.
      ids, audio: of each clip, its id and the checksum of its sound.
      tables: what only some sources tell of each clip; see `packed_index.table`.
      bad: [position in the source, id, what is wrong] of clips left out.
    """

    file: str
    clips: int
    bytes: int
    sha256: str
    ids: list[str]
    audio: list[str]
    tables: dict[str, dict]
    bad: list[list]


def records(clip: dict, codec: str) -> tuple[bytes, bytes]:
    """A clip as two records: what is seen of it, and what is heard."""
    fields = {name: value for name, value in clip.items() if name != "id"}
    heard = {name: fields.pop(name) for name in ("audio",) if name in fields}
    across = ("frames",) if codec == "compressed" else ()
    return clip_bytes.encode(clip["id"], fields, across), clip_bytes.encode(clip["id"], heard)


def sound_checksum(clip: dict) -> str:
    """Of the clip's sound, with its type and shape."""
    sound = np.ascontiguousarray(clip.get("audio", np.zeros(0, np.float32)))
    return hashlib.sha256(f"{sound.dtype} {sound.shape} ".encode() + sound.tobytes()).hexdigest()[:32]


def write_shard(job: Job) -> Shard:
    """Writes one shard.

    Raises:
      InputError: a bad clip, which it names, or a file that cannot be written.
    """
    part = job.path.with_name(f".{job.path.name}.{os.getpid()}.part")
    try:
        found = _write(job, part)
        if found["ids"]:
            size, checksum = _settle(part)
            os.replace(part, job.path)
            return Shard(job.path.name, len(found["ids"]), size, checksum, **found)
        return Shard("", 0, 0, "", **found)
    except (OSError, RuntimeError) as error:  # the writer's own errors are RuntimeErrors
        raise InputError(job.path, expected="a place to write to", found=str(error)) from None
    finally:
        part.unlink(missing_ok=True)


def _write(job: Job, part: Path) -> dict:
    from array_record.python.array_record_module import ArrayRecordWriter

    source, ids, audio, bad, rows = job.source, [], [], [], {}
    tables = [name for name in TABLES if hasattr(source, name)]
    writer = ArrayRecordWriter(str(part), CODECS[job.codec])
    try:
        for i in range(job.first, job.last):
            if job.skip_bad and (problems := problems_of(source, i)):
                bad.append([i, source.ids[i], str(problems[0])])
                continue
            clip = read(source, i)
            for record in records(clip, job.codec):
                writer.write(record)
            ids.append(clip["id"])
            audio.append(sound_checksum(clip))
            for name in tables:
                rows.setdefault(name, []).append(np.asarray(getattr(source, name)(i), bool))
    finally:
        writer.close()
    names = {"sounds": getattr(source, "sound_names", ())}
    made = {name: packed_index.table(found, names.get(name, ())) for name, found in rows.items()}
    return {"ids": ids, "audio": audio, "tables": made, "bad": bad}


def read(source, index: int) -> dict:
    """Clip `index`, checked.

    Raises:
      InputError: that names the clip, whatever file is wrong.
    """
    try:
        return validate(source[index], num_classes=len(source.class_names))
    except InputError as error:
        name = source.ids[index]
        where = error.where if f"clip '{name}'" in error.where else f"clip '{name}', {error.where}"
        hint = "--skip_bad leaves such clips out; python -m avs_jax.check lists them all."
        raise InputError(where, expected=error.expected, found=error.found,
                         hint=f"{error.hint} {hint}".strip()) from None  # fmt: skip


def _settle(part: Path) -> tuple[int, str]:
    """Size and checksum of a file that is on the disk from now on."""
    with open(part, "rb") as file:
        os.fsync(file.fileno())
        return os.fstat(file.fileno()).st_size, hashlib.file_digest(file, "sha256").hexdigest()


def is_there(folder: Path, shard: Shard) -> bool:
    """Whether the file of a shard is as it was written."""
    if not shard.file:
        return True
    try:
        with open(folder / shard.file, "rb") as file:
            if os.fstat(file.fileno()).st_size != shard.bytes:
                return False
            return hashlib.file_digest(file, "sha256").hexdigest() == shard.sha256
    except OSError:
        return False
