"""Drawing: what the pixels of an overlay are, and that every picture is a readable PNG of sensible size."""

import json

import numpy as np
import pytest
from PIL import Image
from toy import VARIABLES, ToySource, toy_method

from avs_jax import pictures
from avs_jax.drawing.layout import fitting
from avs_jax.drawing.sound import is_stereo
from avs_jax.errors import InputError
from avs_jax.metrics import evaluate_rows


def size(path):
    with Image.open(path) as image:
        image.load()
        assert np.asarray(image.convert("L")).std() > 5  # not blank
        return image.size


def test_overlay():
    frame = np.random.default_rng(0).integers(0, 256, (20, 24, 3), dtype=np.uint8)
    mask = np.zeros((20, 24), np.uint8)
    mask[5:15, 6:18], mask[0, 0] = 2, 255
    found = pictures.overlay(frame, mask, scale=2)
    assert found.shape == (40, 48, 3) and found.dtype == np.uint8
    outside = found[30:, :10]
    assert (outside == outside[..., :1]).all()  # grey
    np.testing.assert_array_equal(found[0, 0], frame[0, 0])  # not known: as it is
    colour = pictures.COLOURS[1]
    np.testing.assert_array_equal(found[10, 12], colour)  # the outline
    inner = frame[10, 12] * 0.7 + colour * 0.3
    np.testing.assert_allclose(found[20, 24], inner, atol=0.51)
    sure, unsure = (pictures.overlay(frame, mask, np.full(mask.shape, p)) for p in (1.0, 0.0))
    np.testing.assert_array_equal(unsure[10, 12], frame[10, 12])
    np.testing.assert_allclose(sure[10, 12], inner, atol=0.51)


def test_overlay_of_an_empty_and_a_full_mask():
    frame = np.full((8, 8, 3), 200, np.uint8)
    assert (pictures.overlay(frame, np.zeros((8, 8), int)) == 125).all()
    assert len(np.unique(pictures.overlay(frame, np.ones((8, 8), int)).reshape(-1, 3), axis=0)) == 1


def test_outline():
    mask = np.zeros((7, 7), int)
    mask[2:5, 2:5] = 1
    inside = pictures.outline(mask) & (mask > 0)
    assert inside.sum() == 8 and not inside[3, 3]


def test_normalised_frames_are_undone():
    frames = np.random.default_rng(1).integers(0, 256, (2, 4, 4, 3), dtype=np.uint8)
    normalised = (frames.astype(np.float32) / 255 - pictures.MEAN) / pictures.STD
    np.testing.assert_array_equal(pictures.rgb(normalised), frames)


def test_spectrograms():
    assert len(pictures.spectrograms(np.random.default_rng(0).random((5, 96, 64)), 5, (30, 40))) == 5
    parts = pictures.spectrograms(np.arange(302 * 64, dtype=float).reshape(302, 64), 5, (30, 40))
    assert [part.shape for part in parts] == [(30, 40, 3)] * 5
    assert parts[4].mean() > parts[0].mean()  # later, louder
    assert pictures.spectrograms(np.zeros((5, 1)), 5, (30, 40)) is None  # no spectrogram


def sweep(low, high, seconds=1.0):
    """A tone that rises from `low` to `high` Hz."""
    t = np.arange(int(16000 * seconds)) / 16000
    return np.sin(2 * np.pi * (low + (high - low) * t / (2 * seconds)) * t).astype(np.float32)


def brightest(picture):
    """The row of the brightest pixel of every column."""
    return picture.astype(int).sum(-1).argmax(0)


@pytest.mark.parametrize("frames", [1, 3])
def test_spectrograms_of_samples(frames):
    found = pictures.spectrograms(np.stack([sweep(300, 6000)] * frames), frames, (64, 50))
    assert [part.shape for part in found] == [(64, 50, 3)] * frames and found[0].dtype == np.uint8
    rows = brightest(found[-1])
    assert rows[2] > 48 and rows[-3] < 12  # low tones at the bottom
    assert (np.diff(rows[2:-2]) <= 1).all()
    silent = pictures.spectrograms(np.zeros((frames, 16000), np.float32), frames, (10, 10))
    assert len(np.unique(silent[0].reshape(-1, 3), axis=0)) == 1  # and no warning of a division


def test_spectrograms_in_stereo():
    both = np.stack([sweep(300, 300), 0.05 * sweep(5000, 5000)])[None]
    (found,) = pictures.spectrograms(both, 1, (81, 60))
    assert found.shape == (81, 60, 3)
    left, right = brightest(found[:40]), brightest(found[41:])
    assert (left[5:-5] > 28).all() and (right[5:-5] < 12).all()
    assert found[:40].max() > found[41:].max()  # one scale: the right is the quieter
    assert is_stereo(both, 1) and not is_stereo(np.zeros((2, 2, 64)), 2)


def test_unknown_pixels_are_hatched():
    frame = np.full((64, 64, 3), 100, np.uint8)
    mask = np.zeros((64, 64), np.uint8)
    mask[:, :32] = 255
    found = pictures.overlay(frame, mask)
    values = set(np.unique(found[:, :32]))
    assert values == {100, 235}  # as it is, and stripes
    assert (found[:, 32:] == 75).all()
    striped = (found[:, :32, 0] == 235).mean()
    assert 0.02 < striped < 0.3


