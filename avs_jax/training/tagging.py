"""Teaching an audio encoder to name sounds before it is frozen.

The published systems start from a VGGish that has heard AudioSet. Where no such file is at hand and the data set can
say which classes are audible in each window (the embedded one can), a minute of tagging takes its place: the encoder
and a linear head are trained with a binary cross-entropy per class, the head is dropped, and the encoder is frozen
unless the method trains it.
"""

import time
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import optax

from avs_jax.errors import InputError
from avs_jax.models.encoders import vggish
from avs_jax.training.embeddings import Encoder
from avs_jax.training.progress import say


def load_audio(source) -> np.ndarray:
    """Every clip's `audio`, (N, T, ...) float32."""
    first = source.audio(0)
    audio = np.empty((len(source), *first.shape), np.float32)
    with ThreadPoolExecutor(2) as pool:
        for i, heard in enumerate(pool.map(source.audio, range(len(source)))):
            audio[i] = heard
    return audio


def check(method, source, steps: int) -> None:
    """Refuses what cannot be taught.

    Raises:
      InputError: the source cannot say what sounds, or the method has no audio encoder of its own.
    """
    if steps and (not hasattr(source, "sounds") or method.embed_audio is None):
        what = "method" if hasattr(source, "sounds") else "data set"
        raise InputError("tagging.steps", expected=f"0, for a {what} without sounds to name", found=str(steps),
                         hint="Load a pretrained audio encoder, or set method.train_audio=True.")  # fmt: skip


def teach(method, variables, source, audio, *, steps, batch_size, lr, seed):
    """Trains the method's audio encoder to tag sounds with Adam on a cosine to zero; a function of `seed` alone.

    Args:
      method: has `embed_audio`, and variables["params"]["audio"] to train.
      source: has `sounds(i)` (T, C) bool, what is audible in each window of clip i.
      audio: `load_audio(source)`.
      batch_size: windows a step.
    Returns:
      The variables with the trained encoder.
    Raises:
      InputError: as `check`.
    """
    check(method, source, steps)
    start = time.perf_counter()
    tags = np.stack([source.sounds(i) for i in range(len(source))])
    x, y = audio.reshape(-1, *audio.shape[2:]), tags.reshape(-1, tags.shape[-1])  # windows
    train = len(x) - max(1, len(audio) // 20) * audio.shape[1]  # the last clips are held out
    params, tx = variables["params"]["audio"], optax.adam(optax.cosine_decay_schedule(lr, steps))
    width = jax.eval_shape(method.embed_audio, params, x[:1]).shape[-1]
    model = {"encoder": params, "head": {"kernel": jnp.zeros((width, y.shape[-1])), "bias": jnp.zeros(y.shape[-1])}}

    def logits(model, x):
        features = method.embed_audio(model["encoder"], x)
        return features @ model["head"]["kernel"] + model["head"]["bias"]

    @jax.jit
    def step(model, opt_state, x, y):
        grads = jax.grad(lambda m: optax.sigmoid_binary_cross_entropy(logits(m, x), y).mean())(model)
        updates, opt_state = tx.update(grads, opt_state, model)
        return optax.apply_updates(model, updates), opt_state

    rng, opt_state = np.random.default_rng([seed, 1]), tx.init(model)
    for _ in range(steps):
        rows = rng.integers(0, train, batch_size)
        model, opt_state = step(model, opt_state, x[rows], y[rows].astype(np.float32))
    right = (_in_batches(jax.jit(lambda x: logits(model, x) > 0), x[train:]) == y[train:]).mean()
    seconds = time.perf_counter() - start
    say(f"audio encoder: {steps} steps of naming sounds, {right:.1%} right on held-out clips, {seconds:.0f} s")
    # Log-mel features are far from standardised, and so are the embeddings: bring them to order one for what follows.
    embedded = Encoder(method, model["encoder"], audio.shape[1:])(audio[-100:])
    encoder = vggish.rescaled(model["encoder"], 1 / float(embedded.std()))
    return {**variables, "params": {**variables["params"], "audio": encoder}}


def _in_batches(fn, x, size=256):
    """Applies `fn` in batches of one static shape."""
    padded = np.concatenate([x, np.zeros((-len(x) % size, *x.shape[1:]), x.dtype)])
    return np.concatenate([np.asarray(fn(padded[i : i + size])) for i in range(0, len(padded), size)])[: len(x)]
