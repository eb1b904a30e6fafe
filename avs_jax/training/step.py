"""The training step: a pure function (state, batch) -> (state, metrics), the same for every method."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from avs_jax.training.state import TrainState


def make_train_step(method, optimizer, *, trainable, learning_rate: Callable, seed: int, ema: float = 0.0,
                    accumulate: int = 1) -> Callable:  # fmt: skip
    """The step to jit, with the state donated.

    Args:
      method: its `loss` is minimised.
      optimizer: an optax transformation of the gradients.
      trainable: tree of bool like the parameters; the others' gradients are never computed.
      learning_rate: step -> rate, for the metrics.
      seed: step t draws from fold_in(key(seed), t), and from nothing else.
      ema: decay of the parameters' moving average; 0 = none.
      accumulate: parts of the batch whose gradients are averaged, one after the other: the memory of one part. The loss
        is the mean of the parts' losses; batch statistics, normalisers and what a loss compares are each part's own.
    Returns:
      (state, batch) -> (state, {name: () float32}). The metrics hold the method's own, `loss`, the norms of gradient,
      update and parameters, the learning rate, and `bad_step` (see TrainState).
    """

    def train_step(state: TrainState, batch):
        rng = jax.random.fold_in(jax.random.key(seed), state.step)
        loss_and_grad = jax.value_and_grad(method.loss, has_aux=True)
        if accumulate > 1:
            loss_and_grad = _in_parts(loss_and_grad, accumulate, trainable)
        (loss, (model_state, metrics)), grads = loss_and_grad(state.params, state.model_state, batch, rng, state.step)
        grads = jax.tree.map(lambda g, t: g if t else jnp.zeros_like(g), grads, trainable)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        moved = optax.apply_updates(state.params, updates)
        # Frozen ones pass as they are: adding zero would turn their -0 into 0, and copy them in every step.
        params = jax.tree.map(lambda new, old, t: new if t else old, moved, state.params, trainable)
        grad_norm = optax.tree.norm(grads)

        # A step that is not finite leaves everything as it was, and so do all after it: no host has to look meanwhile.
        finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
        bad_step = jnp.where((state.bad_step < 0) & ~finite, state.step, state.bad_step)
        new = state.replace(step=state.step + 1, params=params, model_state=model_state, opt_state=opt_state)
        if ema:
            averaged = optax.incremental_update(params, state.ema, 1 - ema)  # of frozen ones: themselves, unrounded
            new = new.replace(ema=jax.tree.map(lambda a, old, t: a if t else old, averaged, state.ema, trainable))
        kept = jax.tree.map(lambda a, b: a if a is b else jnp.where(bad_step < 0, a, b), new, state)
        new = kept.replace(bad_step=bad_step)

        norms = {"grad_norm": grad_norm, "update_norm": optax.tree.norm(updates), "param_norm": optax.tree.norm(params)}
        return new, {**metrics, "loss": loss, **norms, "lr": learning_rate(state.step), "bad_step": bad_step}

    return train_step


def _in_parts(loss_and_grad: Callable, parts: int, trainable) -> Callable:
    """`loss_and_grad` of a batch as the mean over `parts` of it; model_state passes from one part to the next."""

    def split(x):  # every parts-th clip, so that each device's share of a part is its own
        return x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1)

    def run(params, model_state, batch, rng, step):
        def one(carry, inputs):
            model_state, total = carry
            part, i = inputs
            (loss, (model_state, metrics)), grads = loss_and_grad(
                params, model_state, part, jax.random.fold_in(rng, i), step
            )
            total = jax.tree.map(lambda sum, g, t: sum + g if t else sum, total, grads, trainable)
            return (model_state, total), (loss, metrics)

        start = model_state, jax.tree.map(jnp.zeros_like, params)
        scanned = jax.tree.map(split, batch), jnp.arange(parts)
        (model_state, total), (losses, metrics) = jax.lax.scan(one, start, scanned)
        mean = jax.tree.map(lambda x: x.mean(0), metrics)
        return (losses.mean(), (model_state, mean)), jax.tree.map(lambda g: g / parts, total)

    return run
