"""Evaluates a run on a data set, with every figure's 95 % interval, and with the sound swapped, silenced, made noise.

    python -m avs_jax.evaluate --workdir=runs/x --checkpoint=best --split=test

prints a table and writes to <workdir>/evaluation (or --output): `<split>.json`, `<split>_clips.csv` with a row per
clip, `<split>.png` with clips from good to poor, and `<split>_curves.png`. Options of the data set are changed with
--data.<option>=<value>, e.g. --data.root=/data/avsbench.
"""

import argparse
import dataclasses
import functools
import math
import sys
from collections.abc import Sequence
from pathlib import Path

from avs_jax import cli, distributed
from avs_jax.errors import InputError
from avs_jax.outputs import check_folder
from avs_jax.paths import to_path

SPLITS = {"train": "train", "eval": "eval", "val": "eval", "test": "test"}


def evaluate_run(
    workdir: str | Path,
    *,
    checkpoint: str = "best",
    split: str = "test",
    output: str | Path | None = None,
    data: dict | None = None,
    pictures: int = 4,
    progress: bool = True,
    **options,
):
    """Evaluates a run, prints its table and writes its files (on the first process).

    Args:
      workdir: the folder that training wrote to.
      checkpoint: "best" or "latest".
      split: "train", "eval" (or "val") or "test".
      output: the folder to write to; <workdir>/evaluation if None.
      data: options of the data set to change, e.g. {"root": "/data/avsbench"}.
      pictures: clips in the picture; 0 draws none.
      progress: show a progress bar.
      options: of `avs_jax.metrics.evaluate_rows`.
    Returns:
      The `avs_jax.metrics.Report`.
    Raises:
      InputError: no such run or checkpoint, a data set that is missing or does not fit, or nowhere to write to.
    """
    import jax

    from avs_jax import config as configs
    from avs_jax import metrics
    from avs_jax.training.build import build_source
    from avs_jax.training.checkpoint import load_checkpoint

    workdir = to_path(workdir)
    config = configs.load(workdir / "config.json")
    config.data[SPLITS[split]].update(data or {})
    folder = to_path(output) if output else workdir / "evaluation"
    check_folder(folder)
    if pictures < 0:
        raise InputError("pictures", expected="at least 0", found=str(pictures))
    source = build_source(config, SPLITS[split])
    method, variables = load_checkpoint(workdir, which=checkpoint)
    mesh = jax.sharding.Mesh(jax.devices(), ("data",)) if jax.device_count() > 1 else None
    options = {"batch_size": config.eval.batch_size, "threads": config.loader.threads, **options}
    report = metrics.evaluate_rows(method, variables, source, progress=progress, mesh=mesh, **options)
    run = {"workdir": str(workdir), "checkpoint": checkpoint, "split": split, "data": source.fingerprint()}
    report = dataclasses.replace(report, settings=report.settings | run)
    if jax.process_index() == 0:
        print(f"{workdir}, {checkpoint} checkpoint, split '{split}'\n\n{report.table()}\n")
        written = [*report.save(folder, split), *_draw(folder, split, report, method, variables, source, pictures)]
        print("written: " + "\n         ".join(str(path) for path in written), flush=True)
    return report


def _draw(folder, split, report, method, variables, source, count):
    from avs_jax import pictures

    if count < 1:
        return []
    title = _title(method, split, report.figures)
    curves = pictures.threshold_picture(
        folder / f"{split}_curves.png", report.curves, title=f"{method.name}, '{split}'"
    )
    clips = pictures.typical_clips(report.rows, count)
    views = pictures.predicted_views(method, variables, source, clips)
    return [pictures.clip_picture(folder / f"{split}.png", views, title=title), curves]


def _title(method, split, figures):
    """What was evaluated and how good it is, in a line; where there are classes, by the benchmarks' two rules."""
    text = f"{method.name}, split '{split}': "
    if "miou_classes" in figures:
        text += f"mIoU {figures['miou_classes']:.3f} of all pixels together, {figures['miou']:.3f} frame by frame"
    else:
        text += f"J {figures['miou']:.3f}"
    gain = figures.get("audio_gain", math.nan)
    return text if math.isnan(gain) else f"{text}, of which the sound is worth {gain:.3f}"


def parse(argv: Sequence[str] | None = None) -> tuple[argparse.Namespace, dict]:
    """The command line: (arguments, options of the data set).

    Raises:
      InputError: an argument that does not exist, naming the nearest one.
    """
    head, _, more = __doc__.partition("\n\n")
    layout = argparse.RawDescriptionHelpFormatter
    parser = cli.Parser("python -m avs_jax.evaluate", description=head, epilog=more, formatter_class=layout)
    add = parser.add_argument
    add("--workdir", required=True, help="the folder that training wrote to")
    add("--checkpoint", default="best", choices=("best", "latest"))
    add("--split", default="test", choices=tuple(SPLITS))
    add("--output", help="the folder to write to (default: <workdir>/evaluation)")
    add("--batch-size", "--batch_size", type=int, help="clips loaded together; changes no figure")
    add("--max-clips", "--max_clips", type=int, default=0, help="only the first ones (default: all)")
    protocol = "the protocol's batch, for which F picks its threshold (default: 4, as in the public test scripts)"
    add("--clips-per-batch", "--clips_per_batch", type=int, default=4, help=protocol)
    add("--conditions", default="true,swap,silence,noise", help="sounds to hear, comma-separated")
    add("--bootstrap", type=int, default=1000, help="resamplings for the intervals; 0: none (default: 1000)")
    add("--fast", action="store_true", help="predict whole batches at once: for a GPU; figures differ by rounding")
    add("--pictures", type=int, default=4, help="clips in the picture; 0: none (default: 4)")
    add("--workers", type=int, default=0, help="data processes (default: 0, threads)")
    distributed.add_arguments(functools.partial(cli.add_option, parser))
    args, rest = parser.parse_known_args(argv)
    return args, cli.data_options(rest, parser)


def main(argv: Sequence[str] | None = None) -> int:
    """The command; its exit status: 0, or 2 on bad input, which is told in one line."""
    return cli.status_of(lambda: _command(argv))


def _command(argv):
    args, data = parse(argv)
    with distributed.joined(distributed.requested(args), preemption=False):
        _run(args, data)


def _run(args, data):
    from absl import logging

    logging.set_verbosity(logging.ERROR)  # Orbax tells every step of a restore
    cli.enable_compile_cache()
    options = {} if args.batch_size is None else {"batch_size": args.batch_size}
    evaluate_run(
        args.workdir,
        checkpoint=args.checkpoint,
        split=args.split,
        output=args.output,
        data=data,
        pictures=args.pictures,
        max_clips=args.max_clips,
        clips_per_batch=args.clips_per_batch,
        conditions=tuple(filter(None, args.conditions.split(","))),
        bootstrap=args.bootstrap,
        exact=not args.fast,
        workers=args.workers,
        **options,
    )


if __name__ == "__main__":
    from absl import flags

    flags.FLAGS.mark_as_parsed()  # grain's data processes read a flag
    with cli.interruptible("interrupted"):
        sys.exit(main())
