"""A table as Markdown, JSON and a picture: the paper's figures beside ours, with intervals."""

import json
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from avs_jax.metrics.bootstrap import resamples
from experiments.running import State
from experiments.tables import Cell, Job, Run, Setup, Table

PAPER, OURS = "#8a8a8a", "#1f5fa8"
UNITS = {"miou": (100, 2, 1), "fscore": (1, 3, 3)}  # factor, decimals of the paper's figure and of ours


class Answer(NamedTuple):
    """Our side of a cell, in the table's unit: mean of the seeds that are done, the ends of its interval (95 % over
    resampled clips for one seed, the seeds' range for several), and how many seeds are done."""

    value: float
    low: float
    high: float
    seeds: int


Done = Mapping[Run, Sequence[tuple[Job, State]]]  # every seed's job and how far it is


def answer(cell: Cell, done: Done) -> Answer | None:
    """Our side of a cell, or None where no run of it is done."""
    results = [state.result for _, state in done.get(cell.run, ()) if state.kind == "done"]
    if not results:
        return None
    factor = UNITS[cell.figure][0]
    values = [factor * result["figures"][cell.figure] for result in results]
    if len(results) == 1:
        low, high = (factor * end for end in results[0]["intervals"][cell.figure])
    else:
        low, high = min(values), max(values)
    return Answer(sum(values) / len(values), low, high, len(values))


def difference(cell: Cell, base: Cell, done: Done) -> Answer | None:
    """How much better a cell's run does than another's on the same clips: the mean over clips of the difference of J,
    in percent, with its 95 % interval over resampled clips; seeds are paired, and their mean is taken for each clip.

    None where one of them is not done.
    """
    sides = [
        {job.seed: state.result["clips"] for job, state in done.get(c.run, ()) if state.kind == "done"}
        for c in (cell, base)
    ]
    seeds = sorted(sides[0].keys() & sides[1].keys())
    if not seeds:
        return None
    clips = sorted(set.intersection(*(set(side[seed]) for side in sides for seed in seeds)))
    gains = 100 * np.array([[sides[0][s][clip] - sides[1][s][clip] for clip in clips] for s in seeds]).mean(0)
    means = gains[resamples(len(clips), 1000, 0)].mean(1)
    low, high = np.percentile(means, [2.5, 97.5])
    return Answer(float(gains.mean()), float(low), float(high), len(seeds))


def markdown(table: Table, setup: Setup, done: Done) -> str:
    """The table, what its columns are, its notes, and a line for every run."""
    head, rule = [table.head], ["---"]
    for column in table.columns:
        head += [f"{column}: paper", "ours"]
        rule += ["---:", "---:"]
    lines = [f"# {table.title}", "", _row(head), _row(rule)]
    for label, cells in table.rows.items():
        row = [label]
        for cell in cells:
            row += ["" if cell.paper is None else _paper(cell), _ours(cell, done)]
        lines.append(_row(row))
    lines += ["", _legend(table, setup, done), *_difference_lines(table, done)]
    return "\n".join([*lines, *[f"\n{note}" for note in _notes(table, setup)],
                      "", *_run_lines(done)]) + "\n"  # fmt: skip


def to_json(table: Table, setup: Setup, done: Done) -> dict:
    """The same, for programs: figures in the table's unit, intervals as [low, high]."""
    cells = []
    for row, column, cell in table.cells():
        found = answer(cell, done)
        cells.append({
            "row": row, "column": column, "figure": cell.figure, "paper": cell.paper,
            "run": cell.run.name if cell.run else None, "ours": found.value if found else None,
            "interval": [found.low, found.high] if found else None, "seeds": found.seeds if found else 0,
            "difference": _difference_json(table, row, column, cell, done),
        })  # fmt: skip
    runs = [
        {"folder": job.folder, "start": job.start.folder if job.start else None, "state": state.kind,
         "step": state.step, "result": {k: v for k, v in (state.result or {}).items() if k != "clips"}}
        for jobs in done.values() for job, state in jobs
    ]  # fmt: skip
    return {"table": table.name, "title": table.title, "dataset": setup.dataset, "scale": setup.scale,
            "overrides": dict(setup.overrides), "cells": cells, "runs": runs}  # fmt: skip


