"""A table as Markdown, JSON and a picture: the paper's figures beside ours, with intervals."""

import json
import math
import textwrap
from pathlib import Path

from experiments.figures import Done, answer, difference, values
from experiments.significance import Moments, moments, one_sided_z
from experiments.tables import FIGURES, Cell, Comparison, Setup, Table

PAPER, OURS = "#8a8a8a", "#1f5fa8"
BY_CLIP = ("clips", "confusions")  # what a result holds of every clip
WORLDS = {"avsbench": "AVSBench", "benchmark": "the paper's data sets", "synthetic": "embedded data set"}


def markdown(table: Table, setup: Setup, done: Done) -> str:
    """The table, what its columns are, its notes, and a line for every run."""
    lines = [f"# {table.title}", ""]
    for part in table.parts():
        lines += [*_part_lines(table, part, done), ""]
    lines += [_legend(table, setup, done), *_difference_lines(table, done), *_comparison_lines(table, done)]
    return "\n".join([*lines, *[f"\n{note}" for note in _notes(table, setup)],
                      "", *_run_lines(table, done)]) + "\n"  # fmt: skip


def _part_lines(table: Table, columns: range, done: Done) -> list[str]:
    """The rows of the columns that stand side by side."""
    head, rule = [table.head], ["---"]
    for n in columns:
        head += _heads(table, n)
    rule += ["---:"] * (len(head) - 1)
    lines = [_row(head), _row(rule)]
    for label, cells in table.rows.items():
        row = [label]
        for n in columns:
            paper = "" if cells[n].paper is None else _paper(table, cells[n])
            row += [paper, _ours(cells[n], done)] if table.published else [_ours(cells[n], done)]
        if any(row[1:]):
            lines.append(_row(row))
    return lines


def _heads(table: Table, n: int) -> list[str]:
    """Of a column and, where the table has a paper's figures, of these before it."""
    return [f"{table.columns[n]}: paper", "ours"] if table.published else [table.columns[n]]


def to_json(table: Table, setup: Setup, done: Done) -> dict:
    """The same, for programs: figures in the table's unit, intervals as [low, high]."""
    cells = []
    for row, column, cell in table.cells():
        found = answer(cell, done)
        cells.append({
            "row": row, "column": column, "figure": cell.figure, "paper": cell.paper,
            "run": cell.run.name if cell.run else None, "ours": _finite(found.value) if found else None,
            "interval": [_finite(found.low), _finite(found.high)] if found else None,
            "seeds": found.seeds if found else 0,
            "difference": _difference_json(table, row, column, cell, done),
        })  # fmt: skip
    runs = [
        {"folder": job.folder, "start": job.start.folder if job.start else None, "state": state.kind,
         "step": state.step, "result": {k: v for k, v in (state.result or {}).items() if k not in BY_CLIP}}
        for jobs in done.values() for job, state in jobs
    ]  # fmt: skip
    tests = [_comparison_json(table, test, n, done) for test in table.comparisons for n in range(len(table.columns))]
    return {"table": table.name, "title": table.title, "dataset": setup.dataset, "scale": setup.scale,
            "overrides": dict(setup.overrides), "cells": cells, "comparisons": [test for test in tests if test],
            "runs": runs}  # fmt: skip


def _difference_json(table: Table, row: str, column: str, cell: Cell, done: Done) -> dict | None:
    base = table.base(row)
    found = difference(cell, table.rows[base][list(table.columns).index(column)], done) if base else None
    ends = [_finite(found.low), _finite(found.high)] if found else []
    return found and {"to": base, "ours": _finite(found.value), "interval": ends}


def _finite(value: float) -> float | None:
    """JSON has no NaN and no infinity."""
    return value if math.isfinite(value) else None


