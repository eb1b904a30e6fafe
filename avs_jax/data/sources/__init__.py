"""Random-access sources of clips, by name."""

import importlib
import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from avs_jax.data.clip import Clip
from avs_jax.errors import InputError, check_options, nearest

SOURCES = {
    "synthetic": "synthetic.SyntheticSource",
    "avsbench": "avsbench.AVSBenchSource",
    "vpo": "vpo.VPOSource",
    "single_plus": "single_plus.SinglePlusSource",
    "packed": "packed.PackedSource",
}
SETTINGS = {("avsbench", "avss"): "avsbench_semantic.AVSBenchSemanticSource"}  # laid out otherwise on disk


class Source(Protocol):
    """What the pipeline, the evaluator and the commands know of a data set.

    A source is immutable, picklable and cheap to construct; `__getitem__` is a pure function of the index, so that
    data workers, shuffles and resumed runs all see the same clips.
    """

    ids: Sequence[str]  # one per clip, unique
    num_frames: int  # T
    image_size: tuple[int, int]  # (H, W) of every frame it yields
    class_names: tuple[str, ...]  # class_names[0] is 'background'; binary settings: ('background', 'sounding')
    front_end: Any  # see avs_jax.data.audio: waveform -> the record's `audio`

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Clip:
        """Clip `index` in 0..len-1 as the record of `avs_jax.data.clip` describes."""

    def audio(self, index: int):
        """Only the `audio` field of clip `index`: what another clip hears when sounds are swapped."""

    def visual(self, index: int) -> Clip:
        """Clip `index` without its `audio`: for a cached `audio_embedding` to take its place."""

    def audio_origin(self, index: int) -> tuple[Any, Path | None] | None:
        """Optional: all that `audio(index)` is a function of, without computing it: (options, as JSON takes them, and
        the one file that is read, None for none). So a cache finds out cheaply that a clip's sound has changed. None
        where it cannot be told."""

    def fingerprint(self) -> dict:
        """JSON-able identity (name, options, length): a run refuses to resume on other data."""


def create_source(name: str, **options) -> Source:
    """The source called `name` with its own keyword options (the config's `data` section).

    Raises:
      InputError: an unknown source or option, naming the nearest valid one.
    """
    cls = source_class(name, options)
    check_options("data", f"the '{name}' source", options, list(inspect.signature(cls).parameters))
    return cls(**options)


def source_class(name: str, options: Mapping) -> type:
    """The class of the source called `name`, which may depend on the option `setting`.

    Raises:
      InputError: an unknown source, naming the nearest valid one.
    """
    if name not in SOURCES:
        raise InputError(
            "data.source", expected="the name of a data set", found=repr(name), hint=nearest(name, SOURCES)
        )
    module, cls = SETTINGS.get((name, str(options.get("setting"))), SOURCES[name]).split(".")
    return getattr(importlib.import_module(f"avs_jax.data.sources.{module}"), cls)
