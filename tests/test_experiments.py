"""The papers' tables: their figures, their runs, and the machinery that trains, evaluates and reports."""

import importlib
import json
import shutil
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from experiment_tables import Tables
from PIL import Image

import avs_jax
from avs_jax.errors import InputError
from experiments import command, figures, hearing, report, running
from experiments.tables import Cell, Run, Setup, Table, job_of

ROOT = Path(__file__).parent.parent
TABLES = ("table3", "table4", "table6", "table_a1", "table_a2", "no_pretraining")
FULL, TINY = Setup(), Setup("synthetic", "tiny")


TPAVI = Tables("tpavi", FULL)
table, paper = TPAVI.table, TPAVI.cell


# ---- The paper's tables


@pytest.mark.parametrize("name, row, column, figure", [
    ("table3", "SST (video object segmentation)", "MS3 F", 0.572),
    ("table3", "iGAN (salient object detection)", "S4 mIoU", 61.59),
    ("table3", "TPAVI, ResNet50", "MS3 mIoU", 47.88),
    ("table3", "TPAVI, PVT-v2", "S4 F", 0.879),
    ("table4", "without TPAVI", "MS3 ResNet50", 43.56),
    ("table4", "with A(+)V", "S4 PVT-v2", 77.65),
    ("table4", "with TPAVI", "MS3 PVT-v2", 53.06),
    ("table6", "BCE", "mIoU ResNet50", 46.64),
    ("table6", "BCE + AVM-VV", "F PVT-v2", 0.644),
    ("table6", "BCE + AVM-AV", "F ResNet50", 0.578),
    ("table_a1", "3, 4", "MS3 PVT-v2", 49.79),
    ("table_a1", "2", "S4 ResNet50", 69.56),
    ("table_a1", "1, 2, 3, 4", "MS3 ResNet50", 47.88),
    ("table_a2", "without TPAVI", "from S4 ResNet50", 45.50),
    ("table_a2", "with TPAVI", "from S4 PVT-v2", 57.34),
    ("no_pretraining", "without a pretrained encoder", "S4 ResNet50", 44.05),
    ("no_pretraining", "without the four 1x1x1 convolutions", "S4 ResNet50", 59.21),
])  # fmt: skip
def test_figures_are_the_papers(name, row, column, figure):
    assert paper(name, row, column).paper == figure


def test_figures_that_stand_in_two_tables_are_one_run():
    for a, b in [
        (("table3", "TPAVI, ResNet50", "MS3 mIoU"), ("table6", "BCE + AVM-AV", "mIoU ResNet50")),
        (("table3", "TPAVI, PVT-v2", "MS3 mIoU"), ("table_a1", "1, 2, 3, 4", "MS3 PVT-v2")),
        (("table3", "TPAVI, ResNet50", "S4 mIoU"), ("table4", "with TPAVI", "S4 ResNet50")),
        (("table4", "with TPAVI", "MS3 PVT-v2"), ("table6", "BCE", "mIoU PVT-v2")),
        (("table4", "without TPAVI", "MS3 ResNet50"), ("table_a2", "without TPAVI", "from scratch ResNet50")),
        (("table_a2", "with TPAVI", "from scratch PVT-v2"), ("table6", "BCE + AVM-AV", "mIoU PVT-v2")),
        (("no_pretraining", "TPAVI", "S4 ResNet50"), ("table3", "TPAVI, ResNet50", "S4 mIoU")),
    ]:
        a, b = paper(*a), paper(*b)
        assert a.paper == b.paper and job_of(a.run, FULL, 0).key == job_of(b.run, FULL, 0).key


def test_table_4_with_tpavi_is_not_table_3():
    assert job_of(paper("table4", "with TPAVI", "MS3 ResNet50").run, FULL, 0).config.method.avm == "none"
    assert job_of(paper("table3", "TPAVI, ResNet50", "MS3 mIoU").run, FULL, 0).config.method.avm == "av"


