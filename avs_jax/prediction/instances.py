"""The objects that a method sees one by one, frame by frame: as arrays, over the video, and on a sheet.

`instances.npz` holds, for T masks and frames of h x w pixels as the model sees them, the most probable object of each
frame first, and up to Q objects (no more than the method has queries):

    masks          (T, Q, h, w) uint8    probability that the pixel is the object's, in 255ths
    probabilities  (T, Q) float32        of its class
    classes        (T, Q) int32          its label, as in the report
    queries        (T, Q) int32          which of the method's queries it is
    kept           (T, Q) bool           False where a frame has fewer; there masks, probabilities and classes are 0
    times          (T,) float64          seconds; frames (T,) int32: the frame's number in the input
    size           (2,) int32            height and width of the input
    class_names    (K,) str              background first; empty where there is one class only

A query keeps its colour throughout: those seen most have the colours that are told apart best.
"""

import io
import shutil
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from avs_jax.drawing import instances as drawing
from avs_jax.drawing.pixels import COLOURS
from avs_jax.errors import InputError
from avs_jax.prediction import output

ROWS = 8  # frames on a sheet, at most
LEGIBLE = 270  # pixels on the shorter side of the pictures with words in them, at least


def check_options(count: int, confidence: float) -> None:
    """Refuses options out of range.

    Raises:
      InputError: naming the option.
    """
    if not (isinstance(count, int) and count >= 0):
        raise InputError("--instances", expected="how many objects a frame, a whole number", found=repr(count))
    if not 0 <= confidence < 1:
        raise InputError("--confidence", expected="a probability in [0, 1)", found=repr(confidence))
    if confidence and not count:
        raise InputError("--confidence", expected="--instances, whose objects it chooses", found="no --instances")


def check_method(method) -> None:
    """Refuses a method that sees only pixels.

    Raises:
      InputError: naming it, and the methods that do see objects.
    """
    if method.instances is None:
        from avs_jax.methods import METHODS, create

        able = [name for name in METHODS if create(name).instances]
        raise InputError("--instances", expected=f"a method that sees objects one by one ({', '.join(able)})",
                         found=f"'{method.name}', which sees only pixels")  # fmt: skip


class Store:
    """The objects of each frame, written in any order of the frames and kept on disk; at the end one `.npz`.

    Use as a context manager. A frame is a mapping of arrays, of the same names, shapes and dtypes each time.
    """

    def __init__(self, folder: Path):
        self._folder, self._files, self._layout, self.count = folder, {}, {}, 0

    def write(self, order: int, frame: Mapping[str, np.ndarray]) -> None:
        """Puts down frame number `order`."""
        for name, value in frame.items():
            value = np.asarray(value)
            if name not in self._files:
                self._layout[name] = (value.dtype, value.shape)
                self._files[name] = (self._folder / f"{name}.raw").open("w+b")
            self._files[name].seek(order * value.nbytes)
            self._files[name].write(value.tobytes())
        self.count = max(self.count, order + 1)

    def read(self, order: int, names: Sequence[str] = ()) -> dict[str, np.ndarray]:
        """What `write` was given; of it only `names`, if any are."""
        found = {}
        for name in names or self._files:
            dtype, shape = self._layout[name]
            size = dtype.itemsize * int(np.prod(shape))
            self._files[name].seek(order * size)
            found[name] = np.frombuffer(self._files[name].read(size), dtype).reshape(shape)
        return found

    def save(self, path: Path, **more) -> None:
        """Writes an array for each name, with the frames along its first axis, and `more` arrays; a frame's worth of
        memory is enough."""
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=4) as archive:
            for name, file in self._files.items():
                dtype, shape = self._layout[name]
                head = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False,
                        "shape": (self.count, *shape)}  # fmt: skip
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array_header_1_0(member, head)
                    file.seek(0)
                    shutil.copyfileobj(file, member, 2**20)
            for name, value in more.items():
                data = io.BytesIO()
                np.lib.format.write_array(data, np.asarray(value), allow_pickle=False)
                archive.writestr(f"{name}.npy", data.getvalue())

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        for name, file in self._files.items():
            file.close()
            (self._folder / f"{name}.raw").unlink()


def add(store: Store, pick, found: Mapping[str, np.ndarray], classes: Sequence[str], size: tuple[int, int]) -> dict:
    """Stores the objects of `pick`'s frame; returns what the report says of them. Arguments as `records`."""
    store.write(pick.order, {**found, "times": np.float64(pick.time), "frames": np.int32(pick.frame)})
    return {"instances": records(found, classes, size)}


def soft_masks(found: Mapping[str, np.ndarray]) -> np.ndarray:
    """The masks of the kept objects, (N, h, w) float32 in [0, 1], at the model's size."""
    return found["masks"][found["kept"]] / np.float32(255)


