"""Whatever ends a run or spoils its files, it goes on from its last good state and ends as one that nothing befell."""

import json
import os
import random
import re
import shutil
import subprocess

import jax
import numpy as np
import pytest
from avsbench_tree import write_tree
from forked_commands import Commands
from runs import RECIPE, ROOT, arrays, assert_same_run, steps

import avs_jax
from avs_jax import config as configs
from avs_jax.errors import InputError, TrainingError
from avs_jax.train import train
from avs_jax.training.checkpoint import Checkpoints
from avs_jax.training.checkpoint_files import read_meta

STEPS = 16
# keep=1: no second checkpoint hides the loss of the only one
FLAGS = ("--config.checkpoint.every_steps=3", "--config.checkpoint.keep=1", "--config.eval.every_steps=8",
         "--config.log.every_steps=2", "--config.data.eval.length=9")  # fmt: skip


@pytest.fixture(scope="module")
def commands():
    made = Commands()
    yield made
    made.close()


@pytest.fixture(scope="module")
def run(commands):
    def run(workdir, *flags, **disturbed):
        """The command, disturbed as `killed.install` says."""
        hook = ("killed", disturbed) if disturbed else None
        argv = ("train", f"--config={RECIPE}:steps={STEPS}", f"--workdir={workdir}", *FLAGS, *flags)
        return commands.run(*argv, cwd=ROOT, hook=hook)

    return run


