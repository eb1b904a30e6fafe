"""Raw videos and a table of clips -> the pictures, wavs and log-mels of AVSBench's S4 or MS3 tree.

    python -m avs_jax.prepare avsbench --root=/data/avsbench_data --setting=s4

The result is what the data set's public preprocessing makes of the same videos (`avsbench_clip` says how); masks come
with the data set. Clips whose files are all there are skipped, so the same command goes on after an interruption, and
files that came with the data set stay as they are. Bad videos are told at the end and in prepare_<setting>.json beside
the table.

Exits with 0 when every clip is prepared, 1 when some are bad, 2 when the command line, the table or the folders are
wrong, 130 when interrupted.
"""

import argparse
import collections
import contextlib
import dataclasses
import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from avs_jax import cli
from avs_jax.data.prepare import runner
from avs_jax.data.prepare.avsbench_clip import FAULTS, SECONDS, Job, Outcome, prepare_clip, replacing
from avs_jax.data.prepare.sound import RESAMPLERS
from avs_jax.data.sources import files
from avs_jax.data.sources.avsbench import LAYOUTS, Layout, find_root
from avs_jax.data.sources.avsbench_table import SPLITS, Row, read_table
from avs_jax.errors import InputError
from avs_jax.paths import local_path

RAW = "raw_videos"
SUFFIXES = (".mp4", ".mkv", ".webm", ".avi", ".mov")
# Where a clip's video may lie in the folder of videos: the public place first.
PLACES = {
    "s4": ("{split}/{category}/{id}", "{category}/{id}", "{split}/{id}", "{id}"),
    "ms3": ("{id}", "{split}/{id}"),
}


@dataclasses.dataclass(frozen=True)
class Report:
    """The end of a run.

    Attributes:
      setting: "s4" or "ms3".
      total: clips asked for.
      outcomes: of those that were reached, in the table's order.
      seconds: it took; interrupted: whether it was.
    """

    setting: str
    total: int
    outcomes: list[tuple[Job, Outcome]]
    seconds: float
    interrupted: bool

    def count(self, status: str) -> int:
        return sum(outcome.status == status for _, outcome in self.outcomes)

    def record(self) -> dict:
        """The report as JSON holds it."""
        bad = [(job, o) for job, o in self.outcomes if o.status == "bad"]
        faults = collections.Counter(outcome.fault for _, outcome in bad)
        prepared = self.count("prepared")
        return {
            "setting": self.setting,
            "clips": self.total,
            "prepared": prepared,
            "already_there": self.count("there"),
            "bad": {fault: faults[fault] for fault in FAULTS if faults[fault]},
            "not_reached": self.total - len(self.outcomes),
            "interrupted": self.interrupted,
            "seconds": round(self.seconds, 1),
            "clips_per_second": round(prepared / max(self.seconds, 1e-9), 2),
            "bad_clips": [_place(job) | {"fault": o.fault, "reason": o.reason} for job, o in bad],
            "notes": [_place(job) | {"note": note} for job, o in self.outcomes for note in o.notes],
        }

    def text(self, show: int = 10) -> str:
        """The report for people; `show` clips of each fault."""
        record = self.record()
        lines = [
            f"{self.setting}: {record['prepared']} of {self.total} clips prepared in {self.seconds:.1f} s"
            + f", {record['already_there']} were there" * bool(record["already_there"])
            + f", {sum(record['bad'].values())} bad" * bool(record["bad"])
            + f", {record['not_reached']} not reached" * bool(record["not_reached"])
        ]
        for fault, count in record["bad"].items():
            reasons = [clip["reason"] for clip in record["bad_clips"] if clip["fault"] == fault]
            lines += [f"  {fault}: {count}", *(f"    {reason}" for reason in reasons[:show])]
            lines += [f"    ... and {count - show} more in the report"] if count > show else []
        if record["notes"]:
            lines.append(f"  {len(record['notes'])} notes on clips of an unusual length in the report")
        if self.interrupted:
            lines.append("interrupted; the same command goes on from here")
        return "\n".join(lines)


def _place(job: Job) -> dict:
    return {"id": job.id, "split": job.split} | ({"category": job.category} if job.category else {})


