"""Assignment inside jit against SciPy's: padding, ties, more targets than queries, costs that are no numbers."""

import functools

import jax
import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from avs_jax.losses.matching import assign, matched_targets

CASES = 400  # of each shape
SHAPES = [(1, 1), (30, 1), (1, 3), (24, 20), (20, 20), (6, 6), (9, 4), (5, 8), (3, 20)]  # queries, padded targets


@functools.cache
def compiled(n, m):
    del n, m  # one program a shape
    return jax.jit(assign)


def costs(rng, kind, n, m):
    if kind == "ties":  # few values: many assignments of the same cost
        return rng.integers(0, 4, (CASES, n, m)).astype(np.float32)
    scale = {"real": 5.0, "large": 3e3, "small": 1e-3}[kind]
    return (scale * rng.normal(size=(CASES, n, m))).astype(np.float32)


def check(cost, valid, match):
    """Each target with a query of its own, as many as possible, at the least cost."""
    n = cost.shape[1]
    for c, v, q in zip(cost, valid, match, strict=True):
        targets = np.flatnonzero(q < n)
        assert v[targets].all() and len(set(q[targets])) == len(targets) == min(n, v.sum())
        rows, columns = linear_sum_assignment(c[:, v])
        best, got = c[:, v].astype(np.float64)[rows, columns].sum(), c.astype(np.float64)[q[targets], targets].sum()
        assert got == pytest.approx(best, rel=1e-5, abs=1e-5 * float(abs(c).max()))


@pytest.mark.parametrize("n, m", SHAPES, ids=str)
def test_least_cost_as_scipy_finds_it(n, m):
    rng = np.random.default_rng(n * 100 + m)
    for kind in ("real", "ties", "large", "small"):
        cost = costs(rng, kind, n, m)
        present = rng.integers(0, m + 1, CASES)  # 0 .. m targets, anywhere among the columns
        valid = rng.permuted(np.arange(m) < present[:, None], axis=1)
        match = np.asarray(compiled(n, m)(cost, valid))
        assert match.shape == (CASES, m) and match.dtype == np.int32
        assert (match[~valid] == n).all() and match.min() >= 0
        check(cost, valid, match)


@pytest.mark.parametrize("n, m", [(9, 4), (5, 8), (30, 1)])
def test_equal_costs_still_give_each_target_a_query_of_its_own(n, m):
    cost = np.full((m + 1, n, m), 0.7, np.float32)
    valid = np.tri(m + 1, m, -1, dtype=bool)  # 0 .. m targets
    check(cost, valid, np.asarray(compiled(n, m)(cost, valid)))


def test_what_padding_says_does_not_matter():
    rng = np.random.default_rng(0)
    cost = costs(rng, "real", 9, 4)
    valid = rng.random((CASES, 4)) < 0.5
    match = compiled(9, 4)(cost, valid)
    for filler in (1e9, -1e9, np.nan, np.inf):
        np.testing.assert_array_equal(compiled(9, 4)(np.where(valid[:, None], cost, filler), valid), match)


@pytest.mark.parametrize("n, m", [(9, 4), (5, 8), (30, 1)])
def test_costs_that_are_no_numbers_end_in_a_matching(n, m):
    rng = np.random.default_rng(1)
    cost = costs(rng, "real", n, m)
    cost[rng.random(cost.shape) < 0.3] = np.nan
    cost[rng.random(cost.shape) < 0.2] = np.inf
    cost[:50] = np.nan
    valid = np.ones((CASES, m), bool)
    match = np.asarray(compiled(n, m)(cost, valid))
    check(np.nan_to_num(cost, nan=1e5, posinf=1e5, neginf=-1e5), valid, match)


def test_no_targets_and_no_columns():
    cost = np.zeros((2, 9, 4), np.float32)
    assert (compiled(9, 4)(cost, np.zeros((2, 4), bool)) == 9).all()
    assert assign(np.zeros((2, 9, 0)), np.zeros((2, 0), bool)).shape == (2, 0)


def test_cost_is_not_differentiated():
    cost = np.random.default_rng(0).normal(size=(2, 9, 4)).astype(np.float32)
    grad = jax.grad(lambda c: (c * (assign(c, np.ones((2, 4), bool)).sum())).sum())(cost)
    assert np.unique(np.asarray(grad)).size == 1  # of the factor alone


def test_seen_from_the_queries():
    match = np.array([[2, 5, 0], [5, 5, 5]])
    np.testing.assert_array_equal(matched_targets(match, 5), [[2, -1, 0, -1, -1], [-1] * 5])
