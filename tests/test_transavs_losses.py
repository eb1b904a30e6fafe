"""TransAVS's losses and inference rule: the reference's numbers, symmetries, and the sets that have nothing in them."""

import dataclasses
import functools

import goldens
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from avs_jax.errors import InputError
from avs_jax.losses import audio_query
from avs_jax.losses.dice import dice_matrix, pair_dice
from avs_jax.losses.focal import softmax_focal
from avs_jax.losses.matching import matched_targets, matching_cost
from avs_jax.losses.query_set import (
    QueryLoss,
    deep_supervised_loss,
    match_queries,
    self_supervised_loss,
    set_loss,
    weighted_total,
)
from avs_jax.losses.query_targets import Targets, at_size, pool, targets_from_labels
from avs_jax.models.query_masks import instances, segment, semantic_scores

CASES = ("k2", "k6")
GOLDEN = goldens.load("transavs_losses")


def given_masks(masks, _):
    """`make_masks` where the embeddings are the mask logits themselves."""
    return masks


@functools.cache
def case(name):
    """(golden numbers of the case, targets, options, deltas)."""
    g = {k.removeprefix(name + "/"): v for k, v in GOLDEN.items() if k.startswith(name + "/")}
    delta1, delta2, d0, eps, gamma, alpha = g["params"]
    options = QueryLoss(focal_gamma=gamma, focal_alpha=alpha, d0=d0, eps=eps, aqdl_normalize=g["normalize"])
    targets = Targets(g["gt_labels"], g["gt_masks"], g["target_valid"], g["frame_valid"])
    return g, targets, options, (delta1, delta2)


def frames_of(g, key):
    return np.array([g[f"frame{f}/{key}"] for f in range(4)])


def objective(queries, proj, class_logits, mask_logits, targets, options, deltas):
    """(total, (terms, match)) of one set of queries."""
    terms, match = set_loss(class_logits, mask_logits, targets, options)
    ss = self_supervised_loss(class_logits, queries, mask_logits, (), proj, deltas, targets, options, given_masks)
    terms |= ss
    return weighted_total(terms, options), (terms, match)


value_and_grads = jax.jit(jax.value_and_grad(objective, (0, 1, 2, 3), has_aux=True), static_argnames="options")


@functools.cache
def computed(name):
    g, targets, options, deltas = case(name)
    inputs = g["queries"], g["proj_w"].T, g["class_logits"], g["mask_logits"]
    return value_and_grads(*inputs, targets, options=options, deltas=deltas)


# ------------------------------------------------------------------------------------- the reference's numbers


@pytest.mark.parametrize("name", CASES)
def test_golden_total_terms_and_match(name):
    g, targets, _, _ = case(name)
    (total, (terms, match)), _ = computed(name)
    assert float(total) == pytest.approx(g["loss_total"], rel=1e-5)
    for key in ("aqdl", "aqml", "focal", "dice"):
        assert float(terms[key]) == pytest.approx(g[f"loss_{key}"], rel=1e-5), key
    for key in ("n1", "n2"):
        assert float(terms[key]) == pytest.approx(frames_of(g, key)[targets.frame_valid].mean(), rel=1e-6)
    found = matched_targets(match, g["class_logits"].shape[1])
    np.testing.assert_array_equal(found, np.where(targets.frame_valid[:, None], g["match"], -1))


@pytest.mark.parametrize("name", CASES)
def test_golden_gradients(name):
    g = case(name)[0]
    queries, proj, class_logits, mask_logits = computed(name)[1]
    assert goldens.error(queries, g["grad_queries"]) < 1e-5
    assert goldens.error(proj.T, g["grad_proj_w"]) < 1e-5
    assert goldens.error(class_logits, g["grad_class_logits"]) < 1e-5
    assert goldens.error(mask_logits, g["grad_mask_logits"]) < 1e-5


