"""Figures against golden numbers, brute force and cases worked out by hand; nothing but the data moves them."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from toy import VARIABLES, ToySource, toy_method

from avs_jax.data.pipeline import eval_batches
from avs_jax.errors import InputError
from avs_jax.methods import Prediction
from avs_jax.metrics import CONDITIONS, confusion, evaluate, evaluate_rows
from avs_jax.metrics.bootstrap import intervals, resamples
from avs_jax.metrics.counts import frame_counts
from avs_jax.metrics.figures import Resampling, figures, summarise
from avs_jax.metrics.fmeasure import THRESHOLDS, clip_curves, precision_recall, threshold_counts
from avs_jax.metrics.jaccard import frame_jaccard
from avs_jax.metrics.report import report
from avs_jax.metrics.sounds import derangement, sounds
from avs_jax.metrics.streaming import collect
from avs_jax.metrics.tally import merge, tally

GOLDEN = Path(__file__).parent / "golden"
TRUE_SOUND = ("true",)


def predict_binary(scores, truth):
    """Counts of probabilities (B, T, H, W) against labels, and their tally."""
    scores = np.asarray(scores, np.float32)
    prediction = Prediction(None, scores[..., None], (scores > 0.5).astype(np.int32))
    counts = jax.device_get(frame_counts(prediction, np.asarray(truth, np.uint8), 1))
    return counts, tally(np.arange(len(scores)), {"true": counts})


def point(rows, clips_per_batch=4):
    return {
        k: float(v[0]) for k, v in figures(summarise(rows), clips_per_batch, Resampling(len(rows["index"]))).items()
    }


def equal(first, second):
    assert first.keys() == second.keys()
    assert [k for k in first if not np.array_equal(first[k], second[k], equal_nan=True)] == []


# ---------------------------------------------------------------------------------------------- golden numbers


@pytest.fixture(scope="module")
def avsbench():
    golden = np.load(GOLDEN / "tpavi_metrics.npz")
    shape = (4, 5, *golden["gt"].shape[1:])
    scores = np.asarray(jax.nn.sigmoid(golden["logits"])).reshape(shape)
    return golden, *predict_binary(scores, golden["gt"].reshape(shape))


def test_golden_jaccard(avsbench):
    golden, counts, rows = avsbench
    per_frame = frame_jaccard(*(counts[k] for k in ("inter", "pred", "truth", "pixels"))).reshape(-1)
    np.testing.assert_allclose(per_frame, golden["iou_per_frame"], atol=1e-6)
    assert point(rows, 4)["miou"] == pytest.approx(float(golden["iou_batch_all"]), abs=1e-6)
    assert point(rows, 1)["miou"] == pytest.approx(float(golden["iou_test_batch1_clip"]), abs=1e-6)


def test_golden_fscore(avsbench):
    golden, counts, rows = avsbench
    for clips, name in ((1, "batch1_clip"), (2, "batch2_clips"), (4, "batch4_clips")):
        assert point(rows, clips)["fscore"] == pytest.approx(float(golden[f"fscore_test_{name}"]), abs=1e-6)
    per_clip = [point({k: v[n : n + 1] for k, v in rows.items()}, 1)["fscore"] for n in range(4)]
    np.testing.assert_allclose(per_clip, golden["fscore_per_clip"], atol=1e-6)
    per_frame = clip_curves(counts["hist"].reshape(20, 1, 2, 256)).max(-1)
    np.testing.assert_allclose(per_frame, golden["fscore_per_frame"], atol=1e-6)


def test_golden_curves_and_thresholds(avsbench):
    golden, counts, _ = avsbench
    np.testing.assert_array_equal(THRESHOLDS, golden["thresholds"])
    inter, pred = threshold_counts(counts["hist"][0, 0])
    precision, recall = precision_recall(inter, pred, counts["truth"][0, 0])
    np.testing.assert_allclose(precision, golden["frame0_precision"], atol=1e-6)
    np.testing.assert_allclose(recall, golden["frame0_recall"], atol=1e-6)


def test_golden_semantic_protocol():
    golden = np.load(GOLDEN / "tpavi_metrics_avss.npz")
    classes, labels = int(golden["K"]), golden["logits"].argmax(1)[None]
    truth = golden["target"][None]
    areas = confusion.class_areas(
        np.asarray(confusion.frame_confusions(labels, truth, np.ones(truth.shape, bool), classes))
    )
    sums = confusion.protocol_sums(areas, np.ones((1, 10), bool))
    np.testing.assert_allclose(sums["iou"][0], golden["iou_sum"], rtol=1e-6)
    np.testing.assert_allclose(sums["f"][0], golden["fscore_sum"], rtol=1e-6)
    np.testing.assert_array_equal(sums["frames"][0], golden["cls_count"])
    for total, name in ((sums["iou"], "miou"), (sums["f"], "fscore")):
        assert confusion.protocol_mean(total, sums["frames"])[0] == pytest.approx(float(golden[name]), abs=1e-6)


@pytest.mark.parametrize("case", ["six", "vpo"])
def test_golden_confusion(case):
    golden = {k.split("/")[1]: v for k, v in np.load(GOLDEN / "cavp_metrics.npz").items() if k.startswith(case + "/")}
    truth, labels = golden["gt"][:, None], golden["pred"][:, None].astype(np.int32)
    matrices = confusion.frame_confusions(labels, truth, truth != 255, len(golden["confusion"]))
    matrix = np.asarray(matrices).sum((0, 1))
    np.testing.assert_array_equal(matrix, golden["confusion"])
    found = confusion.confusion_figures(matrix)
    names = {"miou_all_classes": "miou", "miou_classes": "miou_nanmean", "fdr": "fdr", "f1": "f1", "f03": "f03"}
    for ours, theirs in names.items():
        assert float(found[ours]) == pytest.approx(float(golden[theirs]), abs=1e-6), ours


def test_golden_binary():
    golden = np.load(GOLDEN / "cavp_metrics.npz")
    _, rows = predict_binary(golden["binary/prob"][None], golden["binary/gt"][None])
    assert point(rows)["miou"] == pytest.approx(float(golden["binary/mask_iou"]), abs=1e-6)
    assert point(rows)["f_best"] == pytest.approx(
        float(golden["binary/f_beta"]), abs=1e-4
    )  # the best one: a batch of all


# ------------------------------------------------------------------------------------- brute force, by hand


def test_histogram_equals_255_passes():
    rng = np.random.default_rng(0)
    scores = rng.random((2, 3, 9, 10)).astype(np.float32)
    below, above = np.nextafter(THRESHOLDS, np.float32(-1)), np.nextafter(THRESHOLDS, np.float32(2))
    edge = np.concatenate([THRESHOLDS, np.clip(below, 0, 1), np.clip(above, 0, 1)])
    scores[0] = rng.choice(edge, scores[0].shape)  # ties with a threshold, and their neighbours
    scores[1, 0, 0, :3] = np.nan, 0.0, 1.0
    truth = rng.integers(0, 2, scores.shape)
    truth[rng.random(scores.shape) < 0.2] = 255
    counts, _ = predict_binary(scores, truth)
    inter, pred = threshold_counts(counts["hist"])
    for k, threshold in enumerate(THRESHOLDS):
        marked = (scores >= threshold) & (truth != 255)
        np.testing.assert_array_equal(pred[..., k], marked.sum((-2, -1)))
        np.testing.assert_array_equal(inter[..., k], (marked & (truth == 1)).sum((-2, -1)))


def four_pixels(scores, truth):
    """One clip of one frame of 2 x 2 pixels."""
    return predict_binary(np.reshape(scores, (1, 1, 2, 2)), np.reshape(truth, (1, 1, 2, 2)))[1]


HAND = [  # scores, truth, J, F at the mask
    ("half right", [0.9, 0.9, 0.1, 0.1], [1, 0, 1, 0], 1 / 3, 1.3 * 0.25 / (0.3 * 0.5 + 0.5)),
    ("all right", [0.9, 0.1, 0.1, 0.9], [1, 0, 0, 1], 1.0, 1.0),
    ("all full", [1.0, 1.0, 1.0, 1.0], [1, 1, 1, 1], 1.0, 1.0),
    ("all wrong", [0.9, 0.9, 0.1, 0.1], [0, 0, 1, 1], 0.0, 0.0),
    ("nothing found", [0.1, 0.1, 0.1, 0.1], [1, 1, 0, 0], 0.0, 0.0),
    ("score 0.5 is background", [0.5, 0.5, 0.5, 0.5], [1, 1, 1, 1], 0.0, 0.0),
    ("silent, left empty", [0.1, 0.1, 0.1, 0.1], [0, 0, 0, 0], 1.0, None),
    ("silent, one of four marked", [0.9, 0.1, 0.1, 0.1], [0, 0, 0, 0], 0.75, None),
    ("ignored pixels count for nothing", [0.9, 0.9, 0.9, 0.1], [1, 255, 0, 255], 0.5, 1.3 * 0.5 / (0.3 * 0.5 + 1.0)),
    ("silent with ignored pixels", [0.9, 0.9, 0.1, 0.1], [255, 0, 0, 0], 2 / 3, None),
]


@pytest.mark.parametrize("name, scores, truth, j, f", HAND, ids=[case[0] for case in HAND])
def test_by_hand(name, scores, truth, j, f):
    found = point(four_pixels(scores, truth))
    assert found["miou"] == pytest.approx(j, abs=1e-6)
    if f is None:
        assert found["fscore"] == 0.0  # the protocol's, for a batch in which nothing sounds
        assert np.isnan([found[k] for k in ("f_05", "f_best", "j_nonempty", "j_video")]).all()
        assert found["silent_exactly_empty"] == float(j == 1.0)
        assert found["silent_false_positive_rate"] == pytest.approx(1 - j, abs=1e-6)
    else:
        assert found["f_05"] == pytest.approx(f)
        assert found["j_nonempty"] == found["j_video"] == found["miou"]
        assert np.isnan([found["silent_exactly_empty"], found["silent_false_positive_rate"]]).all()


def test_frame_without_labels_counts_for_nothing():
    one = four_pixels([0.9, 0.9, 0.1, 0.1], [1, 0, 1, 0])
    blank = four_pixels([0.9, 0.9, 0.9, 0.9], [255] * 4)
    blank["index"][:] = 1
    equal(point(merge([one, blank]), 1), point(one, 1))
    assert np.isnan(point(blank)["miou"])


def test_data_set_figures_by_hand():
    """Three clips: 1 of 3 pixels right; silent and empty; silent with one pixel marked."""
    parts = [
        four_pixels([0.9, 0.9, 0.1, 0.1], [1, 0, 1, 0]),
        four_pixels([0.1, 0.1, 0.1, 0.1], [0, 0, 0, 0]),
        four_pixels([0.9, 0.1, 0.1, 0.1], [0, 0, 0, 0]),
    ]
    for n, part in enumerate(parts):
        part["index"][:] = n
    found = point(merge(parts), 2)
    by_hand = {
        "miou": ((1 / 3 + 1) / 2 + 0.75) / 2,  # a batch of two clips, a batch of one
        "j_nonempty": 1 / 3,
        "j_video": 1 / 3,
        "j_dataset": 1 / 4,
        "precision": 1 / 3,
        "recall": 1 / 2,
        "fdr": 2 / 3,
        "silent_false_positive_rate": 1 / 8,
        "silent_exactly_empty": 1 / 2,
        "f_best": 1.3 * 0.5 / 1.15,  # at threshold 0, which marks every pixel: P = 1/2, R = 1
        "fscore": 1.3 * 0.5 / 1.15 / 2,  # the second batch holds no sound: 0
    }
    for name, value in by_hand.items():
        assert found[name] == pytest.approx(value, abs=1e-6), name


def test_wrong_shapes_are_refused():
    scores = np.zeros((1, 1, 4, 4, 1), np.float32)
    with pytest.raises(InputError, match="labels"):
        frame_counts(Prediction(None, scores, scores[..., 0].astype(np.int32)), np.zeros((1, 1, 2, 2), np.uint8), 1)


# --------------------------------------------------------------------------------------------- invariance


@pytest.fixture(scope="module", params=[1, 4], ids=["binary", "four classes"])
def toy(request):
    classes = request.param
    source, method = ToySource(classes=max(classes, 2)), toy_method(classes)
    return source, method, evaluate_rows(method, VARIABLES, source, batch_size=1, bootstrap=20)


@pytest.mark.parametrize("batch_size", [2, 3, 5])
def test_same_figures_for_every_batch_size(toy, batch_size):
    source, method, expected = toy
    found = evaluate_rows(method, VARIABLES, source, batch_size=batch_size, bootstrap=20)
    equal(found.figures, expected.figures)
    equal(found.intervals, expected.intervals)
    assert found.to_json() == expected.to_json()


def test_same_figures_for_every_order(toy):
    source, method, expected = toy
    heard = sounds(source)
    batches = list(eval_batches(source, batch_size=3))
    for seed in range(2):
        rng = np.random.default_rng(seed)
        order = rng.permutation(len(batches))
        mixed = []
        for batch in (batches[i] for i in order):
            inside = rng.permutation(3)
            mixed.append({k: v[inside] for k, v in batch.items()})
        rows = merge([collect(method, VARIABLES, mixed, heard)])
        found = report(rows, source, heard, clips_per_batch=4, bootstrap=0, settings={})
        equal(found.figures, expected.figures)
        assert str(found.rows) == str(expected.rows)


@pytest.mark.parametrize("processes", [2, 3, 12])
def test_same_figures_for_every_process_count(toy, processes):
    """Each simulated process counts its share, the merged rows give the figures; the twelfth process has no clip."""
    source, method, expected = toy
    heard = sounds(source)
    parts = [
        collect(method, VARIABLES, eval_batches(source, batch_size=p, process_index=i, process_count=p), heard)
        for p, i in ((processes, i) for i in reversed(range(processes)))
    ]
    assert (processes == 12) == any((part["index"] < 0).all() for part in parts)
    equal(point(merge(parts)), {k: v for k, v in expected.figures.items() if k != "f_best_threshold"})


def test_whole_batches_agree_up_to_rounding(toy):
    source, method, expected = toy
    found = evaluate(method, VARIABLES, source, batch_size=4, exact=False)
    for name, value in expected.figures.items():
        assert found[name] == pytest.approx(value, abs=1e-3, nan_ok=True), name


WORKER = """
import json, sys
import jax
rank, port = int(sys.argv[1]), sys.argv[2]
jax.config.update("jax_num_cpu_devices", 2)
jax.distributed.initialize(f"127.0.0.1:{port}", num_processes=2, process_id=rank, initialization_timeout=60)
import numpy as np
from toy import VARIABLES, ToySource, toy_method
from avs_jax.metrics import evaluate
mesh = jax.sharding.Mesh(np.array(jax.devices()), ("data",))
whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
variables = jax.tree.map(lambda x: jax.make_array_from_process_local_data(whole, np.asarray(x)), VARIABLES)
found = evaluate(toy_method(4), variables, ToySource(classes=4), batch_size=4, mesh=mesh)
open(sys.argv[3], "w").write(json.dumps(found))
"""


def test_two_processes_of_two_devices(tmp_path):
    """Real processes: rows are gathered exactly, and global variables and a mesh of four devices are understood."""
    import socket

    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    path = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]
    code = f"import sys; sys.path[:0] = {path}\n" + WORKER
    outputs = [tmp_path / f"{rank}.json" for rank in range(2)]
    workers = [
        subprocess.Popen([sys.executable, "-c", code, str(rank), str(port), str(output)], stderr=subprocess.PIPE)
        for rank, output in enumerate(outputs)
    ]
    try:
        for worker in workers:
            _, errors = worker.communicate(timeout=120)
            assert worker.returncode == 0, errors.decode()[-2000:]
    finally:
        for worker in workers:
            worker.kill()
    found = [json.loads(output.read_text()) for output in outputs]
    equal(*found)
    expected = evaluate(toy_method(4), VARIABLES, ToySource(classes=4))
    for name, value in expected.items():  # another program may round a score differently, a lost bit would show
        assert found[0][name] == pytest.approx(value, abs=1e-4), name


# ------------------------------------------------------------------------------------------------- sounds


def test_derangement_has_no_fixed_points():
    for n in range(2, 51):
        partner = derangement(n)
        assert sorted(partner) == list(range(n))
        assert (partner != np.arange(n)).all()
        np.testing.assert_array_equal(partner, derangement(n))


def test_swap_hears_the_partner():
    """J under swap is J of a data set in which every clip holds its partner's sound."""
    source, method = ToySource(), toy_method()

    class Swapped(ToySource):
        def __getitem__(self, index):
            return {**super().__getitem__(index), "audio": source.audio(int(derangement(len(source))[index]))}

    found = evaluate(method, VARIABLES, source)
    assert found["j_swap"] == evaluate(method, VARIABLES, Swapped(), conditions=TRUE_SOUND)["miou"]
    assert found["audio_gain"] == found["miou"] - found["j_swap"]
    assert found["j_swap"] != found["miou"]


