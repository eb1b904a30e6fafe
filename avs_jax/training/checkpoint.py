"""Checkpoints: state, data position and metrics of one step together; checked against damage when read.

    checkpoints/<step>/variables   params, model_state and, where kept, ema: all that evaluation needs
    checkpoints/<step>/optimizer   step, bad_step, opt_state
    checkpoints/<step>/meta        JSON: step, identity of data and config, figures, a checksum per array

Orbax writes in the background; the newest ones and the best one are kept.
"""

import json
import math
import sys
import zlib
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from avs_jax.data.pipeline import difference
from avs_jax.errors import InputError, TrainingError

FOLDER = "checkpoints"


class DamagedError(Exception):
    """What is on disk is not what was written."""


class Checkpoints:
    """The checkpoints of one run.

    Args:
      workdir: the run's folder.
      keep: how many of the newest to keep, beside the best.
      best: the figure whose largest value marks the best one.
    """

    def __init__(self, workdir, *, keep: int, best: str):
        self.folder = Path(workdir).resolve() / FOLDER  # Orbax refuses relative paths
        self._best = best
        policies = checkpoint_managers.AnyPreservationPolicy(
            [
                checkpoint_managers.LatestN(max(keep, 1)),
                # max_to_keep with best_fn would delete the newest one when it scores badly
                checkpoint_managers.BestN(get_metric_fn=self._score, n=1, keep_checkpoints_without_metrics=False),
            ]
        )
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policies, best_fn=self._score, best_mode="max", cleanup_tmp_directories=True,
        )  # fmt: skip
        self._manager = ocp.CheckpointManager(self.folder, options=options)

    def _score(self, figures: Mapping[str, float] | None) -> float:
        return _score(figures, self._best)

    def latest(self) -> int | None:
        """The newest step saved or being saved."""
        return self._manager.latest_step()

    def save(self, step: int, state, *, identity: dict, figures: dict[str, float] | None = None) -> None:
        """Saves in the background; the state may be donated to the next step as soon as this returns.

        Args:
          identity: what the run is a function of; `restore` compares it.
          figures: the evaluation of this very state, if there was one.
        Raises:
          TrainingError: nothing was saved.
        """
        variables, optimizer = _items(state)
        meta = {"step": step, "identity": identity, "figures": figures, "arrays": _describe(state, checksum=True)}
        saved = self._manager.save(
            step,
            args=ocp.args.Composite(
                variables=ocp.args.StandardSave(variables),
                optimizer=ocp.args.StandardSave(optimizer),
                meta=ocp.args.JsonSave(meta),
            ),
            metrics=figures,
        )
        if not saved:  # Orbax says so quietly, e.g. when a newer step exists
            raise TrainingError(f"checkpoint of step {step} was not saved; {self.folder} holds step {self.latest()}")

    def replace(self, step: int, state, **meta) -> None:
        """Saves a step again, e.g. once its evaluation is known."""
        self._manager.wait_until_finished()
        self._manager.delete(step)
        self.save(step, state, **meta)

    def restore(self, abstract, identity: dict):
        """The newest undamaged checkpoint.

        Args:
          abstract: the state as `jax.ShapeDtypeStruct`s with shardings.
          identity: of the run that wants to go on.
        Returns:
          (state, meta), or None where nothing was saved yet. Damaged checkpoints are moved to checkpoints-damaged/.
        Raises:
          InputError: the run was another one (the field is named), its arrays have other shapes, or all are damaged.
        """
        steps = sorted(self._manager.all_steps(), reverse=True)
        for step in steps:
            try:
                meta = read_meta(self.folder / str(step))
                self._compare(meta, identity, abstract)
                return self._read(step, abstract, meta), meta
            except DamagedError as error:
                print(f"checkpoint of step {step} is damaged ({error}); trying an older one", file=sys.stderr)
                self._set_aside(step)
        if steps:
            raise InputError(self.folder, expected="an undamaged checkpoint", found=f"{len(steps)} damaged",
                             hint="They were moved to checkpoints-damaged; run again to start over.")  # fmt: skip
        return None

    def _compare(self, meta, identity, abstract):
        found = difference(meta["identity"], json.loads(json.dumps(identity)))
        if found:
            name, saved, current = found
            hint = "Use another --workdir, or set it back."
            raise InputError(f"{self.folder.parent}, {name}", expected=f"{saved!r}, as the run was started with",
                             found=repr(current), hint=hint)  # fmt: skip
        saved = {k: v[:2] for k, v in meta["arrays"].items()}
        found = difference({"": saved}, {"": _describe(abstract)})
        if found:
            name, saved, current = found
            raise InputError(f"{self.folder.parent}, array {name.lstrip('.')}", expected=f"{saved}, as it was saved",
                             found=f"{current}", hint="The method's code has changed since the run began.")  # fmt: skip

    def _read(self, step, abstract, meta):
        variables, optimizer = _items(abstract)
        with _damage():
            read = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    variables=ocp.args.StandardRestore(variables), optimizer=ocp.args.StandardRestore(optimizer)
                ),
            )
        state = abstract.replace(**{"ema": None, **read["variables"], **read["optimizer"]})
        _verify(_describe(state, checksum=True), meta["arrays"])
        return state

    def _set_aside(self, step):
        """Out of the way of the save that will come to the same step."""
        if jax.process_index() == 0:
            aside = self.folder.with_name(f"{FOLDER}-damaged")
            aside.mkdir(exist_ok=True)
            count = len(list(aside.iterdir()))
            (self.folder / str(step)).rename(aside / f"{step}-{count}")
        if jax.process_count() > 1:
            from jax.experimental import multihost_utils

            multihost_utils.sync_global_devices(f"damaged checkpoint {step}")
        self._manager.reload()

    def reached_preemption(self, step: int) -> bool:
        """Whether all processes have agreed to stop at this step, because one was told to (never in a single one)."""
        return jax.process_count() > 1 and self._manager.reached_preemption(step)

    def wait(self) -> None:
        """Waits for the save under way."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits for the save under way, and ends."""
        self.wait()
        self._manager.close()


