"""The record: one clip as every source yields it and every method receives it."""

from typing import Any

import numpy as np

from avs_jax.errors import InputError

Clip = dict[str, Any]
"""One clip before batching (T frames of H x W pixels; T = 5 for AVSBench, 10 for its semantic setting):

| field             | shape, dtype                         | meaning                                                   |
|-------------------|--------------------------------------|-----------------------------------------------------------|
| `frames`          | (T, H, W, 3) uint8                   | RGB, normalised on the device (float32: already done)     |
| `audio`           | the front end's own, float32         | (T, 96, 64) log-mel for VGGish, (T, samples) for CAVP     |
| `audio_embedding` | (T, 128) float32                     | in place of `audio`: a frozen encoder's cached output     |
| `labels`          | (T, H, W) uint8                      | class of the sounding object; 0 background, 255 ignore    |
| `labelled`        | (T,) bool                            | frames whose labels may be trained on                     |
| `present`         | (T,) bool, optional                  | False where a frame only fills up a short clip            |
| `size`            | (2,) int32, optional                 | height and width of the pictures, top left in `frames`    |
| `id`              | str                                  | names the clip in errors, reports and tables              |

A batch stacks these with a leading B, leaves `id` on the host, and adds `index` (B,) int32, the clip's position in its
source, and `valid` (B,) bool, False on the copies that pad a last batch.
Where clips are paired (`avs_jax.data.pairing`), it also has `audio_shuffled`, shaped as `audio`, the sound of another
clip, and `match` (B, K) bool, the classes whose labels hold with that sound.

What `frames` and `audio` hold where `present` is False means nothing, and a method must not let it matter: the public
pipeline's padding is zero after normalisation, which no uint8 is, so the method itself zeroes the normalised frames and
the sound there. (Sources put zeros; augmentation and another clip's sound may put anything.) Such a frame is never
`labelled`; its `labels` are 0 where it is to be scored as background, as the public semantic figures do, or 255.

With `size` the frames are canvases, larger than the pictures so that clips of many sizes have few shapes. What lies to
the right of the pictures and below means nothing there either, to a prediction; its labels are 255. Training takes the
canvas for the picture, and augmentation drops `size`.
"""

SEEN = ("frames", "size", "present")  # the fields a prediction is made from, with a sound

IGNORE = 255  # label of a pixel that is neither trained on nor scored


def validate(clip: Clip, *, num_classes: int = 2, where: str = "") -> Clip:
    """Checks one clip against the record and returns it unchanged.

    Args:
      clip: the record.
      num_classes: labels must be below this, or 255 (ignore). 2 for the binary settings.
      where: what to call the clip in an error; its `id` when empty.
    Raises:
      InputError: naming the clip and the field, what was expected and what was found.
    """
    name = where or f"clip '{clip.get('id', '?')}'"

    def fail(field, expected, found):
        raise InputError(f"{name}, field '{field}'", expected=expected, found=found)

    for field in ("frames", "labels", "labelled", "id"):
        if field not in clip:
            fail(field, "to be present", "fields " + ", ".join(sorted(clip)))
    if ("audio" in clip) == ("audio_embedding" in clip):
        fail("audio", "exactly one of 'audio' and 'audio_embedding'", "both" if "audio" in clip else "neither")
    frames, labels, labelled = clip["frames"], clip["labels"], clip["labelled"]
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype not in (np.uint8, np.float32):
        fail("frames", "(T, H, W, 3) uint8 or float32", f"{frames.shape} {frames.dtype}")
    if labels.shape != frames.shape[:3] or labels.dtype != np.uint8:
        fail("labels", f"{frames.shape[:3]} uint8", f"{labels.shape} {labels.dtype}")
    if labelled.shape != frames.shape[:1] or labelled.dtype != np.bool_:
        fail("labelled", f"{frames.shape[:1]} bool", f"{labelled.shape} {labelled.dtype}")
    if "present" in clip:
        _check_present(clip, fail)
    if "size" in clip:
        _check_size(clip, fail)
    field = "audio" if "audio" in clip else "audio_embedding"
    audio = clip[field]
    if audio.dtype != np.float32:
        fail(field, "float32", str(audio.dtype))
    if not np.isfinite(audio).all():
        fail(field, "finite numbers", f"{int((~np.isfinite(audio)).sum())} NaN or infinite values")
    bad = labels[(labels >= num_classes) & (labels != IGNORE)]
    if bad.size:
        fail("labels", f"values below {num_classes}, or {IGNORE} for ignore", f"value {int(bad[0])}")
    return clip


def bare(clip: Clip) -> Clip:
    """The clip with frames and labels cut to the pictures, without `size`."""
    if "size" not in clip:
        return clip
    height, width = clip["size"]
    cut = {field: clip[field][:, :height, :width] for field in ("frames", "labels")}
    return {k: v for k, v in clip.items() if k != "size"} | cut


def _check_size(clip: Clip, fail) -> None:
    size, canvas = clip["size"], clip["labels"].shape[1:]
    if size.shape != (2,) or size.dtype != np.int32:
        fail("size", "(2,) int32", f"{size.shape} {size.dtype}")
    if (size < 1).any() or (size > canvas).any():
        fail("size", f"1 x 1 to {canvas[0]} x {canvas[1]} pixels, the frames'", f"{size[0]} x {size[1]}")
    if (clip["labels"][:, size[0] :] != IGNORE).any() or (clip["labels"][:, :, size[1] :] != IGNORE).any():
        fail("labels", f"{IGNORE} beyond the pictures of {size[0]} x {size[1]} pixels", "other labels")


def _check_present(clip: Clip, fail) -> None:
    present, labels = clip["present"], clip["labels"]
    if present.shape != labels.shape[:1] or present.dtype != np.bool_:
        fail("present", f"{labels.shape[:1]} bool", f"{present.shape} {present.dtype}")
    if not present.any():
        fail("present", "at least one frame to be present", "none")
    if (clip["labelled"] & ~present).any():
        fail("labelled", "present frames only", f"frame {int(np.argmax(clip['labelled'] & ~present))}, which is not")
    absent = labels[~present]
    if ((absent != 0) & (absent != IGNORE)).any():
        fail("labels", f"0 or {IGNORE} in frames that are not present", f"value {int(absent[absent % IGNORE > 0][0])}")
