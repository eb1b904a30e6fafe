"""Checkpoints: state, data position and metrics of one step together; checked against damage when read.

    checkpoints/<step>/variables   params, model_state and, where kept, ema: all that evaluation needs
    checkpoints/<step>/optimizer   step, bad_step, opt_state
    checkpoints/<step>/meta        JSON: step, identity of data and config, figures, a checksum per array

Orbax writes in the background, under another name until all is there; the newest ones and the best one are kept.
"""

import contextlib
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from avs_jax.data.pipeline import difference
from avs_jax.errors import InputError, TrainingError
from avs_jax.paths import local_copy, to_path
from avs_jax.training.checkpoint_files import (
    DamagedError,
    damage,
    describe,
    quiet_orbax,
    read_meta,
    score,
    sealed,
    verify,
    write_figures,
)
from avs_jax.training.workdir import reason

FOLDER = "checkpoints"


class _NewestAndBest(checkpoint_managers.PreservationPolicy):
    """Which steps stay on disk. Orbax's own policies know the figures of a step only as they were when it was saved."""

    def __init__(self, keep: int, best: str):
        self.keep, self.best, self.figures = max(keep, 1), best, {}

    def kept(self, steps: Sequence[int]) -> set[int]:
        ranked = sorted((score(self.figures.get(s), self.best), s) for s in steps if self.figures.get(s))
        return set(sorted(steps)[-self.keep :]) | {step for _, step in ranked[-1:]}

    def should_preserve(self, checkpoints, *, context):
        kept = self.kept([c.step for c in checkpoints])
        return [c.step in kept for c in checkpoints]


class _Manager(ocp.CheckpointManager):
    def reached_preemption(self, step):
        """Orbax asks whenever it saves; of several processes the loop alone may ask, and in step (see `Interrupt`)."""
        return False


class Checkpoints:
    """The checkpoints of one run.

    Args:
      workdir: the run's folder.
      keep: how many of the newest to keep, beside the best.
      best: the figure whose largest value marks the best one.
    """

    def __init__(self, workdir, *, keep: int, best: str):
        self.folder = to_path(workdir).resolve() / FOLDER  # Orbax refuses relative paths
        quiet_orbax()
        self._policy, self._saving = _NewestAndBest(keep, best), None
        options = ocp.CheckpointManagerOptions(preservation_policy=self._policy, cleanup_tmp_directories=True)
        self._manager = _Manager(str(self.folder), options=options)
        for step in self._manager.all_steps():
            with contextlib.suppress(DamagedError):
                self._policy.figures[step] = read_meta(self.folder / str(step))["figures"]

    def latest(self) -> int | None:
        """The newest step saved or being saved."""
        return self._manager.latest_step()

    def save(self, step: int, state, *, identity: dict) -> None:
        """Saves in the background; the state may be donated to the next step as soon as this returns.

        Args:
          identity: what the run is a function of; `restore` compares it.
        Raises:
          TrainingError: it was not saved, or the one before it was not.
        """
        self.wait()
        variables, optimizer = _items(state)
        meta = {"step": step, "identity": identity, "figures": None, "arrays": describe(state, checksum=True)}
        self._saving = step
        with self._writing(step):
            saved = self._manager.save(
                step,
                args=ocp.args.Composite(
                    variables=ocp.args.StandardSave(variables),
                    optimizer=ocp.args.StandardSave(optimizer),
                    meta=ocp.args.JsonSave(sealed(meta)),
                ),
            )
        if not saved:  # Orbax says so quietly, e.g. when a newer step exists
            raise TrainingError(f"checkpoint of step {step} was not saved; {self.folder} holds step {self.latest()}")

    def evaluated(self, step: int, figures: dict[str, float]) -> None:
        """Adds the evaluation of a saved step to its checkpoint, and deletes what is no longer the best.

        Raises:
          TrainingError: it could not be written; the checkpoint is as it was.
        """
        self.wait()
        with self._writing(step):
            if jax.process_index() == 0:
                write_figures(self.folder / str(step), figures)
            self._policy.figures[step] = figures
            steps = self._manager.all_steps()
            for old in set(steps) - self._policy.kept(steps):
                self._manager.delete(old)

    def check(self) -> None:
        """Tells early of a save that has failed in the background.

        Raises:
          TrainingError: one has.
        """
        if self._saving is not None and jax.process_count() == 1 and not self._manager.is_saving_in_progress():
            self.wait()

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
                state, found = self._read(step, abstract, meta), ""
            except DamagedError as error:
                state, found = None, str(error)
            if not _anywhere(bool(found)):
                return state, meta
            found = found or "another process says"
            print(f"checkpoint of step {step} is damaged ({found}); trying an older one", file=sys.stderr)
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
        found = difference({"": saved}, {"": describe(abstract)})
        if found:
            name, saved, current = found
            raise InputError(f"{self.folder.parent}, array {name.lstrip('.')}", expected=f"{saved}, as it was saved",
                             found=f"{current}", hint="The method's code has changed since the run began.")  # fmt: skip

    def _read(self, step, abstract, meta):
        variables, optimizer = _items(abstract)
        with damage(self.folder / str(step)):
            read = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    variables=ocp.args.StandardRestore(variables), optimizer=ocp.args.StandardRestore(optimizer)
                ),
            )
        state = abstract.replace(**{"ema": None, **read["variables"], **read["optimizer"]})
        verify(describe(state, checksum=True), meta["arrays"])
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
        self._policy.figures.pop(step, None)
        self._manager.reload()

    def wait(self) -> None:
        """Waits for the save under way.

        Raises:
          TrainingError: it failed.
        """
        with self._writing(self._saving):
            self._manager.wait_until_finished()
        self._saving = None

    def close(self) -> None:
        """Waits for the save under way, and ends.

        Raises:
          TrainingError: it failed.
        """
        try:
            self.wait()
        finally:
            with contextlib.suppress(Exception):  # told by `wait`
                self._manager.close()

    @contextlib.contextmanager
    def _writing(self, step: int | None) -> Iterator[None]:
        """Tells of what goes wrong in saving, now or in the background, in terms of the run."""
        try:
            yield
        except TrainingError:
            raise
        except Exception as error:
            self._saving = None
            self._manager.reload()
            last = self.latest()
            good = f"the last good one is that of step {last}" if last is not None else "there is no other"
            raise TrainingError(
                f"checkpoint of step {step} could not be saved in {self.folder}: {reason(error)}; {good}. "
                "When this is put right, the same command goes on from there."
            ) from error