def picture(table: Table, setup: Setup, done: Done, path: Path) -> Path:
    """Draws one panel per column: the paper's figures, if any, as rings, ours as dots with their intervals."""
    from avs_jax import pictures

    parts = list(table.parts())
    across = max(map(len, parts))
    width = max(2.5 + 2.7 * across, 7)
    height = 1.2 + len(parts) * (0.4 + 0.42 * len(table.rows))
    figure = pictures.new_figure(width, height)
    figure.suptitle(textwrap.fill(table.title, int(9 * width)), fontsize=12, weight="bold")
    for line, part in enumerate(parts):
        shared = None
        for place, n in enumerate(part):
            shared = figure.add_subplot(len(parts), across, line * across + place + 1, sharey=shared)
            _draw_column(shared, table, n, done)
            shared.tick_params(axis="y", labelleft=place == 0, length=0)
    entries = {f"ours ({_where(setup)}), {_interval(done)}": shared.plot([], [], "o", color=OURS, markersize=5)[0]}
    if table.published:
        ring = shared.plot([], [], "o", color=PAPER, markerfacecolor="white", markersize=7)[0]
        entries = {"paper": ring, **entries}
    figure.legend(entries.values(), entries, loc="lower center", ncols=2, frameon=False, fontsize=9)
    figure.tight_layout(rect=(0, 0.35 / height, 1, 1))
    return pictures.save_figure(figure, path)


def _draw_column(axes, table: Table, n: int, done: Done) -> None:
    for y, cells in enumerate(table.rows.values()):
        cell, found = cells[n], answer(cells[n], done)
        if cell.paper is not None:
            spread = cell.spread or 0
            axes.errorbar(cell.paper, y, xerr=[[spread], [spread]], fmt="o", color=PAPER, markerfacecolor="white",
                          markersize=7, capsize=3, zorder=2)  # fmt: skip
        if found and math.isfinite(found.value):
            spread = [[max(found.value - found.low, 0)], [max(found.high - found.value, 0)]]
            axes.errorbar(found.value, y, xerr=spread, fmt="o", color=OURS, markersize=5, capsize=3, zorder=3)
    figure = FIGURES[_column(table, n).figure]
    axes.set_title(table.columns[n], fontsize=10)
    axes.set_xlabel(figure.head + " (lower is better)" * figure.lower, fontsize=9)
    axes.set_yticks(range(len(table.rows)), list(table.rows))
    axes.set_ylim(len(table.rows) - 0.5, -0.5)
    axes.margins(x=0.12)
    axes.grid(axis="x", alpha=0.3)


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


def _paper(table: Table, cell: Cell) -> str:
    text = f"{cell.paper:.{table.decimals(cell)}f}"
    return text if cell.spread is None else f"{text} ± {cell.spread:g}"


def _ours(cell: Cell, done: Done) -> str:
    if cell.run is None:
        return ""
    found = answer(cell, done)
    if not found:
        jobs = done.get(cell.run, ())
        return str(jobs[0][1]).replace("|", "/") if jobs else "missing"
    digits = FIGURES[cell.figure].digits
    if cell.figure == "parameters":
        return f"**{found.value:.{digits}f}**"
    few = f", {found.seeds} of {len(done[cell.run])} seeds" if found.seeds < len(done[cell.run]) else ""
    return f"**{found.value:.{digits}f}** [{found.low:.{digits}f}, {found.high:.{digits}f}]{few}"