@pytest.mark.parametrize("scale", ["full", "tiny"])
@pytest.mark.parametrize("dataset", ["avsbench", "synthetic"])
def test_every_run_of_every_table_has_a_method(dataset, scale):
    setup, made = Setup(dataset, scale, root="/data"), set()
    for name in TABLES:
        jobs = command.select(table(name, setup), setup, [0])
        assert len({job.folder for job in jobs}) == len(jobs)
        seen = set()
        for job in jobs:
            assert job.start is None or job.start.key in seen, "what a run starts from comes first"
            seen.add(job.key)
            options = job.config.method.to_dict()
            if str(options) not in made and (dataset, scale) in (("avsbench", "full"), ("synthetic", "tiny")):
                avs_jax.create(**options)
                made.add(str(options))
            assert (job.config.steps > 0) != (job.config.epochs > 0)
            hears = options["fusion"] != "none"
            if dataset == "synthetic":
                assert bool(job.config.tagging.steps) == (hears and not job.start)
            else:
                assert job.config.data.root == "/data"
                assert bool(job.config.pretrained.audio) == (scale == "full")


def test_the_papers_recipe():
    job = job_of(paper("table3", "TPAVI, PVT-v2", "MS3 mIoU").run, FULL, 0)
    c = job.config
    assert (c.epochs, c.batch_size, c.optimizer.lr, c.method.avm_weight) == (30.0, 4, 1e-4, 0.5)
    assert (c.pretrained.encoder, c.pretrained.audio) == ("pvt_v2_b5.pth", "vggish-10086976.pth")
    scratch = job_of(paper("no_pretraining", "without a pretrained encoder", "S4 ResNet50").run, FULL, 0).config
    assert (scratch.pretrained.encoder, scratch.pretrained.audio) == ("", "vggish-10086976.pth")
    avss = job_of(Run("x", "configs/tpavi.py", {"setting": "avss"}), FULL, 0).config
    assert avss.epochs == 60.0 and avss.eval.first_step // (avss.eval.every_steps // 2) == 15
    assert avs_jax.create(**avss.method.to_dict()).num_classes == 71


# ---- Keys


def test_the_key_follows_what_is_learnt_and_measured_and_nothing_else():
    run = Run("x", "configs/tpavi.py", {"setting": "s4"})
    key = job_of(run, FULL, 0).key
    assert len(key) == 8 and key == job_of(Run("other name", run.recipe, run.arguments), FULL, 0).key
    same = Setup(root="/elsewhere", overrides=(("loader.workers", 4), ("log.every_steps", 7), ("loader.cache", True)))
    assert job_of(run, same, 0).key == key
    others = [
        job_of(run, FULL, 1),
        job_of(run, Setup("synthetic"), 0),
        job_of(run, Setup(scale="tiny"), 0),
        job_of(run, Setup(overrides=(("optimizer.lr", 2e-4),)), 0),
        job_of(run, Setup(overrides=(("loader.skip_bad", True),)), 0),
        job_of(Run("x", run.recipe, run.arguments, start=run), FULL, 0),
        job_of(Run("x", run.recipe, {"setting": "ms3"}), FULL, 0),
    ]
    keys = [job.key for job in others]
    assert key not in keys and len(set(keys)) == len(keys)


def test_a_changed_start_changes_the_key():
    a, b = (Run("a", "configs/tpavi.py", {"setting": "s4", "stages": stages}) for stages in ("1", "2"))
    keys = {job_of(Run("x", a.recipe, {"setting": "ms3"}, start=start), FULL, 0).key for start in (a, b)}
    assert len(keys) == 2


def test_overrides_of_the_length_and_of_tuples():
    run = Run("x", "configs/tpavi.py", {})
    config = job_of(run, Setup(overrides=(("steps", 5), ("augment.scale", [0.5, 1.0]))), 0).config
    assert (config.steps, config.epochs, config.augment.scale) == (5, 0.0, (0.5, 1.0))


def test_overrides_add_options_of_data_and_method_only():
    run = Run("x", "configs/tpavi.py", {})
    config = job_of(run, Setup(overrides=(("data.test.front_end", "vggish"), ("method.attend", "frame"))), 0).config
    assert (config.data.test.front_end, config.method.attend) == ("vggish", "frame")
    for field in ("optimizer.rate", "data.tset.length", "method.name.x", "data2"):
        with pytest.raises(InputError, match=f"--config.{field}: expected a field"):
            job_of(run, Setup(overrides=((field, 1),)), 0)


