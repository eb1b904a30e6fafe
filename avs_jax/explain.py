"""Draws what a trained run looks at, and how its features lie.

    python -m avs_jax.explain attention --workdir=runs/x --clips=4
    python -m avs_jax.explain attention --workdir=runs/x --ids=clip_a,clip_b --stage=1,2
    python -m avs_jax.explain tsne --workdir=runs/x
    python -m avs_jax.explain tsne --workdir=runs/with_sound --workdir=runs/without --mask=true

attention: audio-visual attention maps over the frames of a few clips (TPAVI's figure 6).
tsne: t-SNE of the visual features under the masks, in the colours of clusters of the sounds (TPAVI's figure 7). Several
runs stand side by side with the same clusters, those of the first run that hears.

Both write a PNG, and a JSON with the numbers in it, to <workdir>/pictures or --output. Options of the data set are
changed with --data.<option>=<value>, e.g. --data.root=/data/avsbench.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from avs_jax import cli
from avs_jax.errors import InputError, nearest
from avs_jax.evaluate import SPLITS
from avs_jax.outputs import check_file
from avs_jax.paths import to_path

MASKS, POINTS = ("predicted", "true"), ("frame", "clip")


def attention(
    workdir: str | Path,
    *,
    checkpoint: str = "best",
    split: str = "test",
    clips: int = 4,
    ids: Sequence[str] = (),
    stages: Sequence[str] = (),
    data: Mapping | None = None,
    output: str | Path | None = None,
) -> dict:
    """Draws the audio-visual attention of a run over the frames of clips, and writes its figures beside it.

    Args:
      workdir: the folder that training wrote to.
      checkpoint: "best" or "latest".
      split: "train", "eval" (or "val") or "test".
      clips: how many, evenly spread over the split; 0: all.
      ids: which clips, in place of that.
      stages: of the method's attention, as "stage4" or "4"; all of them if empty.
      data: options of the data set to change.
      output: the PNG; <workdir>/pictures/attention_<split>.png if None. The JSON lies beside it.
    Returns:
      What the JSON holds: for each clip and stage the bounds of its colours (low: null where zero has none) and the
      AUC of the truth by the attention (`avs_jax.explanation.space.ranking`); "auc": stage -> the mean of the clips'.
      And the two files' paths.
    Raises:
      InputError: no such run, clip or stage, or a method without attention between pixels and sounds.
    """
    from avs_jax import pictures
    from avs_jax.explanation import drawing
    from avs_jax.explanation.inputs import choose_clips, open_run

    path = _output(output, workdir, f"attention_{split}")
    run = open_run(workdir, checkpoint, SPLITS[split], data)
    indices = choose_clips(run.source, clips, ids)
    attended = [_attend(run, index, stages) for index in indices]
    views = pictures.predicted_views(run.method, run.variables, run.source, indices, swap=False)
    title = f"{run.workdir.name}: audio-visual attention of {run.method.name}, split '{split}'"
    drawing.attention_picture(path, views, attended, title=title)
    rows = [
        {"id": view.id, "stages": {k: {"low": a.low, "bound": a.bound, "auc": a.auc} for k, a in found.items()}}
        for view, found in zip(views, attended, strict=True)
    ]
    means = {name: _mean([found[name].auc for found in attended]) for name in attended[0]}
    return _write(path, {**_describe("attention", checkpoint, split, [run]), "auc": means, "clips": rows})


def _attend(run, index, stages) -> dict:
    """{stage: Attended} of a clip, over the frames that are present."""
    from avs_jax.data.clip import IGNORE, bare
    from avs_jax.explanation.drawing import Attended
    from avs_jax.explanation.inputs import FIELDS, pick_stages
    from avs_jax.explanation.space import ranking
    from avs_jax.pictures import spread

    clip = bare(run.source[index])
    inputs = {k: np.asarray(clip[k])[None] for k in FIELDS if k in clip}
    maps = run.method.attention(run.variables, inputs) if run.method.attention else {}
    if not maps:
        fusion = run.method.options.get("fusion")
        with_fusion = f" with fusion={fusion!r}" if fusion else ""
        raise InputError(f"{run.workdir}, attention maps", expected="a method whose pixels attend to sounds",
                         found=f"none in '{run.method.name}'{with_fusion}")  # fmt: skip
    shown = np.flatnonzero(clip.get("present", np.ones(len(clip["frames"]), bool)))
    truth = clip["labels"][shown]
    known = truth != IGNORE
    out = {}
    for name in pick_stages(maps, stages):
        values = np.asarray(maps[name], np.float32)[0][shown].sum(-1)
        smooth = spread(values, truth.shape[1:])
        out[name] = Attended(values, ranking(smooth[known], truth[known] > 0))
    return out


def tsne(
    workdirs: Sequence[str | Path],
    *,
    checkpoint: str = "best",
    split: str = "test",
    clips: int = 200,
    ids: Sequence[str] = (),
    stage: str = "",
    mask: str = "predicted",
    point: str = "frame",
    audio: str = "embedding",
    clusters: int = 0,
    perplexity: float = 30.0,
    seed: int = 0,
    data: Mapping | None = None,
    output: str | Path | None = None,
) -> dict:
    """Draws t-SNE of the visual features under the masks, in the colours of clusters of the sounds.

    Where the method fuses sound in, the sound is part of these features; a run without sound is what to compare with.

    Args:
      workdirs: the folders that training wrote to, one or more, of runs on the same data.
      checkpoint, split, clips, ids, data: as `attention`.
      stage: whose features, as "stage4" or "4"; the method's last if empty.
      mask: "predicted" or "true": what is averaged over. What has an empty mask is left out, and counted.
      point: "frame" or "clip" (the mean of its frames): what a point is.
      audio: which audio features to cluster: "embedding", the audio encoder's output, or a stage's, as fusion sees it.
      clusters: of the sounds by k-means; 0: as many as the data set has classes or named sounds, at most 20, or else 7.
      perplexity: of t-SNE; at most a third of the points.
      seed: of k-means and t-SNE.
      output: the PNG; pictures/tsne_<split>.png in the first workdir if None. The JSON lies beside it.
    Returns:
      What the JSON holds: for each run how often neighbours sound alike, and chance
      (`avs_jax.explanation.space.agreement`), the silhouette of the clusters, and the points. And the two files' paths.
    Raises:
      InputError: no such run, stage or clip; runs on different clips; no run that hears; too few points.
    """
    from avs_jax.explanation import clusters as sounds
    from avs_jax.explanation import drawing
    from avs_jax.explanation.features import masked_features
    from avs_jax.explanation.inputs import choose_clips, open_run
    from avs_jax.explanation.space import NEIGHBOURS

    for name, value, valid in (("--mask", mask, MASKS), ("--point", point, POINTS)):
        if value not in valid:
            raise InputError(name, expected=" or ".join(valid), found=repr(value), hint=nearest(value, valid))
    if clusters < 0 or not perplexity > 0:
        raise InputError("--clusters, --perplexity", expected="0 or more, and above 0",
                         found=f"{clusters}, {perplexity}")  # fmt: skip
    if seed < 0:
        raise InputError("--seed", expected="0 or more", found=str(seed))
    path = _output(output, workdirs[0], f"tsne_{split}")
    runs = [open_run(workdir, checkpoint, SPLITS[split], data) for workdir in workdirs]
    _same_clips(runs)
    source = runs[0].source
    indices = choose_clips(source, clips, ids)
    seen = [masked_features(run, indices, stage=stage, mask=mask, point=point, audio=audio) for run in runs]
    hearing, heard = sounds.hearing_run(runs, [points.heard for points in seen], audio)
    found = sounds.cluster_sounds(heard, source, clusters, seed)
    names = sounds.cluster_names(source, found, point)
    parts = [_lay_out(run, points, found, perplexity, seed) for run, points in zip(runs, seen, strict=True)]
    panels, rows = zip(*parts, strict=True)
    if len({panel.title for panel in panels}) < len(panels):  # folders of one name
        panels = [panel._replace(title=str(run.workdir)) for panel, run in zip(panels, runs, strict=True)]
    stage = ", ".join(dict.fromkeys(drawing.words(points.stage) for points in seen))
    title = f"Visual features ({stage}) under the {mask} masks, split '{split}'"
    note = (
        f"t-SNE. A point is a {point}; its colour is the cluster of its sound: k-means of the audio features '{audio}' "
        f"of {hearing.workdir.name}.\nAlike: of a point's {NEIGHBOURS} nearest in other clips, those in its cluster "
        "[95 % interval]. All figures are of the features, not of the picture."
    )
    drawing.tsne_picture(path, panels, names, title=title, note=note)
    settings = {"stage": stage, "mask": mask, "point": point, "audio": audio, "clustered": str(hearing.workdir)}
    settings |= {"seed": seed, "clusters": names, "runs": list(rows)}
    return _write(path, {**_describe("tsne", checkpoint, split, runs), **settings})


def _same_clips(runs):
    first = runs[0]
    for run in runs[1:]:
        if tuple(run.source.ids) != tuple(first.source.ids):
            raise InputError(f"--workdir={run.workdir}", expected=f"a run on the same clips as {first.workdir}",
                             found="another data set, or another part of it")  # fmt: skip


def _lay_out(run, points, clusters, perplexity, seed):
    """(the picture's panel, the JSON's row) of a run."""
    from avs_jax.explanation.drawing import Panel
    from avs_jax.explanation.space import agreement, distinct, project, silhouette

    own = np.array([clusters[key] for key in zip(points.clip.tolist(), points.frame.tolist(), strict=True)])
    places, perplexity = project(points.features, perplexity=perplexity, seed=seed)
    found, width = agreement(points.features, own, points.clip), silhouette(points.features, own)
    different = distinct(points.features)
    row = {"workdir": str(run.workdir), "points": len(own), "left_out": points.left_out, "distinct": different}
    row |= {
        "perplexity": perplexity,
        "alike": found.share,
        "interval": found.interval,
        "chance": found.chance,
        "silhouette": width,
    }
    row["coordinates"] = [  # clip, frame, cluster, x, y
        [run.source.ids[c], int(t), int(k) + 1, round(float(x), 4), round(float(y), 4)]
        for c, t, k, (x, y) in zip(points.clip, points.frame, own, places, strict=True)
    ]
    low, high = found.interval
    few = f" at {different} places" if different < len(own) else ""
    left_out = f", {points.left_out} with an empty mask left out" if points.left_out else ""
    figures = (
        f"alike {found.share:.2f} [{low:.2f}, {high:.2f}], by chance {found.chance:.2f};  silhouette {width:.2f}\n"
        f"{len(own)} points{few}{left_out}"
    )
    return Panel(run.workdir.name, figures, places, own), row


def _output(output, workdir, name) -> Path:
    path = to_path(output) if output else to_path(workdir) / "pictures" / f"{name}.png"
    if path.suffix.lower() != ".png":
        raise InputError("--output", expected="a file that ends in .png", found=repr(str(path)))
    check_file(path)
    return path


def _describe(command, checkpoint, split, runs) -> dict:
    about = {"command": command, "checkpoint": checkpoint, "split": split, "data": runs[0].source.fingerprint()}
    return {**about, "workdirs": [str(run.workdir) for run in runs]}


def _mean(values) -> float:
    defined = [value for value in values if not np.isnan(value)]
    return float(np.mean(defined)) if defined else float("nan")


def _write(path: Path, result: dict) -> dict:
    """Writes the JSON beside the picture, null standing for what is not defined."""
    beside = path.with_suffix(".json")
    beside.write_text(json.dumps(_plain(result), indent=1, allow_nan=False) + "\n", encoding="utf-8")
    return {**result, "picture": str(path), "json": str(beside)}


def _plain(value):
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


# ------------------------------------------------------------------------------------------------ command line


def parse(argv: Sequence[str] | None = None) -> tuple[argparse.Namespace, dict]:
    """The command line: (arguments, options of the data set).

    Raises:
      InputError: an argument that does not exist, naming the nearest one.
    """
    head, _, more = __doc__.partition("\n\n")
    layout = argparse.RawDescriptionHelpFormatter
    parser = cli.Parser("python -m avs_jax.explain", description=head, epilog=more, formatter_class=layout)
    commands = parser.add_subparsers(dest="command", required=True, metavar="attention | tsne")
    maps = commands.add_parser("attention", help="audio-visual attention maps over the frames of clips")
    maps.add_argument("--workdir", required=True, help="the folder that training wrote to")
    space = commands.add_parser("tsne", help="visual features under the masks, coloured by clusters of the sounds")
    several = "the folder that training wrote to; several, one --workdir each, stand side by side"
    space.add_argument("--workdir", required=True, action="append", help=several)
    for command, clips in ((maps, 4), (space, 200)):
        add = command.add_argument
        add("--checkpoint", default="best", choices=("best", "latest"))
        add("--split", default="test", choices=tuple(SPLITS))
        add("--clips", type=int, default=clips, help=f"how many, evenly spread; 0: all (default: {clips})")
        add("--ids", default="", help="which clips, comma-separated, in place of --clips")
        add("--output", help="the PNG to write, with a JSON beside it (default: in <workdir>/pictures)")
    maps.add_argument("--stage", default="", help="maps of the method, as 4 or gate, comma-separated (default: all)")
    space.add_argument("--stage", default="", help="whose features, as 4 or fused (default: the method's last)")
    space.add_argument("--mask", default="predicted", choices=MASKS, help="what features are averaged over")
    space.add_argument("--point", default="frame", choices=POINTS, help="what a point is")
    audio = "audio features to cluster: embedding (the audio encoder's output), stage1 ... (as fusion sees it)"
    space.add_argument("--audio", default="embedding", help=audio)
    space.add_argument("--clusters", type=int, default=0, help="of the sounds (default: the data set's classes, or 7)")
    space.add_argument("--perplexity", type=float, default=30.0, help="of t-SNE (default: 30)")
    space.add_argument("--seed", type=int, default=0, help="of k-means and t-SNE")
    args, rest = parser.parse_known_args(argv)
    return args, cli.data_options(rest, maps if args.command == "attention" else space)


def main(argv: Sequence[str] | None = None) -> int:
    """The command; its exit status: 0, or 2 on bad input, which is told in one line."""
    return cli.status_of(lambda: _command(argv))


def _command(argv):
    args, data = parse(argv)
    from absl import logging

    logging.set_verbosity(logging.ERROR)  # Orbax tells every step of a restore
    cli.enable_compile_cache()
    names = ("checkpoint", "split", "clips", "output")
    options = {"data": data, "ids": _listed(args.ids)} | {name: getattr(args, name) for name in names}
    if args.command == "attention":
        result = attention(args.workdir, stages=_listed(args.stage), **options)
        for name, auc in result["auc"].items():
            print(f"{name}: AUC of the truth by the attention {auc:.3f}, mean of {len(result['clips'])} clips")
    else:
        names = ("stage", "mask", "point", "audio", "clusters", "perplexity", "seed")
        result = tsne(args.workdir, **options, **{name: getattr(args, name) for name in names})
        for row in result["runs"]:
            low, high = row["interval"]
            print(f"{row['workdir']}: neighbours alike {row['alike']:.3f} [{low:.3f}, {high:.3f}], by chance "
                  f"{row['chance']:.3f}; silhouette {row['silhouette']:.3f}; {row['points']} points, "
                  f"{row['left_out']} without a mask left out")  # fmt: skip
    print(f"written: {result['picture']}\n         {result['json']}")


def _listed(text: str) -> list[str]:
    return [part for part in map(str.strip, text.split(",")) if part]


if __name__ == "__main__":
    from absl import flags

    flags.FLAGS.mark_as_parsed()  # grain reads a flag
    with cli.interruptible("interrupted"):
        sys.exit(main())
