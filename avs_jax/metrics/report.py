"""What an evaluation found: figures, their intervals, a row per clip, as a table, as JSON and as CSV."""

import csv
import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from avs_jax.metrics.bootstrap import intervals
from avs_jax.metrics.confusion import class_figures
from avs_jax.metrics.figures import (
    GROUPS,
    Resampling,
    clip_columns,
    conditions,
    curves,
    descriptions,
    figures,
    summarise,
)
from avs_jax.metrics.fmeasure import ratio
from avs_jax.metrics.tally import Tally
from avs_jax.paths import to_path


@dataclasses.dataclass(frozen=True)
class Report:
    """An evaluation.

    Attributes:
      figures: name -> float; NaN where the data set does not define one (see `notes`).
      intervals: name -> (low, high), 95 % over resampled clips; empty if not asked for.
      rows: one dict per clip, in the order of the source.
      classes: one dict per class (K > 1), else empty.
      curves: name -> (255,) float64, see `avs_jax.metrics.figures.curves`.
      settings: what was evaluated and how.
      notes: what could not be measured, in words.
      confusions: (N, K, K) pixels of each clip by true and predicted class (K > 1), for comparing runs; else None.
    """

    figures: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    rows: list[dict[str, Any]]
    classes: list[dict[str, Any]]
    curves: dict[str, np.ndarray]
    settings: dict[str, Any]
    notes: list[str]
    confusions: np.ndarray | None = None

    def table(self) -> str:
        """The figures as aligned text."""
        s = self.settings
        texts = descriptions(bool(self.classes))
        lines = [f"{s['clips']} clips, {s['frames']} frames, {s['silent_frames']} of them silent"]
        if s["padding_frames"]:
            lines.append(f"{s['padding_frames']} more frames only fill up short clips: "
                         "they count in miou, fscore and what follows from miou, and nowhere else")  # fmt: skip
        lines.append("")
        width = max(len(name) for name in texts)
        span = max(len(text) for text in texts.values())
        head = f"{'figure':<{width}}  {'':<{span}}    value"
        lines += [head + ("    95 % interval" if self.intervals else ""), ""]
        groups = GROUPS if self.classes else {}
        for name, text in texts.items():
            if name in groups:
                lines += [""] * (lines[-1] != "") + [groups[name] + ":"]
            if name in self.figures:
                line = f"{name:<{width}}  {text:<{span}}  {_number(self.figures[name])}"
                low, high = self.intervals.get(name, (math.nan, math.nan))
                lines.append(line + ("" if math.isnan(low) else f"   {_number(low)} to {_number(high).strip()}"))
        rules = [] if self.classes else [f"The protocol averages over batches of {s['clips_per_batch']} clips."]
        best = self.figures.get("f_best_threshold", math.nan)
        what = " of the probability that something sounds" if self.classes else ""
        rules += [] if math.isnan(best) else [f"The best single threshold{what} is {best:.3f}."]
        lines += ["", " ".join(rules)] if rules else []
        return "\n".join(lines + self._class_lines() + [f"Note: {note}." for note in self.notes])

    def _class_lines(self):
        if not self.classes:
            return []
        names = ("iou", "f1", "precision", "recall", "fdr")
        width = max(len(row["class"]) for row in self.classes)
        lines = ["", f"{'class':<{width}}  " + "  ".join(f"{name:>9}" for name in names) + "  true pixels"]
        for row in self.classes:
            numbers = "  ".join(f"{_number(row[name]):>9}" for name in names)
            lines.append(f"{row['class']:<{width}}  {numbers}  {row['pixels']:>11}")
        return lines

    def to_json(self) -> dict:
        """JSON-able; numbers that are not defined become null."""
        return _plain(
            {
                "figures": self.figures,
                "intervals": self.intervals,
                "settings": self.settings,
                "notes": self.notes,
                "classes": self.classes,
                "curves": {name: np.round(values, 6).tolist() for name, values in self.curves.items()},
            }
        )

    def save(self, folder: str | Path, name: str) -> tuple[Path, Path]:
        """Writes `<name>.json` and `<name>_clips.csv` into `folder` (made if need be); returns both paths."""
        folder = to_path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        paths = folder / f"{name}.json", folder / f"{name}_clips.csv"
        paths[0].write_text(json.dumps(self.to_json(), indent=1, allow_nan=False) + "\n", encoding="utf-8")
        with paths[1].open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fieldnames=list(self.rows[0]))
            writer.writeheader()
            writer.writerows({k: _cell(v) for k, v in row.items()} for row in self.rows)
        return paths


