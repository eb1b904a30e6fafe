"""From the config's sections to objects: the method, the sources, the evaluation, the number of steps."""

import math
import sys
from pathlib import Path

import jax
import numpy as np

from avs_jax import config as configs
from avs_jax import metrics
from avs_jax.data.clip import validate
from avs_jax.data.pairing import Pairing, class_table
from avs_jax.data.pipeline import Cached
from avs_jax.data.sources import create_source
from avs_jax.errors import InputError, nearest
from avs_jax.methods import Method, create
from avs_jax.methods.batch import NO_CANVAS
from avs_jax.training.interrupt import Interrupt
from avs_jax.training.progress import say
from avs_jax.training.workdir import writable

PRECISIONS = ("float32", "bfloat16")


def build_method(config) -> Method:
    """The method of the config's `method` section, computing in its `precision`.

    Raises:
      InputError: an unknown method, option or precision, or a method without reduced precision.
    """
    if config.precision not in PRECISIONS:
        raise InputError("precision", expected=" or ".join(PRECISIONS), found=repr(config.precision),
                         hint=nearest(config.precision, PRECISIONS))  # fmt: skip
    options = config.method.to_dict()
    name = options.pop("name")
    if config.precision != "float32":
        options["compute_dtype"] = config.precision
    return create(name, **options)


def build_source(config, split: str):
    """The source of split "train", "eval" or "test", without its bad clips where the `loader` section says so.

    Raises:
      InputError: an unknown source or option, or data that do not fit it.
    """
    source = create_source(config.data.source, **configs.split_options(config, split))
    if config.loader.skip_bad:
        from avs_jax.check import skip_bad

        source = skip_bad(source, progress=f"check {split}" if sys.stderr.isatty() else None)
    return source


def check_classes(method, source) -> None:
    """Refuses data whose classes are not the method's. A binary method takes any: what sounds, sounds.

    Raises:
      InputError: they are not.
    """
    found, classes = len(source.class_names), max(method.num_classes, 2)
    if found != classes and (method.num_classes > 1 or method.paired):
        raise InputError("method.num_classes", expected=f"{found}, the classes of the data set with background",
                         found=str(classes), hint="method.setting and data.setting should go together.")  # fmt: skip


def cached(config, source):
    """The source, kept in memory where the `loader` section says so."""
    return Cached(source) if config.loader.cache else source


def pairing(config, method, source) -> Pairing | None:
    """Whose sound each clip also hears in training, for a method that asks for it; by the `pairing` section.

    Raises:
      InputError: an option out of its range.
    """
    if not method.paired:
        return None
    return Pairing(class_table(source), config.seed, binary=len(source.class_names) == 2, **config.pairing)


def total_steps(config, clips: int) -> int:
    """Optimiser steps of the whole run: `steps`, or `epochs` over `clips` clips.

    Raises:
      InputError: both or neither are set.
    """
    if (config.steps > 0) == (config.epochs > 0):
        raise InputError("steps, epochs", expected="one of them above 0", found=f"{config.steps}, {config.epochs}",
                         hint="Set the other to 0.")  # fmt: skip
    return config.steps or math.ceil(config.epochs * clips / config.batch_size)


def parts(config) -> int:
    """Parts of a batch whose gradients are averaged one after the other (`accumulate`).

    Raises:
      InputError: the devices cannot share each part evenly.
    """
    n, devices = config.accumulate, jax.device_count()
    if n != 1 and (n < 1 or config.batch_size % (n * devices)):  # the whole batch is the layout's to check
        raise InputError("accumulate", expected=f"parts of batch_size = {config.batch_size} clips that are multiples "
                         f"of the {devices} device(s)", found=f"{n} parts")  # fmt: skip
    return n


def identity(config) -> dict:
    """What a run is a function of, beside its data: a checkpoint refuses to go on under another one.

    Its length, its logging, evaluation and loading may change, and so may the folder its data lie in.
    """
    sections = ("seed", "batch_size", "accumulate", "precision", "method", "optimizer", "tagging")
    found = {k: v for k, v in config.to_dict().items() if k in sections}
    if found["accumulate"] == 1:  # as runs were saved that did not know of it
        found.pop("accumulate")
    found["method"].pop("max_iter", None)  # TransAVS's name for the run's length, over which its thresholds rise
    return found


