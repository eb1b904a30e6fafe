"""What methods share in reading a batch: pixels to numbers, which of them count, and clear words on what is missing."""

import jax.numpy as jnp
import numpy as np

from avs_jax.errors import InputError
from avs_jax.models.encoders.vggish import EMBEDDING, EXAMPLE
from avs_jax.models.layers import wide

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, of RGB in [0, 1]
IGNORE = 255
NO_CANVAS = "Set data.pad=0 with eval.batch_size=1 (pictures of their own size), or data.fit=crop (all of one size)."


def fail(field: str, expected: str, found: str):
    """Raises the InputError that names a batch's field."""
    raise InputError(f"batch field '{field}'", expected=expected, found=found)


def checked_frames(batch):
    """The batch's `frames` (B, T, H, W, 3), uint8 or floats already normalised.

    Raises:
      InputError: missing, or of another shape or dtype.
    """
    if "frames" not in batch:
        fail("frames", "to be present", "fields " + ", ".join(sorted(batch)))
    frames = batch["frames"]
    if np.ndim(frames) != 5 or np.shape(frames)[-1] != 3:
        fail("frames", "(B, T, H, W, 3)", str(np.shape(frames)))
    if frames.dtype != np.uint8 and not jnp.issubdtype(frames.dtype, jnp.floating):
        fail("frames", "uint8 RGB, or floats already normalised", str(frames.dtype))
    return frames


def refuse_canvas(batch):
    """For methods that look at whole frames, whatever lies around the pictures in them.

    Raises:
      InputError: the batch has `size`: its frames are canvases, larger than the pictures.
    """
    if "size" in batch:
        raise InputError("batch field 'size'", expected="none: this method would see what lies around the pictures",
                         found="frames that are canvases, of data.pad", hint=NO_CANVAS)  # fmt: skip


def checked_present(batch, dtype=jnp.float32):
    """The batch's `present` (B, T) as 0 and 1 of the dtype; None without it, that is all.

    Raises:
      InputError: another shape.
    """
    present, clips = batch.get("present"), np.shape(batch["frames"])[:2]
    if present is None:
        return None
    if np.shape(present) != clips:
        fail("present", str(clips), str(np.shape(present)))
    return jnp.asarray(present, wide(dtype))


def vggish_sound(batch):
    """What VGGish hears or makes of each frame's sound: `audio_embedding` (B, T, 128) where the batch has it, else
    `audio` (B, T, 96, 64).

    Raises:
      InputError: neither, or another shape.
    """
    field = "audio_embedding" if "audio_embedding" in batch else "audio"
    if field not in batch:
        fail("audio", "'audio' or 'audio_embedding' to be present", "fields " + ", ".join(sorted(batch)))
    shape = (*np.shape(batch["frames"])[:2], *((EMBEDDING,) if field == "audio_embedding" else EXAMPLE))
    if np.shape(batch[field]) != shape:
        fail(field, str(shape), str(np.shape(batch[field])))
    return batch[field]


def normalise(frames, present=None):
    """uint8 RGB -> float32 with ImageNet's mean and deviation; float32 passes, being normalised already.

    Frames that are not `present` (B, T) become zero, as AVSS's public code fills them.
    """
    if frames.dtype != jnp.uint8:
        images = frames.astype(wide(frames.dtype))
    else:
        images = (frames.astype(jnp.float32) / 255 - jnp.asarray(MEAN)) / jnp.asarray(STD)
    return images if present is None else images * present[:, :, None, None, None]


def training_mask(batch):
    """(B, T, H, W) bool: pixels of labelled frames of real clips that are not marked to be ignored."""
    labels = jnp.asarray(batch["labels"])
    mask = (labels != IGNORE) & jnp.asarray(batch["labelled"])[:, :, None, None]
    if "valid" in batch:
        mask = mask & jnp.asarray(batch["valid"])[:, None, None, None]
    return mask


def statistics(variables) -> dict:
    """{"batch_stats": running statistics}, or nothing where no layer keeps any (a PVT without fusion)."""
    return {k: variables[k] for k in ("batch_stats",) if k in variables}
