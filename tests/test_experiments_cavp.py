"""CAVP's tables: their figures and runs, TPAVI on their data, figures of one confusion matrix, the z-test."""

import dataclasses
import importlib
import json
import math
import statistics
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import vpo_tree
from experiment_tables import Tables, results
from PIL import Image

import avs_jax
from avs_jax import metrics
from avs_jax.data.pipeline import train_batches
from avs_jax.data.prepare.vpo_build import Options, build
from avs_jax.errors import InputError
from avs_jax.metrics.confusion import confusion_figures
from avs_jax.training.build import build_method, build_source
from experiments import cavp, command, figures, report, running
from experiments.significance import Moments, moments, one_sided_z
from experiments.tables import FIGURES, Cell, Comparison, Run, Setup, Table, job_of

TABLES = ("table2", "table3", "table4", "table5", "significance")
FULL, TINY = Setup("benchmark", root="/data"), Setup("synthetic", "tiny")


CAVP = Tables("cavp", FULL)
table, cell = CAVP.table, CAVP.cell


def key(*where):
    return CAVP.job(*where).key


# ---- The paper's tables


@pytest.mark.parametrize("name, row, column, figure", [
    ("table2", "R50 TPAVI", "SS mIoU ↑", 42.44),
    ("table2", "R50 DeepLabV3+, without sound", "MS FDR ↓", 21.56),
    ("table2", "R101 DeepLabV3+, CAVP", "SS F1 ↑", 77.34),
    ("table2", "HRNetV2, without sound", "SS FDR ↓", 33.14),
    ("table2", "HRNetV2 OCR, CAVP", "MS mIoU ↑", 65.62),
    ("table3", "TPAVI", "Salient mIoU ↑", 72.79),
    ("table3", "CAVP", "Salient F ↑", 90.39),
    ("table3", "TPAVI", "Single+ FDR ↓", 18.54),
    ("table3", "CAVP", "parameters", 119.78),
    ("table4", "Sum", "MS FDR ↓", 28.00),
    ("table4", "Concat", "SS mIoU ↑", 52.66),
    ("table4", "Attention", "Single+ F1 ↑", 82.06),
    ("table5", "10 / 90", "Single+ FDR ↓", 15.11),
    ("table5", "90 / 10", "Single+ mIoU ↑", 71.49),
    ("significance", "TPAVI on AVS-M", "F ↑", 83.70),
])  # fmt: skip
def test_figures_are_the_papers(name, row, column, figure):
    assert cell(name, row, column).paper == figure


@pytest.mark.parametrize("a, b", [
    (("table2", "R50 DeepLabV3+, CAVP", "SS mIoU ↑"), ("table4", "Attention + CAVP", "SS mIoU ↑")),
    (("table2", "R50 DeepLabV3+, CAVP", "MS F1 ↑"), ("table4", "Attention + CAVP", "MS F1 ↑")),
    (("table3", "CAVP", "Single+ FDR ↓"), ("table4", "Attention + CAVP", "Single+ FDR ↓")),
    (("table5", "50 / 50", "Single+ F1 ↑"), ("table4", "Attention + CAVP", "Single+ F1 ↑")),
])  # fmt: skip
def test_figures_that_stand_in_two_tables_are_one_run(a, b):
    assert cell(*a).paper == cell(*b).paper and key(*a) == key(*b)
    assert cell(*a).run == cell(*b).run, "by the same name"


def test_all_benchmarks_of_the_embedded_data_set_are_one_run():
    rows = ("table2", "R50 DeepLabV3+, CAVP"), ("table3", "CAVP"), ("table4", "Attention + CAVP"), ("table5", "50 / 50")
    rows += (("significance", "Attention + CAVP"),)
    runs = {cell(name, row, "mIoU ↑", TINY).run for name, row in rows}
    assert len(runs) == 1 and len({key(name, row, "FDR ↓", TINY) for name, row in rows}) == 1
    assert cell("table2", "R50 TPAVI", "F1 ↑", TINY).run == cell("table3", "TPAVI", "F1 ↑", TINY).run
    assert cell("significance", "Attention", "F1 ↑", TINY).run == cell("table4", "Attention", "F1 ↑", TINY).run


