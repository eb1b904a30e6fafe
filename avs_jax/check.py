"""Walks a whole data set and lists everything wrong with it.

    python -m avs_jax.check --config=configs/tpavi.py:setting=ms3 --config.data.root=/data/avsbench_data

Exits with 0 when every clip of every split is sound, 1 when not, 2 when the command line or configuration is wrong.
"""

import functools
import json
import logging
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from avs_jax.data.clip import validate
from avs_jax.errors import InputError
from avs_jax.outputs import check_file
from avs_jax.paths import to_path

SPLITS = ("train", "eval", "test")

log = logging.getLogger(__name__)


class Problem(NamedTuple):
    """One thing wrong with one clip."""

    id: str
    error: InputError


def check(source, threads: int = 4, progress: str | None = None) -> list[Problem]:
    """Reads every clip of a source.

    Args:
      source: any `Source`; one with a method `problems(index)` (AVSBench) is asked for all problems of a clip, of
        others the first one that reading and validating the clip meets is kept.
      threads: clips read at a time.
      progress: the title of a progress bar on stderr; None shows none.
    Returns:
      every problem, in the source's order; empty for a sound data set.
    """
    problems = []
    for index, found in _walk(source, threads, progress):
        problems.extend(Problem(source.ids[index], error) for error in found)
    return problems


def good_indices(source, threads: int = 4, progress: str | None = None) -> tuple[np.ndarray, list[Problem]]:
    """The positions of the clips with no problem, (n,) int64, and the problems of the others."""
    good, problems = [], []
    for index, found in _walk(source, threads, progress):
        problems.extend(Problem(source.ids[index], error) for error in found)
        if not found:
            good.append(index)
    return np.asarray(good, np.int64), problems


def skip_bad(source, threads: int = 4, progress: str | None = None):
    """The source without the clips that have problems, each of which is logged as a warning.

    Returns:
      `source` itself when nothing is wrong, else a `Subset` of it.
    Raises:
      InputError: no clip is left.
    """
    from avs_jax.data.sources.subset import Subset

    good, problems = good_indices(source, threads, progress)
    if not problems:
        return source
    for problem in problems:
        log.warning("skipped clip '%s': %s", problem.id, problem.error)
    log.warning("skipped %d of %d clips", len(source) - good.size, len(source))
    if not good.size:
        first = problems[0].error
        raise InputError("loader.skip_bad", expected="a sound clip", found=f"{len(source)} bad ones, first: {first}")
    return Subset(source, good)


def problems_of(source, index: int) -> list[InputError]:
    """What is wrong with clip `index`: everything, where the source has `problems`; else the first thing met."""
    if hasattr(source, "problems"):
        return source.problems(index)
    try:
        validate(source[index], num_classes=len(source.class_names))
    except InputError as error:
        return [error]
    return []


def _walk(source, threads: int, progress: str | None) -> Iterator[tuple[int, list[InputError]]]:
    from tqdm import tqdm

    indices = range(len(source))
    with ThreadPoolExecutor(max(threads, 1)) as pool:
        found = pool.map(functools.partial(problems_of, source), indices)
        bar = tqdm(found, progress, len(indices), unit="clip", disable=progress is None, file=sys.stderr)
        yield from zip(indices, bar, strict=True)


# --- the command ---


def check_splits(config, splits, threads: int = 4, progress: bool = False) -> dict[str, tuple[int, list[Problem]]]:
    """Checks the splits that a config's `data` section describes, each set of options once.

    Returns:
      split -> (number of clips, problems). A split whose table is wrong has 0 clips and one problem, with id "". Splits
      that share their clips have one entry, "eval, test".
    Raises:
      InputError: the config itself is wrong: an unknown split, source or option.
    """
    from avs_jax.config import split_options
    from avs_jax.data.sources import create_source

    results: dict[str, tuple[int, list[Problem]]] = {}
    shared: dict[str, list[str]] = {}
    for split in splits:
        if split not in SPLITS:
            raise InputError("--split", expected=f"some of {', '.join(SPLITS)}", found=repr(split))
        shared.setdefault(repr(split_options(config, split)), []).append(split)
    for splits in shared.values():  # evaluation and test may have the same clips
        name = ", ".join(splits)
        try:
            source = create_source(config.data.source, **split_options(config, splits[0]))
        except InputError as error:
            if error.where.startswith("data."):
                raise
            results[name] = (0, [Problem("", error)])
            continue
        results[name] = (len(source), check(source, threads, name if progress else None))
    return results


def summary(results: dict[str, tuple[int, list[Problem]]], show: int) -> str:
    """The results for people: per split, problems grouped by what was expected, `show` of each group."""
    lines = []
    for split, (count, problems) in results.items():
        bad = len({problem.id for problem in problems})
        several = f"{len(problems)} problem{'s' * (len(problems) > 1)} in {bad}"
        found = f"{count} clips, {several if problems else 'no problems'}"
        lines.append(f"{split}: {found if count or not problems else 'cannot be opened'}")
        groups: dict[str, list[Problem]] = {}
        for problem in problems:
            groups.setdefault(problem.error.expected, []).append(problem)
        for expected, group in sorted(groups.items(), key=lambda item: -len(item[1])):
            lines.append(f"  {len(group)} x expected {expected}")
            for problem in group[:show]:
                lines.append(f"    {problem.error.where}: found {problem.error.found}")
            if len(group) > show:
                lines.append(f"    ... and {len(group) - show} more; --report=FILE writes them all")
            hint = next((problem.error.hint for problem in group if problem.error.hint), "")
            lines += [f"    {hint}"] if hint else []
    return "\n".join(lines)


def write_report(results: dict[str, tuple[int, list[Problem]]], path: str | Path) -> None:
    """Every problem: JSON where the path ends in .json, else one line of tab-separated text each."""
    path = to_path(path)
    entries = [
        {"split": split, "id": p.id, "where": p.error.where, "expected": p.error.expected, "found": p.error.found}
        for split, (_, problems) in results.items()
        for p in problems
    ]
    if path.suffix == ".json":
        counts = {split: count for split, (count, _) in results.items()}
        text = json.dumps({"clips": counts, "problems": entries}, indent=2) + "\n"
    else:
        text = "".join("\t".join(entry.values()) + "\n" for entry in entries)
    try:
        path.write_text(text)
    except OSError as error:
        raise InputError("--report", expected="a file that can be written", found=str(error)) from None


def main() -> int:
    """The command: flags to `check_splits`, the results to the exit status."""
    from absl import flags

    values = flags.FLAGS
    if values.config is None:
        raise InputError(
            "--config", expected="to be given", found="nothing", hint="python -m avs_jax.check --config=..."
        )
    if not values.split:
        raise InputError("--split", expected=f"some of {', '.join(SPLITS)}", found="nothing")
    if values.report:
        check_file(values.report, "--report")
    results = check_splits(values.config, values.split, values.threads, progress=True)
    print(summary(results, values.show))
    if values.report:
        write_report(results, values.report)
    return 1 if any(problems for _, problems in results.values()) else 0


if __name__ == "__main__":
    from absl import flags

    from avs_jax import cli

    cli.config_flag()
    flags.DEFINE_list("split", list(SPLITS), "Which splits of the config to check.")
    flags.DEFINE_string("report", None, "File for the full list: .json, or text.")
    flags.DEFINE_integer("threads", 4, "Clips read at a time.", lower_bound=1)
    flags.DEFINE_integer("show", 5, "Problems of one kind to print.", lower_bound=1)
    cli.run(main)