def _difference_lines(table: Table, done: Done) -> list[str]:
    """Every row's figures minus its baseline's, where there is anything of ours to compare."""
    if not table.baseline:
        return []
    text: list[str] = []
    for part in table.parts():
        columns = [n for n in part if FIGURES[_column(table, n).figure].key == "miou" or _pooled(table, n)]
        lines = []
        for label, cells in table.rows.items():
            row, base = [label], table.rows.get(table.base(label))
            for n in columns if base else ():
                cell, found = cells[n], difference(cells[n], base[n], done)
                known = cell.paper is not None and base[n].paper is not None
                if table.published:
                    row.append(f"{cell.paper - base[n].paper:+.{table.decimals(cell)}f}" if known else "")
                row.append(f"**{found.value:+.1f}** [{found.low:+.1f}, {found.high:+.1f}]" if found else "")
            if any(row[1 + table.published :: 1 + table.published]):
                lines.append(_row(row if isinstance(table.baseline, str) else [f"{label}, minus {table.base(label)}",
                                                                               *row[1:]]))  # fmt: skip
        if lines:
            head = [f'minus "{table.baseline}"' if isinstance(table.baseline, str) else "difference"]
            head += [text for n in columns for text in _heads(table, n)]
            text += ["", _row(head), _row(["---"] + ["---:"] * (len(head) - 1)), *lines]
    pooled = any(_pooled(table, n) for n in range(len(table.columns)))
    what = "the figures" if pooled else "mIoU"
    legend = f"Ours: the difference of {what} on the same clips, with its 95 % interval over resampled clips."
    return [*text, "", legend] if text else []


def _pooled(table: Table, n: int) -> bool:
    return FIGURES[_column(table, n).figure].pooled


def _comparison_lines(table: Table, done: Done) -> list[str]:
    """The z-tests of pairs of rows, the paper's from its printed means, and ours where two seeds of both are done."""
    lines = []
    for test in table.comparisons:
        head = [f'is "{test.better}" better than "{test.worse}"?', "paper: z", "p", "p, as printed", "ours: z", "p",
                "mean ± deviation", "against"]  # fmt: skip
        lines += ["", _row(head), _row(["---"] + ["---:"] * (len(head) - 1))]
        for n, column in enumerate(table.columns):
            paper, ours = _paper_sides(table, test, n), _our_sides(table, test, n, done)
            digits = FIGURES[_column(table, n).figure].digits
            row = [column]
            row += [f"{x:.2f}" for x in _tested(table, n, paper)] if paper else ["", ""]
            row.append(f"{test.paper[n]:.2f}" if test.paper else "")
            row += [f"{x:.2f}" for x in _tested(table, n, ours)] if ours else ["", ""]
            row += [f"{s.mean:.{digits}f} ± {s.spread:.{digits}f} (n = {s.count})" for s in ours or ()]
            lines.append(_row(row + [""] * (len(head) - len(row))))
    legend = "z: one-sided, over the runs' seeds; p: its upper tail. A small p says that the first is better."
    return [*lines, "", legend] if lines else []


def _paper_sides(table: Table, test: Comparison, n: int) -> list[Moments] | None:
    cells = [table.rows[row][n] for row in test[:2]]
    if any(cell.paper is None or cell.spread is None for cell in cells):
        return None
    return [Moments(cell.paper, cell.spread, len(table.seeds)) for cell in cells]


def _our_sides(table: Table, test: Comparison, n: int, done: Done) -> list[Moments] | None:
    """Mean and deviation over seeds of the two rows' figures; None where one has fewer than two, or one undefined."""
    sides = [list(values(table.rows[row][n], done).values()) for row in test[:2]]
    if (
        any(len(side) < 2 or not all(map(math.isfinite, side)) for side in sides)
        or _column(table, n).figure == "parameters"
    ):
        return None
    return [moments(side) for side in sides]


def _tested(table: Table, n: int, sides):
    """The z-test of two sides; lower figures are better where their kind says so."""
    better, worse = reversed(sides) if FIGURES[_column(table, n).figure].lower else sides
    return one_sided_z(better, worse)


def _comparison_json(table: Table, test: Comparison, n: int, done: Done) -> dict | None:
    sides = _our_sides(table, test, n, done)
    if sides is None:
        return None
    z, p = _tested(table, n, sides)
    means = {"better": sides[0]._asdict(), "worse": sides[1]._asdict()}
    return {"better": test.better, "worse": test.worse, "column": table.columns[n], "ours": means,
            "z": _finite(z), "p": _finite(p)}  # fmt: skip


def _column(table: Table, n: int) -> Cell:
    return next(iter(table.rows.values()))[n]


