"""PVT-v2 against the public code's numbers: features, epsilons, keys, stochastic depth."""

from functools import partial

import flax.linen as nn
import goldens
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from encoder_goldens import case, check_maps
from flax import errors as flax_errors

from avs_jax.errors import InputError
from avs_jax.models import depthwise
from avs_jax.models.encoders import create_encoder
from avs_jax.models.encoders import pvt as module
from avs_jax.models.initialise import initialise
from avs_jax.models.layers import stochastic_depth
from avs_jax.weights import load_torch, to_torch

TAPS = {  # golden tap -> module whose output it is
    "patch_embed": "patch_embed1_norm",
    "stage1_block0": "block1_0",
    **{f"stage3_block{j}": f"block3_{j}" for j in (9, 24)},
    **{f"stage{i}": f"norm{i}" for i in range(1, 5)},
}


@pytest.fixture(scope="module")
def b0():
    encoder = create_encoder("pvt_v2_b0")
    return encoder, load_torch(encoder, goldens.weights("pvt_v2_b0"))


def check_features(name, tag, encoder, variables):
    g = goldens.load(name)
    keep = set(TAPS.values())
    run = jax.jit(lambda v, x: encoder.apply(v, x, capture_intermediates=lambda m, _: m.name in keep))
    maps, captured = run(variables, case(g, tag))
    taps = {tap: owner for tap, owner in TAPS.items() if f"{tag}/{tap}/slice" in g}
    found = {tap: captured["intermediates"][owner]["__call__"][0] for tap, owner in taps.items()}
    for tap, x in found.items():
        if tap[:-1] == "stage":
            np.testing.assert_array_equal(x, maps[int(tap[-1]) - 1])
    check_maps(g, tag, found)
    return len(found)


@pytest.mark.parametrize("tag", ["sq", "ns"])
def test_features_of_b0(tag, b0):
    assert check_features("pvt_v2_b0", tag, *b0) == 6


@pytest.mark.slow
@pytest.mark.parametrize("tag", ["sq", "ns"])
def test_features_of_b5(tag):
    encoder = create_encoder("pvt_v2_b5")
    assert check_features("pvt_v2_b5", tag, encoder, load_torch(encoder, goldens.weights("pvt_v2_b5"))) == 8


@pytest.fixture
def one_block(monkeypatch):
    """A size whose stages have one block each, otherwise as b5."""
    monkeypatch.setitem(module.SIZES, "one_block", ((1, 1, 1, 1), (4, 4, 4, 4), 64))
    return "one_block"


def test_the_three_epsilons(one_block):
    """Inputs so small that each epsilon decides the first digits; fed to the layers as the encoder builds them."""
    g, shapes = goldens.load("tpavi_eps"), goldens.manifest("tpavi_pvt_v2_b5")
    h, w, seed = (g[k] for k in ("H", "W", "seed"))
    encoder = module.PVT(one_block, keys="official")
    keys = [rule.key for rule in encoder.torch_table().rules]
    prefix = encoder.torch_prefix
    variables = load_torch(encoder, {k: goldens.detweights.tensor(prefix + k, shapes[prefix + k]) for k in keys})
    images = 3e-3 * goldens.nhwc(goldens.image((2, 3, 8 * h, 8 * w), seed))
    tokens = 1e-3 * goldens.image((2, h * w, 64), seed + 1).reshape(2, h, w, 64)

    @partial(jax.jit, static_argnums=(1, 2))
    def run(images, path, feed):
        """The output of the layer at `path`, on the tokens in place of its input if `feed`."""
        outputs = []

        def interceptor(call, args, kwargs, context):
            if context.module.path != path:
                return call(*args, **kwargs)
            outputs.append(call(tokens, *args[1:], **kwargs) if feed else call(*args, **kwargs))
            return outputs[0]

        with nn.intercept_methods(interceptor):
            encoder.apply(variables, images)
        return outputs[0]

    patches = run(images, ("patch_embed1_norm",), False)
    assert goldens.error(patches.reshape(2, -1, 64)[:, ::5], g["patch_embed1"]) < 5e-6
    for name, path in (("block1_0_attn", ("block1_0", "attn")), ("block1_0", ("block1_0",)), ("norm1", ("norm1",))):
        got = run(images[:, : 4 * h, : 4 * w], path, True)
        assert goldens.error(got.reshape(2, h * w, 64), g[name]) < 5e-6, name