def still(size, truth=0, classes=("background", "cat", "tennis racket")):
    rng = np.random.default_rng(0)
    frames, labels = rng.integers(0, 256, (1, *size, 3), dtype=np.uint8), np.zeros((1, *size), np.uint8)
    labels[:, 2:8, 3:9] = truth
    heard = pictures.Heard("own sound", labels, None, sweep(300, 6000)[None], ["cat"])
    return pictures.View("still", frames, labels, [heard, heard._replace(title="swapped sound")], classes)


def test_stills_stand_side_by_side(tmp_path):
    views = [still(shape, 1) for shape in ((16, 16), (16, 24), (24, 16), (16, 16), (16, 16))]
    four, one = (pictures.clip_picture(tmp_path / f"{n}.png", views[:n]) for n in (4, 1))
    five = pictures.clip_picture(tmp_path / "5.png", views)
    assert size(one)[0] < size(four)[0] == size(five)[0] and size(five)[1] > 1.5 * size(four)[1]
    assert size(one)[1] < 1600  # one picture does not fill a page
    assert [row.label for row in pictures.clip_rows(views[0])] == [
        "own sound", "picture", "truth", "prediction with\nown sound", "swapped sound",
        "prediction with\nswapped sound"]  # fmt: skip
    stereo = views[0].heard[0]._replace(audio=np.stack([sweep(300, 300)] * 2)[None])
    assert "left above right" in pictures.clip_rows(views[0]._replace(heard=[stereo]))[0].label


def test_legends():
    def texts(truth):
        view = still((16, 16), truth)
        return [text for text, _ in pictures.clip_rows(view)[2].legend]

    assert texts(2) == ["\u25a0 tennis racket"]
    assert texts(0) == ["nothing sounds"]
    assert texts(255) == ["nothing sounds", "\u25a8 not scored"]
    entries = [(f"class {k}", "red") for k in range(9)]
    assert fitting(entries, 100) == entries and fitting([], 2) == []
    narrow = [text for text, _ in fitting(entries, 2.3)]
    assert narrow[0] == "class 0" and narrow[-1] == f"and {10 - len(narrow)} more" and len(narrow) < 4


def test_typical_clips_of_classes_go_by_their_own_figure():
    rows = [{"index": n, "true_pixels": 5, "j": n / 4, "miou_classes": 1 - n / 4} for n in range(4)]
    assert pictures.typical_clips(rows, 4) == [0, 1, 2, 3]
    assert pictures.typical_clips([{k: v for k, v in row.items() if k != "miou_classes"} for row in rows], 4)[0] == 3


def test_clip_picture_of_a_method(tmp_path):
    source, method = ToySource(clips=5, size=(20, 30)), toy_method()
    report = evaluate_rows(method, VARIABLES, source, bootstrap=0)
    chosen = pictures.typical_clips(report.rows, 3)
    j = [report.rows[index]["j"] for index in chosen]
    assert j == sorted(j, reverse=True) and len(set(chosen)) == 3
    views = pictures.predicted_views(method, VARIABLES, source, chosen)
    for view, index in zip(views, chosen, strict=True):  # the picture shows what was evaluated
        own, swapped = (pictures._jaccard(heard.labels, view.truth) for heard in view.heard)
        assert own == pytest.approx(report.rows[index]["j"], abs=1e-6)
        assert swapped == pytest.approx(report.rows[index]["j_swap"], abs=1e-6)
    path = pictures.clip_picture(tmp_path / "new" / "clips.png", views, title="toy")
    one = pictures.clip_picture(tmp_path / "one.png", views[:1])
    assert size(path)[0] == 2 * size(one)[0] and size(path)[1] > size(one)[1]


def test_clip_picture_with_sounds(tmp_path):
    rng = np.random.default_rng(0)
    frames, truth = rng.integers(0, 256, (5, 16, 16, 3), dtype=np.uint8), rng.integers(0, 2, (5, 16, 16))
    audio = rng.random((5, 96, 64)).astype(np.float32)
    heard = pictures.Heard("own sound", truth, None, audio, ["bell", "", "bell, drum", "bell", "bell"])
    mute = heard._replace(audio=None)
    with_sound = pictures.clip_picture(tmp_path / "a.png", [pictures.View("a", frames, truth, [heard])])
    without = pictures.clip_picture(tmp_path / "b.png", [pictures.View("b", frames, truth, [mute])])
    assert size(with_sound)[1] > size(without)[1]
    unknown = pictures.View("c", frames, np.full_like(truth, 255), [mute])
    size(pictures.clip_picture(tmp_path / "c.png", [unknown]))


def test_curves_picture(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = [{"step": n, "loss": 1 / n, "lr": 0.1, "grad_norm": 1.0} for n in range(1, 9)] + [
        {"step": 8, "eval/miou": 0.5}
    ]
    path.write_text("\n".join(map(json.dumps, lines)))
    size(pictures.curves_picture(path, tmp_path / "curves.png", title="run"))
    with pytest.raises(InputError, match="no such file"):
        pictures.curves_picture(tmp_path / "none.jsonl", tmp_path / "x.png")
    path.write_text('{"step": 1, "loss": 2}\nbroken')
    with pytest.raises(InputError, match="line 2"):
        pictures.curves_picture(path, tmp_path / "x.png")


def test_threshold_picture(tmp_path):
    x = np.linspace(0, 1, 255)
    curves = {"threshold": x, "f": x * (1 - x), "precision": x, "recall": 1 - x}
    size(pictures.threshold_picture(tmp_path / "a.png", curves, title="run"))
    size(pictures.threshold_picture(tmp_path / "b.png", curves | {"f": np.full(255, np.nan)}))