def masks_at(found: Mapping[str, np.ndarray], size: tuple[int, int]) -> Iterator[np.ndarray]:
    """Where each kept object is: (H, W) bool at the size of the input, enlarged as `output.segment` enlarges scores."""
    return (output.resize_score(mask, size) > 0.5 for mask in soft_masks(found))


def records(found: Mapping[str, np.ndarray], classes: Sequence[str], size: tuple[int, int]) -> list[dict]:
    """The report's lines on a frame's objects, the most probable first; a mask is where its probability exceeds 0.5.

    Args:
      found: of one frame, see `scoring.score`; classes: names, class 0 the background; size: (H, W) of the input.
    """
    kept = np.flatnonzero(found["kept"])
    return [
        {
            "query": int(found["queries"][n]),
            "probability": float(found["probabilities"][n]),
            "label": int(found["classes"][n]),
            "class": classes[found["classes"][n]],
            "area": float(mask.mean()),
            "rle": output.run_length(mask),
        }
        for n, mask in zip(kept, masks_at(found, size), strict=True)
    ]


class Artist:
    """Draws what a `Store` holds, into the folder of the prediction.

    Args:
      store: with the fields that `add` gives it.
      stage: the folder, with the masks of the prediction itself; movie: the input.
      classes: names, background first, or none where labels are no classes.
    """

    def __init__(self, store: Store, stage: Path, movie, classes: Sequence[str] = ()):
        self._store, self._stage, self._movie, self._classes = store, stage, movie, classes
        self._scale = max(1, -(-LEGIBLE // min(movie.size)))
        self.colours = query_colours(store)

    def _tags(self, found) -> list[drawing.Tag]:
        kept = (found[k][found["kept"]].tolist() for k in ("queries", "probabilities", "classes"))
        return [
            drawing.Tag(q, p, self._classes[c] if self._classes else "", self.colours[q])
            for q, p, c in zip(*kept, strict=True)
        ]

    def paint(self, order: int) -> drawing.Paint:
        """The objects of frame number `order`, ready to be laid over pictures of the input's size."""
        found, (high, wide) = self._store.read(order), self._movie.size
        size = (high * self._scale, wide * self._scale)
        return drawing.Paint(list(masks_at(found, size)), self._tags(found), size, self._scale)

    def write_overlay(self, times, bar) -> Path:
        """The movie with its sound and the objects over every frame, or for a movie of one frame a PNG; enlarged by a
        whole factor where words would not be legible.

        times: since when the frame of each mask is shown; bar: a progress bar, told of each frame.
        """
        path = self._stage / (output.OBJECTS_STILL if self._movie.num_frames == 1 else output.OBJECTS)
        output.write_over(path, self._movie, times, self.paint, bar, self._scale)
        return path

    def write_sheet(self, title: str) -> Path:
        """Frames evenly spread over the movie, with the prediction and every object's soft mask beside it: a PNG."""
        count, most = self._store.count, self._store.read(0, ["kept"])["kept"].size
        chosen = np.unique(np.linspace(0, count - 1, min(ROWS, count)).round().astype(int)).tolist()
        numbers = {order: int(self._store.read(order, ["frames"])["frames"]) for order in chosen}
        pictures = _pictures(self._movie, set(numbers.values()))
        rows = [self._row(order, pictures[number]) for order, number in numbers.items()]
        return drawing.sheet_picture(self._stage / output.SHEET, rows, title=title, most=most)

    def _row(self, order, picture) -> drawing.SheetRow:
        found = self._store.read(order)
        labels = output.read_mask(self._stage / output.MASKS / f"{order:06d}.png")
        names = [self._classes[k] for k in np.unique(labels) if k] if self._classes else []
        when = f"{float(found['times']):.2f} s" if self._movie.num_frames > 1 else ""
        return drawing.sheet_row(when, picture, labels, names, soft_masks(found), self._tags(found))


def _pictures(movie, numbers: set[int]) -> dict[int, np.ndarray]:
    """The frames of these numbers, small enough for a sheet."""
    found = {}
    for frame in movie.frames():
        if frame.index in numbers:
            found[frame.index] = frame.rgb()
            if len(found) == len(numbers):
                break
    return found


def query_colours(store: Store) -> dict[int, np.ndarray]:
    """{query: (3,) uint8} of the queries that are ever kept."""
    seen: dict[int, float] = {}
    for found in _every(store, ["queries", "probabilities", "kept"]):
        for q, p in zip(found["queries"][found["kept"]], found["probabilities"][found["kept"]], strict=True):
            seen[int(q)] = seen.get(int(q), 0.0) + float(p)
    ranked = sorted(seen, key=lambda q: (-seen[q], q))
    return {q: COLOURS[n % len(COLOURS)] for n, q in enumerate(ranked)}


def _every(store: Store, names) -> Iterator[dict]:
    return (store.read(order, names) for order in range(store.count))