def test_round_trip_in_timm_names(b0):
    encoder, variables = b0
    given = goldens.weights("pvt_v2_b0")
    out = to_torch(encoder, variables)
    assert list(out) == [k for k in given if not k.startswith("head.")]
    for key, value in out.items():
        np.testing.assert_array_equal(value, given[key], strict=True)


def test_both_namings_are_read_and_either_is_written(b0):
    encoder, variables = b0
    official = create_encoder("pvt_v2_b0", keys="official")
    state_dict = to_torch(official, variables)
    for reader in (encoder, official):
        again = load_torch(reader, state_dict)
        assert jax.tree.all(jax.tree.map(np.array_equal, again, variables))
    again = load_torch(official, goldens.weights("pvt_v2_b0"))
    assert jax.tree.all(jax.tree.map(np.array_equal, again, variables))


def test_keys_of_b5():
    timm = [rule.key for rule in create_encoder("pvt_v2_b5").torch_table().rules]
    assert timm == [k for k in goldens.manifest("pvt_v2_b5") if not k.startswith("head.")]
    encoder = create_encoder("pvt_v2_b5", keys="official")
    official = [encoder.torch_prefix + rule.key for rule in encoder.torch_table().rules]
    assert official == [k for k in goldens.manifest("tpavi_pvt_v2_b5") if k.startswith("encoder_backbone.")]


@pytest.mark.parametrize("size, million", [("b0", 3.67), ("b1", 14.01), ("b2", 25.36), ("b3", 45.24), ("b4", 62.56),
                                           ("b5", 81.96)])  # fmt: skip
def test_parameter_counts(size, million):
    """As published, with the classifier that an encoder lacks."""
    encoder = create_encoder(f"pvt_v2_{size}")
    params = jax.eval_shape(lambda: encoder.init(jax.random.key(0), encoder.example_input()))["params"]
    count = sum(x.size for x in jax.tree.leaves(params))
    assert round((count + (encoder.channels[-1] + 1) * 1000) / 1e6, 2) == million
    if size == "b5":
        assert count == 81_443_008


@pytest.fixture
def tiny(one_block):
    encoder = module.PVT(one_block, width=8)
    return encoder, initialise(encoder, jax.random.key(0), encoder.example_input())


def test_stochastic_depth_draws():
    """Rates from 0 to the given one, each branch of each image by itself, scaled to keep the mean."""
    keep = np.asarray(stochastic_depth(jax.random.key(1), 0.3, 4, 4000))
    assert keep.shape == (4, 2, 4000)
    for rate, rows in zip((0, 0.1, 0.2, 0.3), keep, strict=True):
        np.testing.assert_allclose(rows[rows > 0], 1 / (1 - rate), rtol=1e-6)
        np.testing.assert_allclose((rows == 0).mean(1), rate, atol=0.03)  # four standard deviations
        np.testing.assert_allclose(rows.mean(1), 1, atol=0.05)
    joint = (keep[3] == 0).all(0).mean()
    assert abs(joint - 0.09) < 0.02  # the two branches are independent


def test_a_block_drops_and_scales_its_branches():
    block = module.Block(2, 2, 4)
    x = jax.random.normal(jax.random.key(0), (3, 4, 4, 16))
    variables = initialise(block, jax.random.key(1), x)
    run = jax.jit(block.apply)
    plain = run(variables, x)
    got = run(variables, x, jnp.array([[0.0, 2.0, 1.0], [0.0, 0.0, 1.0]]))
    attended = run(variables, x, jnp.array([[1.0] * 3, [0.0] * 3]))
    np.testing.assert_array_equal(got[0], x[0])
    assert not np.allclose(plain[0], x[0])
    np.testing.assert_allclose(got[1], x[1] + 2 * (attended - x)[1], atol=1e-6)
    np.testing.assert_allclose(got[2], plain[2], atol=1e-6)