def test_silence_and_noise_pass_the_front_end():
    heard = sounds(ToySource())
    true = np.zeros((2, 5, 1), np.float32)
    np.testing.assert_array_equal(heard("silence", np.array([0, 1]), true), np.zeros((2, 5, 1)))
    noise = heard("noise", np.array([0, 1]), true)
    np.testing.assert_allclose(noise, 0.5, atol=0.01)  # root mean square 0.1, times the toy front end's 5
    assert noise[0, 0, 0] != noise[1, 0, 0]
    np.testing.assert_array_equal(noise[1:], heard("noise", np.array([1]), true[:1]))


def test_conditions_are_optional():
    found = evaluate(toy_method(), VARIABLES, ToySource(), conditions=TRUE_SOUND)
    assert not {"j_swap", "audio_gain", "j_silence", "j_noise"} & found.keys()
    with pytest.raises(InputError, match="Did you mean 'silence'"):
        evaluate(toy_method(), VARIABLES, ToySource(), conditions=("silense",))


def test_one_clip_cannot_swap():
    found = evaluate_rows(toy_method(), VARIABLES, ToySource(clips=1), bootstrap=5)
    assert np.isnan([found.figures["j_swap"], found.figures["audio_gain"]]).all()
    assert any("swap" in note for note in found.notes) and "swap" in found.table()
    assert found.to_json()["figures"]["audio_gain"] is None


