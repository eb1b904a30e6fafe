"""The benchmark of loading: its tree is AVSBench's, its rows measure, and PyTorch's loader does the same work."""

import json
from argparse import Namespace

import numpy as np
import pytest

from avs_jax.data.sources import create_source
from benchmarks import loading


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    args = Namespace(root=None, clips=4, workers=0, setting="ms3", batch_size=2, seconds=0.1)
    return args, *loading.prepare(tmp_path_factory.mktemp("loading"), args)


def test_tree_and_shards_hold_the_same_clips(made):
    _, tree, packs, sizes = made
    source = create_source("avsbench", **tree)
    assert len(source) == 4 and "4 clips" in sizes
    for folder in packs.values():
        shards = create_source("packed", root=folder)
        np.testing.assert_array_equal(source[3]["frames"], shards[3]["frames"])
    assert 0.02 < source[0]["labels"].mean() < 0.5 and not np.array_equal(source[0]["frames"], source[1]["frames"])


def test_rows_are_measured_and_reported(made):
    args, tree, packs, _ = made
    rows = [case for case in loading.cases(tree, packs, args) if case["loader"] == "ours" and case["workers"] == 0]
    measured = [{**case, **loading.measure(case), "memory": 1 << 20} for case in rows[:2]]
    assert json.loads(json.dumps(measured)) == measured
    assert all(row["rate"] > 0 and row["processor"] >= 0 and row["batch"] > 2 * 5 * 224 * 224 * 3 for row in measured)
    base = {**measured[0], "loader": "torch", "rate": 2.0, "processor": 1.0, "title": "base"}
    text = loading.report([base, {**measured[1], "rate": 30.0, "processor": 0.05}])
    assert text.splitlines()[-1].endswith("| 15.0 | 20.0 |")


def test_torch_does_the_same_work(made):
    torch = pytest.importorskip("torch", reason="needs the benchmark extra")
    from benchmarks import torch_loader

    source = create_source("avsbench", **made[1])
    frames, sound, masks = torch_loader.Clips(loading.files_of(source))[2]
    clip = source[2]
    undone = torch.round((frames * torch_loader.STD + torch_loader.MEAN) * 255).permute(0, 2, 3, 1)
    np.testing.assert_array_equal(undone.numpy(), clip["frames"])
    np.testing.assert_array_equal(sound[:, 0].numpy(), clip["audio"])
    np.testing.assert_array_equal(masks[:, 0].numpy(), clip["labels"])
    stream = torch_loader.batches(loading.files_of(source), batch_size=2, workers=0, normalised=False)
    assert [next(stream)[0].shape for _ in range(3)] == [(2, 5, 3, 224, 224)] * 3  # on into the next epoch
