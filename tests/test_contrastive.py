"""CAVP's contrastive loss: the reference's numbers, what is drawn, and the cases that have nothing to contrast."""

import functools
import os
import subprocess
import sys
from pathlib import Path

import goldens
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from avs_jax.errors import InputError
from avs_jax.losses import contrastive
from avs_jax.losses.contrastive import contrastive_loss, draw_anchors, pairing_loss

CLASSES = 13


@pytest.fixture(scope="module")
def golden():
    return goldens.load("cavp_contrastive")


def plain(z, labels, t=0.1):
    """Equation 3 as it is printed, float64."""
    z = z / np.maximum(np.linalg.norm(z, axis=1, keepdims=True), 1e-12)
    s, total = z @ z.T / t, 0.0
    for a in range(len(z)):
        positives = [p for p in range(len(z)) if p != a and labels[p] == labels[a]]
        rest = np.exp(s[a, labels != labels[a]]).sum()
        terms = [-(s[a, p] - np.log(np.exp(s[a, p]) + rest)) for p in positives]
        total += np.mean(terms) if terms else 0.0
    return total / len(z)


@pytest.mark.parametrize("block", [7, 37, 512])
@pytest.mark.parametrize("name", ["0.1", "0.5"])
def test_golden_loss_of_vectors(golden, name, block):
    z, labels = golden["nce/features"], golden["nce/labels"]
    f = functools.partial(contrastive_loss, labels=labels, temperature=float(name), block=block)
    loss, grad = jax.jit(jax.value_and_grad(f))(z)
    assert loss == pytest.approx(golden[f"nce_tau{name}/loss"], rel=1e-6)
    assert goldens.error(grad, golden[f"nce_tau{name}/grad"]) < 1e-5
    assert f(z) == pytest.approx(float(loss), rel=1e-6)  # the path without a gradient
    assert plain(z.astype(float), labels, float(name)) == pytest.approx(golden[f"nce_tau{name}/loss"], rel=1e-6)


def case(golden, name):
    g = {k.split("/")[1]: v for k, v in golden.items() if k.startswith(name + "/")}
    fused = np.concatenate([goldens.nhwc(g["match"]), goldens.nhwc(g["shuffle"])])
    truth = g["gt_match"]
    keep = [[c == 0 or not ((truth[i] == c) & (g["gt_shuffle"][i] != c)).any() for c in range(CLASSES)] for i in (0, 1)]
    return g, fused, truth, np.array(keep)


@pytest.mark.parametrize("name", ["k10", "k25", "odd"])
def test_golden_loss_of_maps(golden, name):
    g, fused, truth, match = case(golden, name)
    f = functools.partial(pairing_loss, labels=truth, match=match, max_views=g["max_views"], block=32)
    (loss, counts), grad = jax.jit(jax.value_and_grad(f, has_aux=True))(fused)
    assert loss == pytest.approx(g["loss"], rel=1e-5)
    want = np.concatenate([goldens.nhwc(g["grad_match"]), goldens.nhwc(g["grad_shuffle"])])
    assert goldens.error(grad, want) < 1e-5
    assert counts["anchors"] == len(g["selected"])
    shuffled = g["selected"][g["selected"][:, 0] == 1]
    assert float(counts["hard_pairs"]) == pytest.approx((shuffled[:, 2] == 0).mean(), abs=1e-6)


