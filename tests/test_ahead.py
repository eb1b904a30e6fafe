"""The step that is compiled while a run is still being set up is the step that would have been compiled at its call."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_training import recipe

from avs_jax.train import train
from avs_jax.training import ahead, step
from avs_jax.training.ahead import CompiledAhead


def counted():
    """A jitted step and the list of the batches' shapes that it was traced for."""
    traced = []

    def add(state, batch):
        traced.append(batch["x"].shape)
        if batch["x"].ndim > 1:
            raise TypeError("no such batch")
        return state + batch["x"].sum(), {}

    return jax.jit(add), traced


def shape(*dims):
    return {"x": jax.ShapeDtypeStruct(dims, jnp.float32)}


STATE = jax.ShapeDtypeStruct((), jnp.float32)


def test_compiled_once_and_called():
    add, traced = counted()
    run = CompiledAhead(add, STATE, shape(3))
    state = jnp.float32(0)
    for _ in range(3):
        state, _ = run(state, {"x": jnp.ones(3)})
    assert float(state) == 9 and traced == [(3,)]


def test_another_batch_than_foreseen():
    add, traced = counted()
    run = CompiledAhead(add, STATE, shape(3))
    state, _ = run(jnp.float32(0), {"x": jnp.ones(4)})
    assert float(state) == 4 and traced == [(3,), (4,)]


def test_an_error_is_that_of_the_call():
    add, _ = counted()
    run = CompiledAhead(add, STATE, shape(3, 1))
    with pytest.raises(TypeError, match="no such batch"):
        run(jnp.float32(0), {"x": jnp.ones((3, 1))})


@pytest.mark.parametrize("changes", [{}, {"augment__crop": 16, "augment__scale": (1.0, 1.0)}, {"batch_size": 4}])
def test_a_run_traces_its_step_once(tmp_path, monkeypatch, changes):
    """Else the batch would not be the one that was foreseen."""
    traced, made = [], step.make_train_step

    def counting(*args, **kwargs):
        run = made(*args, **kwargs)

        def train_step(state, batch):
            traced.append({k: v.shape for k, v in batch.items()})
            return run(state, batch)

        return train_step

    monkeypatch.setattr(step, "make_train_step", counting)
    result = train(recipe(steps=3, eval__every_steps=0, **changes), tmp_path)
    assert int(result.state.step) == 3 and len(traced) == 1
    assert traced[0]["frames"][0] == changes.get("batch_size", 2)


def test_the_batch_foreseen_has_embeddings_for_sounds():
    from listening import create

    from avs_jax import create_source
    from avs_jax.training.embeddings import Embedder

    source, method = create_source("synthetic", image_size=32, length=4), create()
    params = jax.eval_shape(method.init, jax.random.key(0), None)["params"]
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    order = {"seed": 0, "batch_size": 2, "augment": None}
    heard = ahead.batch_shapes(method, source, None, params, sharding, order)
    found = ahead.batch_shapes(method, source, Embedder(method, None), params, sharding, order)
    assert heard["audio"].shape == (2, 5, 96, 64) and "audio" not in found
    width = jax.eval_shape(method.embed_audio, params["audio"], np.zeros((1, 96, 64), np.float32)).shape[-1]
    assert found["audio_embedding"].shape == (2, 5, width) and found["frames"].dtype == np.uint8
