"""Swin against the public code's numbers and the definition of its windows; its three ways to name the same weights."""

from functools import partial

import goldens
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from encoder_goldens import case, check_maps
from flax import errors as flax_errors

import avs_jax
from avs_jax.errors import InputError
from avs_jax.models.encoders import ENCODERS, create_encoder, swin
from avs_jax.models.initialise import initialise
from avs_jax.weights import inspection, load_torch, matching, to_torch

BASE = "swin_base_patch4_window7_224"
SWINS = [name for name in ENCODERS if name.startswith("swin")]
DEPTHS = (2, 2, 18, 2)
TAPS = {  # golden tap -> module whose output it is
    "patch_embed": "patch_embed",
    "stage1_block0": "block1_0",
    "stage3_block5": "block3_5",
    "stage3_block11": "block3_11",
    "stage4_block0": "block4_0",
    **{f"stage{i}": f"block{i}_{depth - 1}" for i, depth in enumerate(DEPTHS, 1)},
    "norm": "norm4",
}


@pytest.mark.slow
@pytest.mark.parametrize("tag", ["cls_sq", "dense_sq", "dense_ns"])
def test_features_of_base(tag):
    encoder = create_encoder(BASE, mode=tag.split("_")[0], final_norm=True)
    variables = load_torch(encoder, goldens.weights(BASE))
    g = goldens.load(BASE)
    keep = set(TAPS.values())
    run = jax.jit(lambda v, x: encoder.apply(v, x, capture_intermediates=lambda m, _: m.name in keep))
    maps, captured = run(variables, case(g, tag))
    found = {tap: captured["intermediates"][owner]["__call__"][0] for tap, owner in TAPS.items()}
    np.testing.assert_array_equal(maps[3], found["norm"])
    for i in range(3):
        np.testing.assert_array_equal(maps[i], found[f"stage{i + 1}"])
    check_maps(g, tag, found)


# --- windows, by their definition ------------------------------------------------------------------------------------


