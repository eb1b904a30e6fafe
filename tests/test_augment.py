import numpy as np
import pytest

from avs_jax.data import augment
from avs_jax.errors import InputError


def clip(size=(12, 16), dtype=np.uint8):
    """Frames that show their own labels: red 200 where the label is 1, 40 elsewhere."""
    rng = np.random.default_rng(0)
    labels = np.zeros((3, *size), np.uint8)
    labels[:, 2:9, 3:8] = 1
    frames = np.where(labels[..., None] == 1, 200, 40) * np.ones(3) + rng.integers(-5, 5, (3, *size, 1))
    return {
        "frames": frames.astype(dtype),
        "labels": labels,
        "labelled": np.ones(3, bool),
        "audio": np.zeros((3, 2), np.float32),
        "id": "a",
    }


def test_flip_moves_frames_and_labels_together():
    before, after = clip(), augment.Augment(hflip=1.0)(clip(), np.random.default_rng(0))
    np.testing.assert_array_equal(after["frames"], before["frames"][:, :, ::-1])
    np.testing.assert_array_equal(after["labels"], before["labels"][:, :, ::-1])


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("scale", [0.5, 0.8, 1.3, 2.0])
def test_scale_keeps_pixels_on_their_labels(scale, dtype):
    transform = augment.Augment(scale=(scale, scale), hflip=0.5)
    for seed in range(4):
        out = transform(clip(dtype=dtype), np.random.default_rng(seed))
        frames, labels = out["frames"], out["labels"]
        assert frames.shape == (3, 12, 16, 3) and frames.dtype == dtype and labels.dtype == np.uint8
        assert set(np.unique(labels)) <= {0, 1, 255}
        assert (255 in labels) == (scale < 1)
        red = frames[..., 0]
        if scale < 1:  # padding is the mean colour, or zero in normalised frames
            assert (red[labels == 255] == (124 if dtype == np.uint8 else 0)).all()
        agree = ((red > 120) == (labels == 1))[labels != 255]
        assert agree.mean() > 0.95  # but for pixels on an edge


def test_every_frame_moves_alike():
    still = clip()
    still["frames"][:] = still["frames"][:1]
    out = augment.Augment(hflip=0.5, scale=(0.5, 2.0), color=0.5)(still, np.random.default_rng(2))
    assert (out["frames"] == out["frames"][:1]).all() and (out["labels"] == out["labels"][:1]).all()


def test_crops_reach_every_corner():
    transform = augment.Augment(scale=(1.25, 1.25))
    ramp = clip()
    ramp["frames"][:] = np.arange(16, dtype=np.uint8)[None, None, :, None] * 10
    lefts = {int(transform(ramp, np.random.default_rng(s))["frames"][0, 0, 0, 0]) for s in range(60)}
    assert 0 in lefts and len(lefts) == 5  # 20 columns, 16 kept: five places


def test_jitter_by_hand():
    frames = np.full((1, 2, 2, 3), 100, np.uint8)
    frames[0, 0, 0] = (200, 100, 0)
    np.testing.assert_array_equal(augment.jitter(frames, 1, 1, 1), frames)
    np.testing.assert_array_equal(augment.jitter(frames, 1.5, 1, 1)[0, 0, 0], (255, 150, 0))
    grey = augment.jitter(frames, 1, 1, 0)[0, 0, 0]
    assert len(set(grey)) == 1 and abs(int(grey[0]) - round(200 * 0.299 + 100 * 0.587)) <= 1
    flat = augment.jitter(frames, 1, 0, 1)
    assert np.ptp(flat) == 0


def test_same_generator_same_clip_and_input_untouched():
    transform, before = augment.Augment(0.5, (0.7, 1.4), 0.3), clip()
    a, b = (transform(before, np.random.default_rng(5)) for _ in range(2))
    for field in ("frames", "labels"):
        np.testing.assert_array_equal(a[field], b[field])
        np.testing.assert_array_equal(before[field], clip()[field])
    c = transform(before, np.random.default_rng(6))
    assert not np.array_equal(a["frames"], c["frames"])


def test_options():
    assert augment.make({"hflip": 0.0, "scale": (1.0, 1.0), "color": 0.0}) is None
    assert augment.make({"scale": [0.5, 1.0]}) == augment.Augment(scale=(0.5, 1.0))


@pytest.mark.parametrize(
    "options, where",
    [
        ({"hflip": 1.5}, "augment.hflip"),
        ({"color": -0.1}, "augment.color"),
        ({"scale": (2.0, 1.0)}, "augment.scale"),
        ({"scale": (0.0, 1.0)}, "augment.scale"),
        ({"colour": 0.1}, "augment.colour"),
    ],
    ids=str,
)
def test_bad_options(options, where):
    with pytest.raises(InputError) as error:
        augment.make(options)
    assert error.value.where == where


def test_color_needs_uint8():
    with pytest.raises(InputError, match=r"clip 'a'.*uint8"):
        augment.Augment(color=0.1)(clip(dtype=np.float32), np.random.default_rng(0))