def test_the_embedded_data_set_has_one_column_a_figure_and_a_tiny_table_no_row_twice():
    for name in TABLES:
        made = table(name, TINY)
        assert set(made.columns) <= {*cavp.FIGURES, "parameters"}
        runs = [[cell.run for cell in cells] for cells in made.rows.values()]
        assert all(a != b for i, a in enumerate(runs) for b in runs[:i]), name
    assert cell("table4", "Sum", "FDR ↓", TINY).paper == 28.00  # VPO-MS's
    assert "VPO-MS" in " ".join(table("table4", TINY).notes) and "VPO-MS" not in " ".join(table("table4").notes)
    assert "AVSBench-Single+" in " ".join(table("table5", TINY).notes)


@pytest.mark.parametrize("dataset, scale", [("benchmark", "full"), ("benchmark", "tiny"), ("synthetic", "tiny")])
def test_every_run_of_every_table_has_a_method(dataset, scale):
    setup, made = Setup(dataset, scale, root="/data"), set()
    for name in TABLES:
        tab = table(name, setup)
        jobs = command.select(tab, setup, tab.seeds)
        assert len({job.folder for job in jobs}) == len(jobs)
        for job in jobs:
            options = job.config.method.to_dict()
            if str(options) not in made:
                avs_jax.create(**options)
                made.add(str(options))
            assert job.run.checkpoint == "latest"
            assert (job.config.steps > 0) != (job.config.epochs > 0)
            if dataset == "benchmark":
                assert job.config.data.root == "/data"
                assert bool(job.config.pretrained.encoder) == (scale == "full")


def test_what_the_rows_change():
    def config(*where):
        return CAVP.job(*where).config

    sizes = {name: config("table2", f"{name}, CAVP", "SS F1 ↑").method for name in cavp.ARCHITECTURES}
    assert [(m.architecture, m.backbone) for m in sizes.values()] == [
        ("deeplab", "resnet50"), ("deeplab", "resnet101"), ("hrnet", "hrnet_w48"), ("ocr", "hrnet_w48"),
    ]  # fmt: skip
    silent = config("table2", "HRNetV2, without sound", "MS FDR ↓")
    assert (silent.method.fusion, silent.method.setting, silent.pretrained.audio) == ("none", "vpo_ms", "")
    fusions = [config("table4", row, "Single+ F1 ↑").method for row in table("table4").rows]
    assert [(m.fusion, m.contrastive) for m in fusions] == [
        ("sum", 0), ("concat", 0), ("attention", 0), ("attention", 1),
    ]  # fmt: skip
    assert [build_method(config("table4", row, "SS F1 ↑")).paired for row in table("table4").rows] == [0, 0, 0, 1]
    rates = [config("table5", row, "Single+ F1 ↑").pairing.rate for row in table("table5").rows]
    assert rates == [0.9, 0.5, 0.1]
    own, other = (config("significance", row, "F ↑").data.setting for row in table("significance").rows)
    assert (own, other) == ("salient", "avs_m")


def test_the_checkpoint_is_part_of_the_key():
    run = Run("x", "configs/cavp.py", {"setting": "vpo_ss"})
    assert job_of(run, FULL, 0).key != job_of(dataclasses.replace(run, checkpoint="latest"), FULL, 0).key


def test_parameters_are_counted_without_training():
    runs = table("table3").runs()
    jobs = {run: [(job_of(run, FULL, 0), running.State("missing"))] for run in runs}
    counted = [figures.answer(cell("table3", row, "parameters"), jobs).value for row in ("TPAVI", "CAVP")]
    assert counted == pytest.approx([163.55 - 23.25, 119.775 - 4.98], abs=0.01)  # what the codes never use is left out


@pytest.mark.slow
@pytest.mark.parametrize("row, printed", [("TPAVI", 163.55), ("CAVP", 119.78)])
def test_the_papers_counts_take_in_what_the_codes_never_use(row, printed):
    method = build_method(job_of(cell("table3", row, "parameters").run, FULL, 0).config)
    shapes = jax.eval_shape(method.init, jax.random.key(0))
    state_dict = avs_jax.to_torch(method, jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes))
    learnt = [x.size for name, x in state_dict.items() if not name.endswith(("_mean", "_var", "_tracked"))]
    assert sum(learnt) / 1e6 == pytest.approx(printed, abs=0.01)


