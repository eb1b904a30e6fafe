"""TransAVS's tables: their figures and runs, TPAVI beside them on equal terms, tables without a paper's figures."""

import importlib
import json

import pytest
from experiment_tables import Tables, results

import avs_jax
from avs_jax.errors import InputError
from experiments import command, report, tpavi, transavs
from experiments.tables import FIGURES, Cell, Run, Setup, Table, config_of, job_of

TABLES = ("table1", "table3", "embedded")
FULL, TINY = Setup(root="/data"), Setup("synthetic", "tiny")
PUBLISHED = "N = 300, both rising"


TRANSAVS = Tables("transavs", FULL)
table, cell = TRANSAVS.table, TRANSAVS.cell


def config(*where):
    return TRANSAVS.job(*where).config


# ---- The paper's tables


@pytest.mark.parametrize("name, row, column, figure", [
    ("table1", "LVS (sound source localisation)", "MS3 F", 31.0),
    ("table1", "SST (video object segmentation)", "S4 F", 80.1),
    ("table1", "LGVT (salient object detection)", "MS3 mIoU", 40.7),
    ("table1", "TPAVI, ResNet50", "MS3 F", 59.3),
    ("table1", "TPAVI, PVT-v2", "S4 mIoU", 78.7),
    ("table1", "TransAVS, ResNet101", "S4 F", 90.6),
    ("table1", "TransAVS, Swin-B", "MS3 mIoU", 63.5),
    ("table3", "N = 100, both rising", "S4 mIoU", 80.8),
    ("table3", "N = 500, both rising", "MS3 F", 71.8),
    ("table3", "N = 300, δ1 = 0.6", "S4 F", 87.9),
    ("table3", "N = 300, δ2 = 0.6", "MS3 mIoU", 56.2),
])  # fmt: skip
def test_figures_are_the_papers(name, row, column, figure):
    assert cell(name, row, column).paper == figure


@pytest.mark.parametrize("setup", [FULL, TINY], ids=["full", "tiny"])
def test_figures_that_stand_in_two_tables_are_one_run(setup):
    for column in transavs.COLUMNS:
        a, b = cell("table1", "TransAVS, ResNet101", column, setup), cell("table3", PUBLISHED, column, setup)
        assert a == b and job_of(a.run, setup, 0).key == job_of(b.run, setup, 0).key
    assert cell("embedded", "TransAVS", "mIoU", setup).run == cell("table3", PUBLISHED, "MS3 mIoU", setup).run


def test_rivals_at_full_scale_are_those_of_tpavis_tables():
    others = importlib.import_module("experiments.tpavi_table3").table(FULL).runs()
    mine = {cell("table1", f"TPAVI, {b}", column).run for b in tpavi.BACKBONES for column in transavs.COLUMNS}
    assert mine == set(others)


@pytest.mark.parametrize("dataset, scale", [("avsbench", "full"), ("avsbench", "tiny"), ("synthetic", "tiny")])
def test_every_run_of_every_table_has_a_method(dataset, scale):
    setup, made = Setup(dataset, scale, root="/data"), set()
    for name, count in zip(TABLES, (8, 16, 4), strict=True):
        jobs = command.select(table(name, setup), setup, [0])
        assert len({job.folder for job in jobs}) == len({job.key for job in jobs}) == len(jobs) == count
        for job in jobs:
            options = job.config.method.to_dict()
            if scale == "full":  # what the others change, the tiny scale does
                options = {k: v for k, v in options.items() if not k.startswith(("delta", "lambda", "num_queries"))}
            if str(options) not in made and (dataset == "synthetic") == (scale == "tiny"):
                method = avs_jax.create(**options)
                made.add(str(options))
                assert bool(job.config.tagging.steps) == (dataset == "synthetic" and method.embed_audio is not None)
            assert (job.config.steps > 0) != (job.config.epochs > 0)
            if dataset == "avsbench":
                assert job.config.data.root == "/data"
                assert bool(job.config.pretrained.encoder) == (scale == "full")


def test_what_the_rows_change():
    rows = {row: config("table3", row, "MS3 mIoU").method for row in table("table3").rows}
    changed = ("num_queries", "delta1", "delta2", "lambda_aqdl", "lambda_aqml")
    fixed, rising = (0.6, 0.6), None
    assert [tuple(method.get(name) for name in changed) for method in rows.values()] == [
        (100, rising, rising, 2, 2), (500, rising, rising, 2, 2), (300, fixed, rising, 2, 2),
        (300, rising, fixed, 2, 2), (300, rising, rising, 2, 2), (300, rising, rising, 0, 2),
        (300, rising, rising, 2, 0), (300, rising, rising, 0, 0),
    ]  # fmt: skip
    assert [config("table3", f"N = {n}, both rising", "S4 F", TINY).method.num_queries for n in (100, 300, 500)] == [
        6, 20, 33,
    ]  # fmt: skip
    assert "6, 20 and 33 queries for 100, 300 and 500" in " ".join(table("table3", TINY).notes)
    swin = config("table1", "TransAVS, Swin-B", "S4 F")
    assert (swin.method.backbone, swin.data.setting, swin.steps) == ("swin_b", "s4", 90_000)


# ---- On equal terms


