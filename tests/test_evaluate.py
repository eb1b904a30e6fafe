"""The evaluation command on a run of a toy method: its table, its files, its errors."""

import csv
import json

import numpy as np
import pytest
from toy import VARIABLES, ToySource, toy_method

from avs_jax import config as configs
from avs_jax import evaluate
from avs_jax.data import sources
from avs_jax.errors import InputError
from avs_jax.metrics import evaluate as figures_of
from avs_jax.training import checkpoint


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A workdir whose checkpoint is the toy method and whose data set is the toy source."""

    def create(name, clips=6, split="test", **options):
        for option in options:
            raise InputError(f"data.{option}", expected="an option", found=repr(option))
        return ToySource(clips=clips, seed=len(split))

    config = configs.defaults()
    config.data.source = "toy"
    configs.save(config, tmp_path / "config.json")
    monkeypatch.setattr("avs_jax.training.build.create_source", create)
    monkeypatch.setattr(checkpoint, "load_checkpoint", lambda workdir, which: (toy_method(), VARIABLES))
    return tmp_path


def test_command(run, capsys):
    assert evaluate.main([f"--workdir={run}", "--bootstrap=20", "--pictures=2", "--batch_size=3"]) == 0
    printed = capsys.readouterr().out
    expected = figures_of(toy_method(), VARIABLES, ToySource(clips=6, seed=4))
    assert f"{expected['miou']:.4f}" in printed and f"{expected['audio_gain']:.4f}" in printed
    written = json.loads((run / "evaluation" / "test.json").read_text())
    assert {k: v for k, v in written["figures"].items() if v is not None} == {
        k: v for k, v in expected.items() if not np.isnan(v)
    }
    low, high = written["intervals"]["miou"]
    assert low <= expected["miou"] <= high
    assert written["settings"]["split"] == "test" and written["settings"]["clips"] == 6
    rows = list(csv.DictReader((run / "evaluation" / "test_clips.csv").open()))
    assert [row["id"] for row in rows] == [f"toy-{i:02d}" for i in range(6)]
    assert {"j", "f", "silent_frames", "j_swap", "j_silence", "j_noise", "swap_partner"} <= rows[0].keys()
    for name in ("test.png", "test_curves.png"):
        assert (run / "evaluation" / name).read_bytes()[:4] == b"\x89PNG" and name in printed


def test_options(run, tmp_path):
    out = tmp_path / "elsewhere"
    report = evaluate.main([f"--workdir={run}", "--split=val", "--data.clips=3", "--bootstrap=0", "--pictures=0",
                            "--conditions=true", f"--output={out}", "--fast"])  # fmt: skip
    assert report == 0
    assert sorted(path.name for path in out.iterdir()) == ["val.json", "val_clips.csv"]
    written = json.loads((out / "val.json").read_text())
    assert written["settings"]["clips"] == 3 and written["intervals"] == {}
    assert "j_swap" not in written["figures"]


BAD = [
    ([], "config.json"),
    (["--data.rooot=x"], "data.rooot"),
    (["--btach-size=2"], "Did you mean '--batch-size'"),
    (["--batch-size=0"], "batch_size"),
    (["--clips-per-batch=-1"], "clips_per_batch"),
    (["--split=tset"], "invalid choice: 'tset'"),
    (["--max-clips=-1"], "max_clips"),
    (["--conditions=true,swp"], "Did you mean 'swap'"),
    (["--data.clips=0"], "at least one clip"),
]


@pytest.mark.parametrize("arguments, message", BAD, ids=[message for _, message in BAD])
def test_bad_input_is_one_line(run, capsys, arguments, message):
    workdir = run / "none" if not arguments else run
    assert evaluate.main([f"--workdir={workdir}", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1


def test_values_of_data_options():
    _, data = evaluate.parse(["--workdir=x", "--data.root=/data/a b", "--data.length=3", "--data.flag=True",
                              "--data.size=[48, 64]"])  # fmt: skip
    assert data == {"root": "/data/a b", "length": 3, "flag": True, "size": [48, 64]}
    assert "synthetic" in sources.SOURCES  # the options go to `create_source`