def _difference_json(table: Table, row: str, column: str, cell: Cell, done: Done) -> dict | None:
    if not table.baseline or row == table.baseline or cell.figure != "miou":
        return None
    found = difference(cell, table.rows[table.baseline][list(table.columns).index(column)], done)
    return found and {"to": table.baseline, "ours": found.value, "interval": [found.low, found.high]}


def picture(table: Table, setup: Setup, done: Done, path: Path) -> Path:
    """Draws one panel per column: the paper's figures as rings, ours as dots with their intervals."""
    from avs_jax import pictures

    labels = list(table.rows)
    width, height = max(2.5 + 2.7 * len(table.columns), 7), 1.6 + 0.42 * len(labels)
    figure = pictures.new_figure(width, height)
    figure.suptitle(textwrap.fill(table.title, int(9 * width)), fontsize=12, weight="bold")
    shared = None
    for n, column in enumerate(table.columns):
        axes = shared = figure.add_subplot(1, len(table.columns), n + 1, sharey=shared)
        for y, label in enumerate(labels):
            cell = table.rows[label][n]
            found = answer(cell, done)
            if cell.paper is not None:
                axes.plot(cell.paper, y, "o", color=PAPER, markerfacecolor="white", markersize=7, zorder=2)
            if found:
                spread = [[max(found.value - found.low, 0)], [max(found.high - found.value, 0)]]
                axes.errorbar(found.value, y, xerr=spread, fmt="o", color=OURS, markersize=5, capsize=3, zorder=3)
        axes.set_title(column, fontsize=10)
        axes.set_xlabel("mIoU, %" if _column(table, n).figure == "miou" else "F-score", fontsize=9)
        axes.set_yticks(range(len(labels)), labels)
        axes.set_ylim(len(labels) - 0.5, -0.5)
        axes.margins(x=0.12)
        axes.grid(axis="x", alpha=0.3)
        axes.tick_params(axis="y", labelleft=n == 0, length=0)
    entries = [shared.plot([], [], "o", color=PAPER, markerfacecolor="white", markersize=7)[0],
               shared.plot([], [], "o", color=OURS, markersize=5)[0]]  # fmt: skip
    names = ["paper (AVSBench)", f"ours ({_where(setup)}), {_interval(done)}"]
    figure.legend(entries, names, loc="lower center", ncols=2, frameon=False, fontsize=9)
    figure.tight_layout(rect=(0, 0.35 / height, 1, 1))
    return pictures.save_figure(figure, path)


