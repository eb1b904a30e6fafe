"""TransAVS's benchmark: every part runs at reduced size and prints rows of numbers; what XLA leaves out is counted."""

import json
import math
import subprocess
from pathlib import Path

import pytest
from test_benchmarks_cavp import rows

from benchmarks import transavs
from benchmarks.measure import COLUMNS, plain_flops

ROOT = Path(__file__).parent.parent


def in_this_process(case):
    return transavs.measure(json.loads(json.dumps(case)))


@pytest.mark.slow
def test_every_part_prints_a_row_of_finite_numbers_for_each_case(capsys):
    args = transavs.parse(["--reduced", "--remat=false"])
    assert transavs.print_table(args, in_this_process) == 0
    printed = capsys.readouterr().out
    assert "TransAVS, ms3, 32 px, float32" in printed and "reduced" in printed
    found = rows(printed)
    assert len(found) == len(list(transavs.cases(args))) == 6
    for title, of, *cells in found:
        values = dict(zip(COLUMNS[2:], (float(cell or "nan") for cell in cells), strict=True))
        counted = ("TFLOPs", "TFLOP/s")
        assert all(math.isfinite(v) for k, v in values.items() if k not in counted), title
        assert min(values[k] for k in ("s", "per s", "compile s")) > 0, title
        assert all(math.isnan(values[k]) if title.startswith("assignment") else values[k] > 0 for k in counted), title
        assert values["per s"] == pytest.approx(float(of.split()[0]) / values["s"], rel=0.02), title
    assert [title for title, *_ in found] == [
        "resnet101, step, 6 queries", "resnet101, inference, 6 queries", "assignment, 6 queries, 1 target",
        "assignment, 6 queries, 2 targets", "focal + dice of all layers, matching and gradient, 6 queries, 2 targets",
        "AQDL + AQML and gradient, 6 queries"]  # fmt: skip


def test_the_command_prints_what_its_processes_measured_and_tells_of_failures(monkeypatch, capfd):
    monkeypatch.chdir(ROOT)
    arguments = ["--reduced", "--parts=matching", "--targets=-1,2"]
    assert transavs.main(arguments) == 1
    printed = capfd.readouterr()
    failed, fine = rows(printed.out)
    assert failed[2] == "failed, status 1" and "Traceback" in printed.err and len(failed) == len(fine)
    assert float(fine[2]) > 0


def test_cases_are_those_asked_for():
    args = transavs.parse(["--parts=step,inference", "--clips=1,8", "--queries=100,300", "--remat=true,false",
                           "--setting=s4", "--options=attention=cudnn"])  # fmt: skip
    found = [case for _, _, case in transavs.cases(args)]
    assert len(found) == 2 * 2 * 2 * 2 + 2 * 2 * 2
    assert {(case["clips"], case["options"]["remat"]) for case in found if case["part"] == "step"} == {
        (clips, remat) for clips in (1, 8) for remat in (False, True)
    }
    assert {case["recipe"] for case in found} == {
        f"transavs.py:setting=s4,backbone={backbone},queries={n}"
        for backbone in ("resnet101", "swin_b")
        for n in (100, 300)
    }
    assert {case["options"]["attention"] for case in found} == {"cudnn"}
    found = [case for _, _, case in transavs.cases(transavs.parse(["--parts=matching,losses"]))]
    assert [(case["frames"], case["targets"]) for case in found[:3]] == [(40, 1), (40, 8), (40, 20)]
    assert [(case["frames"], case["form"]) for case in found[3:]] == [
        (8, "set"), (8, "apart"), (40, "set"), (40, "apart")]  # fmt: skip
    for wrong in (["--parts=stop"], ["--remat=yes"], ["--options=width"]):
        with pytest.raises(SystemExit):
            transavs.parse(wrong)


def test_options_reach_the_method_and_the_recipe_its_optimiser():
    args = transavs.parse(["--reduced", "--queries=5", "--precision=bfloat16", "--options=decoder_layers=2"])
    (_, _, case), *_ = transavs.cases(args)
    method, config = transavs.method_of(case)
    options = {"num_queries": 5, "remat": True, "compute_dtype": "bfloat16", "decoder_layers": 2, "width": 4}
    assert options.items() <= method.options.items()
    assert config.optimizer.name == "adamw"


def test_flops_of_layers_that_are_not_counted():
    def count(layers):
        args = transavs.parse(["--reduced", "--parts=losses", "--queries=100", "--size=64",
                               f"--options=decoder_layers={layers - 1}"])  # fmt: skip
        (_, _, case), *_ = transavs.cases(args)
        problem = transavs.losses_problem(case)
        counted = plain_flops(problem.run, *problem.inputs)
        return counted, counted + problem.loop_flops(None)

    (one, whole), (four, wholes) = count(2), count(4)
    assert four < 1.2 * one  # as XLA has it, one layer's
    assert wholes == pytest.approx(2 * whole, rel=0.1)


def test_a_case_that_fails_leaves_the_others(capsys):
    def run(case):
        if case["clips"] == 1:
            raise subprocess.CalledProcessError(-9, "python")
        return {"seconds": 2.0, "mib": 1.0, "processor": 3.0, "compile": 4.0, "planned": 5.0, "flops": 6e12,
                "count": case["clips"] * case["frames"], "device": "a device"}  # fmt: skip

    args = transavs.parse(["--parts=step,inference", "--clips=1,2", "--backbones=resnet101"])
    assert transavs.print_table(args, run) == 2
    found = rows(capsys.readouterr().out)
    assert [row[1:3] for row in found] == [["5 frames", "failed, status -9"], ["10 frames", "2"]] * 2
    assert found[1][3] == "5" and found[1][-2:] == ["6", "3"]
