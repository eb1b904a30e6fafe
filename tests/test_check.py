"""The check of a whole data set: as a function, as a filter for training, and as a command."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from avsbench_tree import write_tree

from avs_jax import check as checking
from avs_jax import config as configs
from avs_jax.data.sources.avsbench import AVSBenchSource
from avs_jax.data.sources.subset import Subset
from avs_jax.errors import InputError

SIZE = 32
VAL = "Multi-sources/ms3_data/{}/val/valclip_{}"


@pytest.fixture
def root(tmp_path):
    return write_tree(tmp_path / "data", "ms3", SIZE, "wav", {"train": 2, "val": 4, "test": 1})


def break_two(root: Path) -> None:
    """Five problems in validation clips 0 and 2."""
    (root / VAL.format("audio_wav", 0)).with_suffix(".wav").write_bytes(b"")
    (root / VAL.format("gt_masks", 0) / "valclip_0_2.png").write_bytes(b"no")
    (root / VAL.format("gt_masks", 0) / "valclip_0_4.png").write_bytes(b"no")
    (root / VAL.format("gt_masks", 2) / "valclip_2_1.png").unlink()
    (root / "Multi-sources/ms3_data/visual_frames/valclip_2/valclip_2.mp4_1.png").unlink()


def test_a_sound_data_set_has_no_problems(root):
    source = AVSBenchSource(root, "ms3", "val", SIZE)
    assert checking.check(source) == []
    assert checking.skip_bad(source) is source


@pytest.mark.parametrize("threads", [1, 3])
def test_every_problem_is_found_in_order(root, threads):
    break_two(root)
    problems = checking.check(AVSBenchSource(root, "ms3", "val", SIZE), threads)
    assert [p.id for p in problems] == ["valclip_0"] * 3 + ["valclip_2"] * 2
    assert all(isinstance(p.error, InputError) for p in problems)
    told = [Path(p.error.where).name for p in problems]
    assert told == ["valclip_0_2.png", "valclip_0_4.png", "valclip_0.wav", "valclip_2", "valclip_2"]


def test_training_can_skip_what_is_bad(root, caplog):
    break_two(root)
    source = AVSBenchSource(root, "ms3", "val", SIZE)
    good, problems = checking.good_indices(source)
    np.testing.assert_array_equal(good, [1, 3])
    assert len(problems) == 5
    with caplog.at_level(logging.WARNING):
        subset = checking.skip_bad(source)
    assert isinstance(subset, Subset) and subset.ids == ("valclip_1", "valclip_3")
    assert "skipped 2 of 4 clips" in caplog.text and "valclip_0_4.png" in caplog.text
    assert subset[1]["id"] == "valclip_3"
    for i in (1, 3):
        (root / VAL.format("audio_wav", i)).with_suffix(".wav").unlink()
    with pytest.raises(InputError, match="found 4 bad ones"):
        checking.skip_bad(source)


class Odd:
    """A source without `problems`, whose clip 1 breaks the record."""

    ids, num_frames, image_size, class_names = ("a", "b"), 1, (4, 4), ("background", "sounding")

    def __len__(self):
        return 2

    def __getitem__(self, i):
        return {
            "frames": np.zeros((1, 4, 4, 3), np.uint8),
            "labels": np.full((1, 4, 4), 7 * i, np.uint8),
            "labelled": np.ones(1, bool),
            "audio": np.zeros((1, 96, 64), np.float32),
            "id": self.ids[i],
        }


def test_any_source_is_validated():
    (problem,) = checking.check(Odd())
    assert problem.id == "b" and problem.error.found == "value 7"


def recipe(root: Path, **data):
    config = configs.defaults()
    config.data.update({"source": "avsbench", "setting": "ms3", "root": str(root), "image_size": SIZE, **data})
    return config


def test_splits_of_a_config(root):
    break_two(root)
    results = checking.check_splits(recipe(root), ["train", "eval", "test"])
    assert {s: (n, len(p)) for s, (n, p) in results.items()} == {"train": (2, 0), "eval": (4, 5), "test": (1, 0)}
    text = checking.summary(results, show=1)
    assert "eval: 4 clips, 5 problems in 2" in text and "train: 2 clips, no problems" in text
    assert "2 x expected a PNG image" in text and "and 1 more" in text
    shared = recipe(root)
    shared.data.test.split = "val"  # the same clips are read once
    assert set(checking.check_splits(shared, ["eval", "test"])) == {"eval, test"}


def test_a_bad_table_is_a_problem_and_a_bad_option_an_error(root):
    table = root / "Multi-sources/ms3_meta_data.csv"
    table.write_text(table.read_text().replace(",test", ",val"))
    results = checking.check_splits(recipe(root), ["eval", "test"])
    assert results["test"][0] == 0 and "clips of split 'test'" in str(results["test"][1][0].error)
    with pytest.raises(InputError, match=r"data\.resise.*Did you mean 'resize'"):
        checking.check_splits(recipe(root, resise=True), ["eval"])
    with pytest.raises(InputError, match="some of train, eval, test; found 'val'"):
        checking.check_splits(recipe(root), ["val"])


def test_reports(root, tmp_path):
    break_two(root)
    results = checking.check_splits(recipe(root), ["train", "eval"])
    checking.write_report(results, tmp_path / "report.json")
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["clips"] == {"train": 2, "eval": 4} and len(report["problems"]) == 5
    assert report["problems"][0]["id"] == "valclip_0" and report["problems"][0]["split"] == "eval"
    checking.write_report(results, tmp_path / "report.txt")
    lines = (tmp_path / "report.txt").read_text().splitlines()
    assert len(lines) == 5 and all(len(line.split("\t")) == 5 for line in lines)
    with pytest.raises(InputError, match="--report"):
        checking.write_report(results, tmp_path / "no/such/folder.txt")


CONFIG = """
from avs_jax import config

def get_config(arg=None):
    c = config.defaults()
    c.data.source = "avsbench"
    c.data.setting = "ms3"
    c.data.root = arg
    c.data.image_size = 32
    return c
"""


@pytest.fixture
def command(root, tmp_path):
    (tmp_path / "recipe.py").write_text(CONFIG)

    def run(*flags, config=f"--config={tmp_path / 'recipe.py'}:{root}"):
        return subprocess.run(
            [sys.executable, "-m", "avs_jax.check", *filter(None, [config]), *flags],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
            capture_output=True,
            text=True,
        )

    return run


def test_command(command, root, tmp_path):
    done = command()
    assert done.returncode == 0, done.stderr
    assert "eval: 4 clips, no problems" in done.stdout and "clip/s" in done.stderr
    break_two(root)
    done = command("--split=eval", "--report=all.json")
    assert done.returncode == 1 and "5 problems in 2" in done.stdout and "train" not in done.stdout
    assert len(json.loads((tmp_path / "all.json").read_text())["problems"]) == 5


@pytest.mark.parametrize(
    "flags, config, words",
    [
        (["--config.data.rot=x"], True, "rot"),
        (["--splits=eval"], True, "split"),
        (["--split=evil"], True, "some of train, eval, test"),
        (["--threads=0"], True, "threads"),
        ([], None, "--config: expected to be given"),
        ([], "--config=nowhere.py", "nowhere.py"),
    ],
)
def test_command_line_errors_exit_with_2(command, flags, config, words):
    done = command(*flags) if config is True else command(*flags, config=config)
    assert done.returncode == 2, done.stderr
    assert words in done.stderr and "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