def write(table: Table, setup: Setup, done: Done, folder: Path) -> list[Path]:
    """Writes `<table>.md`, `.json` and `.png` into the folder; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{table.name}.{suffix}" for suffix in ("md", "json", "png")]
    paths[0].write_text(markdown(table, setup, done), encoding="utf-8")
    paths[1].write_text(json.dumps(to_json(table, setup, done), indent=1) + "\n", encoding="utf-8")
    picture(table, setup, done, paths[2])
    return paths


def _row(cells) -> str:
    return "| " + " | ".join(cells) + " |"


def _paper(cell: Cell) -> str:
    return f"{cell.paper:.{UNITS[cell.figure][1]}f}"


def _ours(cell: Cell, done: Done) -> str:
    if cell.run is None:
        return ""
    found = answer(cell, done)
    if not found:
        jobs = done.get(cell.run, ())
        return str(jobs[0][1]).replace("|", "/") if jobs else "missing"
    digits = UNITS[cell.figure][2]
    few = f", {found.seeds} of {len(done[cell.run])} seeds" if found.seeds < len(done[cell.run]) else ""
    return f"**{found.value:.{digits}f}** [{found.low:.{digits}f}, {found.high:.{digits}f}]{few}"


def _difference_lines(table: Table, done: Done) -> list[str]:
    """Every row's mIoU minus the baseline's, where there is anything of ours to compare."""
    if not table.baseline:
        return []
    columns = [n for n in range(len(table.columns)) if _column(table, n).figure == "miou"]
    lines, base = [], table.rows[table.baseline]
    for label, cells in table.rows.items():
        row = [label]
        for n in columns:
            cell, found = cells[n], difference(cells[n], base[n], done)
            known = cell.paper is not None and base[n].paper is not None
            row += [f"{cell.paper - base[n].paper:+.2f}" if known else "",
                    f"**{found.value:+.1f}** [{found.low:+.1f}, {found.high:+.1f}]" if found else ""]  # fmt: skip
        if label != table.baseline and any(row[2::2]):
            lines.append(_row(row))
    if not lines:
        return []
    head = [f'minus "{table.baseline}"'] + [text for n in columns for text in (f"{table.columns[n]}: paper", "ours")]
    rule = ["---"] + ["---:"] * (len(head) - 1)
    legend = "Ours: the difference of mIoU on the same clips, with its 95 % interval over resampled clips."
    return ["", _row(head), _row(rule), *lines, "", legend]


def _column(table: Table, n: int) -> Cell:
    return next(iter(table.rows.values()))[n]


def _where(setup: Setup) -> str:
    data = "AVSBench" if setup.dataset == "avsbench" else "embedded data set"
    return data if setup.scale == "full" else f"{data}, tiny"


def _interval(done: Done) -> str:
    return "95 % interval" if max((len(jobs) for jobs in done.values()), default=1) == 1 else "range of the seeds"


def _legend(table: Table, setup: Setup, done: Done) -> str:
    figures = {cell.figure for _, _, cell in table.cells()}
    what = " and ".join(name for key, name in (("miou", "mIoU in percent"), ("fscore", "F-score")) if key in figures)
    clips = sorted({s.result["settings"]["clips"] for jobs in done.values() for _, s in jobs if s.kind == "done"})
    many = max((len(jobs) for jobs in done.values()), default=1) > 1
    brackets = "in brackets the range of the seeds" if many else "in brackets the 95 % interval over resampled clips"
    tested = f", on {' / '.join(map(str, clips))} test clips" if clips else ""
    return f"{what}{tested}; ours: {_where(setup)}; {'mean of the seeds, ' if many else ''}{brackets}."


def _notes(table: Table, setup: Setup) -> list[str]:
    notes = list(table.notes)
    if (setup.dataset, setup.scale) != ("avsbench", "full"):
        notes.insert(0, "The two sides cannot be compared in size: ours come from "
                        + ("another world and " if setup.dataset != "avsbench" else "")
                        + ("a far smaller network and a far shorter training" if setup.scale == "tiny"
                           else "no pretrained weights") + ".")  # fmt: skip
    if setup.overrides:
        changes = ", ".join(f"`{field}={value}`" for field, value in setup.overrides)
        notes.append(f"The recipes were changed: {changes}.")
    return notes


def _run_lines(done: Done) -> list[str]:
    lines = [_row(["run", "starts from", "seed", "steps", "parameters", "mIoU, %", "F", "audio gain, %", "folder"]),
             _row(["---", "---"] + ["---:"] * 6 + ["---"])]  # fmt: skip
    for run, jobs in done.items():
        for job, state in jobs:
            figures = ["", "", "", ""]
            if state.kind == "done":
                r = state.result
                figures = [f"{r['parameters'] / 1e6:.2f} M", *(_with_interval(r, name) for name in UNITS),
                           _with_interval(r, "audio_gain")]  # fmt: skip
            steps = str(state.step) if state.kind == "done" else str(state).replace("|", "/")
            start = run.start.name if run.start else ""
            lines.append(_row([run.name, start, str(job.seed), steps, *figures, f"`{job.folder}`"]))
    gain = "Audio gain: mIoU with the clips' own sound minus that with another clip's."
    return [*lines, "", gain]


def _with_interval(result, name: str) -> str:
    factor, _, digits = UNITS.get(name, UNITS["miou"])
    value, interval = result["figures"].get(name), result["intervals"].get(name)
    if value is None:
        return "-"
    text = f"{factor * value:.{digits}f}"
    if interval and None not in interval:
        text += f" [{factor * interval[0]:.{digits}f}, {factor * interval[1]:.{digits}f}]"
    return text
