"""A method that compiles in a second, with everything that makes resuming hard: BatchNorm, dropout, a schedule."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from avs_jax.methods import Method, Prediction


class Network(nn.Module):
    @nn.compact
    def __call__(self, frames, audio, train):
        x = frames.astype(jnp.float32) / 255
        x = nn.Conv(6, (1, 3, 3), name="encoder")(x)
        x = nn.BatchNorm(use_running_average=not train)(x)
        x = nn.relu(x + nn.Dense(6, name="audio")(audio.mean((-1, -2))[:, :, None, None, None]))
        x = nn.Dropout(0.2, deterministic=not train)(x)
        return nn.Dense(1, name="head")(x)


def create(nan_after: int = 0, width: int = 6) -> Method:
    """nan_after: the loss of this step (0-based) and later ones is not a number; 0 = never."""
    network = Network()

    def init(rng, batch):
        return dict(network.init(rng, jnp.asarray(batch["frames"]), jnp.asarray(batch["audio"]), False))

    def loss(params, model_state, batch, rng, step):
        logits, state = network.apply({"params": params, **model_state}, batch["frames"], batch["audio"], True,
                                      mutable=["batch_stats"], rngs={"dropout": rng})  # fmt: skip
        error = (jax.nn.sigmoid(logits[..., 0]) - (batch["labels"] == 1)) ** 2
        value = error.mean() + (jnp.where(step >= nan_after, jnp.nan, 0.0) if nan_after else 0.0)
        return value, (state, {"squared_error": value})

    def predict(variables, batch):
        logits = network.apply(variables, batch["frames"], batch["audio"], False)
        scores = jax.nn.sigmoid(logits)
        return Prediction(logits, scores, (scores[..., 0] > 0.5).astype(jnp.int32))

    def param_groups(params):
        groups = {"encoder": "encoder", "audio": "frozen"}
        return {k: jax.tree.map(lambda _, k=k: groups.get(k, "head"), v) for k, v in params.items()}

    return Method("small", {"nan_after": nan_after, "width": width}, 1, "vggish", init, loss, predict, param_groups)