def _anywhere(here: bool) -> bool:
    """Whether it holds in any process."""
    if jax.process_count() == 1:
        return here
    from jax.experimental import multihost_utils

    return bool(multihost_utils.process_allgather(jax.numpy.asarray(here)).any())


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
    workdir = to_path(workdir)
    config = configs.load(workdir / "config.json")
    folder = workdir.resolve() / FOLDER
    saved = [path for path in folder.iterdir() if path.name.isdigit()] if folder.is_dir() else []
    metas = {}
    for path in saved:
        try:
            metas[int(path.name)] = read_meta(path)
        except DamagedError as error:
            print(f"checkpoint {path} is damaged ({error})", file=sys.stderr)
    if which == "best":
        order = sorted(metas, key=lambda s: (score(metas[s]["figures"], config.eval.best), s), reverse=True)
    else:
        order = sorted(metas, reverse=True)
    for step in order:
        try:
            return build_method(config), _read_variables(folder / str(step), metas[step])
        except DamagedError as error:
            print(f"checkpoint {folder / str(step)} is damaged ({error}); trying another", file=sys.stderr)
    raise InputError(folder, expected="a checkpoint", found="only damaged ones" if saved else "none",
                     hint="Train again, into another folder." if saved else "Has training saved yet?")  # fmt: skip


def _read_variables(path: Path, meta) -> dict:
    quiet_orbax()
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    with damage(path), local_copy(path / "variables") as folder, ocp.StandardCheckpointer() as reader:
        tree = reader.metadata(folder).item_metadata.tree
        abstract = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=device), tree)
        read = reader.restore(folder, abstract)
    expected = {k: v for k, v in meta["arrays"].items() if k.split("/")[0] in ("params", "model_state", "ema")}
    verify(describe(read, checksum=True), expected)
    return {"params": read.get("ema") or read["params"], **read["model_state"]}


def _items(state) -> tuple[dict, dict]:
    variables = {"params": state.params, "model_state": state.model_state}
    if state.ema is not None:
        variables["ema"] = state.ema
    return variables, {"step": state.step, "bad_step": state.bad_step, "opt_state": state.opt_state}
