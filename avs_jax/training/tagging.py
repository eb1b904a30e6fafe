"""Teaching an audio encoder to name sounds before it is frozen.

The published systems start from a VGGish that has heard AudioSet. Where no such file is at hand and the data set can
say which classes are audible in each window (the embedded one can), a minute of tagging takes its place: the encoder
and a linear head are trained with a binary cross-entropy per class, the head is dropped, and the encoder's outputs
for every clip are computed once, so that the frozen part never runs again in training.
"""

import time
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import optax

from avs_jax.errors import InputError


def tag_audio(embed, params, source, *, steps, batch_size, lr, seed, log=print):
    """Trains the audio encoder to tag the sounds of `source`, deterministically in `seed`.

    Args:
      embed: (params, audio (N, ...)) -> (N, D) float32, the method's audio encoder.
      params: the encoder's initial parameters.
      source: has `sounds(i)` (T, C) bool and `audio(i)` (T, ...) float32.
      steps, batch_size, lr: Adam on a cosine to zero, `batch_size` windows a step.
    Returns:
      (trained encoder parameters, embeddings (len(source), T, D) float32, tagging accuracy on the last 5 % of clips).
    Raises:
      InputError: the source cannot say what sounds.
    """
    if not hasattr(source, "sounds"):
        raise InputError(
            "config.tagging.steps", expected="0 for a data set without sound tags", found=str(steps),
            hint="Load a pretrained audio encoder, or set method.train_audio=True.",
        )  # fmt: skip
    start = time.time()
    audio, tags = _load(source)
    held_out = max(1, len(audio) // 20)
    x, y = audio.reshape(-1, *audio.shape[2:]), tags.reshape(-1, tags.shape[-1])  # windows
    train = len(x) - held_out * audio.shape[1]
    head = {"kernel": jnp.zeros((jax.eval_shape(embed, params, x[:1]).shape[-1], y.shape[-1])), "bias": jnp.zeros(y.shape[-1])}
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(optax.cosine_decay_schedule(lr, steps)))
    variables = {"encoder": params, "head": head}
    opt_state = tx.init(variables)

    def logits(v, x):
        return embed(v["encoder"], x.astype(jnp.float32)) @ v["head"]["kernel"] + v["head"]["bias"]

    @jax.jit
    def step(v, opt_state, x, y):
        grads = jax.grad(lambda v: optax.sigmoid_binary_cross_entropy(logits(v, x), y).mean())(v)
        updates, opt_state = tx.update(grads, opt_state, v)
        return optax.apply_updates(v, updates), opt_state

    rng = np.random.default_rng([seed, 1])
    for _ in range(steps):
        rows = rng.integers(0, train, batch_size)
        variables, opt_state = step(variables, opt_state, x[rows], y[rows].astype(np.float32))
    guess = _in_batches(jax.jit(lambda x: logits(variables, x) > 0), x[train:])
    accuracy = float((guess == y[train:]).mean())
    embeddings = embed_all(embed, variables["encoder"], audio)
    log(f"tagging: {steps} steps, {accuracy:.1%} of held-out tags right, {time.time() - start:.0f} s")
    return variables["encoder"], embeddings, accuracy


def embed_all(embed, params, audio):
    """(N, T, ...) front-end features -> (N, T, D) float32, by the frozen encoder."""
    windows = audio.reshape(-1, *audio.shape[2:])
    out = _in_batches(jax.jit(lambda x: embed(params, x.astype(jnp.float32))), windows)
    return out.reshape(*audio.shape[:2], -1)


def _in_batches(fn, x, size=256):
    """Applies `fn` in batches of one static shape."""
    padded = np.concatenate([x, np.zeros((-len(x) % size, *x.shape[1:]), x.dtype)])
    return np.concatenate([np.asarray(fn(padded[i : i + size])) for i in range(0, len(padded), size)])[: len(x)]


def _load(source):
    """Every clip's audio as float16 (half the memory; tags need no more) and its tags."""
    with ThreadPoolExecutor(2) as pool:
        audio = np.stack(list(pool.map(lambda i: source.audio(i).astype(np.float16), range(len(source)))))
    return audio, np.stack([source.sounds(i) for i in range(len(source))])


class WithEmbeddings:
    """A source whose clips carry a cached `audio_embedding` (T, D) in place of `audio`; the sound is not loaded."""

    def __init__(self, source, embeddings):
        self._source, self._embeddings = source, embeddings

    def __getattr__(self, name):
        if name.startswith("__"):  # pickling asks before __init__ has run
            raise AttributeError(name)
        return getattr(self._source, name)

    def __len__(self):
        return len(self._source)

    def __getitem__(self, index):
        return {**self._source.visual(index), "audio_embedding": self._embeddings[index]}
