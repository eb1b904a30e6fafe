"""A method that compiles in a second and hears through a frozen encoder; `trained` lets the encoder learn."""

import jax
import jax.numpy as jnp
import numpy as np

from avs_jax.methods import Method, Prediction

WIDTH = 6


def embed_audio(params, windows):
    x = jnp.tanh(windows.reshape(len(windows), 12, -1).mean(1) @ params["hidden"])
    return jax.nn.relu(x @ params["out"])


def create(trained: bool = False, deaf: bool = False, channels: int = 3) -> Method:
    """channels: of the visual part; the audio encoder's first values do not depend on it."""

    def init(rng, batch=None):
        hear, see = jax.random.split(rng)
        normal = jax.random.normal
        audio = {"hidden": normal(hear, (512, 16)) / 16, "out": normal(hear, (16, WIDTH))}
        head = {"colour": normal(see, (3, channels)), "sound": normal(see, (WIDTH, channels))}
        return {"params": {"audio": audio, "head": head}, "batch_stats": {}}

    def logits(params, batch):
        frames = batch["frames"].astype(jnp.float32) / 255
        heard = batch.get("audio_embedding")
        if heard is None:
            audio = batch["audio"]
            heard = embed_audio(params["audio"], audio.reshape(-1, *audio.shape[2:])).reshape(*audio.shape[:2], -1)
        seen, heard = frames @ params["head"]["colour"], heard @ params["head"]["sound"]
        return (seen * heard[:, :, None, None]).sum(-1)

    def loss(params, model_state, batch, rng, step):
        error = (jax.nn.sigmoid(logits(params, batch)) - (batch["labels"] == 1)) ** 2
        return error.mean(), (model_state, {"squared_error": error.mean()})

    def predict(variables, batch):
        scores = jax.nn.sigmoid(logits(variables["params"], batch))
        return Prediction(None, scores[..., None], (scores > 0.5).astype(jnp.int32))

    def param_groups(params):
        groups = {"audio": "audio" if trained else "frozen"}
        return {k: jax.tree.map(lambda _, k=k: groups.get(k, "head"), v) for k, v in params.items()}

    options = {"trained": trained, "deaf": deaf, "channels": channels}
    return Method("listening", options, 1, "vggish", init, loss, predict, param_groups,
                  embed_audio=None if deaf else embed_audio)  # fmt: skip


def parameters(seed: int = 0) -> dict:
    """{"audio": ...} in numpy."""
    return {"audio": jax.tree.map(np.asarray, create().init(jax.random.key(seed))["params"]["audio"])}
