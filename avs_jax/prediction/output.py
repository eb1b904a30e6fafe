"""What a prediction leaves behind: lossless masks, a report with the time of every mask, an overlay with the sound."""

import array
import contextlib
import functools
import json
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from avs_jax.data.video_writer import VideoWriter
from avs_jax.errors import InputError
from avs_jax.paths import is_remote, remove_tree, to_path, upload
from avs_jax.pictures import COLOURS, outline

FORMAT = "avs_jax.predictions/1"
REPORT, MASKS, OVERLAY, STILL, PARTIAL = "predictions.json", "masks", "overlay.mp4", "overlay.png", ".partial"
ARRAYS, OBJECTS, OBJECTS_STILL = "instances.npz", "instances.mp4", "instances.png"  # seen one by one
SHEET = "instances_sheet.png"
# the report goes first and comes last: no report, no prediction
PARTS = (REPORT, MASKS, OVERLAY, STILL, ARRAYS, OBJECTS, OBJECTS_STILL, SHEET)


@contextlib.contextmanager
def staged(output: str | Path, overwrite: bool = False):
    """A folder to write into; what is in it moves to `output` only when the block ends well.

    However the block ends otherwise, `output` is as it was, down to an earlier prediction in it.

    Raises:
      InputError: `output` is a file, cannot be made, or holds things that are no earlier prediction (unless
        `overwrite`, which replaces what has the names of a prediction's parts and leaves the rest).
    """
    output = to_path(output)
    check_output(output, overwrite)
    if is_remote(output):
        with _uploaded(output) as stage:
            yield stage
        return
    created = not output.exists()
    stage = output / PARTIAL
    try:
        shutil.rmtree(stage, ignore_errors=True)
        (stage / MASKS).mkdir(parents=True)
    except OSError as error:
        found = error.strerror or str(error)
        raise InputError(output, expected="a folder that can be written to", found=found) from None
    try:
        yield stage
        for name in PARTS:
            _remove(output / name)
        for name in reversed(PARTS):
            if (stage / name).exists():
                (stage / name).rename(output / name)
    except OSError as error:
        found = error.strerror or str(error)
        raise InputError(output, expected="a folder that takes the prediction", found=found) from error
    finally:
        discard(output, created)


@contextlib.contextmanager
def _uploaded(output):
    with tempfile.TemporaryDirectory(prefix="avs_jax-") as folder:
        stage = Path(folder)
        (stage / MASKS).mkdir()
        yield stage
        for name in PARTS:
            remove_tree(output / name)
        names = [str(file.relative_to(stage)) for file in sorted(stage.rglob("*")) if file.is_file()]
        upload(stage, output, [name for name in names if name.split("/")[0] in PARTS[1:]])
        upload(stage, output, [REPORT])


def discard(output: Path, created: bool) -> None:
    """Removes what an unfinished prediction left in `output`, and the empty folder itself where it had been `created`
    for it."""
    if is_remote(output):  # nothing is there before all is
        return
    shutil.rmtree(output / PARTIAL, ignore_errors=True)
    if created and output.is_dir() and not any(output.iterdir()):
        output.rmdir()


