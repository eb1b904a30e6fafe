"""A trained run, and which of its clips and stages to explain."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from avs_jax.data.clip import SEEN
from avs_jax.errors import InputError, nearest
from avs_jax.paths import to_path

FIELDS = (*SEEN, "audio", "audio_embedding")  # of the record: what a method sees and hears


class Run(NamedTuple):
    """A trained run: where it lies, its config, a split of its data, the method and its variables."""

    workdir: Path
    config: Any
    source: Any
    method: Any
    variables: Any


def open_run(workdir: str | Path, checkpoint: str, split: str, data: Mapping | None = None) -> Run:
    """Reads a run.

    Raises:
      InputError: no such run or checkpoint, or a data set that is missing.
    """
    from avs_jax import config as configs
    from avs_jax.training.build import build_source
    from avs_jax.training.checkpoint import load_checkpoint

    workdir = to_path(workdir)
    config = configs.load(workdir / "config.json")
    config.data[split].update(data or {})
    source = build_source(config, split)
    return Run(workdir, config, source, *load_checkpoint(workdir, which=checkpoint))


def choose_clips(source, clips: int, ids: Sequence[str] = ()) -> list[int]:
    """Positions of the clips called `ids`, or of `clips` of them (0: all), evenly spread over the source.

    Raises:
      InputError: no such clip, naming the nearest; a negative number.
    """
    known = {name: index for index, name in enumerate(source.ids)}
    for name in ids:
        if name not in known:
            raise InputError("--ids", expected="ids of clips of this split", found=repr(name),
                             hint=nearest(name, known) or f"Ids look like '{source.ids[0]}'.")  # fmt: skip
    if ids:
        return [known[name] for name in dict.fromkeys(ids)]
    if clips < 0 or not known:
        raise InputError("--clips", expected="0 (all) or more, of at least one", found=f"{clips} of {len(known)}")
    count = min(clips or len(known), len(known))
    return [(2 * n + 1) * len(known) // (2 * count) for n in range(count)]


def pick_stages(available: Mapping, wanted: Sequence[str]) -> list[str]:
    """The stages asked for, "4" standing for "stage4"; all of them where none is."""
    names = [f"stage{name}" if f"stage{name}" in available else name for name in wanted]
    for name, asked in zip(names, wanted, strict=True):
        if name not in available:
            raise InputError("--stage", expected="a stage of the method", found=repr(asked),
                             hint=nearest(name, available))  # fmt: skip
    return names or list(available)
