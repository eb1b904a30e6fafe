"""Encoders against torchvision's and the public VGGish's numbers; layers against their definitions."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from goldens import detweights, error, image, load, nhwc, weights

import avs_jax
from avs_jax.models.initialise import initialise
from avs_jax.models.layers import Dense, adaptive_max_pool, max_pool, resize_aligned, upsample2x

EXACT = 2e-5


@pytest.mark.parametrize("name, tag", [
    ("resnet18", "ns"),
    pytest.param("resnet18", "sq", marks=pytest.mark.slow),
    pytest.param("resnet50", "ns", marks=pytest.mark.slow),
    pytest.param("resnet50", "sq", marks=pytest.mark.slow),
    pytest.param("resnet101", "ns", marks=pytest.mark.slow),
    pytest.param("resnet101", "sq", marks=pytest.mark.slow),
])  # fmt: skip
def test_resnet(name, tag):
    g = load(name)
    encoder = avs_jax.create_encoder(name)
    variables = avs_jax.load_torch(encoder, weights(name))  # with the classifier's keys, which are passed over
    variables.pop("unused")
    images = nhwc(image(g[f"{tag}/input_shape"], g[f"{tag}/seed"]))
    keep = lambda module, method: module.name == "bn1" and len(module.path) == 1  # noqa: E731

    def apply(v, x):
        return encoder.apply(v, x, capture_intermediates=keep, mutable=["intermediates"])

    maps, state = jax.jit(apply)(variables, images)
    stem = jax.nn.relu(state["intermediates"]["bn1"]["__call__"][0])
    found = {"stem": stem, "pool": max_pool(stem, 3, 2, 1), **{f"layer{i + 1}": x for i, x in enumerate(maps)}}
    assert [x.shape[-1] for x in maps] == list(encoder.channels)
    for tap, x in found.items():
        x = np.moveaxis(np.asarray(x, np.float64), -1, 1)
        assert x.shape == tuple(g[f"{tag}/{tap}/shape"])
        scale = EXACT * g[f"{tag}/{tap}/absmax_gap32"][0]
        c, h, w = g[f"{tag}/{tap}/stride"]
        some = max(1, x.shape[1] // 8)
        for key, got in {
            "slice": x[:, ::c, ::h, ::w],
            "last_row": x[:, ::some, -1],
            "last_col": x[:, ::some, :, -1],
            "mean": x.mean((0, 2, 3)),
            "std": x.std((0, 2, 3)),
        }.items():
            assert np.abs(got - g[f"{tag}/{tap}/{key}"]).max() < scale, (tap, key)


@pytest.mark.slow
def test_vggish():
    g = load("vggish")
    encoder = avs_jax.create_encoder("vggish")
    variables = avs_jax.load_torch(encoder, weights("vggish"))
    examples = image((g["N"], 1, 96, 64), g["seed"])[:, 0]
    keep = lambda module, method: module.name == "conv5"  # noqa: E731
    embedding, state = encoder.apply(variables, examples, capture_intermediates=keep, mutable=["intermediates"])
    assert error(embedding, g["embedding"]) < EXACT
    features = max_pool(jax.nn.relu(state["intermediates"]["conv5"]["__call__"][0]), 2, 2)
    assert error(np.moveaxis(np.asarray(features), -1, 1)[:, ::16], g["features_sub"]) < EXACT
    x = np.asarray(features, np.float64).reshape(-1, 512)
    assert error(np.stack([x.mean(0), x.std(0)]), g["features_chanstat"]) < 2e-4


def test_small_vggish_hears_and_never_goes_below_zero():
    encoder = avs_jax.create_encoder("vggish", width=4, hidden=16)
    variables = initialise(encoder, jax.random.key(0), encoder.example_input())
    x = encoder.apply(variables, np.stack([image((96, 64), i) for i in range(3)]))
    assert x.shape == (3, 128) and x.min() >= 0 and (x.std(0) > 0).any()


@pytest.mark.parametrize("name, options, word", [
    ("resnet5", {}, "'resnet50'"),
    ("resnet18", {"widht": 8}, "'width'"),
    ("vggish", {"size": "big"}, "hidden"),
])  # fmt: skip
def test_unknown_names_are_refused_with_the_nearest(name, options, word):
    with pytest.raises(avs_jax.InputError, match=word):
        avs_jax.create_encoder(name, **options)


# --- layers ----------------------------------------------------------------------------------------------------------


def blend(x, axis, positions):
    """Linear interpolation along an axis, straight from the definition."""
    low = np.clip(np.floor(positions).astype(int), 0, x.shape[axis] - 1)
    high = np.clip(low + 1, 0, x.shape[axis] - 1)
    weight = np.expand_dims(positions - low, [a for a in range(x.ndim) if a != axis])
    return np.take(x, low, axis) * (1 - weight) + np.take(x, high, axis) * weight


@pytest.mark.parametrize("h, w", [(1, 1), (2, 3), (5, 8)])
def test_upsampling_by_two(h, w):
    x = image((2, h, w, 3), 0).astype(np.float64)
    aligned = half = x
    for axis, n in ((1, h), (2, w)):
        i = np.arange(2 * n)
        aligned = blend(aligned, axis, i * (n - 1) / (2 * n - 1))
        half = blend(half, axis, np.clip((i + 0.5) / 2 - 0.5, 0, n - 1))
    x = x.astype(np.float32)
    np.testing.assert_allclose(upsample2x(x, align_corners=True), aligned, atol=1e-6)
    np.testing.assert_allclose(upsample2x(x, align_corners=False), half, atol=1e-6)
    np.testing.assert_allclose(resize_aligned(x, (2 * h, 2 * w)), aligned, atol=1e-6)


@pytest.mark.parametrize("size", [(1, 1), (7, 4), (3, 5)])
def test_resize_with_aligned_corners(size):
    x = image((1, 4, 6, 2), 1).astype(np.float64)
    want = x
    for axis, n, m in zip((1, 2), x.shape[1:3], size, strict=True):
        want = blend(want, axis, np.arange(m) * ((n - 1) / (m - 1) if m > 1 else 0.0))
    np.testing.assert_allclose(resize_aligned(x.astype(np.float32), size), want, atol=1e-6)


def test_adaptive_max_pool_bins_overlap_as_pytorch_bins_them():
    x = jnp.arange(7.0).reshape(1, 7, 1, 1)
    assert adaptive_max_pool(x, (3, 1)).ravel().tolist() == [2, 4, 6]  # inputs 0-2, 2-4, 4-6
    x = image((1, 5, 7, 2), 3)
    want = [[x[0, a:b, c:d].max((0, 1)) for c, d in ((0, 4), (3, 7))] for a, b in ((0, 2), (1, 4), (3, 5))]
    np.testing.assert_array_equal(adaptive_max_pool(x, (3, 2))[0], want)


def test_initial_values_are_pytorchs_and_a_function_of_the_key():
    encoder = avs_jax.create_encoder("resnet10", width=8)
    init = lambda seed: initialise(encoder, jax.random.key(seed), encoder.example_input())  # noqa: E731
    one, two, other = init(0), init(0), init(1)
    assert jax.tree.all(jax.tree.map(np.array_equal, one, two))
    kernel = one["params"]["layer4_0"]["conv2"]["kernel"]  # N(0, 2 / fan_out)
    assert abs(kernel.std() / (2 / (9 * 64)) ** 0.5 - 1) < 0.02 and abs(kernel.mean()) < 1e-3
    assert not np.array_equal(kernel, other["params"]["layer4_0"]["conv2"]["kernel"])
    assert not np.array_equal(kernel, one["params"]["layer4_0"]["conv1"]["kernel"][:, :, :, :64].repeat(2, 2))
    assert (one["params"]["bn1"]["scale"] == 1).all() and (one["batch_stats"]["bn1"]["var"] == 1).all()
    shapes = jax.eval_shape(encoder.init, jax.random.key(0), encoder.example_input())
    assert jax.tree.all(jax.tree.map(lambda a, b: (a.shape, a.dtype) == (b.shape, b.dtype), one, dict(shapes)))


def test_a_value_lost_in_a_transformation_is_not_passed_over():
    """What nn.remat returns of an initialiser is another array than the one that was made."""
    x, key = jnp.ones((2, 5)), jax.random.key(0)
    assert np.std(initialise(Dense(3), key, x)["params"]["kernel"]) > 0
    with pytest.raises(RuntimeError, match="initial value"):
        initialise(nn.remat(Dense)(3), key, x)


def test_frozen_norms_train_as_they_evaluate_and_never_change():
    encoder = avs_jax.create_encoder("resnet10", width=4, stem="deep", frozen_norm=True)
    made = initialise(encoder, jax.random.key(0), encoder.example_input())
    shapes = {key: value.shape for key, value in avs_jax.to_torch(encoder, made).items()}
    variables = avs_jax.load_torch(encoder, detweights.state_dict(shapes))
    images = jnp.asarray(image((2, 32, 32, 3), 1))

    @jax.jit
    def run(params):
        state = {"params": params, "batch_stats": variables["batch_stats"]}
        maps, new = encoder.apply(state, images, train=True, mutable=["batch_stats"])
        return maps[-1].sum(), (maps, new)

    (_, (maps, new)), grads = jax.value_and_grad(run, has_aux=True)(variables["params"])
    jax.tree.map(np.testing.assert_array_equal, dict(new), {"batch_stats": variables["batch_stats"]})
    plain = jax.jit(encoder.clone(frozen_norm=False).apply)(variables, images)
    for x, y in zip(maps, plain, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5)
    for path, gradient in jax.tree_util.tree_leaves_with_path(grads):
        assert np.any(gradient) == (path[-1].key == "kernel"), path
