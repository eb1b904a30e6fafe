"""The configuration: one tree of defaults that every config file starts from, and its reading and writing.

A config file defines `get_config(arg=None)`, starts from `defaults()`, and changes what its recipe changes. Commands
lock the tree, so a typo in a file or on the command line is refused with the nearest valid name.
"""

import json
from pathlib import Path

import ml_collections

from avs_jax.errors import InputError, nearest
from avs_jax.paths import is_remote, to_path


def defaults() -> ml_collections.ConfigDict:
    """Every field a run may set, with a value that works. Sections `method` and `data` are keyword options of
    `avs_jax.create` and `avs_jax.create_source`; a recipe adds the options it needs to them."""
    c = ml_collections.ConfigDict()
    c.seed = 0
    c.steps = 1000  # optimiser steps; a recipe in epochs sets epochs > 0 and leaves steps at 0
    c.epochs = 0.0
    c.batch_size = 4  # clips over all devices and processes
    c.accumulate = (
        1  # parts of a batch that are gone through one after the other, for the memory of one; see make_train_step
    )
    c.precision = (
        "float32"  # or "bfloat16": compute only; parameters, losses, norms' statistics and metrics stay float32
    )

    # Start from public weights, each "", a path, the name of a file here or in `folder`, or a Hugging Face hub id
    c.pretrained = ml_collections.ConfigDict()
    c.pretrained.encoder = ""  # the image encoder's file: "resnet50-19c8e357.pth", "timm/pvt_v2_b5.in1k"
    c.pretrained.audio = ""  # the audio encoder's file: "vggish-10086976.pth"
    c.pretrained.method = ""  # a whole method's checkpoint, or the workdir of an earlier run; wins over the other two
    c.pretrained.folder = "weights"  # where fetched files lie

    c.method = ml_collections.ConfigDict({"name": "tpavi"})

    c.data = ml_collections.ConfigDict({"source": "synthetic"})  # options shared by all splits
    c.data.train = ml_collections.ConfigDict({"split": "train"})  # options of one split override the shared ones
    c.data.eval = ml_collections.ConfigDict({"split": "val"})
    c.data.test = ml_collections.ConfigDict({"split": "test"})

    c.augment = ml_collections.ConfigDict()
    c.augment.hflip = 0.0  # probability, the whole clip together
    c.augment.scale = (1.0, 1.0)  # random resize range, then a crop or pad (ignore) back to the source's size
    c.augment.color = 0.0  # strength of brightness, contrast and saturation jitter, the whole clip together
    c.augment.hue = 0.0  # above 0: hue too, the four in random order
    c.augment.crop = 0  # side that clips of any size are padded and cropped to; 0 = off
    c.augment.scales = ()  # with crop: factors to draw from, in place of the range above

    c.pairing = ml_collections.ConfigDict()  # of methods that also hear other clips' sounds in training
    c.pairing.rule = "class"  # class | exact: when a label stays under another clip's sound
    c.pairing.rate = 0.5  # share of the pairs that do not match which get a sound that does

    c.loader = ml_collections.ConfigDict()
    c.loader.workers = 0  # processes; 0 loads in threads of this one
    c.loader.threads = 2  # per process
    c.loader.prefetch = 4  # batches held ready per process
    c.loader.cache = False  # keep decoded clips in memory (small data sets)
    # Folder where a frozen audio encoder's outputs are kept, for all runs: it runs once per clip, not once per step.
    # "auto" is ~/.cache/avs_jax/embeddings. "" lets it run in every step, with the same result up to rounding.
    c.loader.embeddings = "auto"
    c.loader.skip_bad = False  # leave out clips that fail the check, with a report, in place of stopping

    c.optimizer = ml_collections.ConfigDict()
    c.optimizer.name = "adam"  # adam | adamw | sgd
    c.optimizer.lr = 1e-4
    c.optimizer.b1, c.optimizer.b2, c.optimizer.eps = 0.9, 0.999, 1e-8
    c.optimizer.momentum = 0.9  # sgd
    c.optimizer.weight_decay = 0.0
    c.optimizer.clip_norm = 0.0  # global gradient norm; 0 = no clipping
    c.optimizer.schedule = "constant"  # constant | cosine | poly
    c.optimizer.poly_power = 0.9
    c.optimizer.warmup_steps = 0
    c.optimizer.final_scale = 0.0  # the schedule ends at lr * final_scale
    c.optimizer.floor = 0.0  # the rate is never lower
    c.optimizer.lag = 0  # steps the schedule is late; 1 as in code that sets the rate after each step
    # Per parameter group a learning-rate multiplier (0 freezes it), or {"scale": multiplier} and options of this
    # section that it has otherwise: {"name": "adam", "schedule": "constant", "weight_decay": 0.0}
    c.optimizer.groups = ml_collections.ConfigDict()
    c.optimizer.ema = 0.0  # decay of an exponential moving average of the parameters used for evaluation; 0 = off

    c.mesh = ml_collections.ConfigDict()  # how devices share the work; it changes no number but by rounding
    c.mesh.fsdp = 1  # devices that share one copy of parameters and optimiser state; 1 = each has its own
    c.mesh.min_size = 2**16  # elements of the smallest array that is split over them

    c.tagging = (
        ml_collections.ConfigDict()
    )  # teach the audio encoder to name sounds first, then freeze it (from scratch only)
    c.tagging.steps = 0  # 0 = off
    c.tagging.batch_size = 64  # seconds of sound
    c.tagging.lr = 2e-3

    c.eval = ml_collections.ConfigDict()
    c.eval.every_steps = 0  # 0 = only at the end
    c.eval.first_step = 0  # no evaluation before this step
    c.eval.batch_size = 4
    c.eval.max_clips = 0  # 0 = all
    c.eval.report = ""  # at the end, the whole report on this split, as the evaluate command gives it: "test", say
    c.eval.best = "miou"  # the figure by which the best checkpoint is kept

    c.checkpoint = ml_collections.ConfigDict()
    c.checkpoint.every_steps = 500
    c.checkpoint.keep = 2  # latest ones, beside the best

    c.log = ml_collections.ConfigDict()
    c.log.every_steps = 50
    c.log.tensorboard = True
    return c