# ---- The machinery, on a method that trains in seconds


def small(name="a", start=None, **arguments):
    return Run(name, "tests/recipes/small_table.py", arguments, start)


def small_table(setup):
    first = small()
    return Table(
        "small", "Small", "row", ("J", "F"),
        {
            "cited": [Cell(12.34), Cell(0.123, figure="fscore")],
            "first": [Cell(50.0, first), Cell(None, first, "fscore")],
            "second": [Cell(60.0, small("b", first, lr=0.01)), Cell(0.5, small("c", lr=0.01), "fscore")],
        },
        ("A note.",),
        baseline="first",
    )  # fmt: skip


def call(workdir, *more):
    argv = ["--dataset=synthetic", "--scale=tiny", f"--workdir={workdir}", *more]
    return command.main(small_table, "A small table.", argv)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("experiments")
    assert call(workdir) == 0
    return workdir


def test_writes_the_table_beside_the_papers_figures(finished):
    folder = finished / "synthetic-tiny"
    text = (folder / "small.md").read_text()
    written = json.loads((folder / "small.json").read_text())
    assert "| cited | 12.34 |  | 0.123 |  |" in text and "A note." in text and "4 test clips" in text
    cells = {(c["row"], c["column"]): c for c in written["cells"]}
    job = job_of(small(), TINY, 0)
    measured = json.loads((folder / "runs" / job.folder / "evaluation" / "test.json").read_text())
    miou, (low, high) = measured["figures"]["miou"], measured["intervals"]["miou"]
    assert cells["first", "J"]["ours"] == pytest.approx(100 * miou)
    assert cells["first", "J"]["interval"] == pytest.approx([100 * low, 100 * high])
    assert f"| 50.00 | **{100 * miou:.1f}** [{100 * low:.1f}, {100 * high:.1f}] |" in text
    assert cells["first", "F"]["paper"] is None and cells["cited", "F"]["ours"] is None
    assert f"**{cells['first', 'F']['ours']:.3f}**" in text
    assert [run["step"] for run in written["runs"]] == [4, 4, 4]
    assert '| minus "first" | J: paper | ours |' in text and "| second | +10.00 | **" in text
    assert cells["second", "J"]["difference"]["ours"] == pytest.approx(
        cells["second", "J"]["ours"] - cells["first", "J"]["ours"]
    )
    with Image.open(folder / "small.png") as image:
        assert min(image.size) > 200 and len(np.unique(np.asarray(image.convert("L")))) > 10


def test_a_run_starts_from_anothers_best_checkpoint(finished):
    runs = finished / "synthetic-tiny" / "runs"
    job = job_of(small("b", small(), lr=0.01), TINY, 0)
    config = json.loads((runs / job.folder / "config.json").read_text())
    assert config["pretrained"]["method"] == str(runs / job_of(small(), TINY, 0).folder)
    audio = {
        name: avs_jax.load_checkpoint(runs / job_of(run, TINY, 0).folder)[1]["params"]["audio"]["kernel"]
        for name, run in (("a", small()), ("b", job.run))
    }  # frozen
    assert np.array_equal(audio["a"], audio["b"])


def test_a_second_call_trains_nothing_and_says_the_same(finished, capsys, monkeypatch):
    before = (finished / "synthetic-tiny" / "small.md").read_text()
    monkeypatch.setattr("avs_jax.train.train", None)
    assert call(finished) == 0
    assert before in capsys.readouterr().out


