"""Pixel decoders, deformable sampling, GroupNorm and sine positions against float64 loops over their definitions."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from avs_jax.errors import InputError
from avs_jax.models.decoders import deformable
from avs_jax.models.decoders.pixel import DECODERS, create_pixel_decoder
from avs_jax.models.initialise import initialise
from avs_jax.models.layers import GroupNorm
from avs_jax.models.positions import sine_positions

CHANNELS, DEPTHS = 16, (5, 6, 7, 9)
SIZES = ((13, 21), (7, 11), (4, 6), (2, 3))  # from 4 x 6 to 7 x 11 and on sizes are not doubled; 2 x 3 is
SMALL = {"layers": 2, "heads": 4, "points": 2, "hidden": 12, "groups": 4}
OPTIONS = {"fpn": {"groups": 4}, "none": {}, "msdeform": SMALL}


def random_maps(seed=0, frames=2, sizes=SIZES):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=(frames, h, w, c)).astype(np.float32) for (h, w), c in zip(sizes, DEPTHS, strict=True)]


def perturbed(variables, seed=1):
    """Variables moved off their initial values, so that zeros and ones cannot hide a mistake."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: x + 0.2 * rng.normal(size=x.shape).astype(np.float32), variables)


@pytest.fixture(scope="module")
def decoders():
    """name -> (module, perturbed variables, maps, results)."""
    made = {}
    for name in DECODERS:
        module, maps = create_pixel_decoder(name, CHANNELS, **OPTIONS[name]), random_maps()
        variables = perturbed(initialise(module, jax.random.key(0), maps))
        made[name] = module, variables, maps, jax.jit(module.apply)(variables, maps)
    return made


# --- references, float64 ---------------------------------------------------------------------------------------------


def hat(position, n):
    """Bilinear weights of n pixels at a position in pixels; no pixel lies outside."""
    return np.maximum(1 - np.abs(position - np.arange(n)), 0)


def dense_sampling(values, locations, weights, sizes):
    """Each point is an explicit (h, w) matrix of weights over its whole level."""
    f, q, heads, levels, points, _ = locations.shape
    out, starts = np.zeros((f, q, heads, values.shape[-1])), np.cumsum([0, *(h * w for h, w in sizes)])
    for frame, query, head, level, point in np.ndindex(f, q, heads, levels, points):
        h, w = sizes[level]
        x, y = locations[frame, query, head, level, point] * (w, h) - 0.5
        matrix = hat(y, h)[:, None] * hat(x, w)
        table = values[frame, starts[level] : starts[level + 1], head]
        out[frame, query, head] += weights[frame, query, head, level, point] * (matrix.ravel() @ table)
    return out


def group_norm(x, params, groups):
    out, each = np.zeros(x.shape), x.shape[-1] // groups
    for frame, group in np.ndindex(len(x), groups):
        part = x[frame, ..., group * each : (group + 1) * each].astype(np.float64)
        out[frame, ..., group * each : (group + 1) * each] = (part - part.mean()) / np.sqrt(part.var() + 1e-5)
    return out * params["scale"] + params["bias"]


def layer_norm(x, params):
    y = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    return y * params["scale"] + params["bias"]


def linear(x, params):
    return x @ params["kernel"] + params["bias"]