def parse_arg(arg: str | None, **fields):
    """Parses the text after the colon of `--config=file.py:setting=ms3,backbone=resnet50`.

    Args:
      arg: comma-separated name=value pairs, or None.
      fields: the valid names with their default values, whose types the values take.
    Returns:
      A ConfigDict of `fields`, overridden.
    Raises:
      InputError: an unknown name (the nearest valid one is named) or a value of the wrong type.
    """
    values = ml_collections.ConfigDict(fields)
    for part in filter(None, (arg or "").split(",")):
        name, sep, text = part.partition("=")
        if name not in fields:
            raise InputError(
                f"config argument '{name}'",
                expected="one of the recipe's arguments",
                found=repr(name),
                hint=nearest(name, fields),
            )
        kind = type(fields[name])
        try:
            if kind is bool:
                value = {"": True, "true": True, "1": True, "false": False, "0": False}[text.lower()]
            else:
                value = kind(text)
        except (ValueError, KeyError):
            raise InputError(f"config argument '{name}'", expected=kind.__name__, found=repr(text)) from None
        if not sep and kind is not bool:
            raise InputError(f"config argument '{name}'", expected=f"{name}=<{kind.__name__}>", found=repr(part))
        values[name] = value
    return values


def one_of(name: str, value: str, valid) -> str:
    """Checks that a recipe's argument is one of its valid values, and returns it.

    Raises:
      InputError: it is not; the nearest valid value is named.
    """
    if value not in valid:
        raise InputError(
            f"config argument '{name}'", expected=" or ".join(valid), found=repr(value), hint=nearest(value, valid)
        )
    return value


def split_options(config, split: str) -> dict:
    """Keyword options of `create_source` for split "train", "eval" or "test" (without `source`, the name)."""
    data = config.data.to_dict()
    parts = {k: data.pop(k) for k in ("train", "eval", "test")}
    data.pop("source")
    return {**data, **parts[split]}


def save(config, path: str | Path) -> None:
    """Writes the resolved config as plain JSON."""
    to_path(path).write_text(json.dumps(config.to_dict(), indent=2, sort_keys=True) + "\n")


def load(path: str | Path) -> ml_collections.ConfigDict:
    """Reads what `save` wrote.

    Raises:
      InputError: the file is missing, no JSON object, no config, or names a program that lies beside it as its method.
    """
    from avs_jax import config_check

    path = to_path(path)
    if not path.is_file():
        raise InputError(
            path,
            expected="the resolved config of a run",
            found="no such file",
            hint="Is --workdir the folder that training wrote to?",
        )
    try:
        read = json.loads(path.read_text())
        if not isinstance(read, dict):
            raise TypeError(f"a {type(read).__name__}")
        config = ml_collections.ConfigDict(read)
    except (OSError, ValueError, TypeError, AttributeError, KeyError, RecursionError) as e:
        raise InputError(path, expected="JSON, the object that training wrote", found=f"{e}") from None
    _refuse_own_program(config, path)
    try:
        return ml_collections.ConfigDict(config_check.completed(config.to_dict()))
    except InputError as error:
        raise InputError(f"{path}, {error.where}", expected=error.expected, found=error.found,
                         hint=error.hint) from None  # fmt: skip


def _refuse_own_program(config, path: Path) -> None:
    """A workdir that somebody sends must not bring the code along that opening it would run."""
    method = config.get("method")
    name = str(method.get("name", "")) if hasattr(method, "get") else ""
    file = name if name.endswith(".py") else name.replace(".", "/") + ".py"
    if is_remote(path):  # methods are not taken from there
        return
    if "." in name and Path(file).expanduser().resolve().is_relative_to(path.parent.resolve()):
        raise InputError(f"{path}, method.name", expected="a method whose file lies outside of the run's folder",
                         found=repr(name), hint="Read it; if you trust it, move it and name it anew.")  # fmt: skip