def numpy_attention(params, x, heads, side, window, shift):
    """Attention of every position to every other, (N, h, w, C) float64, without rolling or cutting the map.

    Shifted windows tile the padded map from (shift, shift) on; what lies above and left of it are the windows -1. Two
    positions attend to each other if they lie in the same window.
    """
    n, h, w, c = x.shape
    high, wide = (-(-m // k) * k for m, k in zip((h, w), window, strict=True))
    padded = np.zeros((n, high, wide, c))
    padded[:, :h, :w] = x
    y, x = (i.ravel() for i in np.indices((high, wide)))
    of = [(at - s) // k for at, s, k in zip((y, x), shift, window, strict=True)]
    same = (of[0][:, None] == of[0]) & (of[1][:, None] == of[1])
    index = (y[:, None] - y + side - 1) * (2 * side - 1) + x[:, None] - x + side - 1
    bias = np.asarray(params["bias_table"], np.float64)[np.where(same, index, 0)]
    dense = lambda name, t: t @ np.float64(params[name]["kernel"]) + np.float64(params[name]["bias"])  # noqa: E731
    q, k, v = np.split(dense("qkv", padded.reshape(n, -1, c)).reshape(n, -1, 3, heads, c // heads), 3, 2)
    scores = np.einsum("nqhd,nkhd->nqkh", q[:, :, 0], k[:, :, 0]) * (c // heads) ** -0.5 + bias
    weights = np.exp(scores) * same[..., None]
    weights /= weights.sum(2, keepdims=True)
    out = np.einsum("nqkh,nkhd->nqhd", weights, v[:, :, 0]).reshape(n, high, wide, c)[:, :h, :w]
    return dense("proj", out)


def attention(shape, heads, side, window, shift):
    module = swin.WindowAttention(heads, side, window, shift)
    x = jnp.asarray(goldens.image(shape, 3))
    params = initialise(module, jax.random.key(0), x)["params"]
    return module, jax.tree.map(lambda p: 20 * jax.random.normal(jax.random.key(p.size), p.shape) * 0.02, params), x


@pytest.mark.parametrize("size, window, shift, side", [
    ((8, 12), (4, 4), (0, 0), 4),
    ((8, 12), (4, 4), (2, 2), 4),
    ((5, 7), (3, 3), (1, 1), 3),  # padded on both axes
    ((3, 8), (3, 3), (1, 1), 3),  # one window high and still shifted
    ((1, 2), (3, 3), (1, 1), 3),  # mostly padding
    ((4, 5), (4, 5), (0, 0), 7),  # a window of the map's size uses a part of the table
    ((4, 14), (4, 7), (0, 3), 7),  # shifted along one axis only
])  # fmt: skip
def test_attention_is_within_windows(size, window, shift, side):
    module, params, x = attention((2, *size, 6), 3, side, window, shift)
    got = jax.jit(module.apply)({"params": params}, x)
    want = numpy_attention(params, np.asarray(x, np.float64), 3, side, window, shift)
    assert goldens.error(got, want) < 2e-6


def test_no_position_attends_across_the_edges_that_the_shift_joins():
    """What a position depends on is exactly what shares its window, on a map that needs no padding."""
    module, params, x = attention((1, 6, 9, 4), 1, 3, (3, 3), (1, 1))
    out = lambda x: module.apply({"params": params}, x[None])[0].sum(-1)  # noqa: E731
    moved = np.abs(jax.jit(jax.jacrev(out))(x[0])).max(-1)  # (6, 9) outputs x (6, 9) inputs
    row, column = (np.arange(6) - 1) // 3, (np.arange(9) - 1) // 3
    same = (row[:, None, None, None] == row[None, None, :, None]) & (column[:, None, None] == column[None])
    assert (moved[same] > 1e-7).all()
    assert (moved[~same] == 0).all()


def test_merging_and_embedding_fill_up_with_zeros():
    x = goldens.image((2, 3, 5, 4), 1)
    module = swin.PatchMerging()
    params = initialise(module, jax.random.key(0), jnp.asarray(x))["params"]
    even = np.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0)))
    corners = [even[:, i::2, j::2] for i, j in ((0, 0), (1, 0), (0, 1), (1, 1))]
    whole = np.concatenate(corners, -1, dtype=np.float64)
    norm = (whole - whole.mean(-1, keepdims=True)) / np.sqrt(whole.var(-1, keepdims=True) + 1e-5)
    got = module.apply({"params": params}, x)
    assert goldens.error(got, norm @ np.float64(params["reduction"]["kernel"])) < 2e-6

    images = goldens.image((1, 5, 9, 3), 2)
    module = swin.PatchEmbed(6)
    params = initialise(module, jax.random.key(0), jnp.asarray(images))["params"]
    got = module.apply({"params": params}, images)
    assert got.shape == (1, 2, 3, 6)
    last = np.zeros((4, 4, 3))
    last[:1, :1] = images[0, 4:, 8:]
    y = np.einsum("ijc,ijcd->d", last, np.float64(params["kernel"])) + np.float64(params["bias"])
    assert goldens.error(got[0, 1, 2], (y - y.mean()) / np.sqrt(y.var() + 1e-5)) < 2e-6


# --- the encoder, small ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny():
    encoder = create_encoder(BASE, width=8, heads=(1, 1, 2, 2), depths=(2, 2, 2, 2))
    return encoder, initialise(encoder, jax.random.key(0), encoder.example_input())


@pytest.mark.parametrize("shape", [(37, 50), (9, 30), (1, 1)])
def test_any_size_and_images_by_themselves(tiny, shape):
    encoder, variables = tiny
    images = jnp.asarray(goldens.image((3, *shape, 3), 4))
    maps = jax.jit(encoder.apply)(variables, images)
    for i, x in enumerate(maps):
        assert x.shape == (3, *(-(-n // encoder.strides[i]) for n in shape), encoder.channels[i])
    again = jax.jit(encoder.apply)(variables, images[::-1])
    for x, y in zip(maps, again, strict=True):
        np.testing.assert_allclose(x, y[::-1], atol=1e-5)


def test_the_classifiers_windows_differ_where_the_map_is_no_larger(tiny):
    encoder, variables = tiny
    images = jnp.asarray(goldens.image((1, 112, 56, 3), 5))  # maps of 28 x 14, 14 x 7, 7 x 4, 4 x 2
    dense, cls = (jax.jit(e.apply)(variables, images) for e in (encoder, encoder.clone(mode="cls")))
    np.testing.assert_allclose(cls[0], dense[0], atol=1e-6)
    assert not np.allclose(cls[1], dense[1], atol=1e-3)  # no shift along the axis of one window
    with pytest.raises(InputError, match=r"whole windows of 7.*\(8, 7\)"):
        encoder.clone(mode="cls").apply(variables, jnp.zeros((1, 32, 28, 3)))


def test_stochastic_depth_in_training_only(tiny):
    encoder, variables = tiny
    images = jnp.asarray(goldens.image((4, 20, 20, 3), 5))

    @partial(jax.jit, static_argnums=(1, 2))
    def last(key, rate, train):
        return encoder.clone(drop_path=rate).apply(variables, images, train, rngs={"dropout": key})[-1]

    plain = last(jax.random.key(1), 0.9, False)
    np.testing.assert_allclose(last(jax.random.key(1), 0.0, True), plain, atol=1e-6)
    one = last(jax.random.key(1), 0.9, True)
    np.testing.assert_array_equal(one, last(jax.random.key(1), 0.9, True))
    assert not np.allclose(one, last(jax.random.key(2), 0.9, True)) and not np.allclose(one, plain)
    with pytest.raises(flax_errors.InvalidRngError):
        encoder.apply(variables, images, True)


def test_a_block_drops_and_scales_its_branches():
    block = swin.Block(2, 3, (3, 3), (1, 1))
    x = jnp.asarray(goldens.image((3, 3, 4, 8), 1))
    variables = initialise(block, jax.random.key(1), x)
    run = jax.jit(block.apply)
    plain = run(variables, x)
    got = run(variables, x, jnp.array([[0.0, 2.0, 1.0], [0.0, 0.0, 1.0]]))
    attended = run(variables, x, jnp.array([[1.0] * 3, [0.0] * 3]))
    np.testing.assert_array_equal(got[0], x[0])
    assert not np.allclose(plain[0], x[0], atol=1e-4)
    np.testing.assert_allclose(got[1], x[1] + 2 * (attended - x)[1], atol=1e-6)
    np.testing.assert_allclose(got[2], plain[2], atol=1e-6)


def test_bfloat16_compute(tiny):
    encoder, variables = tiny
    images = jnp.asarray(goldens.image((2, 24, 20, 3), 6))
    maps, wide = (jax.jit(e.apply)(variables, images) for e in (encoder.clone(dtype=jnp.bfloat16), encoder))
    for got, want in zip(maps, wide, strict=True):
        assert got.dtype == jnp.bfloat16
        assert 0 < goldens.error(got.astype(jnp.float32), want) < 0.03


def test_gradients_of_a_block_in_bfloat16():
    x = jnp.asarray(goldens.image((2, 4, 5, 8), 6))
    block = swin.Block(2, 3, (3, 3), (1, 1))
    params = initialise(block, jax.random.key(1), x)["params"]
    grad = jax.jit(jax.grad(lambda p, b: jnp.square(b.apply({"params": p}, x)).mean()), static_argnums=1)
    full, half = grad(params, block), grad(params, block.clone(dtype=jnp.bfloat16))
    for want, got in zip(jax.tree.leaves(full), jax.tree.leaves(half), strict=True):
        assert got.dtype == jnp.float32 and np.abs(want).max() > 0
        assert np.linalg.norm(got - want) < 0.1 * np.linalg.norm(want) + 1e-5


def kept_for_backward(fun, params):
    """Shapes of what the backward pass of `fun` is given, beside the parameters themselves."""
    shapes = [x.shape for x in jax.tree.leaves(jax.eval_shape(lambda p: jax.vjp(fun, p)[1], params))]
    for x in jax.tree.leaves(params):
        if x.shape in shapes:
            shapes.remove(x.shape)
    return shapes


def test_what_the_backward_pass_keeps(tiny):
    """Of an MLP its hidden map before and after the GELU; of a rematerialised block what enters it."""
    x = jnp.zeros((2, 3, 3, 8))
    mlp = swin.MLP()
    params = initialise(mlp, jax.random.key(0), x)["params"]
    assert kept_for_backward(lambda p: mlp.apply({"params": p}, x).sum(), params).count((2, 3, 3, 32)) == 2
    encoder, variables = tiny
    images = jnp.zeros((2, 20, 20, 3))
    whole, less = (
        kept_for_backward(
            lambda p: encoder.clone(remat=remat).apply({"params": p}, images)[-1].sum(),  # noqa: B023
            variables["params"],
        )
        for remat in (False, True)
    )
    weights = [sum(len(shape) == 5 and shape[3:] == (49, 49) for shape in shapes) for shapes in (whole, less)]
    assert weights[0] >= 8 and weights[1] == 0
    assert sum(map(np.prod, less)) < 0.3 * sum(map(np.prod, whole))
    again = initialise(encoder.clone(remat=True), jax.random.key(0), encoder.example_input())
    jax.tree.map(np.testing.assert_array_equal, again, variables)


def test_initial_values(tiny):
    """Linear layers and bias tables N(0, 0.02), biases 0; the patches' layer as PyTorch's default; norms 1 and 0."""
    params = tiny[1]["params"]
    block = params["block4_1"]
    for values in (
        block["attn"]["qkv"]["kernel"],
        block["attn"]["bias_table"],
        params["merge4"]["reduction"]["kernel"],
    ):
        assert abs(values.std() / 0.02 - 1) < 0.15
    assert not np.any(block["attn"]["qkv"]["bias"]) and not np.any(block["mlp"]["fc1"]["bias"])
    for values in (params["patch_embed"]["kernel"], params["patch_embed"]["bias"]):
        assert 0.5 * 48**-0.5 < np.abs(values).max() <= 48**-0.5
    assert np.all(block["norm1"]["scale"] == 1) and not np.any(params["patch_embed"]["norm"]["bias"])


def test_output_norms_start_at_the_plain_map_normalised(tiny):
    encoder, variables = tiny
    images = jnp.asarray(goldens.image((1, 24, 24, 3), 7))
    plain = jax.jit(encoder.apply)(variables, images)
    dense = encoder.clone(output_norms=True)
    loaded = load_torch(dense, to_torch(encoder, variables))  # which has no output norms
    for x, y in zip(plain, jax.jit(dense.apply)(loaded, images), strict=True):
        x = np.asarray(x, np.float64)
        want = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
        assert goldens.error(y, want) < 2e-6


@pytest.mark.parametrize("name, million", zip(SWINS, (28.29, 49.61, 87.77, 196.53, 87.90, 196.74), strict=True))
def test_parameter_counts(name, million):
    """As published, with the classifier that an encoder lacks."""
    encoder = create_encoder(name, final_norm=True)
    params = jax.eval_shape(lambda: initialise(encoder, jax.random.key(0), encoder.example_input()))["params"]
    count = sum(x.size for x in jax.tree.leaves(params))
    assert round((count + (encoder.channels[-1] + 1) * 1000) / 1e6, 2) == million


# --- public names ----------------------------------------------------------------------------------------------------


def official(state_dict):
    """A state dict in timm's names as Microsoft's code has it, with its buffers and a classifier for 22k classes."""
    out = {}
    for i in range(4):
        mine = {k: v for k, v in state_dict.items() if k.startswith(f"layers.{i}.blocks.")}
        blocks = {int(k.split(".")[3]) for k in mine}
        out |= mine
        for j in blocks:
            out[f"layers.{i}.blocks.{j}.attn.relative_position_index"] = np.zeros((49, 49), np.int64)
            if j % 2:
                out[f"layers.{i}.blocks.{j}.attn_mask"] = np.zeros((4, 49, 49), np.float32)
        for name in ("reduction.weight", "norm.weight", "norm.bias") if i < 3 else ():
            out[f"layers.{i}.downsample.{name}"] = state_dict[f"layers.{i + 1}.downsample.{name}"]
    return {**{k: v for k, v in state_dict.items() if not k.startswith("layers.")}, **out,
            "head.weight": np.zeros((7, 64), np.float32)}  # fmt: skip


def equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.fixture(scope="module")
def named(tiny):
    """An encoder, made-up variables that differ everywhere, and their state dict in timm's names."""
    encoder, variables = tiny
    shapes = {key: value.shape for key, value in to_torch(encoder, variables).items()}
    state_dict = goldens.detweights.state_dict(shapes)
    return encoder, load_torch(encoder, state_dict), state_dict


def test_both_namings_are_read_and_written(named):
    encoder, variables, timm = named
    microsoft = official({**timm, "norm.weight": np.ones(64), "norm.bias": np.zeros(64)})
    assert any(k in timm and np.shape(timm[k]) != np.shape(v) for k, v in microsoft.items())  # they clash
    other = encoder.clone(keys="official")
    for reader in (encoder, other):
        for state_dict in (timm, microsoft):
            equal(load_torch(reader, state_dict), variables)
    back = to_torch(encoder, variables)
    assert list(back) == list(timm)
    equal(back, dict(timm))
    written = to_torch(other, variables)
    assert not set(written) - set(microsoft)
    for key, value in written.items():
        np.testing.assert_array_equal(value, microsoft[key], strict=True)
    left = [k for k in microsoft if k not in written]
    assert all(
        k.endswith(("relative_position_index", "attn_mask")) or k.split(".")[0] in ("head", "norm") for k in left
    )


@pytest.mark.parametrize("naming", ["official", "timm"])
def test_files_of_segmentation_code(named, naming):
    """The encoder under "backbone.", a norm for every map, and heads that are none of the encoder's."""
    encoder, variables, timm = named
    norms = {f"norm{i}.{k}": np.full(8 * 2**i, i + 0.5, np.float32) for i in range(4) for k in ("weight", "bias")}
    inner = {**(official(timm) if naming == "official" else timm), **norms}
    inner.pop("head.weight", None)
    file = {f"backbone.{k}": v for k, v in inner.items()} | {"sem_seg_head.predictor.query.weight": np.zeros((3, 2))}
    dense = encoder.clone(output_norms=True, keys="official")
    loaded = load_torch(dense, file)
    equal({k: v for k, v in loaded["params"].items() if not k.startswith("norm")}, variables["params"])
    assert loaded["params"]["norm4"]["bias"][0] == 3.5
    assert list(to_torch(dense, loaded))[-8:] == list(norms)
    with pytest.raises(InputError, match=r"norm0\.weight"):
        load_torch(encoder, file)  # trained with norms, which this encoder leaves out
    file.pop("backbone.norm2.bias")
    with pytest.raises(InputError, match=r"1 missing: norm2\.bias"):
        load_torch(dense, file)


def test_the_classifiers_norm_is_passed_over_or_used(named):
    encoder, variables, timm = named
    file = {**timm, "norm.weight": np.full(64, 2.0, np.float32), "norm.bias": np.ones(64, np.float32)}
    equal(load_torch(encoder, file), variables)
    loaded = load_torch(encoder.clone(final_norm=True), file)
    assert loaded["params"]["norm4"]["scale"][0] == 2
    with pytest.raises(InputError, match=r"norm\.weight"):
        load_torch(encoder.clone(final_norm=True), timm)


def test_two_namings_in_one_file_are_refused(named):
    encoder, _, timm = named
    with pytest.raises(InputError, match="given twice"):
        load_torch(encoder, {**timm, **official(timm)})


def test_keys_and_shapes_of_base():
    shapes = goldens.manifest(BASE)
    mine = [k for k in shapes if not k.startswith(("head.", "norm."))]
    encoder = create_encoder(BASE)
    assert [rule.key for rule in encoder.torch_table().rules] == mine
    state_dict = {k: np.broadcast_to(np.float32(0), shape) for k, shape in shapes.items()}
    match = inspection.match(encoder, [state_dict])
    assert not match.faults, match.text()
    assert match.ignored == ("norm.weight", "norm.bias", "head.fc.weight", "head.fc.bias")
    keys = [rule.key for rule in create_encoder(BASE, keys="official").torch_table().rules]
    buffers = ("relative_position_index", "attn_mask")
    expected = [k for k in official({k: state_dict[k] for k in mine}) if not k.endswith(buffers) and k[:4] != "head"]
    assert keys == expected


@pytest.mark.slow
@pytest.mark.parametrize("name", SWINS)
def test_files_are_recognised(name):
    encoder = create_encoder(name, keys="official", output_norms=name == BASE)
    variables = jax.eval_shape(lambda: initialise(encoder, jax.random.key(0), encoder.example_input()))
    rules = {rule.key: rule for rule in encoder.torch_table().rules}
    shapes = {key: matching.expected_shape(rule, rules, variables) for key, rule in rules.items()}
    candidate, match = inspection.best_fit({k: np.broadcast_to(np.float32(0), v) for k, v in shapes.items()})
    assert candidate.flags == f"--encoder {name}" + " --options output_norms=True" * (name == BASE)
    assert not match.faults


def test_bad_options_are_named():
    for options, word in (
        ({"mode": "dens"}, r"'mode'.*dense"),
        ({"keys": "tim"}, r"'keys'.*timm"),
        ({"drop_path": 1.0}, "'drop_path'"),
        ({"depths": (2, 2, 2)}, r"'depths'.*\(2, 2, 2\)"),
        ({"heads": (0, 1, 1, 1)}, "'heads'"),
        ({"width": 20, "heads": (3, 3, 3, 3)}, r"'heads'.*\(20, 40, 80, 160\)"),
        ({"output_norms": True, "final_norm": True}, "'final_norm'"),
        ({"norms": True}, "'norms'"),
    ):
        with pytest.raises(InputError, match=word):
            create_encoder(BASE, **options)
    with pytest.raises(InputError, match=r"swin_base_patch4_window7_224"):
        avs_jax.create_encoder("swin_base_patch4_window7")
    with pytest.raises(InputError, match=r"'size'.*swin_tiny"):
        swin.Swin("swin_tiny")