def test_dry_run_tells_how_far_runs_are_and_trains_nothing(finished, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(running, "complete", None)
    assert call(finished, "--dry-run") == 0
    told = capsys.readouterr().out
    assert "3 runs, 3 of them done" in told and "done, step 4" in told and "(starts from a-seed0-" in told
    shutil.copytree(finished, tmp_path / "x")
    folder = tmp_path / "x" / "synthetic-tiny" / "runs" / job_of(small(), TINY, 0).folder
    (folder / running.RESULT).unlink()
    assert call(tmp_path / "x", "--dry-run", "--config.optimizer.b1=0.9") == 0
    told = capsys.readouterr().out
    assert "3 runs, 2 of them done" in told and "partial, step 4" in told
    assert call(finished, "--dry-run", "--config.optimizer.b1=0.8", "--seeds=0,1") == 0
    assert "6 runs, 0 of them done" in capsys.readouterr().out
    assert call(finished, "--dry-run", "--only=b") == 0
    assert "2 runs, 2 of them done" in capsys.readouterr().out, "and the one it starts from"


def test_resumes_where_it_was_stopped(finished, tmp_path, capsys):
    shutil.copytree(finished, tmp_path / "x")
    runs = tmp_path / "x" / "synthetic-tiny" / "runs"
    folder = runs / job_of(small(), TINY, 0).folder
    result = json.loads((folder / running.RESULT).read_text())
    (folder / running.RESULT).unlink()
    shutil.rmtree(folder / "checkpoints" / "4")
    shutil.rmtree(folder / "evaluation")
    assert call(tmp_path / "x") == 0
    told = capsys.readouterr().out
    assert "[1/3]" in told and "[2/3]" not in told and "resuming at step 2" in told
    assert json.loads((folder / running.RESULT).read_text())["figures"] == result["figures"]


def test_a_stop_ends_the_command_with_the_signals_status(tmp_path, monkeypatch, capsys):
    from avs_jax.train import Result

    monkeypatch.setattr("avs_jax.train.train", lambda config, folder: Result(None, None, 15))
    assert call(tmp_path) == 143
    assert "the same command goes on" in capsys.readouterr().err
    assert not (tmp_path / "synthetic-tiny" / "small.md").exists()


def test_a_run_that_diverges_leaves_the_others_alone(tmp_path, capsys):
    bad, good = small("bad", nan_after=1), small("good")
    rows = {"bad": [Cell(1.0, bad)], "after": [Cell(2.0, small("after", bad))], "good": [Cell(3.0, good)]}
    argv = ["--dataset=synthetic", "--scale=tiny", f"--workdir={tmp_path}"]
    assert command.main(lambda setup: Table("t", "T", "row", ("J",), rows), "", argv) == 1
    text = (tmp_path / "synthetic-tiny" / "t.md").read_text()
    assert "| bad | 1.00 | failed: " in text and "which failed |" in text and "| good | 3.00 | **" in text


def test_several_seeds_give_mean_and_range():
    run = small()
    results = [{"figures": {"miou": v}, "intervals": {"miou": [0.1, 0.9]}} for v in (0.2, 0.3, 0.7)]
    jobs = [job_of(run, TINY, seed) for seed in range(4)]
    done = {run: [(job, running.State("done", 4, r)) for job, r in zip(jobs, results, strict=False)]}
    assert figures.answer(Cell(1.0, run), done) == pytest.approx((40, 20, 70, 3))
    done[run].append((jobs[3], running.State("missing")))
    setup = Setup("synthetic", "tiny", overrides=(("steps", 4),))
    for state in results:
        state.update(settings={"clips": 4}, parameters=10, figures={**state["figures"], "fscore": 0.5})
    text = report.markdown(Table("t", "T", "row", ("J",), {"r": [Cell(1.0, run)]}), setup, done)
    assert "**40.0** [20.0, 70.0], 3 of 4 seeds" in text and "range of the seeds" in text and "`steps=4`" in text


def test_differences_are_of_the_same_clips_and_seeds():
    a, b = small("a"), small("b", lr=0.01)

    def done(values):
        return running.State("done", 4, {"clips": dict(zip("vwxyz", values, strict=False))})

    results = {
        a: [(job_of(a, TINY, 0), done((0.5, 0.5, 0.9, 0.1))), (job_of(a, TINY, 1), done((0.7, 0.5, 0.9, 0.1)))],
        b: [(job_of(b, TINY, 0), done((0.6, 0.8, 1.0, 0.4))), (job_of(b, TINY, 2), done((0, 0, 0, 0)))],
    }  # fmt: skip
    found = figures.difference(Cell(None, b), Cell(None, a), results)
    assert found.value == pytest.approx(20) and found.seeds == 1  # .1, .3, .1, .3 of the only seed that both have
    assert 9.9 < found.low < 20 < found.high < 30.1
    assert figures.difference(Cell(None, b), Cell(None), results) is None
    rows = {"base": [Cell(50.0, a)], "other": [Cell(48.5, b)]}
    text = report._difference_lines(Table("t", "T", "row", ("J",), rows, baseline="base"), results)
    assert text[1:4] == ['| minus "base" | J: paper | ours |', "| --- | ---: | ---: |",
                         f"| other | -1.50 | **+20.0** [{found.low:+.1f}, {found.high:+.1f}] |"]  # fmt: skip


@pytest.mark.parametrize("argument, words", [
    ("--dataset=avsbensh", "Did you mean 'avsbench'"),
    ("--scale=small", "full or tiny"),
    ("--seeds=0,x", "different numbers"),
    ("--seeds=1,1", "different numbers"),
    ("--only=nothing", "a part of a, b, c"),
    ("--sedes=1", "Did you mean '--seeds'"),
    ("--config.optimizer.rate=1", "--config.optimizer.rate: expected a field"),
    ("--config.optimiser.lr=1", "Did you mean 'optimizer'"),
    ("--config.optimizer.lr=fast", "expected float"),
    ("--config.steps", "--config.<field>=<value>"),
    ("table4", "--config.<field>=<value>"),
])  # fmt: skip
def test_bad_arguments_are_told_in_one_line(tmp_path, capsys, argument, words):
    assert call(tmp_path, argument) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: ") and words in told and told.count("\n") == 1
    assert not any(tmp_path.iterdir())


def test_missing_data_are_told_in_one_line(tmp_path, capsys):
    argv = [f"--root={tmp_path / 'none'}", f"--workdir={tmp_path}", "--only=s4-resnet50-va"]
    assert command.main(importlib.import_module("experiments.tpavi_table4").table, "", argv) == 2
    told = capsys.readouterr().err
    assert str(tmp_path / "none") in told and told.count("\n") == 1


def test_rows_must_fill_the_columns():
    with pytest.raises(ValueError, match="row 'r' has 1 cells for 2 columns"):
        Table("t", "T", "row", ("a", "b"), {"r": [Cell(1.0)]})
    with pytest.raises(ValueError, match="no row 'q'"):
        Table("t", "T", "row", ("a",), {"r": [Cell(1.0)]}, baseline="q")


# ---- One audio encoder for all runs of a seed


def test_taught_encoders_are_files_that_every_backbone_starts_from(tmp_path, monkeypatch):
    from avs_jax.training import tagging
    from avs_jax.weights.pretrained import load_pretrained

    changes = {"tagging.steps": 2, "tagging.batch_size": 2, "data.train.length": 12, "method.audio_width": 1,
               "method.audio_hidden": 4, "method.width": 4, "method.channels": 4}  # fmt: skip
    setup = Setup("synthetic", "tiny", overrides=tuple(changes.items()))
    s4, ms3 = (job_of(Run("x", "configs/tpavi.py", {"setting": s}), setup, 0).config for s in ("s4", "ms3"))
    path = hearing.taught(s4, tmp_path)
    monkeypatch.setattr(tagging, "teach", None)
    assert hearing.taught(ms3, tmp_path) == path, "one for all settings, made once"
    method = avs_jax.create(**ms3.method.to_dict())
    ms3.pretrained.audio = str(path)
    variables = load_pretrained(method, jax.device_get(method.init(jax.random.key(5))), ms3.pretrained)
    weights = avs_jax.to_torch(method, variables)
    from avs_jax.weights.files import read_state_dict

    saved = read_state_dict(path)
    assert saved and all(np.array_equal(weights[k], v) for k, v in saved.items())
    ms3.seed = 1
    with pytest.raises(TypeError):
        hearing.taught(ms3, tmp_path)  # another seed is another encoder


def test_hearing_needs_sounds_with_names(tmp_path):
    config = job_of(Run("x", "configs/tpavi.py", {}), FULL, 0).config
    config.tagging.steps = 5
    with pytest.raises(InputError, match=r"tagging.steps: expected 0"):
        hearing.taught(config, tmp_path)


def test_modules_are_commands():
    import subprocess

    done = subprocess.run([sys.executable, "-m", "experiments.tpavi_table6", "--dry-run"], cwd=ROOT,
                          capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0 and "6 runs, 0 of them done" in done.stdout, done.stderr
