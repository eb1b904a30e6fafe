"""What tests of whole runs share: two runs are the same when nothing that they leave differs by a bit."""

from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp

ROOT = Path(__file__).parent.parent
RECIPE = ROOT / "tests" / "recipes" / "small.py"


def steps(workdir: Path) -> set[int]:
    """The steps of a run's whole checkpoints."""
    return {int(p.name) for p in (workdir / "checkpoints").iterdir() if p.name.isdigit()}


def arrays(workdir: Path, step: int) -> dict[str, np.ndarray]:
    """Every array of a checkpoint, by path."""
    found = {}
    for item in ("variables", "optimizer"):
        with ocp.StandardCheckpointer() as reader:
            tree = reader.restore(workdir / "checkpoints" / str(step) / item)
        leaves = ocp.tree.to_flat_dict(tree, sep="/")
        found |= {f"{item}/{k}": np.asarray(v) for k, v in leaves.items() if v is not None}
    return found


def assert_same_run(a: Path, b: Path, step: int, metrics: bool = True) -> None:
    """Metrics, evaluations included, and every array at the run's last step.

    metrics: False where one of the runs was told to log at other steps.
    """
    assert not metrics or (a / "metrics.jsonl").read_bytes() == (b / "metrics.jsonl").read_bytes()
    first, second = arrays(a, step), arrays(b, step)
    assert first.keys() == second.keys() and len(first) > 20
    for name in first:
        assert first[name].dtype == second[name].dtype and first[name].tobytes() == second[name].tobytes(), name
