"""What must not change TransAVS's loss and gradients: the order of queries, frames and clips, memory saved by computing
twice, how many devices share a batch, and, up to their digits, half precision."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from transavs_small import SMALL, assert_same_gradients, confident, losses_of, make_batch

import avs_jax
from avs_jax.losses.audio_query import query_diversity

ROOT = Path(__file__).parent.parent
SWIN = {"backbone": "swin_t", "width": 32, "depths": (1, 1, 1, 1), "drop_path": 0.0}


def varied_batch():
    """Every frame of every clip has another object."""
    batch = make_batch()
    for i, frame in enumerate(batch["labels"].reshape(6, 32, 32)):
        frame[:] = np.roll(frame, (i, 2 * i), (0, 1))
    return batch


@pytest.fixture(scope="module")
def plain():
    """(variables, batch, method's loss, its value, metrics and gradients)."""
    method, batch = avs_jax.create("transavs", **SMALL), varied_batch()
    variables, loss = confident(method.init(jax.random.key(0))), losses_of(method)
    (value, (_, metrics)), grads = loss(variables, batch)
    assert metrics["n1"] > 1 and metrics["aqdl"] > 0 and metrics["aqml"] > 0 and metrics["dice"] > 0
    return variables, batch, loss, value, metrics, grads


# ---- Order


@pytest.mark.parametrize("axis", [0, 1], ids=["clips", "frames"])
def test_order_of_clips_and_frames_changes_nothing(plain, axis):
    variables, batch, loss, value, metrics, grads = plain
    order = [[1, 0], [2, 0, 1]][axis]
    moved = {k: np.take(v, order, axis) if v.ndim > axis else v for k, v in batch.items()}
    (found, (_, others)), gradients = loss(variables, moved)
    np.testing.assert_allclose(found, value, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), others, metrics)
    assert_same_gradients(gradients, grads)
    moved["labels"] = batch["labels"]  # of other frames
    assert abs(loss(variables, moved)[0][0] - value) > 1e-3


def reordered(params, order):
    """The parameters that belong to a query each, in another order."""
    n, queries = len(order), params["queries"]
    linear = {k: v.reshape(*v.shape[:-1], n, -1)[..., order, :].reshape(v.shape) for k, v in queries["linear"].items()}
    transformer = {**params["transformer"], "query_positions": params["transformer"]["query_positions"][order]}
    return {**params, "queries": {**queries, "linear": linear}, "transformer": transformer}


def test_order_of_queries_changes_nothing(plain):
    variables, batch, loss, value, metrics, grads = plain
    order = np.random.default_rng(0).permutation(SMALL["num_queries"])
    (found, (_, others)), gradients = loss({**variables, "params": reordered(variables["params"], order)}, batch)
    np.testing.assert_allclose(found, value, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), others, metrics)
    assert_same_gradients(gradients, reordered(grads, order))


# ---- Memory


@pytest.mark.parametrize("options", [{}, pytest.param(SWIN, marks=pytest.mark.slow)], ids=["resnet", "swin"])
def test_layers_computed_twice_give_the_same(plain, options):
    batch, found = plain[1], []
    for remat in (False, True):
        method = avs_jax.create("transavs", **{**SMALL, **options}, remat=remat)
        variables = confident(method.init(jax.random.key(0)))
        found.append(losses_of(method)(variables, batch))
    ((value, (_, metrics)), grads), ((again, (_, others)), gradients) = found
    np.testing.assert_allclose(again, value, rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), others, metrics)
    largest = max(np.abs(g).max() for g in jax.tree.leaves(grads))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6 * largest), gradients, grads)


# ---- Devices

TWO_DEVICES = """
import sys

import jax
import numpy as np
from transavs_small import SMALL, confident, make_batch

import avs_jax
from avs_jax.training.sharding import layout

assert jax.device_count() == 2
method, batch = avs_jax.create("transavs", **SMALL | dict(encoder_layers=0, decoder_layers=1)), make_batch(t=2)
batch["labels"][1] = 0  # all targets are on the first device: a count of its own would be another one
variables = confident(method.init(jax.random.key(0)))
state = {k: v for k, v in variables.items() if k != "params"}
where, arguments = layout(2), (variables["params"], state)
for labelled in ([True, True], [True, False]):
    batch["labelled"][1] = labelled
    step = jax.value_and_grad(lambda params, state, batch: method.loss(params, state, batch, jax.random.key(0), 0),
                              has_aux=True)
    alone, grads = jax.jit(step)(*jax.device_put((*arguments, batch), jax.devices()[0]))
    shared, gradients = jax.jit(step, in_shardings=(where.replicated, where.replicated, where.data),
                                out_shardings=where.replicated)(*arguments, batch)
    assert alone[1][1]["dice"] > 0 and alone[1][1]["n1"] > 1
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), shared[1][1], alone[1][1])
    atol = 1e-5 * max(abs(g).max() for g in jax.tree.leaves(grads))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=atol), gradients, grads)
"""


@pytest.mark.slow
def test_two_devices_count_targets_together():
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=2", "PYTHONPATH": path}
    done = subprocess.run([sys.executable, "-c", TWO_DEVICES], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# ---- Half precision


def test_half_precision_is_near(plain):
    variables, batch, _, value, metrics, grads = plain
    method = avs_jax.create("transavs", **SMALL, compute_dtype="bfloat16")
    (found, (_, others)), gradients = losses_of(method)(variables, batch)
    assert found.dtype == jnp.float32 and all(g.dtype == jnp.float32 for g in jax.tree.leaves(gradients))
    np.testing.assert_allclose(found, value, rtol=0.02)
    for term in ("focal", "dice", "aux_focal", "aux_dice"):
        np.testing.assert_allclose(others[term], metrics[term], rtol=0.05)
    a, b = (np.concatenate([np.ravel(g) for g in jax.tree.leaves(tree)]) for tree in (grads, gradients))
    assert np.isfinite(b).all() and a @ b > 0.95 * np.linalg.norm(a) * np.linalg.norm(b)


def products_of(jaxpr):
    """Its matrix products, also those inside the functions it calls."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            yield equation
        for value in equation.params.values():
            if hasattr(value, "jaxpr"):
                yield from products_of(value.jaxpr)


def test_distances_of_queries_are_float32_in_half_precision():
    """Products of 8 bits would leave no digit of the distance between queries that are alike."""
    half = jnp.bfloat16
    arguments = jnp.ones((2, 6, 8), half), jnp.ones((2, 6), bool), jnp.ones((8, 8), half)
    products = list(products_of(jax.make_jaxpr(query_diversity)(*arguments)))
    assert len(products) == 2  # h and the Gram matrix
    for product in products:
        assert {v.aval.dtype for v in (*product.invars, *product.outvars)} == {jnp.dtype("float32")}
        assert set(product.params["precision"]) == {jax.lax.Precision.HIGHEST}
    method = avs_jax.create("transavs", **SMALL, compute_dtype="bfloat16")
    batch = varied_batch()
    variables = jax.eval_shape(method.init, jax.random.key(0))
    state = {k: v for k, v in variables.items() if k != "params"}
    loss, (_, metrics) = jax.eval_shape(method.loss, variables["params"], state, batch, jax.random.key(0), 0)
    assert {x.dtype for x in (loss, *metrics.values())} == {jnp.dtype("float32")}