def prepare(jobs: Sequence[Job], setting: str, workers: int, progress: bool = False) -> Report:
    """Works on all jobs; an interruption ends it early, with a report of what was done.

    Args:
      workers: processes; 0 works in this one.
      progress: show a bar on stderr.
    Raises:
      InputError: a file cannot be written.
    """
    from tqdm import tqdm

    begin, done, interrupted, bad = time.perf_counter(), {}, False, 0
    bar = tqdm(total=len(jobs), desc=setting, unit="clip", disable=not progress, file=sys.stderr)
    try:
        with contextlib.closing(runner.run(prepare_clip, jobs, workers)) as results:
            for position, outcome in results:
                if outcome is runner.Crashed:
                    reason = f"{_found(jobs[position])}: the process that decoded it died"
                    outcome = Outcome("bad", "crashed", reason)
                done[position] = outcome
                bad += outcome.status == "bad"
                bar.set_postfix(bad=bad, refresh=False)
                bar.update()
    except KeyboardInterrupt:
        interrupted = True
    finally:
        bar.close()
    outcomes = [(jobs[position], done[position]) for position in sorted(done)]
    return Report(setting, len(jobs), outcomes, time.perf_counter() - begin, interrupted)


def _found(job: Job) -> Path:
    return next((path for path in job.videos if path.is_file()), job.videos[0])


# --- which clips, from where, to where ---


def list_jobs(
    root: str | Path,
    setting: str,
    splits: Sequence[str] = (),
    videos: str | Path | None = None,
    output: str | Path | None = None,
    limit: int | None = None,
    resampler: str = "nearest",
    overwrite: bool = False,
) -> tuple[Path, list[Job]]:
    """What there is to do.

    Args:
      root: the folder that holds `Single-source/` and `Multi-sources/`, or the setting's own, with its table.
      splits: of the table; none: all it has.
      videos: the folder of raw videos; by default `raw_videos` in the tree.
      output: the root of the new tree; by default files are added to the tree at `root`.
      limit: the first so many clips of each split.
    Returns:
      the setting's own folder of the output, and the jobs in the table's order.
    Raises:
      InputError: an unknown setting or split, a folder that is not there, a table with bad rows, or no clips.
    """
    layout = LAYOUTS[files.choice("setting", setting, LAYOUTS)]
    source = _tree(local_path(root, "--root") if root else root, layout)
    rows = _rows(source / layout.table, layout, splits)
    target = local_path(output, "--output") / layout.folder if output else source
    folders = _video_folders(source, setting, videos)
    jobs, taken, pictures = [], collections.Counter(), set()
    for row in rows:
        taken[row.split] += 1
        if limit is not None and taken[row.split] > limit:
            continue
        job = _job(row, layout, PLACES[setting], folders, target)
        if job.frames[0] in pictures:  # MS3 keeps the pictures of all splits together; a clip may be in two
            job = dataclasses.replace(job, frames=())
        pictures.update(job.frames)
        jobs.append(dataclasses.replace(job, resampler=resampler, overwrite=overwrite))
    return target, jobs


def _tree(root: str | Path, layout: Layout) -> Path:
    try:
        return find_root(root, layout)
    except InputError as error:
        hint = "--root is the folder that holds Single-source/ and Multi-sources/, with their tables."
        where = "--root" if error.where == "data.root" else error.where
        raise InputError(where, expected=error.expected, found=error.found, hint=hint) from None


def _rows(table: Path, layout: Layout, splits: Sequence[str]) -> list[Row]:
    """The clips of some splits, or of all that the table has."""
    rows, empty = [], None
    for split in splits or SPLITS:
        files.choice("split", split, SPLITS)
        try:
            rows += read_table(table, layout.columns, split)
        except InputError as error:
            if splits or error.expected != f"clips of split '{split}'":
                raise
            empty = error
    if not rows:
        raise InputError(table, expected="clips", found=empty.found)
    return rows


def _video_folders(source: Path, setting: str, videos: str | Path | None) -> list[Path]:
    """The folders that hold videos, of those where they may be."""
    if videos:
        places = [local_path(videos, "--videos")]
    else:
        places = [source / f"{setting}_data" / RAW, source / RAW, source.parent / RAW]
    found = [place for place in places if place.is_dir()]
    if not found:
        where = "--videos" if videos else source
        looked = " or ".join(map(str, places))
        hint = "" if videos else "Name the folder of the videos with --videos."
        raise InputError(where, expected=f"a folder of videos, {looked}", found="no such folder", hint=hint)
    return found