# ---- TPAVI on these data


@pytest.fixture(scope="module")
def trees(tmp_path_factory):
    base = tmp_path_factory.mktemp("data")
    root = base / "root"
    vpo_tree.write_single_plus(root / "avsbench_data_single_plus", root / "vggsound_bench/VGGSound/audios")
    coco, sounds = vpo_tree.write_coco(base / "coco", 3, images=12), vpo_tree.write_vggsound(base / "sounds")
    for setting, counts in (("ss", {}), ("ms", {"train": 5, "test": 3})):
        build(Options(coco, sounds, root, setting, counts=counts, silence=0.0))
    return root


def tpavi_config(setting, root):
    overrides = {
        "data.image_size": 32, "method.width": 4, "method.channels": 4, "method.audio_width": 1,
        "method.audio_hidden": 4, "method.tpavi_stages": [3],
    }  # fmt: skip
    setup = Setup("benchmark", "tiny", str(root), tuple(overrides.items()))
    return job_of(cavp.tpavi(setup, setting), setup, 0).config


@pytest.mark.parametrize("setting", ["vpo_ss", "vpo_ms", "single_plus", "salient", "avs_m"])
def test_tpavi_reads_the_benchmarks(setting, trees):
    config = tpavi_config(setting, trees)
    for split in ("train", "eval", "test"):
        source, method = build_source(config, split), build_method(config)
        clip = source[len(source) - 1]
        assert clip["frames"].shape == (1, 32, 32, 3) and clip["audio"].shape == (1, 96, 64)
        assert method.num_classes == (1 if setting in ("salient", "avs_m") else len(source.class_names))


@pytest.mark.parametrize("setting", ["vpo_ms", "salient"])
def test_tpavi_trains_and_predicts_on_the_benchmarks(setting, trees):
    config = tpavi_config(setting, trees)
    source, method = build_source(config, "train"), build_method(config)
    batch = next(train_batches(source, seed=0, batch_size=2, augment=config.augment.to_dict()))
    batch = {k: v for k, v in batch.items() if k != "id"}
    variables = jax.device_get(method.init(jax.random.key(0), batch))
    loss, _ = jax.jit(lambda p: method.loss(p, variables, batch, jax.random.key(1), 0))(variables["params"])
    assert math.isfinite(loss) and loss > 0
    found = metrics.evaluate_rows(method, variables, build_source(config, "test"), bootstrap=0, conditions=("true",))
    assert 0 <= found.figures["miou"] <= 1
    if setting == "salient":
        assert found.confusions is None
    else:
        whole = found.confusions.sum(0)
        assert whole.shape == (22, 22) and [row["pixels"] for row in found.classes] == whole.sum(1).tolist()


def test_full_recipe_of_tpavi_on_stills():
    config = job_of(cell("table2", "R50 TPAVI", "SS F1 ↑").run, FULL, 0).config
    assert (config.epochs, config.batch_size, config.optimizer.name, config.optimizer.lr) == (80.0, 16, "adam", 1e-4)
    assert (config.pretrained.encoder, config.pretrained.audio) == ("resnet50-19c8e357.pth", "vggish-10086976.pth")
    assert (config.method.avm, config.data.image_size, config.data.fit) == ("none", 224, "squash")
    for setting, dataset, expected in (("vpo_ss", "avsbench", "benchmark"), ("s4", "benchmark", "avsbench")):
        with pytest.raises(InputError, match=f"expected {expected} or synthetic"):
            job_of(Run("x", "configs/tpavi.py", {"setting": setting}), Setup(dataset), 0)


# ---- Figures of one confusion matrix


def random_confusions(seed, clips=6, classes=3):
    matrices = np.random.default_rng(seed).integers(0, 40, (clips, classes, classes))
    matrices[:, 0, 1] = 0
    return matrices