@pytest.mark.parametrize("name", ["k10", "k25", "odd"])
def test_golden_anchors(golden, name):
    g, _, truth, match = case(golden, name)
    heard = contrastive.heard_labels(jnp.asarray(truth), jnp.asarray(match))
    small = [contrastive.at_size(x, (12, 10)) for x in (jnp.asarray(truth), heard)]
    draw = functools.partial(draw_anchors, num_classes=CLASSES, max_views=g["max_views"], slots=CLASSES - 1)
    rows, labels, valid = map(np.asarray, jax.jit(draw)(*small))
    found = np.stack([rows // 240, rows % 240, labels], 1)[valid]
    np.testing.assert_array_equal(found, g["selected"])


def test_golden_without_a_class_of_enough_pixels(golden):
    _, fused, truth, match = case(golden, "none")
    f = functools.partial(pairing_loss, labels=truth, match=match, max_views=512)
    (loss, counts), grad = jax.jit(jax.value_and_grad(f, has_aux=True))(fused)
    assert loss == 0 and not np.asarray(grad).any() and not any(map(float, counts.values()))


@pytest.mark.parametrize("seed", [None, 0])
def test_golden_where_everything_is_drawn(golden, seed):
    g, fused, truth, match = case(golden, "full")
    key = None if seed is None else jax.random.key(seed)
    f = functools.partial(pairing_loss, labels=truth, match=match, max_views=g["max_views"], key=key)
    loss, grad = jax.jit(jax.value_and_grad(lambda x: f(x)[0]))(fused)
    assert loss == pytest.approx(g["loss"], rel=1e-5)
    want = np.concatenate([goldens.nhwc(g["grad_match"]), goldens.nhwc(g["grad_shuffle"])])
    assert goldens.error(grad, want) < 1e-5


# ------------------------------------------------------------------------------------- what is drawn


@pytest.fixture(scope="module")
def pixels():
    r = np.random.default_rng(0)
    labels = r.choice([0, 1, 2, 3, 4, 255], 600, p=[0.3, 0.3, 0.2, 0.1, 0.02, 0.08]).astype(np.uint8)
    heard = np.where((labels == 2) | (labels == 3), 0, labels)
    return labels, heard


@pytest.fixture(scope="module")
def draw(pixels):
    return jax.jit(lambda key: draw_anchors(*pixels, num_classes=6, max_views=20, slots=2, key=key))


def test_draw_keeps_to_the_sets(pixels, draw):
    labels, heard = pixels
    chosen = set()
    for seed in range(12):
        rows, drawn, valid = (np.asarray(x).reshape(4, 20) for x in draw(jax.random.key(seed)))
        assert valid.all() and all(len(set(r)) == 20 for r in rows)
        for c, slot in zip(drawn[:2], rows[:2], strict=True):
            assert set(labels[slot]) == set(c) and c[0] in (1, 2, 3)  # 4 has too few pixels, 5 none
        assert drawn[0, 0] < drawn[1, 0]
        assert not labels[rows[2]].any() and not drawn[2].any()
        assert (rows[3] >= 600).all()
        there = rows[3] - 600
        assert set(labels[there]) <= {1, 2, 3, 4}
        np.testing.assert_array_equal(drawn[3], heard[there])
        chosen.add(tuple(drawn[:2, 0]))
    assert chosen == {(1, 2), (1, 3), (2, 3)}  # every pair of classes has its turn


def test_draw_is_uniform(pixels, draw):
    labels, _ = pixels
    keys = jax.random.split(jax.random.key(1), 2000)
    rows = np.asarray(jax.vmap(draw)(keys).rows).reshape(2000, 4, 20)
    counts = np.bincount(rows[:, 2].ravel(), minlength=1200)[:600]
    expected = 2000 * 20 / (labels == 0).sum()
    assert not counts[labels != 0].any()
    assert abs(counts[labels == 0] - expected).max() < 5 * np.sqrt(expected)


def test_a_key_always_draws_the_same(draw):
    a, b, other = (np.asarray(draw(jax.random.key(s)).rows) for s in (3, 3, 4))
    np.testing.assert_array_equal(a, b)
    assert (a != other).any()


def test_budget_beyond_the_pixels_leaves_nothing():
    labels = jnp.asarray([0, 0, 1, 1, 1, 255])
    anchors = jax.jit(functools.partial(draw_anchors, num_classes=3, max_views=100, slots=2))(labels, labels)
    assert anchors.rows.shape == (24,) and not anchors.valid.any()


def test_few_foreground_pixels_limit_background_and_shuffled():
    draw = jax.jit(functools.partial(draw_anchors, num_classes=2, max_views=4, slots=1))
    labels = jnp.asarray([0] * 7 + [1] * 4)
    assert draw(labels, labels * 0).valid.all()  # min(max_views, 4 foreground, 7 background) = 4
    labels = jnp.asarray([0] * 2 + [1] * 9)
    anchors = draw(labels, labels * 0)
    np.testing.assert_array_equal(anchors.valid.reshape(3, 4).sum(1), [4, 2, 2])


# ------------------------------------------------------------------------------------- the loss itself


def test_invalid_rows_and_their_order_do_not_matter():
    r = np.random.default_rng(0)
    z, labels = r.normal(size=(30, 5)).astype(np.float32), r.integers(0, 3, 30)
    valid = r.random(30) < 0.6
    z[~valid] *= 1e6
    f = jax.jit(jax.value_and_grad(functools.partial(contrastive_loss, block=8)))
    loss, grad = f(z, labels, valid)
    assert loss == pytest.approx(plain(z[valid].astype(float), labels[valid]), rel=1e-5)
    assert not np.asarray(grad)[~valid].any()
    few, few_grad = jax.jit(jax.value_and_grad(contrastive_loss))(z[valid], labels[valid])
    assert loss == pytest.approx(float(few), rel=1e-6)
    np.testing.assert_allclose(np.asarray(grad)[valid], few_grad, rtol=1e-4, atol=1e-7)


CASES = {
    "one label": (np.zeros(6, int), None),
    "no positives": (np.arange(6), None),
    "one anchor": (np.zeros(6, int), np.arange(6) == 3),
    "none": (np.zeros(6, int), np.zeros(6, bool)),
    "one against many": (np.array([1, 0, 0, 0, 0, 0]), None),
}


@pytest.mark.parametrize("name", CASES)
def test_degenerate_sets_are_finite(name):
    labels, valid = CASES[name]
    z = np.random.default_rng(1).normal(size=(6, 4)).astype(np.float32)
    z[2] = 0  # a vector without a direction
    valid = np.ones(6, bool) if valid is None else valid
    loss, grad = jax.jit(jax.value_and_grad(functools.partial(contrastive_loss, block=4)))(z, labels, valid)
    assert np.isfinite(loss) and np.isfinite(grad).all()
    if name != "one against many":
        assert loss == 0 and not np.asarray(grad).any()
    else:
        z[2] = 1e-20  # the same, where the plain form divides
        assert float(loss) == pytest.approx(plain(np.asarray(z, float) * (z != 1e-20), labels), rel=1e-5)


@pytest.mark.parametrize("scale, t", [(1.0, 1e-3), (1e18, 0.1), (1e-15, 0.1)])
def test_extreme_similarities_are_finite(scale, t):
    z = np.random.default_rng(1).normal(size=(8, 4)).astype(np.float32) * np.float32(scale)
    labels = np.array([0, 0, 1, 1, 2, 2, 0, 0])
    z[1] = z[0]
    z[2] = -z[0]
    loss, grad = jax.jit(jax.value_and_grad(functools.partial(contrastive_loss, temperature=t)))(z, labels)
    assert np.isfinite(grad).all()
    with np.errstate(over="ignore", under="ignore"):
        if t == 0.1:
            assert float(loss) == pytest.approx(plain(z.astype(float), labels), rel=1e-5)
    assert np.isfinite(loss) and loss > 0


def test_bfloat16_features_are_summed_in_float32():
    r = np.random.default_rng(0)
    z = jnp.asarray(r.normal(size=(40, 16)), jnp.bfloat16)
    labels = r.integers(0, 3, 40)
    loss, grad = jax.jit(jax.value_and_grad(contrastive_loss))(z, labels)
    assert loss.dtype == jnp.float32 and grad.dtype == jnp.bfloat16
    assert float(loss) == pytest.approx(plain(np.asarray(z, float), labels), rel=1e-5)


@pytest.fixture(scope="module")
def maps():
    r = np.random.default_rng(0)
    fused = r.normal(size=(8, 6, 5, 7)).astype(np.float32)
    labels = r.choice([0, 1, 2, 255], (4, 12, 10)).astype(np.uint8)
    match = np.array([[1, 1, 1], [1, 0, 1], [1, 0, 0], [1, 1, 0]], bool)
    return fused, labels, match


def test_groups_are_batches_of_their_own(maps):
    fused, labels, match = maps
    f = jax.jit(functools.partial(pairing_loss, max_views=6), static_argnames="groups")
    loss, counts = f(*maps, groups=2)
    halves = fused.reshape(2, 4, *fused.shape[1:])
    cut = [(halves[:, i : i + 2].reshape(4, 6, 5, 7), labels[i : i + 2], match[i : i + 2]) for i in (0, 2)]
    parts = [f(*x, groups=1) for x in cut]
    assert float(loss) == pytest.approx(np.mean([x for x, _ in parts]), rel=1e-6)
    assert float(counts["anchors"]) == np.mean([c["anchors"] for _, c in parts])
    whole, _ = f(*maps, groups=1)
    assert abs(float(loss) - float(whole)) > 1e-3


def test_one_clip_alone(maps):
    fused, labels, match = maps
    f = functools.partial(pairing_loss, labels=labels[1:2], match=match[1:2], max_views=3)
    (loss, counts), grad = jax.jit(jax.value_and_grad(f, has_aux=True))(fused[:2])
    assert np.isfinite(loss) and loss > 0 and np.isfinite(grad).all()
    assert counts["anchors"] == 12 and counts["anchor_classes"] == 2


def test_shuffled_gradient_stays_where_the_image_shows_a_class(maps):
    fused, labels, match = maps
    f = functools.partial(pairing_loss, max_views=8, key=jax.random.key(0))
    grad = jax.jit(jax.grad(lambda x: f(x, labels, match)[0]))(fused)
    small = np.asarray(contrastive.at_size(labels, (6, 5)))
    moved = np.asarray(grad).any(-1)
    assert not moved[:4][small == 255].any() and not moved[4:][(small == 255) | (small == 0)].any()
    assert moved[:4].any() and moved[4:].any()


@pytest.mark.parametrize(
    "change, where",
    [
        ({"max_views": 0}, "max_views"),
        ({"max_classes": 0}, "max_classes"),
        ({"groups": 3}, "groups"),
        ({"groups": 0}, "groups"),
        ({"block": 0}, "block"),
        ({"match": np.ones((3, 3), bool)}, "maps"),
    ],
    ids=str,
)
def test_bad_options_are_refused(maps, change, where):
    fused, labels, match = maps
    options = {"fused": fused, "labels": labels, "match": match} | change
    with pytest.raises(InputError, match=where):
        pairing_loss(**options)


MESH = """
import jax, numpy as np
from avs_jax.losses.contrastive import pairing_loss
from avs_jax.training.sharding import layout

assert jax.device_count() == 2
r = np.random.default_rng(0)
fused = r.normal(size=(8, 6, 5, 7)).astype(np.float32)
labels = r.choice([0, 1, 2, 255], (4, 12, 10)).astype(np.uint8)
match = r.random((4, 3)) < 0.5
where, key = layout(4), jax.random.key(0)
for groups in (1, 2):
    step = jax.value_and_grad(lambda x, y, m: pairing_loss(x, y, m, key=key, max_views=8, groups=groups)[0])
    alone, alone_grad = jax.jit(step)(*jax.device_put((fused, labels, match), jax.devices()[0]))
    shared, shared_grad = jax.jit(step, in_shardings=where.data, out_shardings=(where.replicated, where.data))(
        fused, labels, match)
    np.testing.assert_allclose(shared, alone, rtol=1e-5)
    np.testing.assert_allclose(shared_grad, alone_grad, rtol=1e-4, atol=1e-6)
    assert alone > 0
"""


def test_two_devices_contrast_as_one():
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=2", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", MESH], cwd=Path(__file__).parent.parent, env=environment,
                          capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0, done.stderr
