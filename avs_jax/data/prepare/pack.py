"""Any data set -> ArrayRecord shards and an index, from which clips are read at any place, fast.

    python -m avs_jax.prepare pack --output=/fast/s4 --data.source=avsbench --data.root=/data/avsbench --data.setting=s4
    python -m avs_jax.prepare pack --output=/fast/vpo --config=configs/cavp.py:setting=vpo_ss,root=/data/vpo

and then, in training, evaluation and all other commands, --config.data.source=packed --config.data.root=/fast/s4.

Clips are packed as the data set yields them, sounds after the front end: options of the data set that change clips
(--data.image_size, --data.front_end, ...) are given here, or come from a recipe, each split with its own. Everything
else, augmentation above all, is done when clips are read. The clips are the same to the bit, and a run that was begun
on one goes on from the other.

--codec=raw writes frames as they are, the fastest to read; compressed (neighbours' differences, zstd) takes about 60 %
of the space of photographs and twice the time to read. Both are lossless; labels are written as runs.

An interrupted or killed run goes on when the same command is given again, with the same bytes in the end, whatever the
number of workers; given once more, it checks the shards and makes those again that are missing or damaged. Exits with 0
when all is packed, 1 when bad clips were left out (--skip_bad), 2 on bad input, 130 or 143 when interrupted.
"""

import argparse
import contextlib
import os
import shutil
import sys
import threading
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from avs_jax import cli
from avs_jax.data import clip_bytes
from avs_jax.data.prepare import pack_shards, runner
from avs_jax.data.prepare.pack_journal import Journal
from avs_jax.data.prepare.pack_shards import CODECS, Job, Shard
from avs_jax.data.sources import create_source, packed_index, source_class
from avs_jax.data.sources.subset import Subset
from avs_jax.errors import InputError

SPLITS = ("train", "val", "test")
SAMPLE = 5  # clips by which sizes are estimated


class Plan(NamedTuple):
    """One split to be packed.

    Attributes:
      split: its name, and its folder's. splits: all names under which these clips are known.
      source: the data set. clip_bytes: of a clip in a shard, estimated.
      identity: what is packed and how, as JSON takes it: the bytes of the shards are a function of it.
      jobs: one for each shard.
    """

    split: str
    splits: tuple[str, ...]
    source: Any
    clip_bytes: int
    identity: dict
    jobs: list[Job]

    @property
    def folder(self) -> Path:
        return self.jobs[0].path.parent

    @property
    def bytes(self) -> int:
        return len(self.source) * self.clip_bytes


# ---- What there is to do


