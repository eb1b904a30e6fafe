"""VPO's files: pictures, masks and sounds, each written whole or not at all, and checked while they are."""

import hashlib
import io
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from avs_jax.data import images
from avs_jax.data.prepare import vpo_masks, vpo_sounds
from avs_jax.data.prepare.vpo_coco import Instance
from avs_jax.errors import InputError

LINKS = ("copy", "hard", "symbolic")


class PictureJob(NamedTuple):
    """One picture and its mask.

    Attributes:
      image: its id.
      places: where the picture may lie; the first that exists is taken.
      size: (height, width) as annotated.
      objects: those that sound.
      picture, mask: the files to write.
      link: how the picture is put there, one of LINKS.
    """

    image: int
    places: tuple[Path, ...]
    size: tuple[int, int]
    objects: tuple[Instance, ...]
    picture: Path
    mask: Path
    link: str = "copy"


class SoundJob(NamedTuple):
    """One sound, to be written as wav. min_seconds: shorter ones are refused."""

    stem: str
    path: Path
    target: Path
    min_seconds: float
    link: str = "copy"


class Written(NamedTuple):
    """What became of a job.

    Attributes:
      files: path as in the job -> {"sha256", "bytes"}, and "kept": True where it was there before; empty where
        something is wrong.
      positions: how far right each object of a picture is, 0 to 1, in the job's order.
      fault, detail: what is wrong. objects: ids of the annotations it is wrong with; none: with the whole picture.
    """

    files: dict[str, dict]
    positions: tuple[float, ...] = ()
    fault: str = ""
    detail: str = ""
    objects: tuple[int, ...] = ()


def write(job: PictureJob | SoundJob) -> Written:
    """Writes a job's files.

    Raises:
      InputError: a file cannot be written.
    """
    try:
        return _write_picture(job) if isinstance(job, PictureJob) else _write_sound(job)
    except _CannotWrite as error:
        raise InputError(error.args[0], expected="a place to write to", found=str(error.__cause__)) from None


def _write_picture(job: PictureJob) -> Written:
    source = next((place for place in job.places if place.is_file()), None)
    if source is None:
        return Written({}, fault="picture without a file", detail=str(job.places[0].name))
    try:
        found = images.read_frame(source).shape[:2]
    except InputError as error:
        return Written({}, fault="picture that does not decode", detail=error.found)
    if found != job.size:
        return Written({}, fault="picture of another size than annotated", detail=f"{found}, annotated {job.size}")
    data = source.read_bytes()
    if data[:2] != b"\xff\xd8":
        return Written({}, fault="picture that is no JPEG", detail=source.name)
    labels, positions, bad = paint(job.objects, job.size)
    if bad:
        return Written({}, fault="mask that cannot be used", detail=bad[0][1], objects=tuple(id for id, _ in bad))
    files = {str(job.picture): _put(job.picture, source, data, job.link)}
    files[str(job.mask)] = _put(job.mask, None, _png(labels))
    return Written(files, positions)


def paint(objects: Sequence[Instance], size: tuple[int, int]):
    """The mask of a picture's sounding objects.

    Where objects overlap the smaller one is seen, as it would be hidden whole otherwise.

    Returns:
      (height, width) uint8: class ids, 0 elsewhere; how far right each object is; and [(annotation id, what is wrong)].
    """
    masks, bad = {}, []
    for item in objects:
        try:
            masks[item.id] = vpo_masks.decode(item.segmentation, size)
        except vpo_masks.BadMask as error:
            bad.append((item.id, f"annotation {item.id}: {error}"))
            continue
        if not masks[item.id].any():
            bad.append((item.id, f"annotation {item.id}: no pixel"))
    labels, owner = np.zeros(size, np.uint8), np.full(size, -1, np.int64)
    if bad:
        return labels, (), bad
    for item in sorted(objects, key=lambda o: (-np.count_nonzero(masks[o.id]), o.id)):
        labels[masks[item.id]], owner[masks[item.id]] = item.class_id, item.id
    hidden = [item.id for item in objects if not (owner == item.id).any()]
    bad = [(id, f"annotation {id}: hidden by other objects") for id in hidden]
    return labels, tuple(round(vpo_masks.centroid(masks[item.id]), 6) for item in objects), bad


def _png(labels: np.ndarray) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(labels).save(buffer, format="PNG")
    return buffer.getvalue()


def _write_sound(job: SoundJob) -> Written:
    fault, detail = vpo_sounds.fault_of(job.path, job.min_seconds)
    if fault:
        return Written({}, fault=fault, detail=detail)
    is_wav = job.path.suffix.lower() == ".wav"
    data = job.path.read_bytes() if is_wav else _wav(job.path)
    if job.target.exists():  # another setting of VPO, or VGGSound itself, lies in the same root
        entry = _entry(data)
        if not is_file(job.target, entry):
            raise InputError(job.target, expected=f"the sound of {job.path}", found="another",
                             hint="Name another --output.")  # fmt: skip
        return Written({str(job.target): entry | {"kept": True}})
    return Written({str(job.target): _put(job.target, job.path if is_wav else None, data, job.link)})


def _wav(path: Path) -> bytes:
    """A sound file as 16-bit wav of its own rate and channels."""
    import soundfile

    samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    whole = np.rint(np.clip(samples, -1, 1 - 2**-15) * 32768).astype(np.int16)  # here, not by the library's own rule
    buffer = io.BytesIO()
    soundfile.write(buffer, whole, rate, "PCM_16", format="WAV")
    return buffer.getvalue()


class _CannotWrite(Exception):
    pass


def _put(target: Path, source: Path | None, data: bytes, link: str = "copy") -> dict:
    """Makes `data`, which is what `source` holds, the content of `target`."""
    half = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        half.unlink(missing_ok=True)
        if source is None or link == "copy":
            half.write_bytes(data)
        elif link == "symbolic":
            half.symlink_to(source.resolve())
        else:
            try:
                os.link(source.resolve(), half)
            except OSError:  # on another file system
                shutil.copyfile(source, half)
        os.replace(half, target)
        half.unlink(missing_ok=True)  # replacing a hard link by another to the same file leaves both
    except OSError as error:
        raise _CannotWrite(target) from error
    return _entry(data)


def _entry(data: bytes) -> dict:
    return {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}


def write_file(target: Path, content: str | bytes) -> dict:
    """Writes a file whole or not at all, and returns its entry for the manifest.

    Raises:
      InputError: it cannot be written.
    """
    try:
        return _put(target, None, content if isinstance(content, bytes) else content.encode())
    except _CannotWrite as error:
        raise InputError(target, expected="a place to write to", found=str(error.__cause__)) from None


def is_file(path: Path, entry: dict) -> bool:
    """Whether a file is there as its entry says."""
    try:
        return (
            path.stat().st_size == entry["bytes"] and hashlib.sha256(path.read_bytes()).hexdigest() == entry["sha256"]
        )
    except OSError:
        return False