@pytest.fixture(scope="module")
def undisturbed(run, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("undisturbed")
    done = run(workdir)
    assert done.status == 0, done.err
    return workdir


def finish(run, workdir, undisturbed, **options):
    """The same command once more, after which nothing may tell the run from one that was never disturbed."""
    done = run(workdir)
    assert done.status == 0, done.err
    assert_same_run(undisturbed, workdir, STEPS, **options)
    return done


# ---- SIGKILL


def moments(count, seed):
    """`count` moments to be killed at, every kind in turn, where in each at random."""
    draw = random.Random(seed)
    kinds = ("saving", "evaluation", "step", "files", "line", "files", "clock", "files")
    for i in range(count):
        kind = kinds[i % len(kinds)]
        n = {"files": draw.randint(3, 50), "evaluation": draw.randint(1, 9), "saving": draw.randint(1, 2)}
        yield {"moment": kind, "n": 1 if kind == "clock" else n.get(kind) or draw.randint(1, 6),
               "delay": {"clock": draw.uniform(0.3, 2.0), "saving": draw.uniform(0, 0.2)}.get(kind, 0)}  # fmt: skip


@pytest.mark.parametrize("count", [5, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_at_any_moment_it_resumes_to_the_bit(run, undisturbed, tmp_path, count):
    killed, where, chain, resumed = 0, [], 0, 0
    for moment in moments(count, seed=count):
        for _ in range(9):  # until the moment comes: the rest of a run may be too short for it
            workdir = tmp_path / str(chain)
            done = run(workdir, inside=str(workdir), **moment)
            begun = re.search(r"resuming at step (\d+)", done.out)
            assert not begun or int(begun[1]) >= resumed, "a checkpoint that was whole is gone"
            resumed = int(begun[1]) if begun else resumed
            if (workdir / "config.json").exists():
                configs.load(workdir / "config.json")
            if done.status == -9:
                break
            assert done.status == 0, done.err
            assert_same_run(undisturbed, workdir, STEPS)
            chain, resumed = chain + 1, 0
        killed += done.status == -9
        where.append(re.findall(r"<(.*)>", done.err)[-1])
    print("\n".join(where))
    finish(run, tmp_path / str(chain), undisturbed)
    assert killed == count
    assert {"saving", "evaluation", "step"} <= set(where)


@pytest.mark.parametrize("before", ["os.rename /config.json.new", "os.rename /checkpoints/8/meta"])
def test_killed_between_writing_a_file_and_giving_it_its_name(run, undisturbed, tmp_path, before):
    done = run(tmp_path, moment="files", inside=str(tmp_path), only=before)
    assert done.status == -9 and f"<files: {before}" in done.err
    if "meta" in before:
        assert read_meta(tmp_path / "checkpoints" / "8")["figures"] is None  # the evaluation is to be done again
    finish(run, tmp_path, undisturbed)


# ---- SIGTERM


@pytest.mark.parametrize("moment, n, saved", [("evaluation", 1, 8), ("saving", 2, None), ("step", 1, 1)])
def test_preempted_it_saves_at_once(run, undisturbed, tmp_path, moment, n, saved):
    done = run(tmp_path, moment=moment, n=n, number=15, delay=0.2)
    assert done.status == 143 and "SIGTERM: finishing the step and saving" in done.err, done.err
    assert "Traceback" not in done.err
    last = max(steps(tmp_path))
    assert saved in (last, None) and f"stopped at step {last}; the same command goes on" in done.err
    if moment == "evaluation":  # which is left before its second batch, and done again
        assert done.err.count("<clip>") <= 4 and "eval at step" not in done.out
        again = finish(run, tmp_path, undisturbed)
        assert "eval at step 8" in again.out
    else:
        finish(run, tmp_path, undisturbed)


def test_preempted_while_sounds_of_the_evaluation_are_embedded(tmp_path):
    from avs_jax.training import build
    from avs_jax.training.interrupt import Interrupt, Stopped

    config, asked = recipe(), Interrupt()
    state = train(config, tmp_path).state
    opened = []

    def embed(params, source, clips, stop):
        asked.signal = 15 if not opened else 0
        opened.append((source, bool(stop())))
        return source

    config.eval.best = "miou"
    evaluate = build.evaluator(config, build.build_method(config), embed, asked)
    with pytest.raises(Stopped):
        evaluate(state)
    asked.signal = 0
    assert 0 <= evaluate(state)["miou"] <= 1
    assert [stopped for _, stopped in opened] == [True, False]  # what was embedded in part is not kept


# ---- Damage


def recipe(**changes):
    config = configs_of("steps=12")
    config.checkpoint.every_steps, config.eval.best = 4, "fscore"
    config.update_from_flattened_dict(changes)
    return config


def configs_of(arg):
    import runpy

    return runpy.run_path(str(RECIPE))["get_config"](arg)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("finished")
    return workdir, train(recipe(), workdir).state


def cut(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flip(file):
    content = bytearray(file.read_bytes())
    if content:
        content[len(content) * 2 // 3] ^= 0x04
    file.write_bytes(content)


def fill(file):
    file.write_bytes(b"\x00garbage{")


SPOILS = {"cut": cut, "flipped": flip, "garbage": fill, "missing": os.remove}


@pytest.mark.parametrize(
    "how", ["one each", *(pytest.param(how, marks=pytest.mark.slow) for how in SPOILS)]
)  # fmt: skip
def test_every_file_of_a_checkpoint_may_be_damaged(finished, tmp_path, how, capfd):
    """Each file in turn: what is read is right to the bit, of the damaged checkpoint or of the one before, which is
    then told."""
    workdir, state = finished
    draw = random.Random(4)
    abstract = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), state)
    right = {step: avs_jax_variables(workdir, step) for step in (8, 12)}
    files = sorted(p.relative_to(workdir) for p in (workdir / "checkpoints" / "12").rglob("*") if p.is_file())
    passed = []
    for i, file in enumerate(files):
        copy = tmp_path / str(i)
        shutil.copytree(workdir, copy)
        identity = read_meta(copy / "checkpoints" / "12")["identity"]
        spoil = SPOILS.get(how) or draw.choice(list(SPOILS.values()))
        spoil(copy / file)
        capfd.readouterr()
        _, variables = avs_jax.load_checkpoint(copy, "latest")
        told = re.search(r"12 is damaged \((.+)\)", capfd.readouterr().err)
        same(variables["params"], right[8 if told else 12])

        saver = Checkpoints(copy, keep=2, best="fscore")
        restored, meta = saver.restore(abstract, identity)
        saver.close()
        told = re.search(r"checkpoint of step 12 is damaged \((.+)\); trying an older one", capfd.readouterr().err)
        assert int(restored.step) == meta["step"] == (8 if told else 12), file
        same(restored.ema, right[meta["step"]])
        if told:
            passed.append(file)
            assert told[1] and (copy / "checkpoints-damaged" / "12-0").is_dir()
    names = {"/".join(file.parts[2:]) for file in passed}
    assert "meta/metadata" in names  # whatever was done to it: it has a checksum
    assert len(passed) > 3
    needed = {"one each": set(), "flipped": set(), "missing": {"variables/manifest.ocdbt"}}
    assert (
        needed.get(how, {"variables/manifest.ocdbt", "variables/_METADATA"}) <= names
    )  # which resuming can do without


def avs_jax_variables(workdir, step):
    found = arrays(workdir, step)
    return {k.removeprefix("variables/ema/"): v for k, v in found.items() if k.startswith("variables/ema/")}


def same(params, expected):
    leaves = {"/".join(k.key for k in path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    assert leaves.keys() == expected.keys()
    for name, leaf in leaves.items():
        assert np.asarray(leaf).tobytes() == expected[name].tobytes(), name


def test_empty_folders_and_stray_files_are_no_checkpoints(finished, tmp_path, capfd):
    workdir, state = finished
    shutil.copytree(workdir, tmp_path, dirs_exist_ok=True)
    (tmp_path / "checkpoints" / "40").mkdir()
    (tmp_path / "checkpoints" / "50.orbax-checkpoint-tmp").mkdir()
    (tmp_path / "checkpoints" / "notes.txt").write_text("mine")
    avs_jax.load_checkpoint(tmp_path, "latest")
    assert "checkpoints/40 is damaged" in capfd.readouterr().err
    result = train(recipe(), tmp_path)
    assert "checkpoint of step 40 is damaged" in capfd.readouterr().err
    jax.tree.map(np.testing.assert_array_equal, result.state, state)


def test_what_cannot_be_read_now_is_not_damaged(finished, tmp_path, monkeypatch):
    workdir, _ = finished
    shutil.copytree(workdir, tmp_path, dirs_exist_ok=True)
    from avs_jax.training import checkpoint

    for error in (PermissionError(13, "Permission denied"), ValueError("UNAVAILABLE: try again")):

        def broken(*_, error=error, **options):
            raise error

        monkeypatch.setattr(checkpoint._Manager, "restore", broken)
        with pytest.raises(InputError, match="a checkpoint that can be read; found"):
            train(recipe(), tmp_path)
        assert steps(tmp_path) == steps(workdir)  # nothing was moved away
    monkeypatch.undo()
    assert int(train(recipe(), tmp_path).state.step) == 12


# ---- Other devices


def test_resumed_on_two_devices_and_back_on_one(run, undisturbed, tmp_path):
    first = run(tmp_path, moment="step", n=7, number=15)
    second = run(tmp_path, moment="step", n=4, number=15, devices=2)
    assert first.status == second.status == 143 and "resuming at step 7" in second.out
    assert "on 2 cpu device(s)" in second.out
    third = run(tmp_path)
    assert third.status == 0 and "resuming at step 11" in third.out and "on 1 cpu device(s)" in third.out
    one, other = ((w / "metrics.jsonl").read_text().splitlines() for w in (undisturbed, tmp_path))
    assert one[:4] == other[:4]  # before the change, to the bit
    for a, b in zip(map(json.loads, one), map(json.loads, other), strict=True):
        assert a == pytest.approx(b, rel=1e-3, abs=1e-5)  # sums in another order


# ---- A full disk


@pytest.mark.parametrize("limit", [800, pytest.param(6000, marks=pytest.mark.slow)])
def test_disk_full_in_a_save(run, undisturbed, tmp_path, limit):
    """No file grows beyond `limit` bytes from the third save on: meta data of Orbax's fail, or arrays as well."""
    done = run(tmp_path, "--config.log.every_steps=16", moment="save", n=3, full=limit)
    assert done.status == 1, done.err
    line = [line for line in done.err.splitlines() if line.startswith("error: ")]
    assert len(line) == 1 and "Traceback" not in done.err
    assert f"checkpoint of step 8 could not be saved in {tmp_path}/checkpoints: File too large" in line[0], line
    assert "the last good one is that of step 6. When this is put right, the same command goes on" in line[0]
    assert steps(tmp_path) == {6}
    finish(run, tmp_path, undisturbed, metrics=False)


def test_disk_full_in_the_metrics(run, undisturbed, tmp_path):
    flags = "--config.log.every_steps=1", "--config.checkpoint.every_steps=100"
    done = run(tmp_path, *flags, moment="line", n=26, full=500)
    assert done.status == 1 and "Traceback" not in done.err
    assert re.search(r"^error: .*metrics.jsonl could not be written: File too large; the checkpoints are as they were",
                     done.err, re.M)  # fmt: skip
    assert steps(tmp_path) == {8}
    finish(run, tmp_path, undisturbed, metrics=False)


def test_disk_really_full(run, undisturbed, tmp_path):
    """A file system of 1 MB; where mounting is forbidden, the limits above stand for it."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no right to mount a file system")
    try:
        run(disk / "run", moment="step", n=7, number=15)
        with open(disk / "ballast", "wb", buffering=0) as ballast:
            with pytest.raises(OSError, match="No space"):
                while ballast.write(bytes(4096)):
                    pass
            ballast.truncate(ballast.tell() - 16384)
        done = run(disk / "run")
        assert done.status == 1 and "No space left on device" in done.err and "Traceback" not in done.err, done.err
        assert max(steps(disk / "run")) >= 7
        (disk / "ballast").unlink()
        finish(run, disk / "run", undisturbed)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_output_that_nobody_takes_does_not_end_a_run(tmp_path, monkeypatch):
    from avs_jax.training import progress

    def closed(text, **_):
        lost.append(text)
        raise BrokenPipeError(32, "Broken pipe")

    lost = []
    monkeypatch.setattr(progress, "print", closed, raising=False)
    assert int(train(recipe(), tmp_path).state.step) == 12
    assert any(text.startswith("step 12/12") for text in lost)


# ---- Folders that cannot be written to


def test_unwritable_workdirs_are_refused_before_training(run, tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "closed").mkdir(mode=0o555)
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "metrics.jsonl").mkdir()
    cases = {
        tmp_path / "file": "File exists",
        tmp_path / "file" / "run": "Not a directory",
        tmp_path / "closed": "Permission denied",
        tmp_path / "closed" / "run": "Permission denied",
        "/proc/run": "No such file or directory",
        taken: "Is a directory",
    }
    for workdir, reason in cases.items():
        done = run(workdir)
        assert done.status == 2 and "Traceback" not in done.err, done.err
        assert f"error: {workdir}" in done.err and f"a path that can be written to; found {reason}" in done.err
        assert "step 1/" not in done.out


def test_tensorboard_ends_no_run(tmp_path, capsys, monkeypatch):
    from avs_jax.training.events import Events

    (tmp_path / "tensorboard").write_text("not a folder")
    result = train(recipe(**{"log.tensorboard": True}), tmp_path)
    assert int(result.state.step) == 12
    assert capsys.readouterr().err.count("TensorBoard's events are not written") == 1

    events = Events(tmp_path / "events", purge_step=3)
    events.add(4, {"train/loss": 0.5})
    file = events._writer._py_recordio_writer

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(file, "write", full)
    for step in range(5, 30):  # more than the queue of a writing thread would take
        events.add(step, {"train/loss": 0.5})
        events.flush()
    events.close()
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and "any more: No space left on device" in told


# ---- Data that vanish, and errors that nobody foresaw


def test_a_file_that_vanishes_costs_no_step(tmp_path, monkeypatch, capsys):
    root = write_tree(tmp_path / "data", setting="ms3")
    config = recipe(**{"log.every_steps": 1, "checkpoint.every_steps": 100})
    config.data = configs.defaults().data
    config.data.update(source="avsbench", root=str(root), setting="ms3", image_size=32)
    whole = train(config, tmp_path / "whole").state

    from avs_jax.training import loop

    frame = next((root / "Multi-sources").rglob("trainclip_1*_3.png"))
    there, given = frame.read_bytes(), []
    following = loop.Loop._next

    def vanishing(self, batches):
        given.append(1)
        if len(given) == 6:
            frame.unlink()
        return following(self, batches)

    monkeypatch.setattr(loop.Loop, "_next", vanishing)
    with pytest.raises(InputError, match=f"{frame.name} missing"):
        train(config, tmp_path / "run")
    monkeypatch.undo()
    last = max(steps(tmp_path / "run"))
    assert last >= 5 and f"the state of step {last} was saved before this error" in capsys.readouterr().err
    frame.write_bytes(there)
    result = train(config, tmp_path / "run")
    assert f"resuming at step {last}" in capsys.readouterr().out
    jax.tree.map(np.testing.assert_array_equal, result.state, whole)
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == (tmp_path / "whole" / "metrics.jsonl").read_bytes()


@pytest.mark.parametrize("moment, n, saved", [("evaluation", 3, 8), ("step", 5, 4)])
def test_an_error_that_nobody_foresaw_costs_no_step(run, undisturbed, tmp_path, moment, n, saved):
    """In an evaluation, and in a step, whose state is lost to it: the last checkpoint stands."""
    done = run(tmp_path, "--config.checkpoint.every_steps=4", moment=moment, n=n, crash="the roof fell in")
    assert done.status == 1 and "RuntimeError: the roof fell in" in done.err
    assert max(steps(tmp_path)) == saved
    finish(run, tmp_path, undisturbed)


def test_loss_that_is_not_a_number_is_not_saved(tmp_path):
    config = recipe(**{"method.nan_after": 6, "checkpoint.every_steps": 4})
    with pytest.raises(TrainingError, match="not finite"):
        train(config, tmp_path)
    assert max(steps(tmp_path)) == 6  # good, and saved for its evaluation; step 8 would have been next
