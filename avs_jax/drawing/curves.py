"""How training went, and what thresholds do, as curves."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from avs_jax.drawing.layout import new_figure, save_figure
from avs_jax.errors import InputError
from avs_jax.paths import to_path


def curves_picture(metrics: str | Path, path: str | Path, *, title: str = "") -> Path:
    """Draws a run's `metrics.jsonl`: losses above, the evaluations' figures below, over steps.

    Raises:
      InputError: the file is missing, or has no line with a step and a number.
    """
    series = _read_series(to_path(metrics))
    other = {"lr", *(name for name in series if name.endswith("_norm"))}
    panels = {
        "loss and its parts": {k: v for k, v in series.items() if not k.startswith("eval/") and k not in other},
        "learning rate": {k: v for k, v in series.items() if k == "lr"},
        "evaluation": {
            k: v for k, v in series.items() if k in ("eval/miou", "eval/fscore", "eval/audio_gain", "eval/j_swap")
        },
    }
    panels = {name: lines for name, lines in panels.items() if lines} or {"metrics": series}
    figure = new_figure(8, 3.0 * len(panels) + 0.4)
    figure.suptitle(title, fontsize=13, weight="bold")
    for n, (name, lines) in enumerate(panels.items()):
        axes = figure.add_subplot(len(panels), 1, n + 1)
        for key, (steps, values) in sorted(lines.items()):
            axes.plot(
                steps, values, marker="o" if len(steps) < 30 else None, markersize=3, label=key.removeprefix("eval/")
            )
        axes.set_title(name, loc="left", fontsize=11)
        axes.set_xlabel("step")
        axes.set_xlim(0, 1.02 * max(max(steps) for steps, _ in series.values()))
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8, frameon=False, ncols=3)
    figure.tight_layout()
    return save_figure(figure, path)


def _read_series(path):
    if not path.is_file():
        raise InputError(path, expected="the metrics of a run", found="no such file")
    series = {}
    for number, line in enumerate(path.read_text().splitlines(), 1):
        try:
            values = json.loads(line)
            step = values["step"]
        except (ValueError, KeyError, TypeError, RecursionError):
            raise InputError(f"{path}, line {number}", expected="JSON with a 'step'", found=repr(line[:60])) from None
        for key, value in values.items():
            if key != "step" and isinstance(value, int | float):
                steps, numbers = series.setdefault(key, ([], []))
                steps.append(step)
                numbers.append(value)
    if not series:
        raise InputError(path, expected="at least one number", found="none")
    return series


def threshold_picture(path: str | Path, curves: Mapping[str, np.ndarray], *, title: str = "") -> Path:
    """Draws precision against recall, and F against the threshold, from a report's `curves`."""
    figure = new_figure(9.5, 4.2)
    figure.suptitle(title, fontsize=13, weight="bold")
    left, right = figure.add_subplot(1, 2, 1), figure.add_subplot(1, 2, 2)
    marked = curves["recall"] > 0  # precision means nothing where nothing is marked
    left.plot(curves["recall"][marked], curves["precision"][marked], color="#1f5fa8")
    middle = int(np.argmin(np.abs(curves["threshold"] - 0.5)))
    left.plot(curves["recall"][middle], curves["precision"][middle], "o", color="#1f5fa8", label="threshold 0.5")
    left.set(xlabel="recall", ylabel="precision", xlim=(0, 1.02), ylim=(0, 1.02), title="All pixels together")
    right.plot(curves["threshold"], curves["f"], color="#1f5fa8")
    if np.isfinite(curves["f"]).all():
        best = int(np.argmax(curves["f"]))
        text = f"best: {curves['f'][best]:.3f} at {curves['threshold'][best]:.3f}"
        right.plot(curves["threshold"][best], curves["f"][best], "o", color="#d9730d", label=text)
    right.axvline(0.5, color="#999999", linewidth=0.8, linestyle=":")
    right.set(xlabel="threshold", ylabel="F", xlim=(0, 1), ylim=(0, 1.02), title="Frames in which something sounds")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False, loc="lower left")
    figure.tight_layout()
    return save_figure(figure, path)
