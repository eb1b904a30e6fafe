"""The PyTorch network of the side-by-side benchmark computes what ours does. Needs torch (extra `test-torch`)."""

import jax
import numpy as np
import pytest

import avs_jax
from benchmarks import tpavi as ours

torch = pytest.importorskip("torch")

from benchmarks import torch_tpavi as theirs  # noqa: E402

SMALL = {"width": 4, "channels": 8, "head_channels": (8, 4)}


@pytest.fixture(scope="module")
def problem():
    method, variables, batch = ours.problem("resnet50", 2, 64, "float32", **SMALL, audio_width=2, audio_hidden=8)
    r = np.random.default_rng(1)
    spread = lambda x: x + r.normal(scale=0.1, size=x.shape).astype(np.float32)  # noqa: E731
    variables = {**variables, "params": jax.tree.map(spread, variables["params"])}  # no bias or shift is zero
    return method, variables, batch


def network(problem, fusion, channels_last=False):
    method, variables, _ = problem
    named = avs_jax.to_torch(method, variables | {"params": {**variables["params"], "audio": audio_of(method)}})
    net = theirs.Network(fusion, **SMALL)
    wanted = net.state_dict()
    net.load_state_dict({k: torch.from_numpy(np.array(v)) for k, v in named.items() if k in wanted})
    left_out = {k for k in named if k not in wanted}
    dead = ("resnet.layer3_2.", "resnet.layer4_2.", "path4.resConfUnit1.", "features.", "embeddings.")
    assert all(k.startswith(dead) for k in left_out)
    return theirs.with_channels_last(net) if channels_last else net


def audio_of(method):
    shapes = jax.eval_shape(method.init, jax.random.key(0))["params"]["audio"]
    return jax.tree.map(lambda x: np.zeros(x.shape, np.float32), shapes)


def tensors(batch):
    return {k: torch.from_numpy(np.array(v)) for k, v in batch.items()}


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("fusion", theirs.FUSIONS)
def test_scores_and_a_training_step_are_ours(problem, fusion, channels_last):
    method, variables, batch = problem
    net = network(problem, fusion, channels_last).eval()
    want = np.asarray(method.predict(variables, batch).scores)[..., 0]
    got = theirs.scores(net, tensors(batch), channels_last).numpy().reshape(want.shape)
    np.testing.assert_allclose(got, want, atol=2e-5)
    runs, state = ours.functions(method, variables)
    state, loss = jax.jit(runs["train"])(state, batch)
    adam = torch.optim.Adam(net.parameters(), lr=1e-4)
    found = theirs.training_step(net.train(), adam, tensors(batch), channels_last)
    assert abs(float(found) - float(loss)) <= 1e-5 * float(loss)
    after = {"params": {**state[0], "audio": audio_of(method)}, "batch_stats": state[1]}
    named, updated = avs_jax.to_torch(method, after), net.state_dict()
    for key, value in updated.items():
        if "running" in key:
            np.testing.assert_allclose(value.numpy(), named[key], rtol=1e-4, atol=1e-5, err_msg=key)
    # Adam's first update is the learning rate times the gradient's sign: where gradients are rounding alone, a coin
    same = [np.isclose(v.numpy(), named[k], atol=2e-6).mean() for k, v in updated.items() if v.ndim > 1]
    assert np.mean(same) > 0.98
