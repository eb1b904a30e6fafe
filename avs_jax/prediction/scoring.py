"""The method at work: batches in, each frame's scores out, and its objects where they are asked for."""

from collections.abc import Iterable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from avs_jax.errors import InputError
from avs_jax.prediction.clips import Clip, Pick


def score(
    method, variables, batches: Iterable[tuple[dict, list[Clip]]], count: int = 0, confidence: float = 0.0
) -> Iterator[tuple[Pick, np.ndarray, dict | None]]:
    """Yields (pick, its scores (h, w, K) float32, its objects), clip by clip, from batches of one shape: one
    compilation.

    A batch is read back only after the next one has been handed to the device, which so never waits for the disk.

    Args:
      count: Q, of the most probable objects; 0: none, and the third is None.
      confidence: what their probability exceeds.
    Returns:
      The objects as `Method.instances` gives them, for the one frame: masks (Q, h, w), in 255ths as uint8;
      probabilities (Q,) float32; classes (Q,) and queries (Q,) int32; kept (Q,) bool.
    Raises:
      InputError: scores that are not finite.
    """

    @jax.jit
    def predict(variables, batch):
        scores = method.predict(variables, batch).scores
        if not count:
            return scores, None
        found = method.instances(variables, batch, count=count, confidence=confidence)._asdict()
        return scores, {**found, "masks": jnp.round(255 * found["masks"]).astype(jnp.uint8)}

    def read_back(running, clips):
        scores, found = jax.device_get(running)
        scores = np.asarray(scores, np.float32)
        for b, clip in enumerate(clips):  # padding has no clip
            if not np.isfinite(scores[b]).all():
                raise InputError(f"the clip at {clip.start:.2f} s", expected="finite scores", found="NaN or infinity",
                                 hint="The checkpoint's parameters are probably not finite.")  # fmt: skip
            for t, pick in enumerate(clip.picks):
                if pick is not None:
                    yield pick, scores[b, t], found and {name: value[b, t] for name, value in found.items()}

    variables = jax.device_put(variables)
    waiting = None
    for batch, clips in batches:
        running = (predict(variables, batch), clips)
        if waiting is not None:
            yield from read_back(*waiting)
        waiting = running
    if waiting is not None:
        yield from read_back(*waiting)