@pytest.mark.parametrize("normalize, d0, key", [(False, 2.5, "raw_d0_2.5"), (True, 1.0, "norm_d0_1.0")])
@pytest.mark.parametrize("form", audio_query.FORMS)
@pytest.mark.parametrize("name", CASES)
def test_golden_query_diversity(name, form, normalize, d0, key):
    g, _, options, (delta1, _) = case(name)
    selected = audio_query.confident(g["class_logits"], delta1)
    np.testing.assert_array_equal(selected.sum(-1), frames_of(g, "n1"))
    got = audio_query.query_diversity(g["queries"], selected, g["proj_w"].T, form=form, normalize=normalize, d0=d0,
                                      eps=options.eps)  # fmt: skip
    np.testing.assert_allclose(got, frames_of(g, f"aqdl_{form}_{key}"), rtol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_golden_mask_overlap(name):
    g, _, _, (_, delta2) = case(name)
    selected = audio_query.confident(g["class_logits"], delta2)
    np.testing.assert_array_equal(selected.sum(-1), frames_of(g, "n2"))
    np.testing.assert_allclose(audio_query.mask_overlap(g["mask_logits"], selected), frames_of(g, "aqml"), rtol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_golden_costs_and_pairs(name):
    g, targets, options, _ = case(name)
    cost = np.asarray(jax.jit(matching_cost)(g["class_logits"], g["mask_logits"], targets.labels, targets.masks))
    everywhere = targets._replace(frame_valid=np.ones(4, bool))  # the golden pairs ignore which frames are labelled
    match = jax.jit(match_queries, static_argnums=3)(g["class_logits"], g["mask_logits"], everywhere, options)
    match = np.asarray(match)
    checked = 0
    for f in range(4):
        n = targets.valid[f].sum()
        assert targets.valid[f, :n].all()
        assert (match[f, n:] == g["class_logits"].shape[1]).all()
        if not n:
            continue
        checked += 1
        np.testing.assert_allclose(cost[f, :, :n], g[f"frame{f}/cost"], rtol=1e-5, atol=1e-5)
        queries, columns = g[f"frame{f}/pairs"]
        np.testing.assert_array_equal(match[f, columns], queries)
        assert cost[f, queries, columns].sum() == pytest.approx(g[f"frame{f}/cost_opt"], rel=1e-5)
        p = 1 / (1 + np.exp(-g["mask_logits"][f, queries].reshape(n, -1)))
        y = targets.masks[f, columns].reshape(n, -1)
        for form in ("linear", "squared"):
            want = g[f"frame{f}/dice_{form}"]
            np.testing.assert_allclose(pair_dice(jnp.float32(p), y, form=form), want, rtol=1e-5)
            matrix = dice_matrix(jnp.float32(p)[None], y[None], form=form)[0]
            np.testing.assert_allclose(np.diag(matrix), want, rtol=1e-5)
    assert checked == 3


@pytest.mark.parametrize("name", CASES)
def test_golden_inference(name):
    g = case(name)[0]
    k = g["class_logits"].shape[-1]
    found = jax.jit(segment)(g["class_logits"], g["mask_logits"])
    np.testing.assert_allclose(found.score, frames_of(g, "score"), rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(found.winner, frames_of(g, "winner"))
    want = frames_of(g, "label")
    np.testing.assert_array_equal(found.labels, np.where(want == k - 1, 0, want + 1))
    semantic = jax.jit(semantic_scores)(g["class_logits"], g["mask_logits"])
    np.testing.assert_allclose(semantic, frames_of(g, "semantic"), rtol=1e-5)


@pytest.mark.parametrize("which", ["empty", "single"])
def test_golden_of_no_pair(which):
    class_logits = GOLDEN[f"{which}/class_logits"][None]
    selected = audio_query.confident(class_logits, 0.55)
    assert selected.sum() == (which == "single")
    queries, masks = GOLDEN["empty/queries"][None], GOLDEN["empty/mask_logits"][None]
    options = {"normalize": False, "d0": 4.0, "eps": 1e-2}
    assert audio_query.query_diversity(queries, selected, **options) == GOLDEN[f"{which}/aqdl"] == 0
    assert audio_query.mask_overlap(masks, selected) == GOLDEN[f"{which}/aqml"] == 0


def test_golden_schedule():
    run = jax.jit(jax.vmap(functools.partial(audio_query.threshold, every=5000)))
    np.testing.assert_allclose(run(GOLDEN["schedule/iters"]), GOLDEN["schedule/delta"], rtol=1e-6)
    run = jax.jit(jax.vmap(functools.partial(audio_query.threshold, every=1000, max_steps=20_000)))
    np.testing.assert_allclose(run(GOLDEN["schedule/iters"]), GOLDEN["schedule/delta_20k_1k"], rtol=1e-6)


def test_schedule_follows_the_length_of_the_run():
    def at(step, **o):
        return float(audio_query.threshold(step, **o))

    assert at(5000) == at(5000, every=5000) > at(4999)
    assert at(0, max_steps=300) == pytest.approx(0.55) and at(300, max_steps=300) == pytest.approx(0.65)
    assert at(5, max_steps=5) == pytest.approx(0.65)  # shorter than its 18 rises
    assert at(7, every=10, max_steps=3) == pytest.approx(0.55)  # never rises within the run
    assert {at(s, start=0.6, end=0.6) for s in (0, 44_000, 90_000)} == {at(0, start=0.6, end=0.6)}
    delta1, delta2 = QueryLoss(delta1=(0.6, 0.6), delta_every=10).deltas(jnp.int32(50), 100)
    assert float(delta1) == pytest.approx(0.6) and float(delta2) == pytest.approx(0.6)
    assert at(50, start=0.7, end=0.5, every=50, max_steps=100) == pytest.approx(0.6)  # falling


# ------------------------------------------------------------------------------------- variants of the objective


@functools.partial(jax.jit, static_argnums=(2, 3))
def targets_at(labels, labelled, classes, m, present):
    return targets_from_labels(labels, labelled, classes, m, present)


def targets_of(labels, labelled=True, classes=6, m=3, present=True):
    every = np.ones(len(labels), bool)
    return targets_at(labels, every & labelled, classes, m, every & present)


def rand(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.fixture(scope="module")
def labels():
    """(F, H, W) = (4, 12, 16): two classes, one class and ignored pixels, silence, three classes."""
    y = np.zeros((4, 12, 16), np.uint8)
    y[0, 2:6, 3:9], y[0, 7:9, 1:4] = 1, 3
    y[1, 5:, 4:12], y[1, :2] = 2, 255
    y[3, :, :5], y[3, :, 6:9], y[3, 3:5, 11:12] = 5, 2, 1
    return y


@pytest.fixture(scope="module")
def world(labels):
    """Class logits (L, F, N, K), embeddings (L, F, N, d), features (F, h, w, d), audio queries, projection, targets."""
    targets = targets_of(labels)
    projection = rand(4, 4, 4)
    return rand(0, 3, 4, 7, 6), rand(1, 3, 4, 7, 4), rand(2, 4, 6, 8, 4), rand(3, 4, 7, 4), projection, targets


def dice_by_hand(p, y, w, squared=False):
    p, y, w = (np.asarray(a, np.float64) for a in (p, y, w))
    power = 2 if squared else 1
    return 1 - (2 * (w * p * y).sum() + 1) / ((w * p**power).sum() + (w * y**power).sum() + 1)


@pytest.mark.parametrize("compare_at, dice, mask", [("full", "linear", 0.0), ("full", "squared", 2.0),
                                                    ("mask", "linear", 2.0)])  # fmt: skip
def test_terms_by_hand(world, labels, compare_at, dice, mask):
    """Float64, pair by pair: matched masks enlarged to the labels' size, ignored pixels left out."""
    class_logits, embeddings, features, *_, targets = world
    masks = maps(embeddings[0], features)
    options = QueryLoss(compare_at=compare_at, dice=dice, lambda_mask=mask)
    terms, match = jax.jit(lambda c, m: set_loss(c, m, targets, options))(class_logits[0], masks)
    pooled = [np.asarray(a, np.float64) for a in jax.jit(at_size, static_argnums=1)(targets, (6, 8))]
    full = [np.asarray(targets.masks, np.float64), np.asarray(targets.counted, np.float64)]
    y, w = full if compare_at == "full" else pooled
    if compare_at == "full":
        masks_at = np.asarray(jax.image.resize(masks, (4, 7, 12, 16), "bilinear"))  # half-pixel centres
    else:
        masks_at = masks
    want = {"dice": 0.0, "mask": 0.0}
    count = 0
    for f in range(4):
        for m in range(3):
            if not targets.valid[f, m]:
                assert match[f, m] == 7
                continue
            count += 1
            x = masks_at[f, match[f, m]].astype(np.float64)
            p, share = 1 / (1 + np.exp(-x)), np.maximum(w[f], 1e-30)
            want["dice"] += dice_by_hand(p, y[f, m] / share, w[f], dice == "squared" and compare_at == "full")
            want["mask"] += (w[f] * np.logaddexp(0, x) - x * y[f, m]).sum() / w[f].sum()
    assert count == 6  # of the data: 2 + 1 + 0 + 3
    assert float(terms["dice"]) == pytest.approx(want["dice"] / count, rel=1e-5)
    assert ("mask" in terms) == bool(mask)
    if mask:
        assert float(terms["mask"]) == pytest.approx(want["mask"] / count, rel=1e-5)
    p = np.exp(class_logits[0].astype(np.float64))
    p /= p.sum(-1, keepdims=True)
    target = np.full((4, 7), 5)
    for f, m in zip(*np.nonzero(targets.valid), strict=True):
        target[f, match[f, m]] = targets.labels[f, m]
    pt = np.take_along_axis(p, target[..., None], -1)[..., 0]
    focal = -np.where(target == 5, 0.75, 0.25) * (1 - pt) ** 2 * np.log(pt)
    assert float(terms["focal"]) == pytest.approx(focal.sum() / count, rel=1e-5)


def test_cost_with_cross_entropy_by_hand(world):
    class_logits, embeddings, features, *_, targets = world
    x = maps(embeddings[0], features)
    y, w = at_size(targets, (6, 8))
    weights = {"lambda_class": 2.0, "lambda_dice": 3.0, "lambda_mask": 4.0}
    run = jax.jit(functools.partial(matching_cost, dice="squared", **weights))
    got = run(class_logits[0], x, targets.labels, y, w)
    p = np.exp(class_logits[0]) / np.exp(class_logits[0]).sum(-1, keepdims=True)
    f, n, m = 3, 2, 1
    bce = (w[f] * np.logaddexp(0, x[f, n]) - x[f, n] * y[f, m]).sum() / w[f].sum()
    dice = dice_by_hand(1 / (1 + np.exp(-x[f, n])), y[f, m], w[f], squared=True)
    want = -2 * p[f, n, targets.labels[f, m]] + 3 * dice + 4 * bce
    assert float(got[f, n, m]) == pytest.approx(float(want), rel=1e-5)


DELTAS = 0.85, 0.9  # some queries of a frame, not all


def maps(embeddings, features):
    return np.einsum("fnd,fhwd->fnhw", embeddings, features)


def everything(world, options):
    """Total of three layers, terms, match."""
    class_logits, embeddings, features, queries, projection, targets = world
    terms, match = deep_supervised_loss(class_logits, embeddings, features, targets, options)
    ss = self_supervised_loss(class_logits[-1], queries, embeddings[-1], features, projection, DELTAS, targets,
                              options)  # fmt: skip
    terms = terms | ss
    return weighted_total(terms, options), (terms, match)


whole = jax.jit(everything, static_argnums=1)


def test_layers_together_are_the_layers_one_by_one(world):
    class_logits, embeddings, features, *_, targets = world
    options = QueryLoss(lambda_mask=1.0, aux_weight=0.5)

    def one_by_one(class_logits, embeddings, features):
        parts = [set_loss(c, jnp.einsum("fnd,fhwd->fnhw", x, features), targets, options)
                 for c, x in zip(class_logits, embeddings, strict=True)]  # fmt: skip
        total = weighted_total(parts[-1][0], options)
        for terms, _ in parts[:-1]:
            total += 0.5 * weighted_total(terms, options)
        return total, jnp.stack([match for _, match in parts])

    def together(class_logits, embeddings, features):
        terms, match = deep_supervised_loss(class_logits, embeddings, features, targets, options)
        return weighted_total(terms, options), match

    run = [jax.jit(jax.value_and_grad(f, (0, 1, 2), has_aux=True)) for f in (one_by_one, together)]
    (want, want_match), want_grads = run[0](class_logits, embeddings, features)
    (got, match), grads = run[1](class_logits, embeddings, features)
    np.testing.assert_array_equal(match, want_match)
    assert float(got) == pytest.approx(float(want), rel=1e-6)
    for a, b in zip(grads, want_grads, strict=True):
        assert goldens.error(a, b) < 1e-5
    terms, _ = jax.eval_shape(lambda c, x: deep_supervised_loss(c, x, features, targets, options),
                              class_logits[-1:], embeddings[-1:])  # fmt: skip
    assert set(terms) == {"focal", "dice", "mask"}  # a single layer has no others


def test_order_of_queries_does_not_matter(world):
    order = np.random.default_rng(0).permutation(7)
    c, x, f, q, proj, targets = world
    options = QueryLoss()
    total, (terms, match) = whole(world, options)
    moved, (terms2, match2) = whole((c[:, :, order], x[:, :, order], f, q[:, order], proj, targets), options)
    assert float(moved) == pytest.approx(float(total), rel=1e-5)
    assert float(terms["n1"]) == float(terms2["n1"]) > 1 and float(terms["aqml"]) > 0 and float(terms["aqdl"]) > 0
    back = np.append(order, 7)  # 7 says no match
    np.testing.assert_array_equal(back[np.asarray(match2)], match)


def test_order_of_frames_does_not_matter(world):
    """Frames of one clip or of others: the losses know no clips."""
    order = np.array([2, 0, 3, 1])
    c, x, f, q, proj, targets = world
    total, (_, match) = whole(world, QueryLoss())
    moved = (c[:, order], x[:, order], f[order], q[order], proj, jax.tree.map(lambda a: a[order], targets))
    total2, (_, match2) = whole(moved, QueryLoss())
    assert float(total2) == pytest.approx(float(total), rel=1e-5)
    np.testing.assert_array_equal(match2, np.asarray(match)[:, order])


def test_order_of_targets_does_not_matter(world):
    c, x, f, q, proj, targets = world
    order = [2, 0, 1]
    moved = targets._replace(labels=targets.labels[:, np.array(order)], masks=targets.masks[:, np.array(order)],
                             valid=targets.valid[:, np.array(order)])  # fmt: skip
    total, (_, match) = whole(world, QueryLoss())
    total2, (_, match2) = whole((c, x, f, q, proj, moved), QueryLoss())
    assert float(total2) == pytest.approx(float(total), rel=1e-5)
    np.testing.assert_array_equal(match2, np.asarray(match)[:, :, order])


def test_unlabelled_frames_count_only_where_asked(world, labels):
    c, x, f, q, proj, _ = world
    labelled, present = np.array([True, False, True, False]), np.array([True, True, True, False])
    targets = targets_of(labels, labelled, present=present)
    part = np.array([0, 2])
    alone = targets_of(labels[part])
    want, (terms, match) = whole((c, x, f, q, proj, targets), QueryLoss())
    got, (_, match2) = whole((c[:, part], x[:, part], f[part], q[part], proj, alone), QueryLoss())
    assert float(got) == pytest.approx(float(want), rel=1e-5)
    np.testing.assert_array_equal(match2, np.asarray(match)[:, part])
    assert (np.asarray(match)[:, [1, 3]] == 7).all()
    _, (more, _) = whole((c, x, f, q, proj, targets), QueryLoss(include_unlabelled_ss=True))
    sets = [audio_query.confident(c[-1], d) for d in DELTAS]
    aqdl, aqml = audio_query.query_diversity(q, sets[0], proj), audio_query.mask_overlap(maps(x[-1], f), sets[1])
    for key, each in {"aqdl": aqdl, "aqml": aqml, "n1": sets[0].sum(-1), "n2": sets[1].sum(-1)}.items():
        assert float(more[key]) == pytest.approx(float(each[:3].mean()), rel=1e-5)
        assert float(terms[key]) == pytest.approx(float(each[part].mean()), rel=1e-5)
        assert abs(float(more[key]) - float(terms[key])) > 1e-4
    assert float(more["focal"]) == float(terms["focal"])


@functools.partial(jax.jit, static_argnums=2)
def whole_and_gradients(parts, targets, options):
    return jax.value_and_grad(lambda a: everything((*a, targets), options), has_aux=True)(parts)


def gradients_of(world, options):
    return whole_and_gradients(tuple(map(jnp.asarray, world[:5])), world[5], options)


VARIANTS = [
    QueryLoss(lambda_mask=1.0),
    QueryLoss(aqdl_normalize=False, eps=1e-20, compare_at="mask"),
    QueryLoss(aqdl_form="exp", focal_gamma=0.5, dice="squared"),
]


def test_nothing_to_find(world, labels):
    """No target anywhere: focal over no object, no dice, and a finite gradient; no labelled frame: nothing at all."""
    silent = targets_of(np.zeros_like(labels))
    (_, (terms, match)), grads = gradients_of((*world[:5], silent), VARIANTS[0])
    assert (match == 7).all() and terms["dice"] == terms["mask"] == terms["aux_dice"] == 0
    p = np.asarray(jax.nn.softmax(world[0][-1]), np.float64)[..., -1]
    assert float(terms["focal"]) == pytest.approx(float((-0.75 * (1 - p) ** 2 * np.log(p)).sum()), rel=1e-5)
    assert all(np.isfinite(g).all() for g in grads) and grads[0].any()
    nowhere = targets_of(labels, labelled=False)
    (total, _), grads = gradients_of((*world[:5], nowhere), VARIANTS[0])
    assert total == 0 and not any(np.any(g) for g in grads)


@pytest.mark.parametrize("options", VARIANTS, ids=["mask", "raw", "exp"])
@pytest.mark.parametrize("scale", [0.0, 1e3])
def test_gradients_are_finite(world, options, scale):
    """All queries alike (distance 0 of every pair), and softmaxes and sigmoids that are 0 or 1."""
    c, x, f, q, proj, targets = world
    q = np.broadcast_to(q[:1, :1], q.shape) if scale == 0 else q * scale
    c = c * scale if scale else np.broadcast_to(c[:, :, :1], c.shape)
    (total, (terms, _)), grads = gradients_of((c, x * scale, f, q, proj, targets), options)
    assert np.isfinite(total) and all(np.isfinite(g).all() for g in grads)
    if scale == 0 and options.aqdl_form == "inv":
        assert float(terms["n1"]) > 1 and float(terms["aqdl"]) > 0 and not np.asarray(grads[3]).any()


def test_one_query(world, labels):
    """One query: the frame's cheapest target, no pair to part, and the matched mask in one block of the inference."""
    c, x, f, q, proj, targets = world
    (total, (terms, match)), grads = gradients_of((c[:, :, :1], x[:, :, :1], f, q[:, :1], proj, targets), QueryLoss())
    assert np.isfinite(total) and terms["aqdl"] == terms["aqml"] == 0 and all(np.isfinite(g).all() for g in grads)
    assert ((np.asarray(match) == 0).sum(-1) == np.array([1, 1, 0, 1])).all()
    found = jax.jit(segment)(c[0, :, :1], maps(x[0, :, :1], f))
    assert set(np.unique(found.winner)) <= {-1, 0}


def test_distances_keep_their_digits_when_queries_collapse():
    """Far from the origin and a thousandth apart, where |a|^2 + |b|^2 - 2 ab alone has no digit left."""
    q = (30 + 1e-3 * np.random.default_rng(0).normal(size=(1, 8, 16))).astype(np.float32)
    d = np.square(q[0][:, None].astype(np.float64) - q[0][None]).sum(-1)[np.triu_indices(8, 1)]
    want = (1 / (d + 1e-6)).sum() / 9

    def f(x):
        return audio_query.query_diversity(x, jnp.ones((1, 8), bool), normalize=False, eps=1e-6)[0]

    got, grad = jax.value_and_grad(f)(jnp.asarray(q))
    assert float(got) == pytest.approx(want, rel=1e-3)
    z = q[0].astype(np.float64)
    diff = z[:, None] - z[None]
    slope = -2 / (np.square(diff).sum(-1) + 1e-6) ** 2 * (1 - np.eye(8)) / 9
    assert goldens.error(grad[0], (slope[..., None] * diff).sum(1)) < 1e-2


def test_half_precision_in_float32_out(world):
    *parts, targets = world
    half = [jnp.asarray(a, jnp.bfloat16) for a in parts]
    wide = [a.astype(jnp.float32) for a in half]
    got, (terms, match) = whole((*half, targets), QueryLoss())
    want, (_, match2) = whole((*wide, targets), QueryLoss())
    assert all(v.dtype == jnp.float32 for v in terms.values()) and got.dtype == jnp.float32
    np.testing.assert_array_equal(match, match2)
    assert float(got) == pytest.approx(float(want), rel=1e-5)


def test_focal_without_balance_or_power():
    x, y = rand(0, 5, 4), np.array([0, 1, 2, 3, 3])
    want = -np.take_along_axis(np.asarray(jax.nn.log_softmax(x)), y[:, None], 1)[:, 0]
    np.testing.assert_allclose(softmax_focal(x, y, gamma=0.0, alpha=None), want, rtol=1e-6)
    sure = jnp.array([[40.0, 0.0]])
    for gamma in (0.0, 0.5, 1.0, 2.0):
        grad = jax.grad(lambda v, g=gamma: softmax_focal(v, jnp.array([0]), gamma=g).sum())(sure)
        assert np.isfinite(grad).all() and abs(grad).max() < 1e-6


@pytest.mark.parametrize("change", [{"dice": "cubic"}, {"compare_at": "half"}, {"aqdl_form": "ex"}, {"eps": 0.0},
                                    {"d0": 0.0}, {"lambda_mask": -1.0}, {"focal_alpha": 1.5}, {"delta1": (0.5,)},
                                    {"delta_every": 0}], ids=str)  # fmt: skip
def test_bad_options_are_named(change):
    with pytest.raises(InputError, match=f"'{next(iter(change))}'"):
        dataclasses.replace(QueryLoss(), **change)


# ------------------------------------------------------------------------------------- targets


def test_binary_targets_are_unions(labels):
    t = jax.jit(lambda y, known: targets_from_labels(y, known, 2, 2))(labels, np.array([True, True, True, False]))
    np.testing.assert_array_equal(t.valid, [[True, False], [True, False], [False, False], [False, False]])
    np.testing.assert_array_equal(t.masks[:, 0], (labels > 0) & (labels != 255))
    assert not t.masks[:, 1].any() and not t.labels.any()
    np.testing.assert_array_equal(t.counted, labels != 255)


@pytest.mark.parametrize("m", [2, 3, 8])
def test_semantic_targets_are_the_largest_classes(labels, m):
    t = targets_from_labels(labels, np.ones(4, bool), 6, m)
    assert t.masks.shape == (4, m, 12, 16) and t.labels.shape == t.valid.shape == (4, m)
    for f, classes in enumerate([[1, 3], [2], [], [5, 2, 1]]):  # by area
        classes = classes[:m]
        np.testing.assert_array_equal(t.valid[f], np.arange(m) < len(classes))
        np.testing.assert_array_equal(t.labels[f, : len(classes)] + 1, classes)
        for i, c in enumerate(classes):
            np.testing.assert_array_equal(t.masks[f, i], labels[f] == c)
        assert not t.masks[f, len(classes) :].any()


def test_frames_that_do_not_exist_have_no_targets(labels):
    t = targets_from_labels(labels, np.ones(4, bool), 6, 3, np.array([True, False, True, True]))
    np.testing.assert_array_equal(t.frame_valid, [True, False, True, True])
    assert not t.valid[1].any() and t.valid[3].all()


@pytest.mark.parametrize("options, where", [((1, 1), "num_classes"), ((2, 0), "max_targets")])
def test_bad_target_options_are_named(labels, options, where):
    with pytest.raises(InputError, match=where):
        targets_from_labels(labels, np.ones(4, bool), *options)


def test_pooling():
    x = rand(0, 2, 3, 12, 16)
    np.testing.assert_allclose(pool(x, (3, 4)), x.reshape(2, 3, 3, 4, 4, 4).mean((3, 5)), rtol=1e-5, atol=1e-6)
    assert pool(x, (12, 16)) is x
    odd = pool(jnp.asarray(x), (5, 4))
    assert odd.shape == (2, 3, 5, 4)
    np.testing.assert_allclose(odd[:, :, 1, 0], x[:, :, 2:5, :4].mean((2, 3)), rtol=1e-5, atol=1e-6)


# ------------------------------------------------------------------------------------- inference


def by_hand(class_logits, mask_logits, size):
    """Masks at the size and probabilities, float64."""
    p = np.exp(class_logits.astype(np.float64))
    p /= p.sum(-1, keepdims=True)
    big = np.asarray(jax.image.resize(mask_logits, (*mask_logits.shape[:2], *size), "bilinear"), np.float64)
    return p, 1 / (1 + np.exp(-big))


@pytest.fixture(scope="module")
def many():
    """35 queries, more than two blocks; frame 1 has no object, frame 2 nothing but objects."""
    c, x = rand(0, 3, 35, 4), 2 * rand(1, 3, 35, 5, 6)
    c[1, :, -1] += 9
    c[2, :, -1] -= 9
    return c, x


def test_best_query_of_each_pixel(many):
    c, x = many
    p, m = by_hand(c, x, (10, 11))
    objects = p.argmax(-1) != 3
    s = np.where(objects, p.max(-1), 0)[..., None, None] * m
    found = jax.jit(lambda *a: segment(*a, (10, 11), threshold=0.7))(c, x)
    np.testing.assert_allclose(found.score, s.max(1), rtol=1e-5, atol=1e-7)
    want = np.where(objects.any(1)[:, None, None], s.argmax(1), -1)
    np.testing.assert_array_equal(found.winner, want)
    best = np.take_along_axis(p.argmax(-1), want.reshape(3, -1), 1).reshape(want.shape)
    np.testing.assert_array_equal(found.labels, np.where(s.max(1) > 0.7, best + 1, 0))
    assert (found.winner[1] == -1).all() and not found.score[1].any() and not found.labels[1].any()
    scores = np.asarray(found.scores)
    assert scores.shape == (3, 10, 11, 4) and scores.min() >= 0 and scores.max() <= 1
    np.testing.assert_array_equal(scores.argmax(-1), found.labels)
    for k in range(3):
        of_class = np.where((p.argmax(-1) == k)[..., None, None], s, 0).max(1)
        np.testing.assert_allclose(scores[..., k + 1], of_class, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("threshold", [0.5, 0.9])
def test_semantic_rule(many, threshold):
    c, x = many
    p, m = by_hand(c, x, (5, 6))
    want = np.einsum("fnc,fnhw->fchw", p[..., :-1], m)
    run = jax.jit(functools.partial(segment, rule="semantic", threshold=threshold))
    found = run(c, x)
    np.testing.assert_allclose(found.score, want.max(1), rtol=1e-5)
    np.testing.assert_array_equal(found.labels, np.where(want.max(1) > threshold, want.argmax(1) + 1, 0))
    np.testing.assert_array_equal(found.scores.argmax(-1), found.labels)
    assert found.scores.max() <= 1 < found.score.max()
    binary = run(c[..., 2:], x)
    assert binary.scores.shape == (3, 5, 6, 1) and binary.scores.max() <= 1
    assert set(np.unique(binary.labels)) <= {0, 1}


@pytest.mark.parametrize("rule", ["argmax", "semantic"])
def test_inference_does_not_know_the_order(many, rule):
    c, x = many
    order = np.random.default_rng(2).permutation(35)
    run = jax.jit(functools.partial(segment, rule=rule))
    a, b = run(c, x), run(c[:, order], x[:, order])
    np.testing.assert_array_equal(a.labels, b.labels)
    np.testing.assert_allclose(a.scores, b.scores, rtol=1e-5, atol=1e-6)
    alone = run(c[2:], x[2:])
    np.testing.assert_allclose(alone.scores[0], a.scores[2], rtol=1e-5, atol=1e-6)


def test_instances(many):
    c, x = many
    p, m = by_hand(c, x, (10, 12))
    found = jax.jit(lambda *a: instances(*a, (10, 12), count=20, confidence=0.5))(c, x)
    assert found.masks.shape == (3, 20, 10, 12)
    for f in range(3):
        kept = [i for i in np.argsort(-p[f].max(-1)) if p[f, i].argmax() != 3 and p[f, i].max() > 0.5][:20]
        k = len(kept)
        assert found.kept[f].sum() == k and found.kept[f, :k].all()
        np.testing.assert_array_equal(found.queries[f, :k], kept)
        np.testing.assert_array_equal(found.classes[f], [*(p[f, kept].argmax(-1) + 1), *[0] * (20 - k)])
        np.testing.assert_allclose(found.probabilities[f, :k], p[f, kept].max(-1), rtol=1e-5)
        np.testing.assert_allclose(found.masks[f, :k], m[f, kept], rtol=1e-4, atol=1e-6)
        assert not found.masks[f, k:].any() and not found.probabilities[f, k:].any()
    assert not found.kept[1].any() and found.kept[2].sum() > 5
    assert instances(c[:, :4], x[:, :4]).masks.shape == (3, 4, 5, 6)  # fewer queries than asked for


@pytest.mark.parametrize("options, where", [({"rule": "argmx"}, "'rule'.*argmax"), ({"threshold": 1.0}, "threshold")])
def test_bad_inference_options_are_named(many, options, where):
    with pytest.raises(InputError, match=where):
        segment(*many, **options)