def load_checkpoint(workdir, which: str = "best"):
    """The method and variables of a run.

    Args:
      workdir: the folder that training wrote to.
      which: "best" (by the config's `eval.best`; the latest where nothing was evaluated) or "latest".
    Returns:
      (method, variables), the variables on one device; the moving average of the parameters where one was kept.
    Raises:
      InputError: no run, no checkpoint, or only damaged ones.
    """
    from avs_jax import config as configs
    from avs_jax.training.build import build_method

    if which not in ("best", "latest"):
        raise InputError("which", expected="'best' or 'latest'", found=repr(which))
    config = configs.load(Path(workdir) / "config.json")
    folder = Path(workdir).resolve() / FOLDER
    saved = [path for path in folder.iterdir() if path.name.isdigit()] if folder.is_dir() else []
    metas = {}
    for path in saved:
        try:
            metas[int(path.name)] = read_meta(path)
        except DamagedError as error:
            print(f"checkpoint {path} is damaged ({error})", file=sys.stderr)
    if which == "best":
        order = sorted(metas, key=lambda s: (_score(metas[s]["figures"], config.eval.best), s), reverse=True)
    else:
        order = sorted(metas, reverse=True)
    for step in order:
        try:
            return build_method(config), _read_variables(folder / str(step), metas[step])
        except DamagedError as error:
            print(f"checkpoint {folder / str(step)} is damaged ({error}); trying another", file=sys.stderr)
    raise InputError(folder, expected="a checkpoint", found="only damaged ones" if saved else "none",
                     hint="Has training saved yet?")  # fmt: skip


def _read_variables(path: Path, meta) -> dict:
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    with _damage(), ocp.StandardCheckpointer() as reader:
        tree = reader.metadata(path / "variables").item_metadata.tree
        abstract = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=device), tree)
        read = reader.restore(path / "variables", abstract)
    expected = {k: v for k, v in meta["arrays"].items() if k.split("/")[0] in ("params", "model_state", "ema")}
    _verify(_describe(read, checksum=True), expected)
    return {"params": read.get("ema") or read["params"], **read["model_state"]}


def read_meta(path: Path) -> dict:
    """The JSON item of a checkpoint's folder.

    Raises:
      DamagedError: it is missing or not what `save` wrote.
    """
    with _damage():
        meta = json.loads((path / "meta" / "metadata").read_text())
        if meta["step"] != int(path.name) or not meta["arrays"]:
            raise DamagedError("its meta data is another's")
        return meta


class _damage:
    """Whatever goes wrong in reading a checkpoint means that it is damaged."""

    def __enter__(self):
        pass

    def __exit__(self, kind, error, _):
        if error is not None and isinstance(error, Exception) and not isinstance(error, DamagedError):
            text = " ".join(str(error).split())
            raise DamagedError(f"{kind.__name__}: {text[:120]}") from error


def _items(state) -> tuple[dict, dict]:
    variables = {"params": state.params, "model_state": state.model_state}
    if state.ema is not None:
        variables["ema"] = state.ema
    return variables, {"step": state.step, "bad_step": state.bad_step, "opt_state": state.opt_state}


def _describe(tree, *, checksum: bool = False) -> dict[str, list]:
    """Path -> [shape, dtype] of every array, and with `checksum` its CRC-32, which Orbax does not keep."""
    described = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        described[_path(path)] = [list(leaf.shape), str(leaf.dtype)]
        if checksum:
            described[_path(path)].append(zlib.crc32(np.ascontiguousarray(_host(leaf)).tobytes()))
    return described


def _path(path) -> str:
    return "/".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path)


def _host(array) -> np.ndarray:
    """One copy of an array that may live, whole, on the devices of several processes."""
    return np.asarray(array if array.is_fully_addressable else array.addressable_data(0))


def _verify(found: dict, expected: dict) -> None:
    bad = sorted(k for k in found.keys() | expected.keys() if found.get(k) != expected.get(k))
    if bad:
        raise DamagedError(f"checksum of {bad[0]}" + (f" and {len(bad) - 1} more arrays" if len(bad) > 1 else ""))


def _score(figures: Mapping[str, float] | None, name: str) -> float:
    value = (figures or {}).get(name, -math.inf)
    return value if value is not None and not math.isnan(value) else -math.inf
