"""What a training step changes, in one small struct."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp


@flax.struct.dataclass
class TrainState:
    """The model and the optimiser are not in it: they are functions.

    Attributes:
      step: () int32, steps done. The only clock: schedules and random numbers derive from it.
      bad_step: () int32, the step at which loss or gradient first was not finite (0-based), -1 for none. From then on
        steps leave the state as it was, so that it stays the last good one until the host looks.
      params: the parameters, float32.
      model_state: the variables without the parameters, e.g. {"batch_stats": ...}.
      opt_state: the optimiser's.
      ema: moving average of the parameters, or None.
    """

    step: jax.Array
    bad_step: jax.Array
    params: Any
    model_state: Any
    opt_state: Any
    ema: Any = None

    @classmethod
    def create(cls, variables, optimizer, *, ema: bool = False) -> "TrainState":
        """The state before the first step, from a method's variables."""
        model_state = dict(variables)
        params = model_state.pop("params")
        return cls(
            step=jnp.zeros((), jnp.int32),
            bad_step=jnp.full((), -1, jnp.int32),
            params=params,
            model_state=model_state,
            opt_state=optimizer.init(params),
            ema=jax.tree.map(jnp.copy, params) if ema else None,  # a copy: a buffer cannot be donated twice
        )

    @property
    def variables(self) -> dict:
        """What to evaluate and predict with: the moving average of the parameters where there is one."""
        return {"params": self.params if self.ema is None else self.ema, **self.model_state}