def save_config(config, workdir: Path) -> None:
    """Writes config.json in one piece: a kill leaves the old one or the new one.

    Raises:
      InputError: it cannot be written. TrainingError: the disk is full.
    """
    if jax.process_index() == 0:
        with writable(workdir / "config.json"):
            configs.save(config, workdir / "config.json.new")
            (workdir / "config.json.new").replace(workdir / "config.json")


def example_batch(source) -> dict:
    """Clip 0 as a checked batch of one: what a method's `init` looks at."""
    clip = dict(validate(source[0], num_classes=len(source.class_names)))
    clip.pop("id")
    batch = {k: np.asarray(v)[None] for k, v in clip.items()}
    return {**batch, "index": np.zeros(1, np.int32), "valid": np.ones(1, bool)}


def load_pretrained(config, method, variables):
    """The variables with what the files of the config's `pretrained` section hold.

    Raises:
      InputError: a file that is missing or does not fit the method.
    """
    from avs_jax.weights.pretrained import load_pretrained

    return load_pretrained(method, variables, config.pretrained)


def check_canvases(config, method) -> None:
    """Refuses, before the training rather than at its first evaluation, pictures on canvases that the method would see.

    Raises:
      InputError: the data to evaluate on are padded (`data.pad`), and the method looks at all of a frame.
    """
    for split in ("eval", "test"):
        pad = configs.split_options(config, split).get("pad")
        if pad and not method.canvases:
            expected = f"0: '{method.name}' would see what lies around the pictures"
            raise InputError(f"data.{split}.pad", expected=expected, found=repr(pad), hint=NO_CANVAS)


def evaluator(config, method, embed=None, interrupt=None):
    """TrainState -> figures on the eval split, which is opened when first needed.

    Args:
      embed: an `avs_jax.training.embeddings.Embedder`, where the audio encoder is frozen.
      interrupt: an `avs_jax.training.interrupt.Interrupt`; the function raises `Stopped` once that asks to stop.
    Raises:
      InputError: the data to evaluate on are not for the method.
    """
    interrupt = interrupt or Interrupt()
    check_canvases(config, method)
    source = None
    conditions = ("true",)
    if config.eval.best in ("audio_gain", "j_swap", "j_silence", "j_noise"):
        conditions = metrics.CONDITIONS

    def evaluate(state) -> dict[str, float]:
        nonlocal source
        if source is None:
            opened = build_source(config, "eval")
            if embed and conditions == ("true",):  # the other conditions' sounds are no clip's own
                clips = range(min(len(opened), config.eval.max_clips or len(opened)))
                opened = embed(state.params, opened, clips, stop=lambda: interrupt.signal)
            interrupt.check()
            source = cached(config, opened)
        figures = metrics.evaluate(
            method, state.variables, source, batch_size=config.eval.batch_size, max_clips=config.eval.max_clips,
            conditions=conditions, mesh=state.step.sharding.mesh, threads=config.loader.threads, check=interrupt.check,
        )  # fmt: skip
        if config.eval.best not in figures:
            raise InputError("eval.best", expected="a figure of the evaluation", found=repr(config.eval.best),
                             hint=nearest(config.eval.best, figures))  # fmt: skip
        return figures

    return evaluate


def announce(config, method, source, state, *, start: int, total: int) -> None:
    """One line on what is about to happen."""
    from avs_jax.weights.pretrained import describe

    size = sum(x.size for x in jax.tree.leaves(state.params)) / 1e6
    begin = f"resuming at step {start}" if start else f"starting from {describe(config.pretrained)}"
    devices = f"{jax.device_count()} {jax.default_backend()} device(s)"
    say(
        f"{begin}: {method.name}, {size:.2f} M parameters, {len(source)} clips, "
        f"{total} steps of {config.batch_size} on {devices}"
    )
