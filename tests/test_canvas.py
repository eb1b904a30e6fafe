"""Pictures on a canvas: the network's values are the bare picture's, whatever lies around it, from one compilation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from vpo_tree import write_single_plus

import avs_jax
from avs_jax.data.clip import bare, validate
from avs_jax.data.pipeline import train_batches
from avs_jax.data.sources import stills
from avs_jax.errors import InputError
from avs_jax.methods import cavp
from avs_jax.metrics import evaluate_rows
from avs_jax.models import canvas, layers
from avs_jax.models.initialise import initialise
from avs_jax.pictures import predicted_views

CANVAS = (96, 80)
SMALL = {"audio_encoder": "resnet10", "audio_width": 4, "num_classes": 5, "projector": 8, "low": 4, "channels": 12,
         "width": 4}  # fmt: skip
THIN = (("width", 4), ("modules", (1, 1, 1)), ("blocks", 1))  # of HRNet
NETWORKS = {
    "deeplab": ({"backbone": "resnet10"}, [(37, 50), (3, 1)]),
    "deeplab-even": ({"backbone": "resnet10"}, [(64, 33), (96, 80)]),
    "deeplab-16": ({"backbone": "resnet50", "output_stride": 16, "fusion": "sum"}, [(37, 50), (96, 80)]),
    "hrnet": ({"architecture": "hrnet"}, [(37, 50), (64, 33)]),
    "ocr": ({"architecture": "ocr", "fusion": "none"}, [(33, 64), (37, 50)]),
}


def random_variables(network, seed=0):
    """With statistics and biases other than zero: what lies around a picture then matters at every layer."""
    variables = initialise(network, jax.random.key(seed), *cavp.example_inputs(network))
    r = np.random.default_rng(seed)
    spread = lambda x: x + np.abs(0.3 * r.normal(size=x.shape)).astype(np.float32)  # noqa: E731
    return jax.tree.map(lambda x: spread(x) if x.ndim == 1 else x, variables)


def on_canvas(images, seed=0, shape=CANVAS):
    """(N, *shape, 3) float32 with the images top left in noise."""
    whole = np.random.default_rng(seed).normal(size=(len(images), *shape, 3)).astype(np.float32)
    for out, image in zip(whole, images, strict=True):
        out[: image.shape[0], : image.shape[1]] = image
    return whole


@pytest.mark.parametrize("name", ["deeplab", *(pytest.param(n, marks=pytest.mark.slow) for n in list(NETWORKS)[1:])])
def test_network_sees_the_picture_alone(name):
    options, sizes = NETWORKS[name]
    method = avs_jax.create("cavp", **{**SMALL, **options})
    network = cavp.build_network(method.options)
    if network.architecture != "deeplab":
        network = network.clone(backbone_options=THIN)
    variables = random_variables(network)
    r = np.random.default_rng(1)
    images = [r.normal(size=(*size, 3)).astype(np.float32) for size in sizes]
    sound = network.fusion != "none"
    sounds = r.normal(size=(len(sizes), 96, 64)).astype(np.float32) if sound else None
    run = jax.jit(lambda x, s, sizes=None: network.apply(variables, x, s, sizes=sizes))
    got = run(on_canvas(images), sounds, np.array(sizes, np.int32))
    again = run(on_canvas(images, seed=5), sounds, np.array(sizes, np.int32))
    for a, b in zip(jax.tree.leaves(got.logits), jax.tree.leaves(again.logits), strict=True):
        np.testing.assert_array_equal(a, b)  # also beyond the pictures, where their edges go on
    loose = run(on_canvas(images), sounds).logits
    for n, ((h, w), image) in enumerate(zip(sizes, images, strict=True)):
        want = run(image[None], sounds[n : n + 1] if sound else None)
        scale = np.abs(want.logits).max()
        np.testing.assert_allclose(got.logits[n, :h, :w], want.logits[0], atol=1e-5 * scale, rtol=0)
        np.testing.assert_array_equal(got.logits[n, :h, :w].argmax(-1), want.logits[0].argmax(-1))
        if (h, w) != CANVAS:  # what would get in without all this
            assert np.abs(loose[n, :h, :w] - want.logits[0]).max() > 1e-2 * scale
        if sound:
            fused = got.fused[n, : -(-h // 4), : -(-w // 4)]
            np.testing.assert_allclose(fused, want.fused[0], atol=1e-5 * np.abs(want.fused).max(), rtol=0)


@pytest.mark.parametrize("aligned", [True, False])
def test_resize_is_each_pictures_own(aligned):
    r = np.random.default_rng(0)
    sizes = np.array([[37, 50], [5, 3], [1, 80]], np.int32)
    x = r.normal(size=(len(sizes), 24, 20, 2)).astype(np.float32)
    got = canvas.resize(canvas.Canvas(CANVAS, jnp.asarray(sizes)), x, CANVAS, aligned)
    plain = layers.resize_aligned if aligned else layers.resize
    for n, (h, w) in enumerate(sizes):
        want = plain(x[n : n + 1, : -(-h // 4), : -(-w // 4)], (h, w))[0]
        np.testing.assert_allclose(got[n, :h, :w], want, atol=1e-5)


def test_sizes_follow_every_halving_and_no_other_map_is_accepted():
    board = canvas.Canvas((77, 33), jnp.array([[77, 33], [41, 9], [1, 1]], jnp.int32))
    found = {shape: board.sizes_at(shape).tolist() for shape in ((39, 17), (20, 9), (10, 5), (3, 2), (1, 1))}
    assert found == {
        (39, 17): [[39, 17], [21, 5], [1, 1]],
        (20, 9): [[20, 9], [11, 3], [1, 1]],
        (10, 5): [[10, 5], [6, 2], [1, 1]],
        (3, 2): [[3, 2], [2, 1], [1, 1]],
        (1, 1): [[1, 1]] * 3,
    }
    with pytest.raises(ValueError, match="halving"):
        board.sizes_at((38, 17))


SAMPLES = 16000


@pytest.fixture(scope="module")
def small():
    method = avs_jax.create("cavp", **SMALL, backbone="resnet10")
    return method, random_variables(cavp.build_network(method.options))


def make_batch(size, shape=None, frames=1, seed=0):
    """One clip with a picture of `size`, on a canvas of `shape`."""
    r = np.random.default_rng(seed)
    pixels = r.integers(0, 256, (1, frames, *size, 3), dtype=np.uint8)
    batch = {"frames": pixels, "audio": (0.1 * r.normal(size=(1, frames, SAMPLES))).astype(np.float32)}
    if shape is None:
        return batch
    whole = r.integers(0, 256, (1, frames, *shape, 3), dtype=np.uint8)
    whole[:, :, : size[0], : size[1]] = pixels
    return {**batch, "frames": whole, "size": np.array([size], np.int32)}


def test_prediction_of_several_sizes_is_compiled_once(small, monkeypatch):
    method = avs_jax.create("cavp", **small[0].options)  # nothing compiled yet
    traced = []
    plain = cavp.normalise
    monkeypatch.setattr(cavp, "normalise", lambda x: traced.append(x.shape) or plain(x))
    for size in ((37, 50), (64, 33), (64, 64)):  # one bare picture is enough to compile: the network's test has more
        got = method.predict(small[1], make_batch(size, (64, 64), frames=2))
        assert traced == [(2, 64, 64, 3)]
        want = small[0].predict(small[1], make_batch(size, frames=2)) if size == (37, 50) else None
        traced[1:] = []  # the bare picture's
        if want is None:
            continue
        part = np.s_[:, :, : size[0], : size[1]]
        np.testing.assert_allclose(got.scores[part], want.scores, atol=1e-5)
        np.testing.assert_array_equal(got.labels[part], want.labels)


@pytest.mark.parametrize(
    "size", [np.array([[0, 5]]), np.array([[65, 64]]), np.array([64, 64]), np.ones((1, 2))], ids=str
)
def test_bad_sizes(small, size):
    with pytest.raises(InputError, match="'size'"):
        small[0].predict(small[1], {**make_batch((64, 64)), "size": size})


# ------------------------------------------------------------------------------------------------ from files to figures


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("single_plus")
    return write_single_plus(root / "data", root / "others")


def source_of(folder, pad, split="test"):
    return avs_jax.create_source("single_plus", root=str(folder), split=split, pad=pad)


def test_buckets(folder):
    sizes = {(427, 640): (512, 640), (640, 480): (640, 512), (200, 256): (256, 256), (640, 640): (640, 640),
             (513, 600): (640, 640), (720, 1280): (768, 1280), (100, 641): (128, 768)}  # fmt: skip
    assert {size: stills.padded(size, "buckets") for size in sizes} == sizes
    plain, padded = source_of(folder, 0), source_of(folder, "buckets")
    for i in range(len(plain)):
        clip = validate(padded[i], num_classes=24)
        assert clip["frames"].shape == (1, 256, 256, 3) and "size" not in plain[i]
        again = bare(clip)
        assert again.keys() == plain[i].keys()
        assert all(np.array_equal(again[field], plain[i][field]) for field in again)
    clip["labels"][0, clip["size"][0], 0] = 0
    with pytest.raises(InputError, match="beyond the pictures"):
        validate(clip, num_classes=24)
    with pytest.raises(InputError, match="'size'"):
        validate({**clip, "size": np.array([257, 3], np.int32)}, num_classes=24)
    with pytest.raises(InputError, match=r"data\.pad"):
        source_of(folder, "bucket")


def test_crops_for_training_have_no_size(folder):
    batch = next(train_batches(source_of(folder, 64, "train"), seed=0, batch_size=2, augment={"crop": 16}, threads=0))
    assert "size" not in batch and batch["frames"].shape == (2, 1, 16, 16, 3)


def test_evaluation_of_several_sizes(folder, monkeypatch):
    """Clip by clip at their own size, and several on one canvas: the same figures, from one compilation."""
    method = avs_jax.create("cavp", **{**SMALL, "num_classes": 2}, backbone="resnet10", fusion="none")
    variables = random_variables(cavp.build_network(method.options))
    logits = cavp.create(**method.options).predict(variables, make_batch((30, 50))).logits
    classifier = variables["params"]["head"]["classifier"]  # of noise it marks a half
    classifier["bias"] = classifier["bias"] - np.median(logits.reshape(-1, 2) - logits.reshape(-1, 2)[:, :1], 0)
    traced, plain = [], cavp.normalise
    monkeypatch.setattr(cavp, "normalise", lambda x: traced.append(x.shape[1:3]) or plain(x))
    reports = {}
    for pad, size in ((0, 1), ((64, 64), 2)):
        source = avs_jax.create_source(
            "single_plus", root=str(folder), setting="avs_m", split="test", fit="none", pad=pad
        )
        options = {"conditions": ("true",), "bootstrap": 0, "batch_size": size, "max_clips": 2}
        reports[pad] = evaluate_rows(method, variables, source, **options)
    assert traced == [(30, 50), (34, 48), (64, 64)]
    own, together = (report.figures for report in reports.values())
    assert 0 < own["miou"] < 1 and 0 < own["f_best"] < 1
    assert [row["true_pixels"] for row in reports[0].rows] == [140, 130]
    for name in ("miou", "fscore", "f_best", "fdr"):
        np.testing.assert_allclose(together[name], own[name], rtol=1e-3)
    (view,) = predicted_views(method, variables, source, [1], swap=False)
    assert view.frames.shape == (1, 34, 48, 3) and view.heard[0].labels.shape == (1, 34, 48)
