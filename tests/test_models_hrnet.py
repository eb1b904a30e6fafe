"""HRNet against the public code's numbers in both ways of resizing, its keys, its training."""

import math

import goldens
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from encoder_goldens import case, check_maps, same_state_dict

import avs_jax
from avs_jax.models.encoders.hrnet import Fuse
from avs_jax.models.initialise import initialise

HEADS = ("incre_modules.", "downsamp_modules.", "final_layer.", "classifier.")
TAPS = {"layer1_3": "layer1", "stage2_0": "stage2", "stage3_3": "stage3", "stage4_2": "stage4"}
SMALL = {"width": 4, "modules": (1, 1, 1), "blocks": 1, "stem": 4}


@pytest.fixture(scope="module")
def w48():
    encoder = avs_jax.create_encoder("hrnet_w48")
    return avs_jax.load_torch(encoder, goldens.weights("hrnet_w48"))


@pytest.fixture(scope="module")
def small():
    encoder = avs_jax.create_encoder("hrnet_w48", **SMALL)
    return encoder, initialise(encoder, jax.random.key(0), encoder.example_input())


@pytest.mark.slow
@pytest.mark.parametrize("tag", ["bilinear_ns", "nearest_sq", "nearest_ns32"])
def test_features(tag, w48):
    g = goldens.load("hrnet_w48")
    encoder = avs_jax.create_encoder("hrnet_w48", upsample=tag.split("_")[0])
    keep = lambda module, method: len(module.path) == 1 and module.name in ("bn2", *TAPS)  # noqa: E731
    apply = jax.jit(lambda v, x: encoder.apply(v, x, capture_intermediates=keep, mutable=["intermediates"]))
    maps, state = apply({k: w48[k] for k in ("params", "batch_stats")}, case(g, tag))
    outputs = {name: x["__call__"][0] for name, x in state["intermediates"].items()}
    found = {"stem": jax.nn.relu(outputs["bn2"])}
    for name, tap in TAPS.items():
        branches = outputs[name]
        found |= {tap: branches} if tap == "layer1" else {f"{tap}_branch{b}": x for b, x in enumerate(branches)}
    check_maps(g, tag, found)
    assert len(found) == 11
    for x, branch in zip(maps, outputs["stage4_2"], strict=True):
        np.testing.assert_array_equal(x, branch)
    assert tuple(x.shape[-1] for x in maps) == encoder.channels == (48, 96, 192, 384)


@pytest.mark.slow
def test_round_trip(w48):
    given = goldens.weights("hrnet_w48")
    got = avs_jax.to_torch(avs_jax.create_encoder("hrnet_w48"), w48)
    same_state_dict(got, {k: v for k, v in given.items() if not k.startswith(HEADS)})


def test_keys_shapes_and_parameter_count():
    """In the public order, with the published 77.47 M parameters where the classifier's are added."""
    encoder = avs_jax.create_encoder("hrnet_w48")
    shapes = goldens.manifest("hrnet_w48")
    kept = {k: tuple(s) for k, s in shapes.items() if not k.startswith(HEADS)}
    table = encoder.torch_table()
    assert [rule.key for rule in table.rules] == list(kept)
    assert all(k.startswith(table.ignored) for k in shapes.keys() - kept.keys())
    variables = jax.eval_shape(lambda: encoder.init(jax.random.key(0), encoder.example_input()))
    ours = {}
    for rule in table.rules:
        if rule.collection == "unused":
            continue
        leaf = variables[rule.collection]
        for name in rule.path:
            leaf = leaf[name]
        ours[rule.key] = tuple(leaf.shape[i] for i in (3, 2, 0, 1)) if rule.layout == "conv" else leaf.shape
    assert ours == {k: s for k, s in kept.items() if not k.endswith("num_batches_tracked")}
    assert len(ours) == len(jax.tree.leaves(variables))
    count = sum(x.size for x in jax.tree.leaves(variables["params"]))
    heads = [math.prod(s) for k, s in shapes.items() if k.startswith(HEADS) and k.endswith(("weight", "bias"))]
    assert round((count + sum(heads)) / 1e6, 2) == 77.47 and count == 65_325_120


def test_small_ones_keep_the_keys_they_have(small):
    encoder, variables = small
    public = avs_jax.to_torch(encoder, variables)
    assert set(public) < set(goldens.manifest("hrnet_w48"))
    given = {k: goldens.detweights.tensor(k, v.shape) for k, v in public.items()}
    loaded = avs_jax.load_torch(encoder, {**given, "classifier.bias": np.zeros(3, np.float32)})
    same_state_dict(avs_jax.to_torch(encoder, loaded), given)


