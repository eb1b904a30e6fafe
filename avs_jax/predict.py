"""Runs a trained method on a video with sound, on frames or a picture with a sound file, or on a clip of its data set.

    python -m avs_jax.predict --workdir=runs/x --input=clip.mp4 --output=out
    python -m avs_jax.predict --workdir=runs/x --input=photo.jpg --audio=bark.wav --output=out

writes to out/: `masks/*.png` at the input's resolution (0 and 255, or class indices with a palette), `overlay.mp4`
with the input's sound (`overlay.png` for a picture), and `predictions.json` with the time, area, scores and COCO
run-length mask of every frame. One annotated frame a second is what the data sets have, so one mask a second is the
default; --rate=5 or --rate=all gives more, and the overlay shows the nearest. A method that hears seconds around a
single frame (CAVP) hears them around that frame, or the middle of a picture's sound. Memory does not grow with the
length of the input.

A method that sees objects one by one (TransAVS, whose queries each have a mask and a class) also tells of these:
--instances=5 writes up to five objects a frame, those more probable than --confidence, each in its query's colour over
the video (`instances.mp4`), side by side (`instances_sheet.png`), as arrays (`instances.npz`), and in the report.
"""

import contextlib
import functools
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from avs_jax import config as configs
from avs_jax.data import media
from avs_jax.data.audio import front_end as create_front_end
from avs_jax.data.clip import bare
from avs_jax.data.sources import create_source
from avs_jax.errors import InputError, nearest
from avs_jax.paths import to_path
from avs_jax.prediction import clips as clipping
from avs_jax.prediction import inputs, output
from avs_jax.prediction import instances as instance_view
from avs_jax.prediction.run import seen_by
from avs_jax.prediction.scoring import score

SPLITS = {"train": "train", "eval": "eval", "val": "eval", "test": "test"}  # as users say -> the config's section
VIDEOS = (".mp4", ".mov", ".mkv", ".webm", ".avi")  # a missing file with such a name is no misspelt id
MOST_SIDE = 8192  # pixels
MOST_PIXELS = 2**21  # of a batch of more than one clip: what memory holds beside a network's features
USAGE = "Usage: python -m avs_jax.predict --workdir=runs/x --input=clip.mp4 --output=out"


