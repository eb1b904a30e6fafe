"""The side-by-side benchmark: processes that take turns, and the table."""

import sys

import pytest

from benchmarks import side_by_side

WORKER = """#!{python}
import json, sys, time
form = json.loads(sys.argv[3].partition("=")[2])["form"]
print(json.dumps({{"mib": 100 if form == "linear" else 400}}), flush=True)
for step, _ in enumerate(sys.stdin):
    with open({log!r}, "a") as f:
        print(form, file=f)
    print(json.dumps({{"seconds": [9, 2, 1][step], "processor": 4}}), flush=True)
"""


@pytest.fixture
def worker(tmp_path):
    """An interpreter that plays PyTorch's part."""
    log, path = tmp_path / "log", tmp_path / "python"
    path.write_text(WORKER.format(python=sys.executable, log=str(log)))
    path.chmod(0o755)
    return path, log


def test_forms_take_turns_and_medians_are_kept(worker):
    path, log = worker
    args = side_by_side.parse([f"--torch-python={path}", "--forms=quadratic,linear", "--repeats=3"])
    found = side_by_side.compare(args, "train")
    assert log.read_text().split() == ["quadratic", "linear"] * 3
    assert found == {"quadratic": {"mib": 400, "seconds": 2, "processor": 4},
                     "linear": {"mib": 100, "seconds": 2, "processor": 4}}  # fmt: skip


def test_a_form_that_cannot_run_is_named(tmp_path):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nexit 3\n")
    python.chmod(0o755)
    args = side_by_side.parse([f"--torch-python={python}", "--forms=linear"])
    with pytest.raises(SystemExit, match="PyTorch, linear ended with status 3; PyTorch comes with the extra 'bench'"):
        side_by_side.compare(args, "train")


def test_ratios_are_ours_to_the_others():
    ours = {"mib": 200.0, "seconds": 3.0, "processor": 6.0}
    found = {"jax": ours, "linear_last": {"mib": 800.0, "seconds": 4.0, "processor": 5.0}}
    assert list(side_by_side.rows("train", found)) == [
        "| avs_jax | train | 3.00 | 6.00 | 200 |  |  |  |",
        "| PyTorch, linear, channels last | train | 4.00 | 5.00 | 800 | 0.75 | 1.20 | 0.25 |",
    ]


def test_an_unknown_form_is_refused(capsys):
    with pytest.raises(SystemExit):
        side_by_side.parse(["--forms=tensorflow"])
    assert "expected some of jax,quadratic,quadratic_last,linear,linear_last" in capsys.readouterr().err
