"""CAVP's benchmark: every part runs at reduced size and prints rows of numbers; one failed case does not end it."""

import json
import math
import subprocess
from pathlib import Path

import pytest

from benchmarks import cavp, contrastive
from benchmarks.measure import COLUMNS, in_own_process, plain_flops, row

ROOT = Path(__file__).parent.parent


def rows(printed: str) -> list[list[str]]:
    """The cells of the table's rows."""
    lines = [line for line in printed.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[1:]]


def in_this_process(case):
    return cavp.measure(json.loads(json.dumps(case)))


@pytest.mark.slow
def test_every_part_prints_a_row_of_finite_numbers_for_each_case(capsys):
    args = cavp.parse(["--reduced", "--blocks=8", "--sounds=1"])
    assert cavp.print_table(args, in_this_process) == 0
    printed = capsys.readouterr().out
    found = rows(printed)
    assert "reduced" in printed and len(found) == len(list(cavp.cases(args))) == 9
    for title, of, *cells in found:
        figures = dict(zip(COLUMNS[2:], map(float, cells), strict=True))
        assert all(map(math.isfinite, figures.values())), title
        assert min(figures[k] for k in ("s", "per s", "compile s", "TFLOPs", "TFLOP/s")) > 0, title
        assert figures["per s"] == pytest.approx(float(of.split()[0]) / figures["s"], rel=0.02), title
    assert {title.split(",")[1].strip() for title, *_ in found if title.startswith("deeplab")} == {"step", "inference"}


def test_a_case_in_a_process_of_its_own(monkeypatch):
    monkeypatch.chdir(ROOT)
    args = cavp.parse(["--reduced", "--parts=front_end", "--sounds=1"])
    title, of, case = next(cavp.cases(args))
    line = in_own_process("benchmarks.cavp", case=json.dumps(case))
    assert all(math.isfinite(float(cell)) for cell in rows("| head |\n" + row(title, of, line))[0][2:])
    assert "cpu" in line["device"]


def test_a_failed_case_is_told_and_the_others_follow(capsys):
    def run(case):
        if case["size"] == 64:
            raise subprocess.CalledProcessError(-9, "python")
        return {"seconds": 2.0, "mib": 1.0, "processor": 3.0, "compile": 4.0, "planned": None, "flops": None,
                "count": case["batch"], "device": "a device"}  # fmt: skip

    args = cavp.parse(["--reduced", "--parts=step", "--sizes=64,32", "--batches=1,4"])
    assert cavp.print_table(args, run) == 2
    found = rows(capsys.readouterr().out)
    assert [row[2] for row in found] == ["failed, status -9"] * 2 + ["2"] * 2
    assert [row[3] for row in found[2:]] == ["0.5", "2"]  # 1 and 4 pictures in 2 s
    assert found[2][-2:] == ["", ""]  # no count of FLOPs
    assert len({len(row) for row in found}) == 1


def test_cases_are_those_asked_for():
    args = cavp.parse(["--sizes=32,64", "--batches=2,8", "--precision=bfloat16",
                       "--options=backbone=resnet101,width=32", "--parts=step,inference"])  # fmt: skip
    found = [case for _, _, case in cavp.cases(args)]
    assert len(found) == 3 * 2 * 2 + 3 * 2
    assert {(case["size"], case["batch"]) for case in found if case["part"] == "step"} == {
        (s, b) for s in (32, 64) for b in (2, 8)
    }
    assert all(case["options"]["backbone"] == "resnet101" and case["options"]["width"] == 32 for case in found)
    assert {case["options"]["compute_dtype"] for case in found} == {"bfloat16"}
    for wrong in (["--parts=stop"], ["--options=width"], ["--architectures=unet"]):
        with pytest.raises(SystemExit):
            cavp.parse(wrong)


@pytest.mark.parametrize("valid", [1.0, 0.4])
def test_flops_of_blocks_that_are_not_counted(valid):
    budget, channels = 64, 512

    def count(block):
        run, inputs = contrastive.loss(budget, channels, 5, block, valid)
        return plain_flops(run, *inputs) + contrastive.loop_flops(budget * valid, budget, channels, block)

    computed = budget if valid == 1 else 32  # in blocks of 16 with some that is valid
    products = 6 * computed * channels * computed
    assert count(16) == pytest.approx(products, rel=0.15)
