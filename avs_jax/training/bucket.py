"""A run whose folder is in a bucket, where files can be neither appended to nor renamed in one go.

What grows (metrics, timings, TensorBoard's events) is written to a local folder and copied at every checkpoint, and
every minute. Checkpoints on gs:// are Orbax's own business. It cannot write to s3://, so that there they are saved
locally and copied in the background; a checkpoint is there once its meta data are, which come last.
"""

import contextlib
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import jax

from avs_jax import paths
from avs_jax.errors import InputError, TrainingError
from avs_jax.training.checkpoint import FOLDER, Checkpoints

META = "meta/metadata"
EVERY = 60.0  # seconds after which what was logged is copied, at the next line


def open_checkpoints(workdir, *, keep: int, best: str) -> Checkpoints:
    """The checkpoints of a run, wherever its folder is; arguments as `Checkpoints`.

    Raises:
      InputError: a folder on s3:// and several processes.
    """
    workdir = paths.to_path(workdir)
    if getattr(workdir, "scheme", "") != "s3":
        return Checkpoints(workdir, keep=keep, best=best)
    if jax.process_count() > 1:
        raise InputError("--workdir", expected="a shared folder or gs:// for several processes", found=str(workdir),
                         hint="To s3:// a single process can save.")  # fmt: skip
    return StagedCheckpoints(workdir, keep=keep, best=best)


class LogFolder:
    """A local folder for files that grow, copied to a remote one by `push`.

    Args:
      remote: the run's folder.
      names: files to begin with, as they are there.
    """

    def __init__(self, remote: paths.RemotePath, names):
        self.remote, self._folder = remote, tempfile.TemporaryDirectory(prefix="avs_jax-log-")
        self.local, self._sizes, self._last = Path(self._folder.name), {}, time.monotonic()
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                (self.local / name).write_bytes((remote / name).read_bytes())

    def push(self) -> None:
        """Copies what has changed.

        Raises:
          TrainingError: it could not.
        """
        sizes = {str(file.relative_to(self.local)): file.stat().st_size for file in _files(self.local)}
        changed = [name for name, size in sizes.items() if self._sizes.get(name) != size]
        try:
            paths.upload(self.local, self.remote, changed)
        except InputError as error:
            raise TrainingError(f"{error} The same command goes on from the last checkpoint.") from error
        self._sizes, self._last = sizes, time.monotonic()

    def push_sometimes(self) -> None:
        """`push`, unless that was a moment ago."""
        if time.monotonic() - self._last > EVERY:
            self.push()

    def close(self) -> None:
        self.push()
        self._folder.cleanup()


class StagedCheckpoints(Checkpoints):
    """Checkpoints that Orbax saves in a local folder, and this copies to a bucket. Of those that were there, only the
    meta data are fetched, until one is restored."""

    def __init__(self, workdir: paths.RemotePath, *, keep: int, best: str):
        self._remote, self._stage = workdir / FOLDER, tempfile.TemporaryDirectory(prefix="avs_jax-checkpoints-")
        self._pool, self._copying = ThreadPoolExecutor(1), None
        stage = Path(self._stage.name).resolve()
        for step in self._remote_steps():
            try:
                content = (self._remote / step / META).read_bytes()
            except FileNotFoundError:  # a copy that was cut short
                paths.remove_tree(self._remote / step)
                continue
            (stage / FOLDER / step / META).parent.mkdir(parents=True)
            (stage / FOLDER / step / META).write_bytes(content)
        super().__init__(stage, keep=keep, best=best)

    def save(self, step, state, *, identity):
        with self._named():
            super().save(step, state, identity=identity)
        self._copying: Future | None = self._pool.submit(self._copy, step)

    def evaluated(self, step, figures):
        with self._named():
            super().evaluated(step, figures)
            with self._writing(step):
                paths.upload(self.folder, self._remote, [f"{step}/{META}"])
                self._prune()

    def check(self):
        if self._copying is not None and self._copying.done():
            self.wait()

    def wait(self):
        copying, self._copying = self._copying, None
        with self._named():
            if copying is not None:
                with self._writing(self._saving):
                    copying.result()
            super().wait()

    def restore(self, abstract, identity):
        with self._named():
            return super().restore(abstract, identity)

    def close(self):
        try:
            super().close()
        finally:
            self._pool.shutdown()
            self._stage.cleanup()

    def _read(self, step, abstract, meta):
        paths.download(self._remote / str(step), self.folder / str(step), skip=lambda name: name == META)
        return super()._read(step, abstract, meta)

    def _set_aside(self, step):
        aside = self._remote.with_name(f"{FOLDER}-damaged")
        count = len(list(aside.glob("*")))
        (self._remote / str(step)).rename(aside / f"{step}-{count}")
        super()._set_aside(step)

    def _copy(self, step):
        """In the background: waits for Orbax, copies the checkpoint, and removes what Orbax has removed."""
        self._manager.wait_until_finished()
        folder = self.folder / str(step)
        try:
            self._copy_files(folder, self._remote / str(step))
        except BaseException:
            paths.remove_tree(folder)  # not to be taken for a checkpoint of the run
            raise
        self._prune()

    def _copy_files(self, folder, target):
        names = [str(file.relative_to(folder)) for file in _files(folder)]
        paths.upload(folder, target, [name for name in names if name != META])
        paths.upload(folder, target, [META])

    def _prune(self):
        local = {entry.name for entry in self.folder.iterdir()}
        for step in self._remote_steps():
            if step not in local:
                (self._remote / step / META).unlink(missing_ok=True)  # first: what is left is no checkpoint
                paths.remove_tree(self._remote / step)

    def _remote_steps(self) -> list[str]:
        return [path.name for path in self._remote.glob("*") if path.name.isdigit()]

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        """Errors name the bucket, not the local folder."""
        local, remote = str(self.folder.parent), str(self._remote.parent)
        try:
            yield
        except TrainingError as error:
            raise TrainingError(str(error).replace(local, remote)) from error
        except InputError as error:
            where, found = error.where.replace(local, remote), error.found.replace(local, remote)
            raise InputError(where, expected=error.expected, found=found, hint=error.hint) from error


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file())
