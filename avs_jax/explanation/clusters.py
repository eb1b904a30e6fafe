"""Clusters of sounds, the same for all runs of a picture, and their names."""

import collections
from collections.abc import Mapping, Sequence

import numpy as np

from avs_jax.errors import InputError
from avs_jax.explanation.inputs import Run
from avs_jax.explanation.space import cluster
from avs_jax.pictures import sound_names

UNKNOWN = 7  # clusters where nobody says how many kinds of sounds there are
MOST = 20  # clusters without being asked: colours to tell apart


def hearing_run(runs: Sequence[Run], heard: Sequence[Mapping | None], audio: str) -> tuple[Run, Mapping]:
    """The first run that hears, and what it hears.

    Raises:
      InputError: none does.
    """
    for run, sounds in zip(runs, heard, strict=True):
        if sounds is not None:
            return run, sounds
    raise InputError("--workdir", expected=f"a run that hears, for its audio features '{audio}'",
                     found="only runs without sound", hint="Add the --workdir of one that hears.")  # fmt: skip


def cluster_sounds(sounds: Mapping, source, clusters: int, seed: int) -> dict:
    """{(clip, frame): cluster} of {(clip, frame): audio features (D,)}.

    clusters: 0: as many as the source has classes without background, or names for sounds, at most 20; else 7. In any
      case at most one for every two sounds.
    """
    if not clusters:
        classes = len(source.class_names) - 1 if len(source.class_names) > 2 else 0
        clusters = min(classes or len(getattr(source, "sound_names", ())) or UNKNOWN, MOST, max(1, len(sounds) // 2))
    found = cluster(np.stack(list(sounds.values())), clusters, seed)
    return dict(zip(sounds, map(int, found), strict=True))


def cluster_names(source, clusters: Mapping, point: str) -> list[str]:
    """The clusters in words: their size, and where the source knows its sounds, the most frequent one and its share."""
    members = collections.defaultdict(list)
    texts = {clip: sound_names(source, clip) for clip in dict.fromkeys(clip for clip, _ in clusters)}
    for (clip, frame), k in clusters.items():
        now = texts[clip]
        members[k].append(None if now is None else now[frame] if point == "frame" else max(now, key=now.count))
    out = []
    for k, names in sorted(members.items()):
        ((text, count),) = collections.Counter(names).most_common(1)
        known = "" if text is None else f"{text or 'silence'} {count / len(names):.0%}, "
        out.append(f"{k + 1}: {known}{len(names)} {point}{'s' * (len(names) > 1)}")
    return out
