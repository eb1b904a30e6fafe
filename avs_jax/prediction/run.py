"""What a run's method sees and hears of a clip, told by its data set, or by the config where that is not there."""

import dataclasses
import inspect
from collections.abc import Mapping

from avs_jax.data import audio
from avs_jax.data.sources import source_class


def seen_by(name: str, options: Mapping, source=None) -> dict:
    """Arguments of `avs_jax.predict.predict_media`.

    Args:
      name, options: of the run's data set (`avs_jax.data.sources.create_source`).
      source: that data set, or None where it is not on this machine: a video does not need it.
    Returns:
      image_size (None where pictures keep their own), num_frames, front_end, class_names (empty where only the data set
      tells them).
    """
    if source is not None:
        size = None if getattr(source, "own_size", False) else source.image_size
        fields = {k: getattr(source, k) for k in ("num_frames", "class_names", "front_end")}
        return {"image_size": size, **fields}
    cls = source_class(name, options)
    if hasattr(cls, "origin"):  # a packed data set, whose options say what was packed
        cls, options = cls.origin(options), {k: v for k, v in options.items() if v is not None}
    told = {k: p.default for k, p in inspect.signature(cls).parameters.items()} | dict(options)
    described = cls.described(told) if hasattr(cls, "described") else {}
    fields = {"image_size": told.get("image_size") or 224, "num_frames": cls.num_frames, "class_names": ()}
    return {**fields, "front_end": _front_end(told), **described}


def _front_end(told: Mapping):
    """The front end with those of the data set's options that are its own."""
    name = told.get("front_end", "vggish")
    offered = {"seconds": told.get("seconds"), "channels": 2 if told.get("stereo") else None}
    valid = {field.name for field in dataclasses.fields(audio.FRONT_ENDS.get(name, audio.VGGishFrontEnd)) if field.init}
    return audio.front_end(name, **{k: v for k, v in offered.items() if v is not None and k in valid})