def report(rows: Tally, source, sounds, *, clips_per_batch: int, bootstrap: int, settings: dict) -> Report:
    """The report of a merged tally.

    Args:
      rows: the merged tally.
      source: for the clips' ids and the classes' names.
      sounds: the `Sounds` the clips were heard with.
      clips_per_batch: the protocol's batch.
      bootstrap: number of resamplings for the intervals; 0 leaves them out.
      settings: added to the report's own.
    """
    whole = figures(summarise(rows), clips_per_batch, Resampling(len(rows["index"])))
    found, at = {name: float(values[0]) for name, values in whole.items()}, curves(rows)
    found["f_best_threshold"] = float(at["threshold"][np.argmax(at["f"])]) if at["f"][0] >= 0 else math.nan
    for sound in sounds.missing:
        found |= {f"j_{sound}": math.nan} | ({"audio_gain": math.nan} if sound == "swap" else {})
    columns = clip_columns(rows)
    return Report(
        figures=found,
        intervals=intervals(rows, clips_per_batch, bootstrap) if bootstrap else {},
        rows=_clip_rows(rows, source, sounds),
        classes=_class_rows(rows, source.class_names),
        curves=at,
        settings={
            "clips": len(rows["index"]),
            "frames": int(columns["frames"].sum()),
            "silent_frames": int(columns["silent"].sum()),
            "padding_frames": int(((rows["present"] == 0) & (rows["pixels"] > 0)).sum()) if "confusion" in rows else 0,
            "clips_per_batch": clips_per_batch,
            "bootstrap": bootstrap,
            "conditions": conditions(rows),
            **settings,
        },
        notes=list(sounds.notes),
        confusions=rows.get("confusion"),
    )


def _clip_rows(rows, source, sounds):
    true = clip_columns(rows)
    means = {
        "j": ratio(true["j"], true["frames"]),
        "f": ratio(rows["curves"].max(-1), true["sounding"]),
        "f_05": ratio(true["f_05"], true["sounding"]),
        "j_nonempty": ratio(true["j_sounding"], true["sounding"]),
    }
    if "confusion" in rows:
        iou = class_figures(rows["confusion"])["iou"]
        means["miou_classes"] = ratio(np.nansum(iou, -1), (~np.isnan(iou)).sum(-1))
    for sound in conditions(rows):
        if sound != "true":
            other = clip_columns(rows, sound)
            means[f"j_{sound}"] = ratio(other["j"], other["frames"])
    out = []
    for n, index in enumerate(int(i) for i in rows["index"]):
        partner = sounds.partner(index)
        out.append(
            {"id": source.ids[index], "index": index}
            | {name: float(values[n]) for name, values in means.items()}
            | {"frames": int(true["frames"][n]), "silent_frames": int(true["silent"][n])}
            | {"true_pixels": int(true["truth"][n]), "predicted_pixels": int(true["pred"][n])}
            | ({} if partner is None else {"swap_partner": source.ids[partner]})
        )
    return out


def _class_rows(rows, names):
    if "confusion" not in rows:
        return []
    total = rows["confusion"].sum(0)
    per_class = class_figures(total)
    return [
        {"class": name, **{key: float(values[k]) for key, values in per_class.items()}, "pixels": int(total[k].sum())}
        for k, name in enumerate(names)
    ]


def _number(value):
    return "      -" if math.isnan(value) else f"{value:7.4f}"


def _cell(value):
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.6f}"
    return value


def _plain(value):
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
