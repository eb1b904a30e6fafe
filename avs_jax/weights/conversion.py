"""Public files to a file or a workdir, and a workdir's checkpoint to a public file."""

from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from avs_jax.errors import InputError
from avs_jax.methods import Method
from avs_jax.weights import matching
from avs_jax.weights.convert import fill, initial, read, table_of, to_torch
from avs_jax.weights.writing import SUFFIXES, save_state_dict

PARTS = ("all", "network", "audio")


def is_run(path: Path) -> bool:
    return (path / "config.json").is_file()


def is_file_name(path: Path) -> bool:
    """Whether an output is a file of weights; anything else is a workdir."""
    return path.suffix in SUFFIXES


def to_file(paths: Sequence[Path], output: Path, *, model=None, part: str = "all", checkpoint: str = "best") -> dict:
    """Writes one file of public keys.

    Args:
      paths: one workdir, or public files.
      output: ends in .safetensors, .pth, .pt or .pth.tar.
      model: what the files must fit; its keys are written in the public order and as float32. None: the files'
        tensors as they are.
      part: "all"; "network", without the audio encoder, as AVSBench's code saves it; "audio", that alone.
      checkpoint: of the workdir: "best" or "latest".
    Returns:
      What was written.
    Raises:
      InputError: files that are missing, damaged or do not fit, or a part that needs a model.
    """
    if is_run(paths[0]):
        from avs_jax.training.checkpoint import load_checkpoint

        if len(paths) > 1:
            raise InputError("IN", expected="one workdir, or files", found=f"{len(paths)} inputs")
        model, variables = load_checkpoint(paths[0], which=checkpoint)
        state_dict = to_torch(model, jax.tree.map(np.asarray, variables))
    elif model is not None:
        state_dict = to_torch(model, _load(model, paths, part))
    else:
        state_dict = _union(paths)
    if part != "all":
        if not isinstance(model, Method):
            raise InputError(
                "--part", expected="'all', where no method is named", found=repr(part), hint="Add --method."
            )
        audio = {rule.key for rule in table_of(model).rules if matching.is_audio(rule)}
        state_dict = {k: v for k, v in state_dict.items() if (k in audio) == (part == "audio")}
    save_state_dict(output, state_dict)
    return state_dict


def to_workdir(paths: Sequence[Path], workdir: Path, config) -> Method:
    """Makes a workdir that `evaluate`, `predict` and `config.pretrained.method` take, from public files.

    Args:
      paths: files that together cover the config's method.
      workdir: a folder that is empty or not there yet.
      config: of a recipe (see `avs_jax.config.defaults`); it is kept as config.json.
    Raises:
      InputError: files that do not fit, or a folder that holds something.
    """
    import optax

    from avs_jax.training import build
    from avs_jax.training.bucket import open_checkpoints
    from avs_jax.training.state import TrainState

    if workdir.exists() and (not workdir.is_dir() or any(workdir.iterdir())):
        raise InputError(workdir, expected="an empty or new folder for a workdir", found="something in it",
                         hint=f"For a file, end its name in {' or '.join(SUFFIXES)}.")  # fmt: skip
    method = build.build_method(config)
    variables = jax.tree.map(jax.numpy.asarray, _load(method, paths))
    workdir.mkdir(parents=True, exist_ok=True)
    checkpoints = open_checkpoints(workdir, keep=1, best=config.eval.best)
    identity = {"config": build.identity(config), "data": {"converted": [path.name for path in paths]}}
    checkpoints.save(0, TrainState.create(variables, optax.identity()), identity=identity)
    checkpoints.close()
    build.save_config(config, workdir)  # last: without it the folder is no workdir
    return method


def _load(model, paths, part: str = "all") -> dict:
    """As `load_torch`; where only one part is wanted, the files need not cover the other."""
    table = table_of(model)
    state_dict = matching.merge([read(path) for path in paths], table)
    variables = jax.tree.map(np.asarray, jax.jit(lambda: initial(model))())
    wanted = {"all": lambda rule: True, "audio": matching.is_audio, "network": lambda rule: not matching.is_audio(rule)}
    match = matching.compare(state_dict, table, variables, lambda rule: wanted[part](rule) or rule.key in state_dict)
    match.require(", ".join(map(str, paths)))
    return fill(variables, table, state_dict)


def _union(paths) -> dict[str, np.ndarray]:
    union: dict[str, np.ndarray] = {}
    for path in paths:
        found = read(path)
        twice = sorted(union.keys() & found.keys())
        if twice:
            raise InputError(path, expected="keys that no other of the files has", found=", ".join(twice[:8]))
        union |= found
    return union
