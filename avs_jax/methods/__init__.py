"""What training, evaluation and prediction know of a paper: a `Method`, made by name.

A method of one's own needs no entry here: see docs/new_method.md.
"""

import dataclasses
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any, NamedTuple

import jax

from avs_jax.errors import InputError, check_options, nearest
from avs_jax.paths import local_path

METHODS = {name: f"avs_jax.methods.{name}" for name in ("tpavi", "cavp", "transavs")}


class Prediction(NamedTuple):
    """What a method says of a batch of B clips, T frames, H x W pixels.

    logits: (B, T, H, W, K) float32 as the network makes them (None where a method has none).
    scores: (B, T, H, W, K) float32 in [0, 1]; K = 1 for the binary settings: probability of sounding.
    labels: (B, T, H, W) int32: scores > 0.5 for the binary settings, else the most probable class.
    """

    logits: jax.Array | None
    scores: jax.Array
    labels: jax.Array


@dataclasses.dataclass(frozen=True)
class Method:
    """A published system as pure functions.

    Attributes:
      name: e.g. "tpavi".
      options: the fully resolved keyword options it was created with (JSON-able).
      num_classes: K of `Prediction.scores`.
      front_end: name of the audio front end it hears through (see `avs_jax.data.audio`).
      init: (rng, batch) -> variables {"params": ..., "batch_stats": ...}.
      loss: (params, model_state, batch, rng, step) -> (scalar, (new model_state, {name: scalar metric})).
        `model_state` is variables without "params".
      predict: (variables, batch) -> Prediction. Pure; callers jit it.
      param_groups: params -> a tree like params of labels: a learning-rate group's name, or "frozen".
      torch_keys: the table public state-dict key <-> parameter (see `avs_jax.weights`).
      attention: (variables, batch) -> {name: (B, T, h, w, A)}, from each pixel to A sounds, of either sign and any
        scale, or None: what the method looks at, for pictures. Empty where its options leave no sound in.
      features: (variables, batch) -> {"visual": {name: (B, T, h, w, C)}, "audio": {name: (B, T, D)}}, or None: the maps
        that masks are made of, and each frame's sound as the method hears it ("embedding": the audio encoder's output),
        for pictures. "audio" is empty where nothing is heard.
      instances: (variables, batch, count=10, confidence=0.0) -> `models.query_masks.Instances` of (B, T, ...): the
        objects that a method sees one by one, the most probable first; None where it sees only pixels.
      paired: training batches also hold other clips' sounds, `audio_shuffled` and `match` (`avs_jax.data.pairing`).
      canvases: heeds `size`, so that pictures may lie on canvases larger than they are (`data.pad`).
      embed_audio: (params["audio"], windows of sound (N, ...) float32) -> (N, D) float32, the audio encoder alone, so
        that a frozen one runs once per clip; None where there is nothing to cache.
    """

    name: str
    options: Mapping[str, Any]
    num_classes: int
    front_end: str
    init: Callable
    loss: Callable
    predict: Callable
    param_groups: Callable
    torch_keys: Any = None
    attention: Callable | None = None
    features: Callable | None = None
    instances: Callable | None = None
    embed_audio: Callable | None = None
    paired: bool = False
    canvases: bool = False


def create(name: str, **options) -> Method:
    """The method called `name`; keyword options are the config's `method` section.

    Args:
      name: as of `create_function`.
      **options: of the method.
    Raises:
      InputError: an unknown method or option, naming the nearest valid one; a `create` that makes something else.
    """
    build = create_function(name)
    check_options("method", f"'{name}'", options, list(inspect.signature(build).parameters))
    method = build(**options)
    if not isinstance(method, Method):
        raise InputError("method.name", expected=f"'{name}', whose function `create` returns an avs_jax.methods.Method",
                         found=f"one that returns {type(method).__name__}")  # fmt: skip
    return method


def create_function(name: str) -> Callable:
    """The function that makes the method called `name`, whose keyword arguments are the method's options.

    Args:
      name: one of `METHODS`; or one's own: a module that can be imported ("package.module"), or a Python file
        ("my_method.py", absolute or from the working directory), with a function `create`. A file is executed anew at
        every call, so that what is edited in a notebook's session takes effect.
    Raises:
      InputError: an unknown method, naming the nearest valid one; a file or module that is missing or has no `create`.
        What goes wrong inside one's own code is not caught.
    """
    name = str(name)
    if name in METHODS:
        return importlib.import_module(METHODS[name]).create
    if name.endswith(".py"):
        module = _from_file(name)
    elif "." in name and all(part.isidentifier() for part in name.split(".")):
        module = _imported(name)
    else:
        raise InputError("method.name", expected="the name of a method, a module's (package.module) or a file's (x.py)",
                         found=repr(name), hint=nearest(name, METHODS))  # fmt: skip
    if not callable(getattr(module, "create", None)):
        raise InputError("method.name", expected=f"'{name}', with a function `create` that returns a Method",
                         found="none in it")  # fmt: skip
    return module.create


def _from_file(name: str) -> ModuleType:
    path = local_path(name, "method.name").resolve()
    if not path.is_file():
        raise InputError("method.name", expected="a Python file that defines a method", found=f"no file {path}",
                         hint="A relative name starts from the working directory.")  # fmt: skip
    spec = importlib.util.spec_from_file_location(str(path), path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses, and so linen modules, look for their annotations' names
    spec.loader.exec_module(module)
    return module


def _imported(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and f"{name}.".startswith(f"{error.name}."):  # itself, or a package that it should lie in
            raise InputError("method.name", expected="a module that defines a method", found=f"no module '{name}'",
                             hint="Modules are looked up in the working directory too.") from None  # fmt: skip
        raise  # found, but it imports what is not there