def test_embeddings_know_no_silence():
    plain, cached = ToySource(), ToySource(embedding=True)
    found = evaluate_rows(toy_method(), VARIABLES, cached, bootstrap=0)
    assert np.isnan([found.figures["j_silence"], found.figures["j_noise"]]).all()
    assert any("silence and noise" in note for note in found.notes)
    assert found.figures["j_swap"] == evaluate(toy_method(), VARIABLES, plain)["j_swap"]


# ----------------------------------------------------------------------------------------- bootstrap, report


def test_bootstrap(toy):
    source, method, _ = toy
    rows = merge([collect(method, VARIABLES, eval_batches(source, batch_size=4), sounds(source))])
    first = intervals(rows, 4, count=60, seed=3)
    assert first == intervals(rows, 4, count=60, seed=3)
    assert first != intervals(rows, 4, count=60, seed=4)
    order = resamples(len(source), 60, 3)
    values = figures(summarise(rows), 4, Resampling(len(source), order))
    for name, (low, high) in first.items():
        np.testing.assert_allclose((low, high), np.nanpercentile(values[name], [2.5, 97.5]), rtol=1e-12)
        assert low <= high
    for n in (0, 7):  # a resampling's figures are those of a data set with these clips
        drawn = {k: v[order[n]] for k, v in rows.items()}
        drawn["index"] = np.arange(len(source))
        for name, value in point(drawn).items():
            assert values[name][n] == pytest.approx(value, nan_ok=True), name