def test_both_ways_of_resizing_any_size(small):
    encoder, variables = small
    maps = jax.jit(encoder.apply)(variables, goldens.image((2, 50, 33, 3), 0))
    assert [x.shape for x in maps] == [(2, 13, 9, 4), (2, 7, 5, 8), (2, 4, 3, 16), (2, 2, 2, 32)]
    assert all(np.isfinite(x).all() and x.std() > 0 for x in maps)
    nearest = avs_jax.create_encoder("hrnet_w48", **SMALL, upsample="nearest")
    with pytest.raises(avs_jax.InputError, match="multiples of 32"):
        jax.eval_shape(nearest.apply, variables, jnp.zeros((1, 50, 64, 3)))
    maps = jax.eval_shape(nearest.apply, variables, jnp.zeros((1, 32, 64, 3)))
    assert [x.shape[1:3] for x in maps] == [(8, 16), (4, 8), (2, 4), (1, 2)]


def test_fusion_adds_what_the_other_branches_say():
    """Branch 0 of two, against the definition: a 1x1 convolution, a norm at its initial statistics, a resize."""
    maps = goldens.image((1, 4, 6, 3), 0), goldens.image((1, 2, 3, 5), 1)
    for upsample in ("nearest", "bilinear"):
        fuse = Fuse(0, upsample)
        variables = fuse.init(jax.random.key(0), maps)
        kernel = np.asarray(variables["params"]["from1_conv0"]["kernel"])[0, 0]
        coarse = (maps[1] @ kernel / np.sqrt(1 + 1e-5)).astype(np.float64)
        if upsample == "nearest":
            coarse = coarse.repeat(2, 1).repeat(2, 2)
        else:
            rows, columns = (np.interp(np.linspace(0, n - 1, 2 * n), np.arange(n), np.arange(n)) for n in (2, 3))
            hat = lambda at, n: np.maximum(1 - np.abs(at[:, None] - np.arange(n)), 0)  # noqa: E731
            coarse = np.einsum("nhwc,ih,jw->nijc", coarse, hat(rows, 2), hat(columns, 3))
        np.testing.assert_allclose(fuse.apply(variables, maps), np.maximum(maps[0] + coarse, 0), atol=1e-5)


def test_training_moves_every_statistic(small):
    encoder, variables = small
    images = goldens.image((1, 32, 64, 3), 2)
    _, state = jax.jit(lambda v, x: encoder.apply(v, x, True, mutable=["batch_stats"]))(variables, images)
    for old, new in zip(jax.tree.leaves(variables["batch_stats"]), jax.tree.leaves(state), strict=True):
        assert np.isfinite(new).all() and not np.array_equal(old, new)


@pytest.mark.slow
def test_gradients_reach_every_parameter(small):
    encoder, variables = small

    def loss(params):
        maps, _ = encoder.apply({**variables, "params": params}, images, True, mutable=["batch_stats"])
        return sum(jnp.square(x).mean() for x in maps)

    images = goldens.image((2, 64, 64, 3), 3)
    for g in jax.tree.leaves(jax.jit(jax.grad(loss))(variables["params"])):
        assert np.isfinite(g).all() and np.abs(g).max() > 0


def test_bfloat16_maps_and_float32_statistics(small):
    _, variables = small
    encoder = avs_jax.create_encoder("hrnet_w48", **SMALL, dtype=jnp.bfloat16)
    apply = lambda v, x: encoder.apply(v, x, True, mutable=["batch_stats"])  # noqa: E731
    maps, state = jax.eval_shape(apply, variables, jnp.zeros((1, 32, 32, 3)))
    assert {x.dtype for x in maps} == {jnp.bfloat16.dtype} and len(jax.tree.leaves(state)) > 0
    assert {x.dtype for x in jax.tree.leaves(state)} == {jnp.float32.dtype}


@pytest.mark.parametrize("options, word", [
    ({"upsample": "bilinaer"}, "'bilinear'"), ({"modules": (1, 0, 3)}, "at least 1"), ({"modules": (1, 4)}, "three"),
])  # fmt: skip
def test_refused(options, word):
    with pytest.raises(avs_jax.InputError, match=word):
        avs_jax.create_encoder("hrnet_w48", **options)
