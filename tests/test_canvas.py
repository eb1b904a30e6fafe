"""Pictures on a canvas: the network's values are the bare picture's, whatever lies around it, from one compilation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import avs_jax
from avs_jax.errors import InputError
from avs_jax.methods import cavp
from avs_jax.models import canvas, layers
from avs_jax.models.initialise import initialise

CANVAS = (96, 80)
SMALL = {"audio_encoder": "resnet10", "audio_width": 4, "num_classes": 5, "projector": 8, "low": 4, "channels": 12,
         "width": 4}  # fmt: skip
THIN = (("width", 4), ("modules", (1, 1, 1)), ("blocks", 1))  # of HRNet
NETWORKS = {
    "deeplab": ({"backbone": "resnet10"}, [(37, 50), (64, 33), (3, 1)]),
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


@pytest.mark.parametrize("name", NETWORKS)
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
    sizes = np.array([[96, 80], [37, 50], [5, 3], [1, 80]], np.int32)
    board = canvas.Canvas(CANVAS, jnp.asarray(sizes))
    x = r.normal(size=(len(sizes), 24, 20, 2)).astype(np.float32)
    for shape in (CANVAS, (48, 40)):
        got = canvas.resize(board, x, shape, aligned)
        assert got.shape == (len(sizes), *shape, 2)
        plain = layers.resize_aligned if aligned else layers.resize
        for n, (h, w) in enumerate(sizes):
            after = tuple(-(-s * m // c) for s, m, c in zip((h, w), shape, CANVAS, strict=True))
            want = plain(x[n : n + 1, : -(-h // 4), : -(-w // 4)], after)[0]
            np.testing.assert_allclose(got[n, : after[0], : after[1]], want, atol=1e-5)


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
    for size in ((37, 50), (64, 33), (64, 64)):
        got = method.predict(small[1], make_batch(size, (64, 64), frames=2))
        assert traced == [(2, 64, 64, 3)]
        want = small[0].predict(small[1], make_batch(size, frames=2)) if size != (64, 64) else None
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
