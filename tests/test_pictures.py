"""Drawing: what the pixels of an overlay are, and that every picture is a readable PNG of sensible size."""

import json

import numpy as np
import pytest
from PIL import Image
from toy import VARIABLES, ToySource, toy_method

from avs_jax import pictures
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