def conv(x, kernel):
    k, (h, w) = kernel.shape[0], x.shape[1:3]
    x = np.pad(x, ((0, 0), (k // 2,) * 2, (k // 2,) * 2, (0, 0)))
    return sum(x[:, i : i + h, j : j + w] @ kernel[i, j] for i, j in np.ndindex(k, k))


def conv_norm(x, params, groups):
    return group_norm(conv(x, params["conv"]["kernel"]), params["norm"], groups)


def bilinear(x, size):
    """Half-pixel centres, positions clamped to the outermost ones."""
    out = np.zeros((len(x), *size, x.shape[-1]))
    for i, j in np.ndindex(*size):
        y, x_ = (
            min(max((k + 0.5) * n / m - 0.5, 0), n - 1) for k, n, m in zip((i, j), x.shape[1:3], size, strict=True)
        )
        out[:, i, j] = np.einsum("nhwc,h,w->nc", x, hat(y, x.shape[1]), hat(x_, x.shape[2]))
    return out


def top_down(x, above, params, groups):
    x = conv_norm(x, params["lateral"], groups)
    x = x if above is None else x + bilinear(above, x.shape[1:3])
    return np.maximum(conv_norm(x, params["output"], groups), 0)


def sine(h, w, channels):
    out, half = np.zeros((h, w, channels)), channels // 2
    for i, j, k in np.ndindex(h, w, channels):
        position = (i + 1) / (h + 1e-6) if k < half else (j + 1) / (w + 1e-6)
        angle = 2 * math.pi * position / 10000 ** (2 * (k % half // 2) / half)
        out[i, j, k] = math.cos(angle) if k % 2 else math.sin(angle)
    return out


def attention(query, tokens, sizes, params, heads, points):
    (f, s, c), levels = query.shape, len(sizes)
    offsets = linear(query, params["offsets"]).reshape(f, s, heads, levels, points, 2)
    scores = np.exp(linear(query, params["weights"])).reshape(f, s, heads, levels * points)
    weights = (scores / scores.sum(-1, keepdims=True)).reshape(offsets.shape[:-1])
    centres = [((j + 0.5) / w, (i + 0.5) / h) for h, w in sizes for i in range(h) for j in range(w)]
    extent = np.array([(w, h) for h, w in sizes])[:, None]
    locations = np.array(centres)[:, None, None, None] + offsets / extent
    values = linear(tokens, params["values"]).reshape(f, -1, heads, c // heads)
    return linear(dense_sampling(values, locations, weights, sizes).reshape(f, s, c), params["output"])


def reference_fpn(params, maps):
    x, out = None, []
    for stride, m in zip((32, 16, 8, 4), reversed(maps), strict=True):
        x = top_down(m, x, params[f"stride{stride}"], 4)
        out.append(x)
    return out


def reference_none(params, maps):
    levels = []
    for stride, m in zip((32, 16, 8), reversed(maps[1:]), strict=True):
        one = params[f"stride{stride}"]
        levels.append(conv(m, one["kernel"]) + one["bias"])
    return [*levels, bilinear(levels[2], maps[0].shape[1:3])]


def reference_msdeform(params, maps):
    levels = []
    for stride, m in zip((32, 16, 8), reversed(maps[1:]), strict=True):
        one = params[f"stride{stride}"]
        levels.append(group_norm(conv(m, one["kernel"]) + one["bias"], params[f"norm{stride}"], 4))
    sizes = [x.shape[1:3] for x in levels]
    encoder = params["encoder"]
    x = np.concatenate([m.reshape(len(m), -1, CHANNELS) for m in levels], 1)
    positions = [sine(h, w, CHANNELS).reshape(-1, CHANNELS) + e
                 for (h, w), e in zip(sizes, encoder["level_embedding"], strict=True)]  # fmt: skip
    positions = np.concatenate(positions)
    for i in range(SMALL["layers"]):
        p = encoder[f"layer{i}"]
        x = layer_norm(
            x + attention(x + positions, x, sizes, p["attention"], SMALL["heads"], SMALL["points"]), p["norm1"]
        )
        x = layer_norm(x + linear(np.maximum(linear(x, p["fc1"]), 0), p["fc2"]), p["norm2"])
    parts = np.split(x, np.cumsum([h * w for h, w in sizes])[:-1], 1)
    levels = [part.reshape(len(x), h, w, CHANNELS) for part, (h, w) in zip(parts, sizes, strict=True)]
    return [*levels, top_down(maps[0], levels[2], params["stride4"], 4)]


REFERENCES = {"fpn": reference_fpn, "none": reference_none, "msdeform": reference_msdeform}


# --- decoders --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(DECODERS))
def test_decoder_is_its_definition(decoders, name):
    _, variables, maps, (levels, masks) = decoders[name]
    want = REFERENCES[name](jax.tree.map(np.float64, variables["params"]), maps)
    for got, reference, size in zip((*levels, masks), want, SIZES[::-1], strict=True):
        assert got.shape == (2, *size, CHANNELS) and got.dtype == jnp.float32
        np.testing.assert_allclose(got, reference, atol=2e-5)


@pytest.fixture(scope="module")
def gradients(decoders):
    """name -> weights of all results, and the jitted gradients (params, maps) of the sum they make."""
    made, rng = {}, np.random.default_rng(5)
    for name, (module, _, _, results) in decoders.items():
        cotangents = [rng.normal(size=x.shape) / x.size**0.5 for x in (*results[0], results[1])]

        def loss(params, maps, module=module, cotangents=cotangents):
            levels, masks = module.apply({"params": params}, maps, True)
            return sum((c * x).sum() for c, x in zip(cotangents, (*levels, masks), strict=True))

        made[name] = cotangents, jax.jit(jax.grad(loss, (0, 1)))
    return made


@pytest.mark.parametrize("name", list(DECODERS))
def test_gradients_of_a_decoder(decoders, gradients, name):
    """Derivatives along random directions of all parameters and of all maps, against the float64 definition."""
    _, variables, maps, _ = decoders[name]
    cotangents, gradient = gradients[name]
    rng = np.random.default_rng(6)

    def reference(params, maps):
        return sum((c * x).sum() for c, x in zip(cotangents, REFERENCES[name](params, maps), strict=True))

    got = gradient(variables["params"], maps)
    at = jax.tree.map(np.float64, (variables["params"], maps))
    for which in (0, 1):
        way = jax.tree.map(lambda x: rng.normal(size=x.shape), at[which])
        ends = []
        for step in (1e-6, -1e-6):
            moved = list(at)
            moved[which] = jax.tree.map(lambda x, v, step=step: x + step * v, at[which], way)
            ends.append(reference(*moved))
        slope = sum(np.vdot(g, v) for g, v in zip(jax.tree.leaves(got[which]), jax.tree.leaves(way), strict=True))
        size = sum(np.vdot(g, g) for g in jax.tree.leaves(got[which])) ** 0.5
        assert size > 0.01
        assert abs(slope - (ends[0] - ends[1]) / 2e-6) < 1e-4 * size


@pytest.mark.parametrize("name", list(DECODERS))
def test_every_parameter_learns_from_the_start(decoders, gradients, name):
    module, _, maps, _ = decoders[name]
    variables = initialise(module, jax.random.key(2), maps)
    assert set(variables) == {"params"}
    got, _ = gradients[name][1](variables["params"], maps)
    for path, g in jax.tree_util.tree_leaves_with_path(got):
        # nothing depends on positions until offsets and weights have learned to look at the token
        waits = "level_embedding" in jax.tree_util.keystr(path)
        assert np.isfinite(g).all() and np.any(g) != waits, jax.tree_util.keystr(path)


@pytest.mark.parametrize("name", list(DECODERS))
def test_frames_do_not_mix(decoders, name):
    module, variables, maps, results = decoders[name]
    swapped = jax.jit(module.apply)(variables, [m[::-1] for m in maps])
    for got, want in zip(jax.tree.leaves(swapped), jax.tree.leaves(results), strict=True):
        np.testing.assert_allclose(got[::-1], want, atol=1e-6)
        assert np.abs(got - want).max() > 0.1


@pytest.mark.parametrize("name", list(DECODERS))
def test_bfloat16_stays_near(decoders, name):
    _, variables, maps, results = decoders[name]
    module = create_pixel_decoder(name, CHANNELS, jnp.bfloat16, **OPTIONS[name])
    low = jax.jit(module.apply)(variables, [m.astype(jnp.bfloat16) for m in maps])
    for got, want in zip(jax.tree.leaves(low), jax.tree.leaves(results), strict=True):
        assert got.dtype == jnp.bfloat16
        error = np.abs(np.float32(got) - want)
        assert error.mean() < 0.02 * np.abs(want).mean() and error.max() < 0.2 * np.abs(want).max()


@pytest.mark.parametrize("name", list(DECODERS))
@pytest.mark.parametrize("sizes", [((8, 8), (4, 4), (2, 2), (1, 1)), ((9, 5), (5, 3), (3, 2), (2, 1))])
def test_sizes(name, sizes):
    module, maps = create_pixel_decoder(name, 8, **OPTIONS[name]), random_maps(sizes=sizes)
    shapes = jax.eval_shape(lambda: module.init_with_output(jax.random.key(0), maps)[0])
    assert [x.shape for x in (*shapes[0], shapes[1])] == [(2, *size, 8) for size in sizes[::-1]]


def test_published_sizes():
    """256 channels, six layers of 8 heads x 4 points, MLPs of 1024; parameters counted by hand."""
    maps = [
        jax.ShapeDtypeStruct((1, n, n, c), jnp.float32)
        for n, c in zip((8, 4, 2, 1), (256, 512, 1024, 2048), strict=True)
    ]
    count = lambda name: sum(  # noqa: E731
        math.prod(x.shape)
        for x in jax.tree.leaves(jax.eval_shape(create_pixel_decoder(name).init, jax.random.key(0), maps))
    )
    depths, norm, d = 256 + 512 + 1024 + 2048, 2 * 256, 256
    assert count("fpn") == depths * d + 4 * (9 * d * d + 2 * norm)
    assert count("none") == (depths - 256) * d + 3 * d
    layer = 2 * d * (d + 1) + (d + 1) * 8 * 3 * 4 * 3 + 2 * d * 1024 + 1024 + d + 2 * norm
    step = 256 * d + 9 * d * d + 2 * norm
    assert count("msdeform") == (depths - 256 + 3) * d + 3 * norm + 3 * d + 6 * layer + step


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("fnp", {}), "'fpn'"),
        (("fpn", {"layers": 2}), "groups"),
        (("msdeform", {"head": 4}), "'heads'"),
    ],
)
def test_unknown_names_are_refused(arguments, named):
    with pytest.raises(InputError, match=named):
        create_pixel_decoder(arguments[0], **arguments[1])


def test_bad_numbers_are_refused():
    key, maps = jax.random.key(0), random_maps()
    with pytest.raises(InputError, match="four maps"):
        jax.eval_shape(create_pixel_decoder("none").init, key, maps[1:])
    with pytest.raises(InputError, match="multiple of the norm's 32 groups"):
        jax.eval_shape(create_pixel_decoder("fpn", 48).init, key, maps)
    with pytest.raises(InputError, match="heads: expected a divisor of the 20 channels; found 8"):
        jax.eval_shape(create_pixel_decoder("msdeform", 20).init, key, maps)
    with pytest.raises(InputError, match="multiple of 4"):
        sine_positions(2, 2, 6)


# --- deformable sampling ---------------------------------------------------------------------------------------------

LEVELS = ((3, 4), (1, 2), (2, 1))


@pytest.fixture(scope="module")
def sampling_case():
    rng = np.random.default_rng(7)
    values = rng.normal(size=(2, sum(h * w for h, w in LEVELS), 2, 3))
    locations = rng.uniform(-0.4, 1.4, size=(2, 5, 2, 3, 2, 2))  # a third of them outside, some far enough for zeros
    weights = rng.normal(size=locations.shape[:-1])
    return values, locations, weights


def test_sampling_is_a_dense_product(sampling_case):
    got = deformable.sample_levels(*map(jnp.float32, sampling_case), LEVELS)
    np.testing.assert_allclose(got, dense_sampling(*sampling_case, LEVELS), atol=5e-6)


@pytest.mark.parametrize("argument", [0, 1, 2])
def test_sampling_gradients(sampling_case, argument):
    """Every partial derivative against central differences of the dense product."""
    cotangent = np.random.default_rng(8).normal(size=(2, 5, 2, 3))
    loss = lambda *args: (deformable.sample_levels(*args, LEVELS) * cotangent).sum()  # noqa: E731
    got = jax.grad(loss, argument)(*map(jnp.float32, sampling_case))
    want, case = np.zeros(got.shape), [x.copy() for x in sampling_case]
    for at in np.ndindex(got.shape):
        ends = []
        for step in (1e-6, -1e-6):
            case[argument][at] = sampling_case[argument][at] + step
            ends.append((dense_sampling(*case, LEVELS) * cotangent).sum())
        case[argument][at] = sampling_case[argument][at]
        want[at] = (ends[0] - ends[1]) / 2e-6
    assert np.abs(want).max() > 0.5
    np.testing.assert_allclose(got, want, atol=5e-5)


def test_sampling_at_known_places():
    """grid_sample's arithmetic, written out: pixel = ((g + 1) * n - 1) / 2 with g = 2 * location - 1."""
    table = np.array([[1.0, 2.0, 4.0], [8.0, 16.0, 32.0]])
    cases = {  # (x, y) in pixels: what is read there
        (0, 0): 1,
        (2, 1): 32,
        (0.5, 0): 1.5,
        (1.25, 0.5): (0.75 * 2 + 0.25 * 4 + 0.75 * 16 + 0.25 * 32) / 2,
        (-0.25, 0): 0.75,  # a quarter of it lies outside
        (2.5, 1): 16,
        (-0.5, -0.5): 0.25,  # the corner of the map
        (2.5, 1.5): 8,
        (0, 1.75): 2,
        (-1, 0): 0,
        (3, 1): 0,
        (1, 2): 0,
        (-7.3, 0.5): 0,
        (1e12, -1e12): 0,
        (0.5, 1e30): 0,
    }
    places = np.array([((x + 0.5) / 3, (y + 0.5) / 2) for x, y in cases], np.float32).reshape(1, -1, 1, 1, 1, 2)
    got, pull = jax.vjp(
        lambda p: deformable.sample_levels(
            jnp.float32(table).reshape(1, 6, 1, 1), p, jnp.ones(p.shape[:-1]), ((2, 3),)
        ),
        places,
    )
    np.testing.assert_allclose(got.ravel(), list(cases.values()), rtol=1e-5, atol=1e-5)
    slopes = np.asarray(pull(jnp.ones_like(got))[0]).reshape(-1, 2)
    assert np.isfinite(slopes).all() and not slopes[-3:].any()
    np.testing.assert_allclose(
        slopes[2], [3 * 1, 2 * (12 - 1.5)], rtol=1e-5
    )  # between pixels, per map width and height


def test_sums_over_many_points_keep_float32():
    """A thousand points on one pixel: in bfloat16 its gradient would stop growing at 256."""
    values, places = jnp.ones((1, 1, 1, 1), jnp.bfloat16), jnp.full((1, 1000, 1, 1, 1, 2), 0.5)
    loss = lambda v: deformable.sample_levels(v, places, jnp.ones((1, 1000, 1, 1, 1)), ((1, 1),)).sum()  # noqa: E731
    assert float(jax.grad(loss)(values)[0, 0, 0, 0]) == 1000


def test_initial_attention():
    """Head by head the points lie on eight rays, in the pattern of Deformable DETR, and weigh the same."""
    rays = [(1, 0), (1, 1), (0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1)]
    module, x = deformable.DeformableAttention(8, 4), jnp.ones((1, 6, 16))
    sizes = ((2, 2), (1, 2))
    params = initialise(module, jax.random.key(0), x, x, deformable.pixel_centres(sizes), sizes)["params"]
    offsets = params["offsets"]["bias"].reshape(8, 2, 4, 2)
    want = [[[(k * x, k * y) for k in (1, 2, 3, 4)]] * 2 for x, y in rays]
    np.testing.assert_allclose(offsets, want, atol=1e-6)
    for leaf in (params["offsets"]["kernel"], *params["weights"].values(), params["values"]["bias"]):
        assert not np.asarray(leaf).any()
    bound = (6 / 32) ** 0.5
    assert 0.8 * bound < np.abs(params["values"]["kernel"]).max() <= bound


# --- norm and positions ----------------------------------------------------------------------------------------------


def test_group_norm_is_its_definition():
    x = np.random.default_rng(0).normal(3.0, 2.0, size=(3, 5, 2, 12)).astype(np.float32)
    x[1] *= 100  # frames have their own statistics
    for groups, used in ((3, 3), (32, 12), (1, 1)):
        module = GroupNorm(groups)
        variables = perturbed(module.init(jax.random.key(0), x))
        got = module.apply(variables, x)
        np.testing.assert_allclose(got, group_norm(x, variables["params"], used), atol=1e-5)


def test_group_norm_of_bfloat16_has_float32_statistics():
    rng = np.random.default_rng(1)
    x = jnp.asarray(100 + rng.normal(size=(1, 16, 16, 8)), jnp.bfloat16)  # steps of 1/2: a bfloat16 mean would be off
    module = GroupNorm(4)
    variables = module.init(jax.random.key(0), x)
    got = module.apply(variables, x)
    assert got.dtype == jnp.bfloat16
    want = group_norm(np.float64(x), jax.tree.map(np.float64, variables["params"]), 4)
    np.testing.assert_allclose(np.float64(got), want, rtol=2**-8, atol=1e-3)


def test_group_norm_refuses_uneven_groups():
    with pytest.raises(InputError, match="channels: expected a multiple of the norm's 32 groups; found 40"):
        GroupNorm().init(jax.random.key(0), jnp.ones((1, 2, 2, 40)))


@pytest.mark.parametrize(("h", "w", "channels"), [(1, 1, 4), (3, 5, 8), (7, 4, 20)])
def test_sine_positions(h, w, channels):
    got = sine_positions(h, w, channels)
    assert got.shape == (h, w, channels) and got.dtype == jnp.float32
    np.testing.assert_allclose(got, sine(h, w, channels), atol=2e-7)
