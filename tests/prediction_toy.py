"""A method for tests of prediction, and what predictions leave behind."""

import json

import jax
import jax.numpy as jnp
import numpy as np

from avs_jax.methods import Method, Prediction
from avs_jax.predict import predict_media

SIZE = (32, 32)


class Toy:
    """A method whose score is the pixel's brightness (binary), that counts its compilations and keeps its batches."""

    def __init__(self, classes=1):
        self.traces, self.batches, self.classes = 0, [], classes
        self.method = Method("toy", {}, classes, "vggish", lambda *_: {}, None, self.predict, lambda p: p)

    def predict(self, variables, batch):
        self.traces += 1
        jax.debug.callback(self._see, batch, ordered=True)
        bright = batch["frames"].astype(jnp.float32).mean(-1, keepdims=True) / 255 * variables["params"]["gain"]
        if self.classes > 1:
            k = jnp.arange(self.classes)
            scores = jax.nn.softmax(-40 * jnp.abs(bright - k / (self.classes - 1)))
            return Prediction(None, scores, jnp.argmax(scores, -1))
        return Prediction(None, bright, (bright[..., 0] > 0.5).astype(jnp.int32))

    def _see(self, batch):
        self.batches.append({k: np.array(v) for k, v in batch.items()})

    def run(self, input, output, gain=1.0, **options):
        options = {"image_size": SIZE, "progress": False, **options}
        return predict_media(self.method, {"params": {"gain": np.float32(gain)}}, input, output, **options)


def report(folder):
    return json.loads((folder / "predictions.json").read_text())