def test_differences_of_whole_data_sets():
    runs = [Run(name, "tests/recipes/small_table.py", {}) for name in "ab"]
    matrices = [random_confusions(0), random_confusions(1)]
    done = {}
    for run, some in zip(runs, matrices, strict=True):
        kept = {f"clip{i}": running.sparse(matrix) for i, matrix in enumerate(some)}
        assert all([0, 1, 0] not in rows for rows in kept.values()), "only what occurs"
        done[run] = results([{}], run, TINY, confusions=json.loads(json.dumps(kept)), classes=3)
    for name in cavp.FIGURES.values():
        found = figures.difference(Cell(None, runs[0], name), Cell(None, runs[1], name), done)
        key = FIGURES[name].key
        whole = [100 * float(confusion_figures(some.sum(0))[key]) for some in matrices]
        assert found.value == pytest.approx(whole[0] - whole[1]) and found.low < found.value < found.high
        drawn = np.random.default_rng(0).integers(0, 6, (1000, 6))
        a, b = (np.array([confusion_figures(some[row].sum(0))[key] for row in drawn]) for some in matrices)
        gains = 100 * (a - b)
        assert (found.low, found.high) == pytest.approx(tuple(np.percentile(gains, [2.5, 97.5])))
    assert figures.difference(Cell(None, runs[0], "fscore"), Cell(None, runs[1], "fscore"), done) is None
    done[runs[1]] = results([{}], runs[1], TINY)
    assert figures.difference(Cell(None, runs[0], "f1"), Cell(None, runs[1], "f1"), done) is None


def test_a_run_is_evaluated_with_its_checkpoint_and_keeps_its_confusions(tmp_path, monkeypatch):
    from avs_jax.metrics.report import Report
    from avs_jax.train import Result

    matrices, asked = random_confusions(3, clips=2), {}

    def evaluate_run(folder, **options):
        asked.update(options)
        rows = [{"id": f"clip{i}", "j": 0.5} for i in range(2)]
        classes = [{"class": str(i)} for i in range(3)]
        return Report({"fdr": 0.25}, {"fdr": (0.2, math.nan)}, rows, classes, {}, {"clips": 2}, [], matrices)

    state = SimpleNamespace(step=4, params={"w": np.zeros(7)})
    monkeypatch.setattr("avs_jax.train.train", lambda config, folder: (folder.mkdir(), Result(state, None))[1])
    monkeypatch.setattr("avs_jax.evaluate.evaluate_run", evaluate_run)
    job = job_of(Run("x", "tests/recipes/small_table.py", {}, checkpoint="latest"), TINY, 0)
    tmp_path.joinpath("runs").mkdir()
    found = running.complete([job], tmp_path / "runs")[job.key].result
    assert asked["checkpoint"] == "latest" and found["classes"] == 3
    again = np.zeros((3, 3), int)
    for truth, predicted, pixels in found["confusions"]["clip1"]:
        again[truth, predicted] = pixels
    assert np.array_equal(again, matrices[1])


# ---- The z-test


def test_z_test_of_the_printed_means():
    printed = table("significance").comparisons[0]
    for (a, b), p in zip((((72.01, 0.7), (72.07, 0.7)), ((83.36, 1.2), (83.70, 1.0))), printed.paper, strict=True):
        assert one_sided_z(Moments(*a, 3), Moments(*b, 3)).p == pytest.approx(p, abs=0.01)


def test_z_test():
    a, b = [0.3, 0.5, 0.4], [0.1, 0.35, 0.2, 0.25]
    z, p = one_sided_z(a, b)
    error = math.sqrt(statistics.variance(a) / 3 + statistics.variance(b) / 4)
    assert z == pytest.approx((statistics.mean(a) - statistics.mean(b)) / error)
    assert p == pytest.approx(1 - statistics.NormalDist().cdf(z)) and p < 0.05
    assert one_sided_z(b, a) == pytest.approx((-z, 1 - p))
    assert one_sided_z([1, 1], [0, 0]) == (math.inf, 0) and math.isnan(one_sided_z([1, 1], [1, 1]).z)
    with pytest.raises(ValueError, match="1 runs"):
        moments([0.5])


