"""ResNets for segmentation (dilation, multi-grid, deep stem) and for sound against the public code's numbers."""

import goldens
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from encoder_goldens import case, check_maps, part, same_state_dict

import avs_jax
from avs_jax.models.initialise import initialise
from avs_jax.models.layers import max_pool

VARIANTS = {  # golden file: (manifest, options)
    "resnet50_os16": ("resnet50", {"output_stride": 16}),
    "resnet50_os8": ("resnet50", {"output_stride": 8}),
    "resnet50_deepstem_mg16": ("resnet50_deepstem", {"output_stride": 16, "multi_grid": True, "stem": "deep"}),
    "resnet50_deepstem_mg8": ("resnet50_deepstem", {"output_stride": 8, "multi_grid": True, "stem": "deep"}),
}
AUDIO = "audio_backbone.backbone."


@pytest.mark.parametrize("name", [
    "resnet50_deepstem_mg8",
    *(pytest.param(name, marks=pytest.mark.slow) for name in VARIANTS if name != "resnet50_deepstem_mg8"),
])  # fmt: skip
def test_features_and_round_trip(name):
    manifest, options = VARIANTS[name]
    encoder, g, given = avs_jax.create_encoder("resnet50", **options), goldens.load(name), goldens.weights(manifest)
    variables = avs_jax.load_torch(encoder, given)
    same_state_dict(avs_jax.to_torch(encoder, variables), {k: v for k, v in given.items() if not k.startswith("fc.")})
    variables.pop("unused")
    keep = lambda module, method: module.path == ("bn1",)  # noqa: E731
    apply = jax.jit(lambda v, x: encoder.apply(v, x, capture_intermediates=keep, mutable=["intermediates"]))
    images = case(g, "ns")
    maps, state = apply(variables, images)
    stem = jax.nn.relu(state["intermediates"]["bn1"]["__call__"][0])
    found = {"stem": stem, "pool": max_pool(stem, 3, 2, 1), **{f"layer{i + 1}": x for i, x in enumerate(maps)}}
    check_maps(g, "ns", found)
    assert tuple(x.shape[-1] for x in maps) == encoder.channels
    assert [x.shape[1] for x in maps] == [-(-images.shape[1] // s) for s in encoder.strides]


def small(size, **options):
    encoder = avs_jax.create_encoder(size, width=4, **options)
    return encoder, initialise(encoder, jax.random.key(0), encoder.example_input())


@pytest.mark.parametrize("output_stride, slower", [(16, (1, 1, 1, 2)), (8, (1, 1, 2, 4))])
def test_dilation_keeps_the_values_where_the_stride_would_look(output_stride, slower):
    strided, variables = small("resnet18")
    dilated, _ = small("resnet18", output_stride=output_stride)
    images = goldens.image((2, 72, 41, 3), 0)
    want, got = (jax.jit(e.apply)(variables, images) for e in (strided, dilated))
    for a, b, step in zip(want, got, slower, strict=True):
        np.testing.assert_allclose(b[:, ::step, ::step], a, atol=1e-6 * float(jnp.abs(a).max()))
    assert dilated.strides == tuple(s // step for s, step in zip(strided.strides, slower, strict=True))


def test_multi_grid_dilates_only_the_last_layer():
    _, variables = small("resnet18")
    plain, grid = (small("resnet18", output_stride=16, multi_grid=m)[0] for m in (False, True))
    images = goldens.image((1, 64, 64, 3), 1)
    a, b = (jax.jit(e.apply)(variables, images) for e in (plain, grid))
    for x, y in zip(a[:3], b[:3], strict=True):
        np.testing.assert_array_equal(x, y)
    assert np.abs(a[3] - b[3]).max() > 0.1


def moved(encoder, variables, inputs, gradients=False):
    """The statistics after a training pass; they must have moved, and `gradients` must be finite everywhere."""

    def loss(params):
        out, state = encoder.apply({**variables, "params": params}, inputs, True, mutable=["batch_stats"])
        return sum(jnp.square(x).mean() for x in jax.tree.leaves(out)), state["batch_stats"]

    if gradients:
        grads, stats = jax.jit(jax.grad(loss, has_aux=True))(variables["params"])
        assert all(np.isfinite(g).all() and np.abs(g).max() > 0 for g in jax.tree.leaves(grads))
    else:
        _, stats = jax.jit(loss)(variables["params"])
    for old, new in zip(jax.tree.leaves(variables["batch_stats"]), jax.tree.leaves(stats), strict=True):
        assert np.isfinite(new).all() and not np.array_equal(old, new)
    return stats


def test_training_with_one_image():
    encoder, variables = small("resnet10", output_stride=8, multi_grid=True, stem="deep")
    images = goldens.image((1, 32, 48, 3), 2)
    stats = moved(encoder, variables, images, gradients=True)
    first = np.asarray(
        jax.lax.conv_general_dilated(
            images, variables["params"]["stem_conv0"]["kernel"], (2, 2), ((1, 1), (1, 1)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
    ).reshape(-1, 4)  # fmt: skip
    np.testing.assert_allclose(stats["stem_bn0"]["mean"], 0.1 * first.mean(0), atol=1e-6)
    np.testing.assert_allclose(stats["stem_bn0"]["var"], 0.9 + 0.1 * first.var(0, ddof=1), rtol=1e-5)


def test_deep_stem_is_twice_as_wide():
    encoder, variables = small("resnet10", stem="deep")
    assert variables["params"]["bn1"]["scale"].shape == (8,) and encoder.channels == (4, 8, 16, 32)
    assert "shortcut_conv" in variables["params"]["layer1_0"]  # 8 -> 4


def test_parameter_counts():
    """As published: R50 with the classifier; with the deep stem the stem and layer1's two inputs are wider."""
    for name, extra, million in (("resnet50", {}, 25.557), ("resnet101", {}, 44.549),
                                 ("resnet50", {"stem": "deep"}, 25.681)):  # fmt: skip
        encoder = avs_jax.create_encoder(name, **extra)
        params = jax.eval_shape(lambda e=encoder: e.init(jax.random.key(0), e.example_input()))["params"]
        count = sum(x.size for x in jax.tree.leaves(params)) + 2048 * 1000 + 1000
        assert round(count / 1e6, 3) == million


# --- sound -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("golden, manifest, name, options, shape, seed", [
    ("cavp_audio_resnet18", "cavp_deeplab_r50", "audio_resnet18", {}, (2, 300, 64), 221),
    pytest.param("cavp_audio_vgg", "cavp_deeplab_r50_vgg_os16", "vggish", {"features": 304}, (2, 96, 64), 222,
                 marks=pytest.mark.slow),
])  # fmt: skip
def test_sound(golden, manifest, name, options, shape, seed):
    encoder, given = avs_jax.create_encoder(name, **options), part(manifest, AUDIO)
    variables = avs_jax.load_torch(encoder, given)
    same_state_dict(avs_jax.to_torch(encoder, variables), given)
    variables.pop("unused", None)
    spectrograms = np.float32(0.2 * goldens.image(shape, seed) - 0.4)
    embedding = jax.jit(encoder.apply)(variables, spectrograms)
    assert goldens.error(embedding, goldens.load(golden)["out"]) < 5e-6


def test_mono_sound_may_have_a_channel_axis():
    encoder = avs_jax.create_encoder("audio_resnet10", width=4)
    init = lambda shape: jax.eval_shape(encoder.init, jax.random.key(0), jnp.zeros(shape))  # noqa: E731
    variables = init((1, 48, 32))
    assert jax.tree.all(jax.tree.map(lambda a, b: a.shape == b.shape, variables, init((1, 48, 32, 1))))
    assert variables["params"]["conv1"]["kernel"].shape == (7, 7, 1, 4)


def test_stereo_sound_and_its_training():
    encoder = avs_jax.create_encoder("audio_resnet10", width=4, features=6, input_channels=2)
    variables = initialise(encoder, jax.random.key(0), encoder.example_input())
    assert variables["params"]["conv1"]["kernel"].shape == (7, 7, 2, 4)
    spectrograms = goldens.image((3, 48, 32, 2), 4)
    moved(encoder, variables, spectrograms)
    one, other = (encoder.apply(variables, x) for x in (spectrograms, spectrograms[..., ::-1]))
    assert one.shape == (3, 6) and one.dtype == jnp.float32 and one.min() < 0 < one.max()
    assert np.abs(one - other).max() > 1e-3  # left and right are told apart


def test_vggish_of_another_width_starts_with_a_bias_of_zero():
    params = {}
    for features in (128, 24):
        encoder = avs_jax.create_encoder("vggish", width=4, hidden=16, features=features)
        params[features] = initialise(encoder, jax.random.key(0), encoder.example_input())["params"]
    assert params[24]["dense2"]["kernel"].shape == (16, 24) and not params[24]["dense2"]["bias"].any()
    assert params[128]["dense2"]["bias"].any()


@pytest.mark.parametrize("name, options, shape, word", [
    ("resnet50", {"output_stride": 4}, None, "'output_stride': expected 32 | 16 | 8"),
    ("resnet50", {"multi_grid": True}, None, "16 | 8 with multi_grid"),
    ("resnet50", {"stem": "deeper"}, None, "'deep'"),
    ("resnet10", {"width": 4}, (1, 32, 32, 1), r"\(N, H, W, 3\)"),
    ("audio_resnet10", {"width": 4}, (1, 32, 32, 2), r"\(N, time, mel\)"),
    ("audio_resnet10", {"width": 4, "input_channels": 2}, (1, 32, 32), r"\(N, time, mel, 2\)"),
    ("audio_resnet18", {"feature": 4}, None, "'features'"),
])  # fmt: skip
def test_refused(name, options, shape, word):
    with pytest.raises(avs_jax.InputError, match=word.replace("|", r"\|")):
        encoder = avs_jax.create_encoder(name, **options)
        jax.eval_shape(lambda: encoder.init(jax.random.key(0), jnp.zeros(shape)))