def _job(row: Row, layout: Layout, places, folders, target: Path) -> Job:
    def fill(template, k=0):
        return template.format(split=row.split, category=row.category, id=row.id, k=k)

    stems = [folder / fill(place) for folder in folders for place in places]
    return Job(
        id=row.id,
        split=row.split,
        category=row.category,
        # by name and not with_suffix: an id may have dots
        videos=tuple(stem.with_name(stem.name + suffix) for suffix in SUFFIXES for stem in stems),
        frames=tuple(target / fill(layout.frame, k) for k in range(1, SECONDS + 1)),
        wav=target / fill(layout.wav),
        log_mel=target / fill(layout.log_mel),
        note=f"also in {row.also}" if row.also else "",
    )


# --- the command ---


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The command line after `avsbench`.

    Raises:
      InputError: an argument that does not exist, is missing, or has a bad value.
    """
    head, _, more = __doc__.partition("\n\n")
    layout = argparse.RawDescriptionHelpFormatter
    parser = cli.Parser("python -m avs_jax.prepare avsbench", description=head, epilog=more, formatter_class=layout)
    parser.add_argument("--root", required=True, help="the folder that holds Single-source/ and Multi-sources/")
    parser.add_argument("--setting", required=True, choices=LAYOUTS)
    parser.add_argument("--split", default="", help="some of train,val,test (default: all that the table has)")
    parser.add_argument("--videos", help=f"the folder of videos (default: {RAW} in the tree)")
    parser.add_argument("--output", help="root of a new tree (default: files are added to the tree at --root)")
    parser.add_argument("--workers", type=cli.at_least(0), default=os.cpu_count() or 1,
                        help="processes (default: one for each core); 0 works in this one")  # fmt: skip
    parser.add_argument("--limit", type=cli.at_least(1), help="only the first so many clips of each split")
    parser.add_argument("--resample", default="nearest", choices=RESAMPLERS,
                        help="nearest: as the public preprocessing, aliased; filtered: properly")  # fmt: skip
    parser.add_argument("--overwrite", action="store_true", help="make files again that are there")
    parser.add_argument("--report", help="file for the report (default: prepare_<setting>.json beside the table)")
    return parser.parse_args(argv)


def copy_table(source: Path, target: Path) -> None:
    """The table of the old tree for the new one.

    Raises:
      InputError: the new tree has another, or it cannot be written.
    """
    table = source.read_bytes()
    try:
        if target.exists():
            if target.read_bytes() != table:
                raise InputError(target, expected=f"the table {source}", found="another",
                                 hint="Give an empty folder as --output.")  # fmt: skip
            return
        with replacing(target) as file:
            file.write_bytes(table)
    except OSError as error:
        raise InputError("--output", expected="a place to write to", found=str(error)) from None


def write_report(report: Report, path: Path) -> None:
    """The report as JSON."""
    try:
        with replacing(path) as file:
            file.write_text(json.dumps(report.record(), indent=2, ensure_ascii=False) + "\n")
    except OSError as error:
        raise InputError("--report", expected="a file that can be written", found=str(error)) from None


def main(argv: Sequence[str]) -> int:
    """The command after its name; returns the exit status."""
    args = parse(argv)
    splits = [split.strip() for split in args.split.split(",") if split.strip()]
    folder, jobs = list_jobs(args.root, args.setting, splits, args.videos, args.output, args.limit, args.resample,
                             args.overwrite)  # fmt: skip
    table = LAYOUTS[args.setting].table
    if args.output:
        copy_table(_tree(args.root, LAYOUTS[args.setting]) / table, folder / table)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # told to end, it ends as by Ctrl-C
    report = prepare(jobs, args.setting, args.workers, progress=True)
    path = local_path(args.report, "--report") if args.report else folder / f"prepare_{args.setting}.json"
    write_report(report, path)
    print(report.text())
    print(f"report: {path}")
    if report.interrupted:
        return 130
    return 1 if report.count("bad") else 0
