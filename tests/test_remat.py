"""What is computed again in the backward pass changes memory only. TransAVS: test_transavs_invariance.py."""

import jax
import numpy as np
import pytest

import avs_jax
from avs_jax.data.sources import create_source
from avs_jax.training import build
from benchmarks.memory import alive_at_most

TPAVI = dict(setting="ms3", width=4, channels=8, neck_dilations=(1, 2), head_channels=(8, 4), audio_width=4,
             audio_hidden=16)  # fmt: skip
CAVP = dict(width=4, channels=12, low=4, projector=8, audio_width=4, max_views=4)
CASES = {
    "tpavi": ("tpavi", {**TPAVI, "backbone": "resnet10"}, {}),
    "cavp": ("cavp", {**CAVP, "backbone": "resnet18", "contrastive": 0.0}, {"still": True, "front_end": "waveform"}),
}


def gradient(name, options, source, again):
    """(loss and gradients as a function of the parameters, its arguments) of a step on two clips."""
    method = avs_jax.create(name, **options, remat=again)
    clips = [build.example_batch(create_source("synthetic", image_size=64, length=2, seed=s, **source)) for s in (0, 1)]
    batch = {k: np.concatenate([clip[k] for clip in clips]) for k in clips[0]}
    variables = dict(method.init(jax.random.key(0), batch))
    params = variables.pop("params")

    def run(params):
        (value, (state, _)), grads = jax.value_and_grad(method.loss, has_aux=True)(
            params, variables, batch, jax.random.key(1), 0
        )
        return value, state, grads

    return run, params


@pytest.mark.parametrize("case", ["tpavi", pytest.param("cavp", marks=pytest.mark.slow)])
def test_the_same_step_in_less_memory(case):
    (plain, params), (again, _) = (gradient(*CASES[case], again) for again in (False, True))
    expected, found = jax.jit(plain)(params), jax.jit(again)(params)
    largest = max(np.abs(x).max() for x in jax.tree.leaves(expected[2]))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(b, a, rtol=1e-4, atol=1e-5 * largest), expected, found)
    needed = [alive_at_most(jax.make_jaxpr(run)(params).jaxpr) for run in (plain, again)]
    assert needed[1] < 0.95 * needed[0]