def test_report(toy, tmp_path):
    source, method, found = toy
    assert [row["id"] for row in found.rows] == list(source.ids)
    table = found.table()
    assert all(f"{found.figures[name]:.4f}" in table for name in ("miou", "audio_gain", "j_noise", "fdr"))
    json_path, csv_path = found.save(tmp_path / "evaluation", "test")
    assert json.loads(json_path.read_text())["figures"]["miou"] == found.figures["miou"]
    lines = csv_path.read_text().splitlines()
    assert len(lines) == 1 + len(source) and lines[0].startswith("id,index,j,f,")
    assert len(found.classes) == (4 if method.num_classes == 4 else 0)
    first = evaluate(method, VARIABLES, source, max_clips=3)
    equal(first, evaluate(method, VARIABLES, source, max_clips=3, batch_size=2))
    assert first["miou"] != found.figures["miou"]


def test_bad_input():
    with pytest.raises(InputError, match="classes"):
        evaluate(toy_method(4), VARIABLES, ToySource(classes=3))
    with pytest.raises(InputError, match="clip"):
        evaluate(toy_method(), VARIABLES, ToySource(clips=0))
    for option in ("batch_size", "clips_per_batch"):
        with pytest.raises(InputError, match=option):
            evaluate(toy_method(), VARIABLES, ToySource(), **{option: 0})
    assert CONDITIONS[0] == "true"