@pytest.mark.parametrize("dataset", ["synthetic", "avsbench"])
def test_tiny_rivals_have_the_same_clips_pictures_and_steps(dataset):
    setup = Setup(dataset, "tiny", root="/data", overrides=(("steps", 7),))
    for name, theirs, ours, column in (
        ("table1", "TPAVI, ResNet50", "TransAVS, ResNet101", "S4 mIoU"),
        ("table1", "TPAVI, PVT-v2", "TransAVS, Swin-B", "MS3 F"),
        ("embedded", "TPAVI", "TransAVS", "mIoU"),
        ("embedded", "TPAVI, without sound", "TransAVS, without sound", "mIoU"),
    ):
        a, b = config(name, theirs, column, setup), config(name, ours, column, setup)
        assert (a.method.name, b.method.name) == ("tpavi", "transavs")
        assert a.data.to_dict() == b.data.to_dict() and a.augment.to_dict() == b.augment.to_dict()
        assert (a.steps, a.epochs, a.batch_size) == (b.steps, b.epochs, b.batch_size) and a.steps == 7
        # one taught encoder, see `experiments.hearing`
        assert a.tagging.to_dict() == b.tagging.to_dict()
        assert (a.method.audio_width, a.method.audio_hidden) == (b.method.audio_width, b.method.audio_hidden)
    alone = config_of(tpavi.tpavi("ms3", "resnet50"), TINY, 0)
    assert alone.data.image_size != config("embedded", "TPAVI", "mIoU", TINY).data.image_size


def test_controls_hear_nothing():
    made = table("embedded", TINY)
    methods = {row: avs_jax.create(**config("embedded", row, "mIoU", TINY).method.to_dict()) for row in made.rows}
    silent = [row for row, method in methods.items() if method.embed_audio is None]
    assert silent == [row for row in made.rows if row.endswith("without sound")] and len(silent) == 2
    assert (
        not made.published
        and "multi" in made.title
        and config("embedded", "TPAVI", "mIoU", TINY).data.setting == ("multi")
    )


def test_changes_are_part_of_the_key_and_overrides_win():
    run = Run("x", "configs/tpavi.py", {"setting": "ms3"})
    changed = Run("x", "configs/tpavi.py", {"setting": "ms3"}, changes={"steps": 5, "data.image_size": 64})
    found = config_of(changed, FULL, 0)
    assert (found.steps, found.epochs, found.data.image_size) == (5, 0.0, 64)
    assert job_of(run, FULL, 0).key != job_of(changed, FULL, 0).key and run != changed
    longer = config_of(changed, Setup(overrides=(("epochs", 2.0), ("data.image_size", 32))), 0)
    assert (longer.steps, longer.epochs, longer.data.image_size) == (0, 2.0, 32)
    with pytest.raises(InputError, match=r"--config.optimizer.rate"):
        config_of(Run("x", "configs/tpavi.py", {}, changes={"optimizer.rate": 1}), FULL, 0)


# ---- Reports


def done(run, **values):
    figures = {"miou": 0.5, "fscore": 0.6, "audio_gain": 0.25, **values}
    clips = {"a": figures["miou"] + 0.1, "b": figures["miou"] - 0.1}
    return results([figures], run, TINY, margin=(0.01, 0.02), clips=clips)


def small(name, lr):
    return Run(name, "tests/recipes/small_table.py", {"lr": lr})


def test_table_without_a_papers_figures(tmp_path):
    a, b = small("a", 0.1), small("b", 0.2)
    rows = {name: [Cell(None, run), Cell(None, run, "audio_gain")] for name, run in (("one", a), ("other", b))}
    made = Table("t", "T", "method", ("mIoU", "audio gain"), rows, ("A note.",), baseline={"other": "one"})
    finished = {a: done(a), b: done(b, miou=0.75, audio_gain=0.0)}
    text = report.markdown(made, TINY, finished)
    assert "paper" not in text and "cannot be compared" not in text and "ours:" not in text
    assert "| method | mIoU | audio gain |\n| --- | ---: | ---: |\n" in text
    assert "| one | **50.0** [49.0, 52.0] | **25.0** [24.0, 27.0] |" in text
    assert "| difference | mIoU |\n| --- | ---: |\n| other, minus one | **+25.0** [+25.0, +25.0] |" in text
    written = report.write(made, TINY, finished, tmp_path)
    assert all(path.stat().st_size for path in written)
    cells = json.loads((tmp_path / "t.json").read_text())["cells"]
    assert [c["ours"] for c in cells] == [50, 25, 75, 0] and all(c["paper"] is None for c in cells)


def test_decimals_as_the_paper_prints_them():
    a, b = small("a", 0.1), small("b", 0.2)
    rows = {"one": [Cell(80.0, a)], "other": [Cell(83.1, b)], "ours alone": [Cell(None, b)]}
    made = Table("t", "T", "method", ("S4 mIoU",), rows, baseline="one", printed=1)
    text = report.markdown(made, TINY, {a: done(a), b: done(b, miou=0.75)})
    assert "| one | 80.0 | **50.0**" in text and "| other | +3.1 | **+25.0**" in text
    assert "| ours alone |  | **75.0**" in text and "cannot be compared" in text
    assert made.decimals(rows["one"][0]) == 1 and FIGURES["miou"].printed == 2