def predict_media(
    method,
    variables,
    input: str | Path | inputs.Movie,
    output_dir: str | Path,
    *,
    image_size: tuple[int, int] | int | None,
    num_frames: int = 5,
    rate: int | str = 1,
    fps: float | None = None,
    audio: str | Path | None = None,
    source=None,
    class_names: Sequence[str] | None = None,
    front_end=None,
    batch_size: int = 4,
    overlay: bool = True,
    overwrite: bool = False,
    instances: int = 0,
    confidence: float = 0.0,
    progress: bool = True,
    run: dict | None = None,
) -> dict:
    """Masks, overlay and report of one input, in constant memory.

    Args:
      method: an `avs_jax.methods.Method`; variables: its variables.
      input: a video file, a folder of frames, a picture, what `open_movie` made of one, or with `source` the id of a
        clip.
      output_dir: a new or empty folder, or one with an earlier prediction, which is replaced once this one is done.
      image_size: (H, W) the frames are squashed to for the model, pixels; None: they stay as large as they are.
      num_frames: T, frames one second apart in a clip.
      rate: masks per second, a whole number, or "all" for one for every frame.
      fps: frame rate of a folder (default 1). audio: sound file in place of the input's own.
      class_names: class 0 the background; the source's, or numbers, by default.
      front_end: what turns sound into the method's `audio` (default: the one the method names).
      batch_size: clips at a time; fewer when the input has fewer.
      overlay: write the overlay video. overwrite: write beside foreign files. progress: show bars on a terminal.
      instances: Q, objects a frame at most that are told one by one, where the method sees them; 0: none.
      confidence: in [0, 1): the probability that an object's class must exceed.
      run: more fields for the report, JSON-able.
    Returns:
      {"report": path of the JSON, "masks": their number, "area": their mean share of the picture, "notes": sentences,
      "instances": path of an `.npz`, see `avs_jax.prediction.instances`, or None}.
    Raises:
      InputError: a bad input, option or output folder, or a method without instances; nothing is left behind.
    """
    _check(output_dir, rate, overwrite, instances, confidence)
    if instances:
        instance_view.check_method(method)
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    batch = Batching(size, num_frames, batch_size, rate, front_end or create_front_end(method.front_end))
    if isinstance(input, inputs.Movie):
        movie = input
        batches, total = _from_movie(movie, batch)
    elif source is not None and not to_path(input).exists():
        if rate != 1 or fps is not None or audio is not None:
            raise InputError("--rate, --fps, --audio", expected="a video or a folder of frames as the input",
                             found=f"the clip '{input}'")  # fmt: skip
        movie, batches, total = _from_source(source, str(input))
    else:
        movie = inputs.open_movie(input, audio=audio, fps=fps)
        batches, total = _from_movie(movie, batch)
    sound, notes = inputs.sound_report(movie)
    names = _class_names(method.num_classes, class_names or getattr(source, "class_names", ()))
    header = {
        "input": movie.name,
        "kind": movie.kind,
        "method": method.name,
        **(run or {}),
        "duration": round(movie.duration, 6),
        "fps": round(movie.fps, 6),
        "input_frames": movie.num_frames,
        "rate": rate,
        "overlay": (output.STILL if movie.num_frames == 1 else output.OVERLAY) if overlay else None,
        "sound": sound,
        "notes": notes,
    }
    if instances:
        header["instances"] = {"arrays": output.ARRAYS, "most": instances, "confidence": confidence}
    named = names if method.num_classes > 1 else ()
    with output.staged(output_dir, overwrite) as stage, instance_view.Store(stage) as store:
        with contextlib.closing(output.Recorder(stage, names, movie.size, header)) as recorder:
            with _bar(total, "masks", progress) as bar:
                for pick, scores, found in score(method, variables, batches, instances, confidence):
                    more = None if found is None else instance_view.add(store, pick, found, names, movie.size)
                    recorder.add(pick, scores, more)
                    bar.update()
            recorder.finish()
        if overlay:
            with _bar(movie.num_frames, "overlay", progress) as bar:
                output.write_overlay(stage / header["overlay"], movie, stage, recorder.times, bar, named)
        if instances:
            artist = instance_view.Artist(store, stage, movie, named)
            artist.write_sheet(f"{Path(movie.name).name}: the objects that {method.name} sees")
            if overlay:
                with _bar(movie.num_frames, "instances", progress) as bar:
                    artist.write_overlay(recorder.times, bar)
            store.save(stage / output.ARRAYS, size=np.int32(movie.size), class_names=np.array(named, np.str_))
    count = len(recorder.times)
    return {
        "report": to_path(output_dir) / output.REPORT,
        "masks": count,
        "area": recorder.area / max(count, 1),
        "notes": notes,
        "instances": to_path(output_dir) / output.ARRAYS if instances else None,
    }


def _check(output_dir, rate, overwrite, instances, confidence) -> None:
    """Refuses what can be refused before anything is read."""
    instance_view.check_options(instances, confidence)
    output.check_output(to_path(output_dir), overwrite)
    if rate != "all" and not (isinstance(rate, int) and rate >= 1):
        raise InputError("--rate", expected="a whole number of masks per second, or 'all'", found=repr(rate))


class Batching:
    """How a movie is cut for the model; fields as the arguments of `predict_media`."""

    def __init__(self, size: Sequence[int] | None, num_frames: int, batch_size: int, rate: int | str,
                 front_end: Callable):  # fmt: skip
        self.size, self.num_frames, self.batch_size = size, num_frames, batch_size
        self.rate, self.front_end = rate, front_end