def make_plans(
    output: Path, name: str, splits: Sequence[dict], codec: str = "raw", shard_mb: int = 256, skip_bad: bool = False
) -> list[Plan]:
    """A plan for each set of options; options that give the same clips share one.

    Args:
      name: of the source.
      splits: its options.
    Raises:
      InputError: the source's, or two different sets of clips would be the same split.
    """
    if name == "packed":
        raise InputError("data.source", expected="a data set that is not packed", found="'packed'")
    plans: dict[str, Plan] = {}
    for options in splits:
        source = create_source(name, **options)
        split = str(options.get("split", "train"))
        folder = output / split
        told = packed_index.plain(source.fingerprint())
        same = next((p for p in plans.values() if p.identity["fingerprint"] == told), None)
        if same:
            plans[same.split] = same._replace(splits=(*dict.fromkeys((*same.splits, split)),))
            continue
        if split in plans:
            raise InputError(f"split '{split}'", expected="one set of clips", found="two, with other options",
                             hint="Pack them one by one with --split, to two folders.")  # fmt: skip
        size = estimate(source, codec)
        many = max(1, (shard_mb << 20) // size)
        made_with = packed_index.options_of(source_class(name, options), options)
        identity = {"version": packed_index.VERSION, "record_version": clip_bytes.VERSION, "source": name,
                    "options": made_with, "fingerprint": told, "codec": codec, "shard_clips": many,
                    "skip_bad": skip_bad, **packed_index.described(source)}  # fmt: skip
        count = -(-len(source) // many)
        jobs = [
            Job(source, k * many, min((k + 1) * many, len(source)), folder / f"{k:05d}-of-{count:05d}.array_record",
                codec, skip_bad)
            for k in range(count)
        ]  # fmt: skip
        plans[split] = Plan(split, (split,), source, size, identity, jobs)
    return list(plans.values())


def estimate(source, codec: str) -> int:
    """Bytes that a clip takes in a shard: the mean of a few."""
    positions = sorted({k * (len(source) - 1) // max(SAMPLE - 1, 1) for k in range(SAMPLE)})
    sizes, first = [], None
    for position in positions:
        try:
            parts = pack_shards.records(pack_shards.read(source, position), codec)
        except InputError as error:  # the shard it is in will tell of it, or leave it out
            first = first or error
            continue
        sizes.append(sum(len(zlib.compress(p, 1)) if codec == "compressed" else len(p) for p in parts))
    if not sizes:
        raise first
    return sum(sizes) // len(sizes)


def check_space(output: Path, plans: Sequence[Plan]) -> str:
    """What will be written, in words.

    Raises:
      InputError: it does not fit on the disk.
    """
    place = next(folder for folder in (output, *output.parents) if folder.exists())
    there = sum(file.stat().st_size for plan in plans for file in plan.folder.glob("*.array_record"))
    wanted, free = max(0, sum(plan.bytes for plan in plans) - there), shutil.disk_usage(place).free
    if wanted > free:
        raise InputError("--output", expected=f"{_size(wanted)} of free space, about, on the disk of {place}",
                         found=_size(free), hint="Name another --output, or a smaller --codec.")  # fmt: skip
    lines = [
        f"{' and '.join(plan.splits)}: {len(plan.source)} clips, about {_size(plan.bytes)} in {len(plan.jobs)} shards"
        for plan in plans
    ]
    close = "; that is close: files of others may not fit" * (wanted > 0.9 * free)
    return "\n".join([*lines, f"to write: about {_size(wanted)}; free: {_size(free)}{close}"])


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"


# ---- Doing it


def pack(plan: Plan, workers: int, progress: bool = False) -> dict:
    """Packs one split; shards that are there are kept.

    Args:
      workers: processes; 0 works in this one.
    Returns:
      The index.
    Raises:
      InputError: a bad clip, which it names, a folder of other files, or a file that cannot be written.
    """
    journal = Journal(plan.folder, plan.identity, plan.jobs)
    try:
        todo = [k for k in range(len(plan.jobs)) if k not in journal.done]
        jobs = [plan.jobs[k] for k in todo]
        with (
            _bar(plan, journal, progress),
            contextlib.closing(runner.run(pack_shards.write_shard, jobs, workers)) as run,
        ):
            for position, shard in run:
                if shard is runner.Crashed:
                    raise _crashed(jobs[position])
                journal.add(todo[position], shard)
        index = make_index(plan, [journal.done[k] for k in range(len(plan.jobs))])
        journal.finish(index)
        return index
    finally:
        journal.close()


def _crashed(job: Job) -> InputError:
    ids = job.source.ids
    return InputError(job.path, expected=f"clips '{ids[job.first]}' to '{ids[job.last - 1]}' that can be read",
                      found="the death of the process that read them",
                      hint="Was memory short? Then fewer --workers; else python -m avs_jax.check.")  # fmt: skip


def make_index(plan: Plan, shards: Sequence[Shard]) -> dict:
    """The index of all shards, in order.

    Raises:
      InputError: there is no good clip.
    """
    left_out = [bad for shard in shards for bad in shard.bad]
    shards = [shard for shard in shards if shard.file]
    if not shards:
        raise InputError(f"split '{plan.split}'", expected="a good clip", found=f"{len(left_out)} bad ones, first: "
                         f"{left_out[0][2]}")  # fmt: skip
    fingerprint = plan.identity["fingerprint"]
    if left_out:  # what the data set is called without them
        bad = {position for position, _, _ in left_out}
        kept = [i for i in range(len(plan.source)) if i not in bad]
        fingerprint = packed_index.plain(Subset(plan.source, kept).fingerprint())
    tables = {
        name: {**first, "rows": [row for shard in shards for row in shard.tables[name]["rows"]]}
        for name, first in shards[0].tables.items()
    }
    told = {k: v for k, v in plan.identity.items() if k not in ("shard_clips", "skip_bad")}
    return {
        **told,
        "fingerprint": fingerprint,
        "split": plan.split,
        "splits": list(plan.splits),
        "ids": [name for shard in shards for name in shard.ids],
        "audio": [checksum for shard in shards for checksum in shard.audio],
        "tables": tables,
        "left_out": left_out,
        "shards": [{k: getattr(shard, k) for k in ("file", "clips", "bytes", "sha256")} for shard in shards],
        "plan": plan.identity,
    }


@contextlib.contextmanager
def _bar(plan: Plan, journal: Journal, shown: bool) -> Iterator[None]:
    """A bar of clips with rate and time left. Shards take long, so their files are watched as they grow."""
    from tqdm import tqdm

    def clips():
        done = sum(shard.clips + len(shard.bad) for shard in list(journal.done.values()))
        growing = 0
        for part in plan.folder.glob(".*.part"):
            with contextlib.suppress(OSError):  # finished meanwhile
                growing += part.stat().st_size
        return min(done + growing // plan.clip_bytes, len(plan.source))

    def watch():
        while not ended.wait(0.5):
            bar.update(max(0, clips() - bar.n))

    ended = threading.Event()
    interval = 0.5 if sys.stderr.isatty() else 30.0
    bar = tqdm(total=len(plan.source), desc=plan.split, unit="clip", initial=clips(), disable=not shown,
               file=sys.stderr, mininterval=interval, dynamic_ncols=True)  # fmt: skip
    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()
        bar.update(max(0, clips() - bar.n))
        bar.close()


# ---- The command


def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, dict]:
    """The command line after `pack`: (arguments, options of the data set).

    Raises:
      InputError: an argument that does not exist, is missing, or has a bad value.
    """
    head, _, more = __doc__.partition("\n\n")
    layout = argparse.RawDescriptionHelpFormatter
    parser = cli.Parser("python -m avs_jax.prepare pack", description=head, epilog=more, formatter_class=layout)
    add = parser.add_argument
    add("--output", required=True, help="folder of the packed data set; each split gets its own in it")
    add("--config", help="a recipe, file.py:name=value,..., whose data section is packed; --data.<option> changes it")
    add("--split", default="", help="some of train,val,test (default: all); with --config of train,eval,test")
    add("--codec", default="raw", choices=CODECS)
    add("--shard-mb", "--shard_mb", type=cli.at_least(1), default=256, help="MiB of a shard, about (default: 256)")
    add("--workers", type=cli.at_least(0), default=os.cpu_count() or 1,
        help="processes (default: one for each core); 0 works in this one")  # fmt: skip
    add("--skip-bad", "--skip_bad", action="store_true", help="leave bad clips out, as loader.skip_bad does")
    args, rest = parser.parse_known_args(argv)
    return args, cli.data_options(rest, parser)


def options_of_splits(config: str | None, asked: Sequence[str], data: dict) -> tuple[str, list[dict]]:
    """The name of the source, and its options for each split.

    Raises:
      InputError: neither a recipe nor a source is named, or an unknown split.
    """
    data = dict(data)
    valid = ("train", "eval", "test") if config else SPLITS
    for split in asked:
        if split not in valid:
            raise InputError("--split", expected=f"some of {', '.join(valid)}", found=repr(split))
    if config:
        from avs_jax.config import split_options

        recipe = cli.read_recipe(config)
        name = data.pop("source", recipe.data.source)
        return name, [{**split_options(recipe, split), **data} for split in asked or valid]
    if "source" not in data:
        raise InputError("command line", expected="--data.source=<name>, or --config=<recipe>", found="neither")
    name = data.pop("source")
    if "split" in data:
        raise InputError("--data.split", expected="--split", found="--data.split")
    return name, [{**data, "split": split} for split in asked or valid]


def main(argv: Sequence[str]) -> int:
    """The command after its name; returns the exit status."""
    args, data = parse(argv)
    if "://" in args.output:
        raise InputError("--output", expected="a folder: ArrayRecord writes to the disk", found=repr(args.output),
                         hint="Pack to a disk and copy the folder.")  # fmt: skip
    asked = [split.strip() for split in args.split.split(",") if split.strip()]
    output = Path(args.output).expanduser().absolute()
    with cli.interruptible("interrupted; the same command goes on from here"):
        name, splits = options_of_splits(args.config, asked, data)
        plans = make_plans(output, name, splits, args.codec, args.shard_mb, args.skip_bad)
        print(check_space(output, plans), flush=True)
        indices = [pack(plan, args.workers, progress=True) for plan in plans]
    for index in indices:
        print(f"{' and '.join(index['splits'])}: {len(index['ids'])} clips, "
              f"{_size(sum(shard['bytes'] for shard in index['shards']))} in {len(index['shards'])} shards"
              + f", {len(index['left_out'])} bad clips left out" * bool(index["left_out"]))  # fmt: skip
        for _, clip, reason in index["left_out"][:10]:
            print(f"  {clip}: {reason}")
    print(f"read it with data.source=packed data.root={output}")
    return 1 if any(index["left_out"] for index in indices) else 0