def two_rows(paper=(None, None), spread=None, comparisons=(), **more):
    runs = [Run(name, "tests/recipes/small_table.py", {"lr": lr}) for name, lr in (("a", 0.1), ("b", 0.2))]
    rows = {
        f"row {run.name}": [Cell(p, run, "fdr", spread), Cell(None, run, "f1")] for run, p in
        zip(runs, paper, strict=True)
    }  # fmt: skip
    done = {
        runs[0]: results([{"fdr": v, "f1": 1 - v} for v in (0.10, 0.12, 0.14)], runs[0], TINY),
        runs[1]: results([{"fdr": v, "f1": 1 - v} for v in (0.20, 0.25, 0.24)], runs[1], TINY),
    }
    return Table("t", "T", "row", ("FDR", "F1"), rows, comparisons=comparisons, seeds=(0, 1, 2), **more), done


def test_report_of_a_z_test():
    made, done = two_rows((20.0, 30.0), 1.5, (Comparison("row a", "row b", (0.01, math.nan)),))
    text = report.markdown(made, TINY, done)
    assert "| row a | 20.00 ± 1.5 | **12.0** [10.0, 14.0] |" in text
    z = one_sided_z([-10, -12, -14], [-20, -25, -24])
    told = 'is "row a" better than "row b"?'
    assert told in text and f"0.01 | {z.z:.2f} | {z.p:.2f} | 12.0 ± 2.0 (n = 3) | 23.0 ± 2.6 (n = 3) |" in text
    assert "| FDR | 8.16 | 0.00 |" in text, "from the printed means; lower is better"
    (fdr, f1) = report.to_json(made, TINY, done)["comparisons"]
    assert fdr["z"] == pytest.approx(z.z) and f1["p"] == pytest.approx(z.p), "F1 is one minus FDR here"
    some = {run: jobs[:1] for run, jobs in done.items()}
    assert "12.0 ±" not in report.markdown(made, TINY, some) and not report.to_json(made, TINY, some)["comparisons"]


def test_each_row_has_a_baseline_of_its_own_and_wide_tables_have_parts(tmp_path):
    made, done = two_rows((20.0, 30.0), baseline={"row b": "row a"}, blocks=(1, 1))
    for n, (run, jobs) in enumerate(done.items()):
        kept = {f"c{i}": running.sparse(matrix) for i, matrix in enumerate(random_confusions(n))}
        done[run] = results([state.result["figures"] for _, state in jobs], run, TINY, confusions=kept, classes=3)
    text = report.markdown(made, TINY, done)
    assert "| row | FDR: paper | ours |\n" in text and "| row | F1: paper | ours |\n" in text
    assert "| row b, minus row a | +10.00 | **" in text and "| row b, minus row a |  | **" in text
    assert "FDR (lower is better) and F1 in percent, on 2 test clips" in text
    with Image.open(report.picture(made, TINY, done, tmp_path / "t.png")) as image:
        assert min(image.size) > 200
    assert "| FDR, % | F1, % | audio gain, % |" in text
    with pytest.raises(ValueError, match="blocks of 3 columns for 2"):
        two_rows(blocks=(1, 2))


# ---- The command


@pytest.mark.parametrize("arguments, words", [
    (("--dataset=avsbench",), "expected benchmark or synthetic"),
    (("--compare=Attention>Som", "--seeds=0,1"), "Did you mean 'Sum'"),
    (("--compare=Attention", "--seeds=0,1"), "expected 'A>B' with rows of Sum | Concat"),
    (("--compare=Attention>Sum",), "two or more for --compare"),
])  # fmt: skip
def test_bad_arguments_are_told_in_one_line(tmp_path, capsys, arguments, words):
    make = importlib.import_module("experiments.cavp_table4").table
    assert command.main(make, "", [f"--workdir={tmp_path}", *arguments], disk=cavp.DISK) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: ") and words in told and told.count("\n") == 1


def test_seeds_of_the_table_unless_others_are_asked_for(tmp_path, capsys):
    make = importlib.import_module("experiments.cavp_significance").table
    argv = ["--dry-run", f"--workdir={tmp_path}"]
    assert command.main(make, "", argv, disk=cavp.DISK) == 0 and "6 runs" in capsys.readouterr().out
    assert command.main(make, "", [*argv, "--seeds=7"], disk=cavp.DISK) == 0 and "2 runs" in capsys.readouterr().out
    made, _ = two_rows()
    assert command.with_comparisons(made, ["row b > row a"], [0, 1]).comparisons == (Comparison("row b", "row a"),)