def _where(setup: Setup) -> str:
    return WORLDS[setup.dataset] if setup.scale == "full" else f"{WORLDS[setup.dataset]}, tiny"


def _interval(done: Done) -> str:
    return "95 % interval" if max((len(jobs) for jobs in done.values()), default=1) == 1 else "range of the seeds"


def _legend(table: Table, setup: Setup, done: Done) -> str:
    kinds = list(dict.fromkeys(FIGURES[figure] for figure in table.figures()))
    percent = list(dict.fromkeys(k.name + " (lower is better)" * k.lower for k in kinds if k.unit == "%"))
    what = [f"{_and(percent)} in percent"] if percent else []
    what += [f"{k.name} in millions" if k.unit else k.name for k in kinds if k.unit != "%"]
    clips = sorted({s.result["settings"]["clips"] for jobs in done.values() for _, s in jobs if s.kind == "done"})
    many = max((len(jobs) for jobs in done.values()), default=1) > 1
    brackets = "in brackets the range of the seeds" if many else "in brackets the 95 % interval over resampled clips"
    tested = f", on {' / '.join(map(str, clips))} test clips" if clips else ""
    where = f"ours: {_where(setup)}" if table.published else _where(setup)
    return f"{_and(what)}{tested}; {where}; {'mean of the seeds, ' if many else ''}{brackets}."


def _and(words: list[str]) -> str:
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def _notes(table: Table, setup: Setup) -> list[str]:
    notes = list(table.notes)
    if table.published and (setup.dataset == "synthetic" or setup.scale != "full"):
        notes.insert(0, "The two sides cannot be compared in size: ours come from "
                        + ("another world and " if setup.dataset == "synthetic" else "")
                        + ("a far smaller network and a far shorter training" if setup.scale == "tiny"
                           else "no pretrained weights") + ".")  # fmt: skip
    if setup.overrides:
        changes = ", ".join(f"`{field}={value}`" for field, value in setup.overrides)
        notes.append(f"The recipes were changed: {changes}.")
    return notes


def _run_lines(table: Table, done: Done) -> list[str]:
    shown = [FIGURES[name] for name in table.figures() if name != "parameters"]
    mixed = any(figure.pooled for figure in shown)
    if not mixed:
        shown = [FIGURES["miou"], FIGURES["fscore"]]
    heads = ["run", "starts from", "seed", "steps", "parameters", *(figure.head for figure in shown), "audio gain, %"]
    lines = [_row([*heads, "folder"]), _row(["---", "---"] + ["---:"] * (len(heads) - 2) + ["---"])]
    for run, jobs in done.items():
        for job, state in jobs:
            figures = [""] * (len(shown) + 2)
            if state.kind == "done":
                r = state.result  # figures of that name are other ones in binary runs
                fits = [not mixed or figure.pooled == ("confusions" in r) for figure in shown]
                several = [_with_interval(r, f.key, f.factor, f.digits) if fit else "-" for f, fit in
                           zip(shown, fits, strict=True)]  # fmt: skip
                figures = [f"{r['parameters'] / 1e6:.2f} M", *several, _with_interval(r, "audio_gain")]
            steps = str(state.step) if state.kind == "done" else str(state).replace("|", "/")
            start = run.start.name if run.start else ""
            lines.append(_row([run.name, start, str(job.seed), steps, *figures, f"`{job.folder}`"]))
    gain = "Audio gain: mIoU with the clips' own sound minus that with another clip's"
    return [*lines, "", gain + (", by frames, as AVSBench's protocol has it." if mixed else ".")]


def _with_interval(result, name: str, factor: float = 100, digits: int = 1) -> str:
    value, interval = result["figures"].get(name), result["intervals"].get(name)
    if value is None:
        return "-"
    text = f"{factor * value:.{digits}f}"
    if interval and None not in interval:
        text += f" [{factor * interval[0]:.{digits}f}, {factor * interval[1]:.{digits}f}]"
    return text