def check_output(output: Path, overwrite: bool) -> None:
    """Raises InputError unless `staged` may write there: before any work is done."""
    if not output.exists():
        return
    if not output.is_dir():
        raise InputError(output, expected="a folder for the output", found="a file")
    names = {entry.name for entry in output.iterdir()}
    ours = names <= {*PARTS, PARTIAL} and (REPORT in names or names <= {PARTIAL})
    if ours and REPORT in names:
        with (output / REPORT).open("rb") as file:
            ours = FORMAT.encode() in file.read(200)
    if not ours and not overwrite:
        raise InputError(output, expected="an empty folder, or one with an earlier prediction",
                         found=f"{len(names)} other entries, such as '{min(names)}'",
                         hint="Choose another --output, or pass --overwrite.")  # fmt: skip


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def segment(scores: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Scores at the model's size -> labels and scores at the input's.

    Args:
      scores: (h, w, K) float32; K = 1: probability of sounding, else one per class, 0 the background.
      size: (H, W).
    Returns:
      labels (H, W) uint8: score > 0.5 for K = 1, else the class of the highest score; and that score (H, W) float32.
    """
    if scores.shape[-1] == 1:
        score = resize_score(scores[..., 0], size)
        return (score > 0.5).astype(np.uint8), score
    floor = scores.min(axis=(0, 1)).max()  # some class has at least this everywhere: one that never reaches it loses
    labels, best = np.zeros(size, np.uint8), np.full(size, -np.inf, np.float32)
    for k in np.flatnonzero(scores.max(axis=(0, 1)) >= floor):
        score = resize_score(scores[..., k], size)
        labels[score > best] = k
        np.maximum(best, score, out=best)
    return labels, best


def resize_score(score: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(h, w) float32 -> (H, W) float32, bilinear at pixel centres."""
    image = Image.fromarray(np.ascontiguousarray(score, np.float32))
    return np.asarray(image.resize((size[1], size[0]), Image.Resampling.BILINEAR))


def run_length(mask: np.ndarray) -> dict:
    """(H, W) bool or 0/1 -> COCO's compressed run lengths: {"size": [H, W], "counts": ascii}."""
    from pycocotools import mask as coco

    rle = coco.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": [int(n) for n in rle["size"]], "counts": rle["counts"].decode("ascii")}


@functools.cache
def palette(count: int = 256) -> np.ndarray:
    """(count, 3) uint8: a colour per class. Class k's bits, three at a time from the low end, set the bits of red,
    green and blue from the high end (PASCAL VOC's colour map, which AVSBench's semantic labels use)."""
    k, colours = np.arange(count), np.zeros((count, 3), np.uint8)
    for group in range(8):
        for channel in range(3):
            colours[:, channel] |= (((k >> (3 * group + channel)) & 1) << (7 - group)).astype(np.uint8)
    return colours


def write_mask(path: Path, labels: np.ndarray, binary: bool) -> None:
    """Labels (H, W) uint8 as a PNG: 0 and 255 in grey, or class indices with a palette."""
    if binary:
        Image.fromarray(labels * np.uint8(255)).save(path)
        return
    image = Image.frombytes("P", labels.shape[::-1], np.ascontiguousarray(labels).tobytes())
    image.putpalette(palette().tobytes())
    image.save(path)


def read_mask(path: Path) -> np.ndarray:
    """What `write_mask` was given."""
    with Image.open(path) as image:
        labels = np.asarray(image)
        return labels if image.mode == "P" else (labels > 0).astype(np.uint8)


class Recorder:
    """Writes masks and the report's records, in the order of time whatever the order they come in.

    Args:
      stage: the folder; classes: names, class 0 the background; size: (H, W) of the masks;
      header: the report's other fields.
    """

    def __init__(self, stage: Path, classes: list[str], size: tuple[int, int], header: dict):
        self._stage, self._classes, self._size = stage, classes, size
        self._waiting: dict[int, dict] = {}  # bounded by the clips that grow side by side
        self.times = array.array("d")  # since when the frame of each mask is shown
        self._file = (stage / REPORT).open("w")
        fields = {"format": FORMAT, **header, "classes": classes, "height": size[0], "width": size[1]}
        self._file.write("{\n" + "".join(f" {json.dumps(k)}: {json.dumps(v)},\n" for k, v in fields.items()))
        self._file.write(' "frames": [')
        self.area = 0.0  # sum over masks of the share of pixels that sound

    def add(self, pick, scores: np.ndarray, more: Mapping | None = None) -> None:
        """Adds the mask of `pick` (`clips.Pick`) from scores (h, w, K) at the model's size, and `more` fields."""
        labels, score = segment(scores, self._size)
        binary = scores.shape[-1] == 1
        mask = f"{MASKS}/{pick.order:06d}.png"
        write_mask(self._stage / mask, labels, binary)
        inside = labels > 0
        record = {
            "time": round(pick.time, 6),
            "frame": pick.frame,
            "frame_time": round(pick.frame_time, 6),
            "mask": mask,
            "area": float(inside.mean()),
            "score": _summary(score if binary else 1 - resize_score(scores[..., 0], self._size), inside),
        }
        if binary:
            record["rle"] = run_length(inside)
        else:
            record["objects"] = [self._object(labels == k, score, int(k)) for k in np.unique(labels) if k]
        self._waiting[pick.order] = {**record, **(more or {})}
        while len(self.times) in self._waiting:
            self._write(self._waiting.pop(len(self.times)))

    def _object(self, mask: np.ndarray, score: np.ndarray, label: int) -> dict:
        return {
            "label": label,
            "class": self._classes[label],
            "area": float(mask.mean()),
            "score": float(score[mask].mean()),
            "rle": run_length(mask),
        }

    def _write(self, record: dict) -> None:
        self._file.write(("," if self.times else "") + "\n  " + json.dumps(record))
        self.times.append(record["frame_time"])
        self.area += record["area"]

    def finish(self) -> None:
        """Completes the report."""
        if self._waiting:
            raise RuntimeError(f"masks {sorted(self._waiting)[:3]} wait for mask {len(self.times)}, which never came")
        self._file.write(f'\n ],\n "num_masks": {len(self.times)}\n}}\n')
        self._file.close()

    def close(self) -> None:
        self._file.close()


def _summary(score: np.ndarray, inside: np.ndarray) -> dict:
    """Of the probability that something sounds: over the picture, and over the mask (None when it is empty)."""
    return {
        "max": float(score.max()),
        "mean": float(score.mean()),
        "mean_in_mask": float(score[inside].mean()) if inside.any() else None,
    }


def write_overlay(path: Path, movie, stage: Path, times, bar, classes: Sequence[str] = ()) -> None:
    """The movie with its sound and the masks over it, see `write_over`.

    Args:
      stage: the folder that holds the masks.
      classes: their names, background first, to be written on the frames; none where labels are no classes.
    """

    def paint(order):
        return Paint(read_mask(stage / MASKS / f"{order:06d}.png"), classes)

    write_over(path, movie, times, paint, bar)


def write_over(path: Path, movie, times, paint: Callable, bar, scale: int = 1) -> None:
    """The movie with its sound and, on every frame, what was found on the frame nearest in time.

    Args:
      path: an mp4, or for a movie of one frame a PNG.
      times: since when each frame with a finding is shown, ascending.
      paint: number of a finding -> something with `over(frame)`, `scale` times the frame's size.
      bar: a progress bar; told of each frame.
    """
    if path.suffix == ".png":
        (frame,) = movie.frames()
        Image.fromarray(paint(0).over(frame.rgb())).save(path)
        bar.update()
        return
    nearest, loaded, painted = 0, None, None
    size = (movie.size[0] * scale, movie.size[1] * scale)
    with VideoWriter(path, size, movie.fps, sound=movie.track, sound_origin=movie.origin) as writer:
        for frame in movie.frames():
            while nearest + 1 < len(times) and abs(times[nearest + 1] - frame.time) < abs(times[nearest] - frame.time):
                nearest += 1
            if loaded != nearest:
                painted, loaded = paint(nearest), nearest
            writer.write(painted.over(frame.rgb()), frame.time)
            bar.update()


class Paint:
    """A mask ready to be laid over frames, in the look of `avs_jax.pictures.overlay`: what sounds stays in colour,
    tinted and outlined, the rest turns dark and grey; the classes there are stand at the top in their colours.

    In whole bytes and with what depends on the mask alone prepared once, because it runs for every video frame:
    several times faster.
    """

    def __init__(self, labels: np.ndarray, classes: Sequence[str] = ()):
        """labels: (H, W) uint8; classes: their names, background first, or none."""
        self._inside = (labels > 0)[..., None]
        tint = COLOURS[(np.maximum(labels, 1) - 1) % len(COLOURS)]
        self._quarter = tint >> 2
        self._line = outline(labels, 1 + min(labels.shape) // 240) & (labels > 0)
        self._line_colours = tint[self._line]
        self._sign = sign(labels, classes)

    def over(self, frame: np.ndarray) -> np.ndarray:
        """frame: (H, W, 3) uint8; so is the result."""
        grey = (frame[..., 0] >> 3) + (frame[..., 1] >> 2) + (frame[..., 2] >> 3) + np.uint8(25)
        out = np.where(self._inside, frame - (frame >> 2) + self._quarter, grey[..., None])
        out[self._line] = self._line_colours
        out[: self._sign.shape[0], : self._sign.shape[1]] = self._sign
        return out


def sign(labels: np.ndarray, classes: Sequence[str]) -> np.ndarray:
    """The names of the classes in labels (H, W), the largest first, as many as there is room for across the picture:
    (h, w, 3) uint8, h = 0 where there are none."""
    area = np.bincount(labels.reshape(-1), minlength=256)
    found = [int(k) for k in np.argsort(-area, kind="stable") if k and area[k] and k < len(classes)]
    text = int(np.clip(min(labels.shape) // 24, 9, 40))  # pixels
    image = Image.new("RGB", (labels.shape[1], min(2 * text, labels.shape[0])), (20, 20, 20))
    draw, font, at = ImageDraw.Draw(image), ImageFont.load_default(text), text // 2
    for k in found:
        wide = int(font.getlength(classes[k])) + 2 * text
        if at + wide > labels.shape[1] and at > text:
            break
        draw.rectangle((at, text // 2, at + text, text // 2 + text), fill=tuple(COLOURS[(k - 1) % len(COLOURS)]))
        draw.text((at + 1.4 * text, text), classes[k], fill=(255, 255, 255), font=font, anchor="lm")
        at += wide + text
    return np.asarray(image)[: image.height if found else 0, :at]