def _from_movie(movie: inputs.Movie, b: Batching):
    """(an iterator of batches, the number of masks they will give)."""
    size = movie.size if b.size is None else tuple(b.size)
    if movie.kind == "picture":
        if b.rate != 1:
            raise InputError("--rate", expected="a video or several frames as the input", found=f"picture {movie.name}")
        total, spacing = 1, 1
        picks = clipping.pick_picture(next(movie.frames()), movie.duration, b.num_frames, size)
    else:
        total = clipping.expected_picks(b.rate, movie.num_frames, movie.duration)
        spacing = 1 / movie.fps if b.rate == "all" else 1 / b.rate
        picks = clipping.pick_frames(movie.frames(), b.rate, movie.fps, movie.duration, size)
    clips = clipping.group(picks, b.num_frames, min(spacing / 2 + clipping.EPS, 0.45))
    channels = getattr(b.front_end, "channels", 1)
    sound = media.read_audio_stream(movie.track, origin=movie.origin, channels=channels)
    sound, end = media.SoundWindow(sound, clipping.LEAD), max(movie.duration, movie.sound.end)
    clips = clipping.hear(clips, sound, b.front_end, b.num_frames, end)
    most = max(1, MOST_PIXELS // (b.num_frames * size[0] * size[1]))
    batch_size = max(1, min(b.batch_size, -(-total // b.num_frames), most))
    return clipping.batches(clips, batch_size, b.num_frames), total


def _from_source(source, name: str):
    """(the movie of a clip, its one batch, the number of its frames)."""
    index = inputs.find_clip(source, name)
    record = bare(source[index])
    shown = np.flatnonzero(record["present"])[-1] + 1 if "present" in record else len(record["frames"])
    frames = record["frames"][:shown]  # without those that only fill up a short clip
    if frames.dtype != np.uint8:
        raise InputError(f"clip '{name}', field 'frames'", expected="uint8 RGB", found=str(frames.dtype))
    movie = inputs.clip_movie(source, index, frames)
    times = [i + clipping.FRAME_IN_SECOND for i in range(len(frames))]
    picks = [clipping.Pick(i, t, t, i, float(i), frames[i]) for i, t in enumerate(times)]
    fields = {k: record[k][None] for k in ("frames", "present", "audio", "audio_embedding") if k in record}
    batch = {**fields, "valid": np.ones(1, bool)}
    return movie, iter([(batch, [clipping.Clip(0.0, list(frames), picks)])]), len(frames)


def _class_names(num_classes: int, names: Sequence[str]) -> list[str]:
    """Names for the report: those given where they fit the method, else numbers."""
    if num_classes == 1:
        return ["background", "sounding"]
    if len(names) == num_classes:
        return list(names)
    return ["background", *(f"class {k}" for k in range(1, num_classes))]


def _bar(total: int, name: str, show: bool):
    return tqdm(total=total, desc=name, unit=" frames", disable=None if show else True, dynamic_ncols=True)


def predict_run(
    workdir: str | Path,
    input: str | Path,
    output_dir: str | Path,
    *,
    checkpoint: str = "best",
    split: str = "test",
    fps: float | None = None,
    audio: str | Path | None = None,
    **options,
) -> dict:
    """`predict_media` with the method, image size and front end of a trained run.

    Args:
      workdir: the folder that training wrote to.
      input: a video, a folder of frames and a sound file, a picture, or the id of a clip of `split` of the run's data
        set.
      checkpoint: "best" or "latest".
      split: "train", "val" (or "eval"), "test".
      fps, audio, options: further arguments of `predict_media`.
    Raises:
      InputError: as `predict_media`, and for a workdir without a run or a checkpoint.
    """
    told = {"rate": 1, "overwrite": False, "instances": 0, "confidence": 0.0, **options}
    _check(output_dir, told["rate"], told["overwrite"], told["instances"], told["confidence"])
    if split not in SPLITS:
        raise InputError("--split", expected="the name of a split", found=repr(split), hint=nearest(split, SPLITS))
    config = configs.load(to_path(workdir) / "config.json")
    if told["instances"]:
        from avs_jax.training.build import build_method

        instance_view.check_method(build_method(config))
    data = configs.split_options(config, SPLITS[split])
    is_media = to_path(input).exists() or to_path(input).suffix.lower() in (*VIDEOS, *inputs.IMAGES)
    try:
        source = create_source(config.data.source, **data)
    except InputError:  # the run's data set is not on this machine: a video does not need it
        if not is_media:
            raise
        source = None
    if is_media:  # what is wrong with the input is told before the checkpoint is read
        input, fps, audio = inputs.open_movie(input, audio=audio, fps=fps), None, None
    else:
        inputs.find_clip(source, str(input))

    from avs_jax.training.checkpoint import load_checkpoint

    method, variables = load_checkpoint(workdir, which=checkpoint)
    fields = seen_by(config.data.source, data, source) | {k: v for k, v in options.items() if v is not None}
    return predict_media(
        method, variables, input, output_dir, source=None if is_media else source,
        run={"workdir": str(workdir), "checkpoint": checkpoint}, fps=fps, audio=audio, **fields,
    )  # fmt: skip


def _size_option(texts: Sequence[str]) -> dict:
    """The argument `image_size` from the flag: nothing, a side, or a height and a width.

    Raises:
      InputError: anything else.
    """
    if not texts:
        return {}
    if len(texts) > 2 or not all(text.isdecimal() and 0 < int(text) <= MOST_SIDE for text in texts):
        expected = f"a side in pixels, or height,width, up to {MOST_SIDE}"
        raise InputError("--image_size", expected=expected, found=repr(",".join(texts)))
    return {"image_size": (int(texts[0]), int(texts[-1]))}


def main() -> int:
    """The command: flags to `predict_run`, its result to the terminal."""
    from absl import flags

    from avs_jax import cli

    values = flags.FLAGS
    for name in ("workdir", "input", "output"):
        if not getattr(values, name):
            raise InputError(f"--{name}", expected="to be given", found="nothing", hint=USAGE)
    cli.enable_compile_cache()
    cleanup = functools.partial(output.discard, to_path(values.output), not to_path(values.output).exists())
    with cli.interruptible(f"interrupted; no new prediction in {values.output}", cleanup):
        result = predict_run(
            values.workdir, values.input, values.output, checkpoint=values.checkpoint, split=values.split,
            rate=int(values.rate) if values.rate.isdecimal() else values.rate, fps=values.fps, audio=values.audio,
            batch_size=values.batch_size, overlay=values.overlay, overwrite=values.overwrite,
            instances=values.instances, confidence=values.confidence,
            **_size_option(values.image_size),
        )  # fmt: skip
    for note in result["notes"]:
        print(f"note: {note}", file=sys.stderr)
    masks = "1 mask" if result["masks"] == 1 else f"{result['masks']} masks"
    print(f"{masks}, {result['area']:.1%} of the picture on average; report: {result['report']}")
    if result["instances"]:
        print(f"objects one by one: {result['instances']}, picture: {result['instances'].with_name(output.SHEET)}")
    return 0


if __name__ == "__main__":
    from absl import flags

    from avs_jax import cli

    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    flags.DEFINE_string("workdir", None, "The folder that training wrote to.")
    flags.DEFINE_string("input", None, "A video, frames or a picture with a sound file, or a clip's id.")
    flags.DEFINE_string("output", None, "The folder to write to.")
    flags.DEFINE_enum("checkpoint", "best", ["best", "latest"], "Which parameters.")
    flags.DEFINE_enum("split", "test", list(SPLITS), "Where to look for a clip's id.")
    flags.DEFINE_string("rate", "1", "Masks per second, or 'all'.")
    flags.DEFINE_float("fps", None, "Frame rate of a folder of frames; 1 where not given.")
    flags.DEFINE_string("audio", None, "A sound file to use in place of the input's own.")
    flags.DEFINE_list("image_size", [], "Side, or height,width, that frames are scaled to for the model; the run's.")
    flags.DEFINE_integer("batch_size", 4, "Clips at a time.", lower_bound=1)
    flags.DEFINE_bool("overlay", True, "Write the overlay video.")
    flags.DEFINE_integer("instances", 0, "Objects a frame, at most, told one by one; 0: none.", lower_bound=0)
    flags.DEFINE_float("confidence", 0.0, "The probability that the class of such an object must exceed, in [0, 1).")
    flags.DEFINE_bool("overwrite", False, "Write to --output even where other files are.")
    cli.run(main)
