"""A method and data sets small enough to work out by hand: pixels sound where the red channel and the sound agree."""

import jax.numpy as jnp
import numpy as np

from avs_jax.methods import Method, Prediction


class ToySource:
    """Random frames; a second's sound is one number, the threshold that red (binary) must pass. numpy only."""

    num_frames = 5

    def __init__(self, clips=11, size=(12, 14), classes=2, seed=0, embedding=False):
        self.count, self.image_size, self.classes, self.seed, self.embedding = clips, size, classes, seed, embedding
        self.ids = tuple(f"toy-{i:02d}" for i in range(clips))
        self.class_names = ("background", *(f"class {k}" for k in range(1, classes)))

    def front_end(self, waveform, sample_rate, num_frames):
        return np.full((num_frames, 1), np.sqrt(np.mean(np.square(waveform))) * 5, np.float32)

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        rng = np.random.default_rng([self.seed, index])
        frames = rng.integers(0, 256, (5, *self.image_size, 3), dtype=np.uint8)
        truth = rng.integers(1, self.classes, (5, *self.image_size)) * (frames[..., 0] > rng.integers(60, 230))
        truth[rng.random(5) < 0.25] = 0  # silent frames
        truth[rng.random(truth.shape) < 0.1] = 255
        truth[index % 5][rng.random() < 0.2] = 255  # now and then a frame that does not count
        field = "audio_embedding" if self.embedding else "audio"
        labelled = np.ones(5, bool)
        return {
            "frames": frames,
            field: self.audio(index),
            "labels": truth.astype(np.uint8),
            "labelled": labelled,
            "id": self.ids[index],
        }

    def audio(self, index):
        return np.random.default_rng([self.seed, index, 1]).random((5, 1)).astype(np.float32)

    def fingerprint(self):
        return {"source": "toy", "clips": self.count}


def toy_method(classes=1):
    """K = 1: logit = 6 * (red - sound). K > 1: the class is read from green, where red passes the sound."""

    def predict(variables, batch):
        frames = batch["frames"].astype(jnp.float32) / 255
        sound = batch.get("audio", batch.get("audio_embedding"))[..., 0]
        logit = variables["params"]["gain"] * (frames[..., 0] - sound[:, :, None, None])
        if classes == 1:
            scores = 1 / (1 + jnp.exp(-logit))[..., None]
            return Prediction(logit[..., None], scores, (scores[..., 0] > 0.5).astype(jnp.int32))
        offset = jnp.abs(frames[..., 1:2] - jnp.arange(classes) / classes)
        logits = jnp.where(jnp.arange(classes) == 0, -logit[..., None], logit[..., None] - offset)
        scores = jnp.exp(logits) / jnp.exp(logits).sum(-1, keepdims=True)
        return Prediction(logits, scores, jnp.argmax(scores, -1).astype(jnp.int32))

    return Method("toy", {}, classes, "none", lambda *_: VARIABLES, None, predict, lambda p: p)


VARIABLES = {"params": {"gain": np.float32(6.0)}}
