"""A run's visual features under its masks, and how it hears the sound that goes with them."""

import contextlib
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from avs_jax.data.clip import IGNORE
from avs_jax.data.pipeline import eval_batches
from avs_jax.data.sources.subset import Subset
from avs_jax.errors import InputError, nearest
from avs_jax.explanation.inputs import FIELDS, Run, pick_stages
from avs_jax.explanation.space import distinct, masked_mean

FEWEST = 5  # points; fewer make no picture


class Points(NamedTuple):
    """Features of n frames, or clips, that have a mask.

    features: (n, C) float32. clip: (n,) position in the source. frame: (n,), 0 for whole clips. left_out: how many have
    an empty mask. heard: {(clip, frame): audio features (D,)}, with those left out; None where nothing is heard. stage:
    the name of the features.
    """

    features: np.ndarray
    clip: np.ndarray
    frame: np.ndarray
    left_out: int
    heard: dict | None
    stage: str


def masked_features(run: Run, indices: Sequence[int], *, stage: str, mask: str, point: str, audio: str) -> Points:
    """Looks at clips of a run's source; the frames that are not `present` are no points.

    Args:
      run, indices: whose clips.
      stage: of the method's visual features; "" is the last.
      mask: "predicted" or "true".
      point: "frame", or "clip": the mean of its frames' features.
      audio: of the method's audio features.
    Raises:
      InputError: a method without features, or without these; too few points.
    """
    extract, names = _extractor(run, stage, mask, audio)
    subset, rows, heard = Subset(run.source, indices), [], {}
    size = min(run.config.eval.batch_size, len(subset))
    batches = eval_batches(subset, batch_size=size, threads=run.config.loader.threads)
    bar = tqdm(total=len(subset), unit="clip", desc=run.workdir.name, leave=False, disable=None, dynamic_ncols=True)
    with contextlib.closing(batches), bar:
        for batch in batches:
            inputs = {k: batch[k] for k in FIELDS if k in batch}
            mean, area, sound = jax.device_get(extract(run.variables, inputs, batch["labels"]))
            present = np.asarray(batch.get("present", np.ones(area.shape, bool)))
            for n in np.flatnonzero(batch["valid"]):
                clip, frames = indices[int(batch["index"][n])], np.flatnonzero(present[n])
                rows += _rows(clip, frames, mean[n], area[n], point)
                if sound is not None:
                    heard |= _sounds(clip, frames, sound[n], point)
            bar.update(int(np.sum(batch["valid"])))
    masked = [row for row in rows if row[2] is not None]
    if len(masked) < FEWEST:
        raise InputError(f"{run.workdir}, {point}s with a mask", expected=f"at least {FEWEST}",
                         found=f"{len(masked)} of {len(rows)}", hint="Take more --clips, or --mask=true.")  # fmt: skip
    clip, frame, features = (np.array(column) for column in zip(*masked, strict=True))
    if (different := distinct(features)) < FEWEST:
        raise InputError(f"{run.workdir}, features '{names[0]}'", expected=f"at least {FEWEST} that differ",
                         found=str(different))  # fmt: skip
    return Points(features, clip, frame, len(rows) - len(masked), heard or None, names[0])


def _extractor(run, stage, mask, audio):
    """The compiled (variables, inputs, labels) -> (features under the masks, areas, audio features or None), and a list
    that has their name once it has run."""
    method, names = run.method, []
    if method.features is None:
        raise InputError(f"{run.workdir}, features", expected="a method that shows its features",
                         found=f"none in '{method.name}'")  # fmt: skip

    @jax.jit
    def extract(variables, inputs, labels):
        found = method.features(variables, inputs)
        labels = labels if mask == "true" else method.predict(variables, inputs).labels
        name = pick_stages(found["visual"], [stage] if stage else [])[-1]
        if found["audio"] and audio not in found["audio"]:
            raise InputError("--audio", expected="audio features of the method", found=repr(audio),
                             hint=nearest(audio, found["audio"]))  # fmt: skip
        marked = (labels > 0) & (labels != IGNORE) & _pictures(inputs, labels.shape)
        mean, area = masked_mean(found["visual"][name], marked)
        names.append(name)  # known to the method alone, and in its order only here: compiled functions sort dicts
        return mean, area, found["audio"].get(audio)

    return extract, names


def _pictures(inputs, shape):
    """(B, 1, H, W) bool: the pixels of the pictures, where these lie on canvases; or True."""
    if "size" not in inputs:
        return True
    height, width = jnp.asarray(inputs["size"]).T[:, :, None, None, None]
    return (jnp.arange(shape[2])[:, None] < height) & (jnp.arange(shape[3]) < width)


def _rows(clip, frames, mean, area, point):
    """[(clip, frame, features, or None under an empty mask)]."""
    if point == "frame":
        return [(clip, int(t), mean[t] if area[t] > 0 else None) for t in frames]
    marked = frames[area[frames] > 0]
    return [(clip, 0, mean[marked].mean(0) if len(marked) else None)]


def _sounds(clip, frames, sound, point):
    if point == "frame":
        return {(clip, int(t)): sound[t] for t in frames}
    return {(clip, 0): sound[frames].mean(0)}
