"""The command behind every table: trains what is missing, evaluates, and prints the paper's figures beside ours."""

import argparse
import dataclasses
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from avs_jax import cli
from avs_jax.errors import InputError, nearest
from avs_jax.paths import local_path
from experiments import report, running
from experiments.tables import Comparison, Job, Setup, Table, job_of

EPILOG = """\
Every run is a workdir under <workdir>/<dataset>-<scale>/runs, named after itself and a hash of its recipe: tables share
runs, Ctrl-C and the same command again resume, and a changed recipe never finds old figures (changed code does: delete
the folders). --config.<field>=<value> changes a field of every run, e.g. --config.precision=bfloat16.
"""


class Disk(NamedTuple):
    """The real data of a paper. dataset: its name. root: the folder's default. what: the folder is, in words."""

    dataset: str
    root: str
    what: str


AVSBENCH = Disk("avsbench", "avsbench_data", "AVSBench's folder")


def main(make: Callable[[Setup], Table], description: str, argv: Sequence[str] | None = None,
         disk: Disk = AVSBENCH) -> int:  # fmt: skip
    """Runs a table's command.

    Args:
      make: from where and how large to the table.
      description: of the table, for --help.
      argv: the command line; that of the process if None.
      disk: the paper's data.
    Returns:
      Exit status: 0; 1 where a run diverged; 2 on bad input, told in one line; 128 + the signal that asked to stop.
    """
    try:
        args, setup = parse(description, argv, disk)
        table = make(setup)
        seeds = args.seeds or list(table.seeds)
        table = with_comparisons(table, args.compare, seeds)
        jobs = select(table, setup, seeds, args.only)
        folder = local_path(args.workdir, "--workdir").resolve() / f"{setup.dataset}-{setup.scale}"
        if args.dry_run:
            print("\n".join(plan(jobs, folder / "runs")))
            return 0
        return run(table, setup, seeds, jobs, folder)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (running.Stopped, KeyboardInterrupt) as stop:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 128 + getattr(stop, "signal", 2)


def parse(description: str, argv: Sequence[str] | None, disk: Disk = AVSBENCH) -> tuple[argparse.Namespace, Setup]:
    """The command line: (arguments, setup).

    Raises:
      InputError: an argument that does not exist or has no such value.
    """
    layout = argparse.RawDescriptionHelpFormatter
    parser = cli.Parser("python -m experiments.<table>", description=description, epilog=EPILOG, formatter_class=layout)
    add = parser.add_argument
    add("--dataset", default=disk.dataset, help=f"{disk.dataset} (default), or synthetic: the embedded one")
    add("--scale", default="full", help="full (default): the paper's recipe; tiny: minutes on a CPU")
    add("--root", default=disk.root, help=f"{disk.what} (default: {disk.root})")
    add("--workdir", default="runs/experiments", help="where runs and tables go (default: runs/experiments)")
    add("--seeds", default="", help="comma-separated; several give the mean and the range (default: the table's)")
    test = "'row A>row B': the one-sided z-test over seeds that A is better; may be given again"
    add("--compare", action="append", default=[], help=test)
    add("--only", default="", help="train only the runs whose name contains this, and those they start from")
    add("--dry-run", "--dry_run", action="store_true", help="list the runs and how far they are, and leave")
    args, rest = parser.parse_known_args(argv)
    args.seeds = _seeds(args.seeds) if args.seeds else []
    valid = (disk.dataset, "synthetic")
    if args.dataset not in valid:
        raise InputError("--dataset", expected=" or ".join(valid), found=repr(args.dataset),
                         hint=nearest(args.dataset, valid))  # fmt: skip
    return args, Setup(args.dataset, args.scale, args.root, _overrides(rest, parser))


def _seeds(text: str) -> list[int]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts) or len(set(parts)) != len(parts):
        raise InputError("--seeds", expected="different numbers, as in 0,1,2", found=repr(text))
    return [int(part) for part in parts]


def with_comparisons(table: Table, texts: Sequence[str], seeds: Sequence[int]) -> Table:
    """The table with the tests that "row A>row B" ask for.

    Raises:
      InputError: another text, a row that is not there or has no run, or fewer than two seeds.
    """
    tests, rows = list(table.comparisons), [row for row, cells in table.rows.items() if any(c.run for c in cells)]
    for text in texts:
        labels = [part.strip() for part in text.split(">")]
        unknown = [label for label in labels if label not in rows]
        if len(labels) != 2 or unknown:
            raise InputError("--compare", expected="'A>B' with rows of " + " | ".join(rows), found=repr(text),
                             hint=nearest(unknown[0], rows) if unknown else "")  # fmt: skip
        tests.append(Comparison(*labels))
    if texts and len(seeds) < 2:
        raise InputError("--seeds", expected="two or more for --compare", found=",".join(map(str, seeds)))
    return dataclasses.replace(table, comparisons=tuple(tests))


def _overrides(items: Sequence[str], parser) -> tuple:
    prefix = "--config."
    for item in items:
        name, sep, _ = item.partition("=")
        if not (name.startswith(prefix) and sep):
            valid = [option for action in parser._actions for option in action.option_strings]
            raise InputError(f"command line, '{item}'", expected=f"an argument of tables, or {prefix}<field>=<value>",
                             found="another", hint=nearest(name, valid))  # fmt: skip
    values = cli.data_options(["--data." + item.removeprefix(prefix) for item in items], parser)
    return tuple(values.items())


def select(table: Table, setup: Setup, seeds: Sequence[int], only: str = "") -> list[Job]:
    """The jobs of a table that are to be done, those that others start from first; runs of one recipe once.

    Raises:
      InputError: a recipe that does not fit, or no run of that name.
    """
    runs = table.runs()
    wanted = [run for run in runs if only in run.name]
    if not wanted:
        raise InputError("--only", expected="a part of " + ", ".join(run.name for run in runs), found=repr(only))
    for run in wanted:
        if run.start and run.start not in wanted:
            wanted.append(run.start)
    jobs: dict[str, Job] = {}
    for run in runs:
        if run in wanted:
            for seed in seeds:
                job = job_of(run, setup, seed)
                jobs.setdefault(job.key, job)
    return list(jobs.values())


def plan(jobs: Sequence[Job], runs: Path) -> list[str]:
    """A line per job: how far it is, its folder, and what it starts from."""
    states = [running.state_of(job, runs) for job in jobs]
    lines = [f"{state!s:<20}  {job.folder}" + (f"  (starts from {job.start.folder})" if job.start else "")
             for job, state in zip(jobs, states, strict=True)]  # fmt: skip
    done = sum(state.kind == "done" for state in states)
    return [f"{len(jobs)} runs, {done} of them done, in {runs}", *lines]


def run(table: Table, setup: Setup, seeds: Sequence[int], jobs: Sequence[Job], folder: Path) -> int:
    """Does the jobs, then prints the table and writes its files; its exit status."""
    from absl import flags, logging

    logging.set_verbosity(logging.ERROR)  # Orbax tells every step of a save
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # grain's data processes read a flag
    cli.enable_compile_cache()
    runs = folder / "runs"
    states = running.complete(jobs, runs)
    done = {}
    for one in table.runs():
        every = [job_of(one, setup, seed) for seed in seeds]
        done[one] = [(job, states.get(job.key) or running.state_of(job, runs)) for job in every]
    written = report.write(table, setup, done, folder)
    print("\n" + report.markdown(table, setup, done))
    print("written: " + "\n         ".join(str(path) for path in written), flush=True)
    return 1 if any(state.kind == "failed" for state in states.values()) else 0