def test_stochastic_depth_in_training_only(tiny):
    encoder, variables = tiny
    images = jnp.asarray(goldens.image((4, 32, 32, 3), 5))

    @partial(jax.jit, static_argnums=(1, 2))
    def last(key, rate, train):
        return encoder.clone(drop_path=rate).apply(variables, images, train, rngs={"dropout": key})[-1]

    key = jax.random.key(1)
    plain = last(key, 0.9, False)
    np.testing.assert_allclose(last(key, 0.0, True), plain, atol=1e-6)
    train = partial(last, rate=0.9, train=True)
    one = train(key)
    np.testing.assert_array_equal(one, train(jax.random.key(1)))
    assert not np.allclose(one, train(jax.random.key(2))) and not np.allclose(one, plain)
    with pytest.raises(flax_errors.InvalidRngError):
        encoder.apply(variables, images, True)


def test_bfloat16_compute(tiny):
    encoder, variables = tiny
    images = jnp.asarray(goldens.image((2, 64, 32, 3), 6))
    full, half = (jax.jit(e.apply)(variables, images) for e in (encoder, encoder.clone(dtype=jnp.bfloat16)))
    for want, got in zip(full, half, strict=True):
        assert got.dtype == jnp.bfloat16
        assert 0 < goldens.error(got.astype(jnp.float32), want) < 0.03


def test_initial_values(tiny):
    """Linear N(0, 0.02); convolutions N(0, 2 / fan out); biases 0; norms 1 and 0."""
    params = tiny[1]["params"]
    attention, mlp = params["block4_0"]["attn"], params["block4_0"]["mlp"]
    assert abs(attention["kv"]["kernel"].std() / 0.02 - 1) < 0.05
    assert abs(mlp["dwconv"]["kernel"].std() / (2 / 9) ** 0.5 - 1) < 0.1
    assert abs(params["patch_embed4_proj"]["kernel"].std() / (2 / (9 * 64)) ** 0.5 - 1) < 0.05
    assert abs(params["block1_0"]["attn"]["sr"]["kernel"].std() / (2 / (64 * 8)) ** 0.5 - 1) < 0.1
    assert not np.any(attention["q"]["bias"]) and not np.any(mlp["dwconv"]["bias"])
    assert np.all(params["norm4"]["scale"] == 1)


@pytest.mark.parametrize("shape", [(2, 5, 3, 4), (1, 1, 6, 2)])
def test_depthwise_is_the_grouped_convolution(shape):
    rng = np.random.default_rng(0)
    x, dy = (jnp.asarray(rng.normal(size=shape), jnp.float32) for _ in range(2))
    kernel = jnp.asarray(rng.normal(size=(3, 3, shape[-1])), jnp.float32)

    def grouped(x, kernel):
        return jax.lax.conv_general_dilated(x, kernel[:, :, None], (1, 1), "SAME", feature_group_count=shape[-1],
                                            dimension_numbers=("NHWC", "HWIO", "NHWC"))  # fmt: skip

    want, pull = jax.vjp(grouped, x, kernel)
    got, mine = jax.vjp(depthwise.depthwise, x, kernel)
    np.testing.assert_allclose(got, want, atol=1e-5)
    for a, b in zip(mine(dy), pull(dy), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    np.testing.assert_allclose(depthwise._at_once(x, dy), depthwise._by_row(x, dy), atol=1e-5)
    half = jax.grad(lambda x: depthwise.depthwise(x, kernel).sum())(x.astype(jnp.bfloat16))
    assert half.dtype == jnp.bfloat16


def test_bad_options_and_images_are_named(tiny):
    with pytest.raises(InputError, match=r"'size'.*pvt_v2_b2"):
        module.PVT("pvt_v2_b9")
    with pytest.raises(InputError, match=r"'keys'.*official"):
        create_encoder("pvt_v2_b0", keys="offical")
    with pytest.raises(InputError, match="'drop_path'"):
        create_encoder("pvt_v2_b0", drop_path=1.0)
    encoder, variables = tiny
    maps = jax.eval_shape(encoder.apply, variables, jnp.zeros((1, 29, 41, 3)))
    assert [m.shape[1:3] for m in maps] == [(8, 11), (4, 6), (2, 3), (1, 2)]
    with pytest.raises(InputError, match="at least 29"):
        encoder.apply(variables, jnp.zeros((1, 28, 64, 3)))
