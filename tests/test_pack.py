"""Packed data sets: the same clips to the bit from shards as from files, through kills, damage and bad clips."""

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path

import jax
import numpy as np
import pytest
import vpo_tree
from avsbench_tree import write_tree
from avss_tree import write_avss_tree
from test_cavp_training import small as cavp
from test_training import recipe

from avs_jax import check as checking
from avs_jax import prepare as command
from avs_jax.data import clip_bytes, pipeline
from avs_jax.data.pairing import Pairing, class_table
from avs_jax.data.prepare import pack, runner
from avs_jax.data.prepare.vpo_build import Options, build
from avs_jax.data.sources import create_source, packed_index
from avs_jax.errors import InputError
from avs_jax.metrics.sounds import CONDITIONS, sounds
from avs_jax.prediction.run import seen_by
from avs_jax.train import train
from avs_jax.training.embedding_cache import SoundFiles, origin

ROOT = Path(__file__).parents[1]
SIZE = 32
FIELDS = {
    "frames": np.random.default_rng(0).integers(0, 256, (2, 6, 7, 3), np.uint8),
    "labels": np.kron(np.array([[[0, 1], [255, 0]]], np.uint8), np.ones((1, 40, 40), np.uint8)),
    "labelled": np.array([True, False]),
    "size": np.array([5, 6], np.int32),
    "audio": np.random.default_rng(1).normal(size=(2, 3, 4)).astype(np.float32),
    "nothing": np.zeros((0, 3), np.uint8),
}


def assert_same(a: dict, b: dict):
    assert a.keys() == b.keys()
    for name, value in a.items():
        np.testing.assert_array_equal(value, b[name], err_msg=name)
        assert getattr(value, "dtype", None) == getattr(b[name], "dtype", None), name


def packed(tmp_path, name, workers=0, codec="raw", split="train", shard_mb=256, skip_bad=False, **options):
    """The data set, and the same packed to `tmp_path`/pack."""
    options["split"] = split
    for plan in pack.make_plans(tmp_path / "pack", name, [options], codec, shard_mb, skip_bad):
        pack.pack(plan, workers)
    return create_source(name, **options), create_source("packed", root=tmp_path / "pack", split=split)


# ---- Records


@pytest.mark.parametrize("across", [(), ("frames", "labels")], ids=str)
def test_records_hold_arrays_as_they_are(across):
    record = clip_bytes.encode("clip ü", FIELDS, across)
    name, found = clip_bytes.decode(record, "here")
    assert name == "clip ü"
    assert_same(FIELDS, found)
    base = np.frombuffer(record, np.uint8)
    assert np.shares_memory(found["audio"], base) and not found["audio"].flags.writeable
    assert len(record) < FIELDS["labels"].nbytes or across  # labels are runs


def test_records_refuse_what_they_cannot_hold():
    with pytest.raises(InputError, match=r"clip 'c', field 'x': expected .*float64"):
        clip_bytes.encode("c", {"x": np.zeros(3)})


def forged(entry, content=b"", version=clip_bytes.VERSION):
    listed = json.dumps([entry]).encode()
    head = clip_bytes._START.pack(clip_bytes._MAGIC, version, 1, len(listed)) + b"c" + listed
    return head + bytes(-len(head) % clip_bytes.ALIGN) + content


@pytest.mark.parametrize(
    "record, message",
    [
        (b"", "a record of a clip; found 0 bytes"),
        (b"x" * 100, "a record of a clip"),
        (forged(["a", "uint8", [3], "raw", 3], b"abc", version=7), "version 1; found version 7"),
        (forged(["a", "uint8", [3], "raw", 3], b"ab"), "field 'a' to end within"),
        (forged(["a", "uint8", [3], "raw", 3], b"abcd"), "which its fields have"),
        (forged(["a", "uint8", [1 << 29, 64], "raw", 3]), "more than"),
        (forged(["a", "uint8", [1 << 40], "raw", 3]), "a list of fields"),
        (forged(["a", "uint8", [-1], "raw", -1]), "a list of fields"),
        (forged(["a", "object", [1], "raw", 8], bytes(8)), "a list of fields"),
        (forged(["a", "float32", [2], "raw", 4], bytes(4)), "a list of fields"),
        (forged(["a", "uint8", [1 << 29], "runs", 5], np.uint32(7).tobytes() + b"\1"), "runs of 536870912 values"),
        (forged(["a", "float32", [1], "runs", 5], bytes(5)), "a list of fields"),
        (forged(["a", "uint8", [3], "across", 3], b"abc"), "a list of fields"),
        (forged(["a", "bool", [2], "raw", 2], b"\1\7"), "0 and 1 in 'a'; found 7"),
        (forged(["a", "uint8", [1]]), "a list of fields"),
        (forged("[" * 50_000), "a list of fields"),
    ],
    ids=range(16),
)
def test_forged_records_are_refused(record, message):
    with pytest.raises(InputError, match="here: ") as error:
        clip_bytes.decode(record, "here")
    assert message in str(error.value)


def test_no_mutated_record_does_anything_but_decode_or_fail():
    record, rng = clip_bytes.encode("clip", FIELDS, ("frames",)), np.random.default_rng(3)
    refused = 0
    for _ in range(1500):
        bad = bytearray(record)
        for _ in range(rng.integers(1, 4)):
            place = rng.integers(0, 500 if rng.random() < 0.8 else len(bad))
            bad[place : place + rng.integers(0, 3)] = rng.bytes(rng.integers(0, 3))
        try:
            clip_bytes.decode(bytes(bad), "here")
        except InputError:
            refused += 1
    assert 500 < refused < 1500


# ---- Every source


@pytest.fixture(scope="module")
def roots(tmp_path_factory):
    """Small trees of every data set."""
    base = tmp_path_factory.mktemp("trees")
    write_tree(base / "avs", "ms3", size=SIZE)
    write_tree(base / "avs", "s4", size=SIZE, sound="log_mel")
    write_avss_tree(base / "avss")
    coco, vgg = vpo_tree.write_coco(base / "coco", 3, images=8), vpo_tree.write_vggsound(base / "sounds")
    for setting, counts in (("ss", {}), ("ms", {"train": 4, "test": 2})):
        build(Options(coco, vgg, base / "vpo", setting, counts=counts, silence=0.0))
    vpo_tree.write_single_plus(base / "avsbench_data_single_plus", base / "vggsound_bench/VGGSound/audios")
    return base


CASES = {
    "s4": ("avsbench", {"root": "avs", "setting": "s4", "image_size": SIZE}),
    "ms3": ("avsbench", {"root": "avs", "setting": "ms3", "image_size": (24, SIZE), "resize": True, "split": "val"}),
    "waveform": ("avsbench", {"root": "avs", "setting": "ms3", "image_size": SIZE, "front_end": "waveform",
                              "sound": "wav", "seconds": 0.5, "split": "test"}),
    "avss": ("avsbench", {"root": "avss", "setting": "avss", "image_size": SIZE, "subsets": "v1s,v2"}),
    "own sizes": ("vpo", {"root": "vpo", "setting": "vpo_ss", "seconds": 0.5}),
    "canvases": ("vpo", {"root": "vpo", "setting": "vpo_ms", "seconds": 0.5, "stereo": True, "pad": "buckets",
                         "split": "test"}),
    "single_plus": ("single_plus", {"root": "avsbench_data_single_plus", "setting": "single_plus"}),
    "salient": ("single_plus", {"root": "avsbench_data_single_plus", "setting": "salient", "image_size": SIZE}),
    "semantic": ("synthetic", {"setting": "semantic", "schedule": "per_second", "length": 3, "image_size": SIZE}),
    "still": ("synthetic", {"setting": "multi", "still": True, "length": 3, "image_size": SIZE, "split": "val"}),
}  # fmt: skip


@pytest.mark.parametrize("codec", ["raw", "compressed"])
@pytest.mark.parametrize("case", CASES)
def test_packed_clips_are_the_clips(roots, tmp_path, case, codec):
    name, options = CASES[case]
    options = {k: str(roots / v) if k == "root" else v for k, v in options.items()}
    source, shards = packed(tmp_path, name, codec=codec, **options)
    assert len(source) == len(shards) and source.ids == shards.ids
    for i in range(len(source)):
        clip = source[i]
        assert_same(clip, shards[i])
        assert_same(source.visual(i), shards.visual(i))
        np.testing.assert_array_equal(source.audio(i), shards.audio(i))
    for told in ("num_frames", "image_size", "class_names", "front_end"):
        assert getattr(source, told) == getattr(shards, told), told
    assert seen_by(name, options, source) == seen_by("packed", {}, shards)
    assert packed_index.plain(source.fingerprint()) == shards.fingerprint()
    for table in ("sounds", "image_classes"):
        assert hasattr(source, table) == hasattr(shards, table)
        if hasattr(source, table):
            for i in range(len(source)):
                np.testing.assert_array_equal(getattr(source, table)(i), getattr(shards, table)(i))
                assert getattr(shards, table)(i).dtype == bool
    if hasattr(source, "sounds"):
        assert tuple(source.sound_names) == shards.sound_names
    np.testing.assert_array_equal(class_table(source), class_table(shards))
    again = create_source("packed", **{**options, "root": tmp_path / "pack"})  # options may be repeated
    assert_same(again[0], pickle.loads(pickle.dumps(shards))[0])
    assert checking.check(shards) == []


def test_evaluation_hears_the_same(roots, tmp_path):
    source, shards = packed(tmp_path, "avsbench", root=str(roots / "avs"), setting="ms3", image_size=SIZE)
    index = np.arange(3)
    heard = [sounds(s, CONDITIONS) for s in (source, shards)]
    true = np.stack([source.audio(i) for i in index])
    for condition in CONDITIONS:
        np.testing.assert_array_equal(*[h(condition, index, true) for h in heard])


def test_sounds_are_known_without_reading_them(roots, tmp_path):
    options = {"root": str(roots / "avs"), "setting": "ms3", "image_size": SIZE}
    _, shards = packed(tmp_path, "avsbench", **options)
    files = SoundFiles(tmp_path / "files.json")
    keys = [origin(shards, i, files).key for i in range(3)]
    shutil.rmtree(tmp_path / "pack")
    _, again = packed(tmp_path, "avsbench", **options)
    for shard in again._index["shards"]:
        (tmp_path / "pack/train" / shard["file"]).unlink()
    assert [origin(again, i, files).key for i in range(3)] == keys and len(set(keys)) == 3


# ---- Batches and training


def take(source, count=5, **options):
    batches = pipeline.train_batches(source, seed=1, batch_size=4, **options)
    try:
        return [next(batches) for _ in range(count)]
    finally:
        batches.close()


@pytest.mark.parametrize("options", [{"threads": 0}, {"threads": 2}, {"workers": 2, "threads": 1}], ids=str)
def test_batches_are_the_same(roots, tmp_path, options):
    made = {"setting": "semantic", "length": 9, "image_size": SIZE, "front_end": "waveform", "seconds": 0.5}
    source, shards = packed(tmp_path, "synthetic", shard_mb=1, **made)
    augment = {"hflip": 0.5, "scale": (0.8, 1.2), "color": 0.2}
    wanted, found = (
        take(s, augment=augment, pairing=Pairing(class_table(s), 3), **o)
        for s, o in ((source, {"threads": 0}), (shards, options))
    )
    for a, b in zip(wanted, found, strict=True):
        assert_same(a, b)
    for a, b in zip(*(pipeline.eval_batches(s, batch_size=4, max_clips=6) for s in (source, shards)), strict=True):
        assert_same(a, b)


def over(roots, config, **changes):
    """A recipe that trains on the tree of MS3."""
    data = {"source": "avsbench", "root": str(roots / "avs"), "setting": "ms3", "image_size": SIZE}
    splits = {"train": {"split": "train"}, "eval": {"split": "val"}, "test": {"split": "test"}}
    with config.unlocked():
        config.data = {**data, **splits}
    changes = {"batch_size": 2, "eval.max_clips": 1, "log.tensorboard": False, "optimizer.schedule": "constant",
               "optimizer.warmup_steps": 0, **changes}  # fmt: skip
    config.update_from_flattened_dict(changes)
    return config


def pack_all(root, output, name, **data):
    plans = pack.make_plans(output, name, [{"root": root, "split": s, **data} for s in ("train", "val")])
    for plan in plans:
        pack.pack(plan, 0)


def test_a_run_may_go_on_from_shards(roots, tmp_path):
    """Four steps from files are two from files and two from shards, the other way round, and four from shards."""
    pack_all(str(roots / "avs"), tmp_path / "pack", "avsbench", setting="ms3", image_size=SIZE)
    shards = {"data.source": "packed", "data.root": str(tmp_path / "pack")}
    whole = train(over(roots, recipe(), steps=4), tmp_path / "whole")
    for k, (first, second) in enumerate((({}, shards), (shards, {}), (shards, shards))):
        train(over(roots, recipe(), steps=2, **first), tmp_path / str(k))
        found = train(over(roots, recipe(), steps=4, **second), tmp_path / str(k))
        jax.tree.map(np.testing.assert_array_equal, whole.state.params, found.state.params)
        assert found.figures == whole.figures


@pytest.mark.slow
def test_training_is_the_same_from_shards(roots, tmp_path):
    """TPAVI, whose frozen audio encoder runs before: its embeddings are found by other keys."""
    pack_all(str(roots / "avs"), tmp_path / "pack", "avsbench", setting="ms3", image_size=SIZE)
    found = []
    for k, changes in enumerate(({}, {"data.source": "packed", "data.root": str(tmp_path / "pack")})):
        config = recipe(ROOT / "configs/tpavi.py", "dataset=synthetic,scale=tiny")
        config.tagging.steps, config.loader.embeddings = 0, str(tmp_path / str(k))
        config = over(roots, config, steps=2, epochs=0.0, **changes)
        found.append(train(config, tmp_path / f"run{k}"))
    jax.tree.map(np.testing.assert_array_equal, found[0].state.params, found[1].state.params)
    assert found[0].figures == found[1].figures


def test_paired_training_is_the_same_from_shards(tmp_path):
    """CAVP, which hears other clips' sounds, from the embedded data set and from its shards."""
    config = cavp(steps=2)
    whole = train(config, tmp_path / "whole")
    name, splits = "synthetic", []
    for split in ("train", "eval"):
        data = config.data.to_dict()
        parts = {part: data.pop(part) for part in ("train", "eval", "test")}
        splits.append({k: v for k, v in {**data, **parts[split]}.items() if k != "source"})
    for plan in pack.make_plans(tmp_path / "pack", name, splits):
        pack.pack(plan, 0)
    config = cavp(steps=2)
    config.data.source = "packed"
    with config.data.unlocked():
        config.data.root = str(tmp_path / "pack")
    found = train(config, tmp_path / "packed")
    jax.tree.map(np.testing.assert_array_equal, whole.state.params, found.state.params)
    assert found.figures == whole.figures


def test_check_reads_what_a_config_names(roots, tmp_path):
    pack_all(str(roots / "avs"), tmp_path, "avsbench", setting="ms3", image_size=SIZE)
    config = over(roots, recipe(), **{"data.source": "packed", "data.root": str(tmp_path)})
    assert checking.check_splits(config, ("train", "eval")) == {"train": (3, []), "eval": (2, [])}
    shard = next((tmp_path / "val").glob("*.array_record"))
    content = bytearray(shard.read_bytes())
    content[5000] ^= 1
    shard.write_bytes(content)
    (problem, *_) = checking.check_splits(config, ("eval",))["eval"][1]
    assert str(shard) in problem.error.where and "a whole shard" in problem.error.expected


# ---- The command


def main(*argv):
    return command.main(["pack", *argv])


def flags(output, roots, *more):
    return (f"--output={output}", "--data.source=avsbench", f"--data.root={roots / 'avs'}", "--data.setting=ms3",
            f"--data.image_size={SIZE}", "--workers=0", *more)  # fmt: skip


def test_the_command_packs_all_splits_and_checks_them_when_told_again(roots, tmp_path, capsys):
    assert main(*flags(tmp_path / "a", roots)) == 0
    out = capsys.readouterr().out
    assert "train: 3 clips" in out and "free: " in out and "data.source=packed" in out
    before = vpo_tree.contents(tmp_path / "a")
    assert set(before) == {f"{s}/{f}" for s in pack.SPLITS for f in ("index.json", "00000-of-00001.array_record")}
    (tmp_path / "a/val/00000-of-00001.array_record").unlink()
    (tmp_path / "a/test/00000-of-00001.array_record").write_bytes(b"damaged")
    assert main(*flags(tmp_path / "a", roots)) == 0  # makes again what is missing or damaged
    assert vpo_tree.contents(tmp_path / "a") == before
    shutil.copytree(roots / "avs", tmp_path / "elsewhere")
    assert main(*flags(tmp_path / "b", roots, f"--data.root={tmp_path / 'elsewhere'}", "--workers=2")) == 0
    assert vpo_tree.contents(tmp_path / "b") == before  # whatever the place and the number of workers


def test_a_recipe_says_what_is_packed(roots, tmp_path):
    text = f"--config={ROOT / 'configs/cavp.py'}:setting=vpo_ss,root={roots / 'vpo'}"
    assert main(f"--output={tmp_path}", text, "--data.seconds=0.5", "--workers=0") == 0
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["test", "train"]  # eval is test there
    for split, pad in (("train", 0), ("test", "buckets"), ("val", "buckets")):
        if split != "val":
            made = {"root": roots / "vpo", "setting": "vpo_ss", "seconds": 0.5, "pad": pad}
            shards = create_source("packed", split=split, **{**made, "root": tmp_path})
            assert_same(create_source("vpo", split=split, **made)[0], shards[0])


def test_splits_of_the_same_clips_are_packed_once(roots, tmp_path):
    data = ("--data.source=vpo", f"--data.root={roots / 'vpo'}", "--data.setting=vpo_ms", "--data.seconds=0.5")
    assert main(f"--output={tmp_path}", *data, "--workers=0") == 0
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["train", "val"]
    val, test = (create_source("packed", root=tmp_path, split=split) for split in ("val", "test"))
    assert_same(val[0], test[0])


def many(output, *more):
    """36 clips in shards of three, from the embedded data set."""
    return (sys.executable, "-m", "avs_jax.prepare", "pack", f"--output={output}", "--data.source=synthetic",
            "--data.length=36", "--data.image_size=128", "--data.setting=semantic", "--split=train",
            "--shard_mb=1", *more)  # fmt: skip


def start(output, *more):
    return subprocess.Popen(many(output, *more), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(folder, count, process):
    """Until so many shards are finished."""
    while len(list(folder.glob("*.array_record"))) < count and process.poll() is None:
        time.sleep(0.01)


def test_interrupted_anywhere_it_goes_on_to_the_same_bytes(tmp_path):
    whole = start(tmp_path / "whole", "--workers=2")
    assert whole.wait(300) == 0, whole.stderr.read()
    wanted = vpo_tree.contents(tmp_path / "whole")
    folder = tmp_path / "cut/train"
    endings = (
        (1, signal.SIGKILL, 2),
        (4, signal.SIGINT, 2),
        (6, signal.SIGTERM, 0),
    )
    for count, how, workers in endings:
        process = start(tmp_path / "cut", f"--workers={workers}")
        wait_for(folder, count, process)
        process.send_signal(how)
        _, err = process.communicate(timeout=120)
        assert process.returncode == (-how if how == signal.SIGKILL else 128 + how), err
        assert not (folder / "index.json").exists()
        if how != signal.SIGKILL:
            assert "goes on from here" in err and "Traceback" not in err
        with pytest.raises(InputError, match=r"packed split 'train'; found one that is not finished"):
            create_source("packed", root=tmp_path / "cut")
        kept = {path: path.stat().st_mtime_ns for path in folder.glob("*.array_record")}
        assert len(kept) >= count
    assert start(tmp_path / "cut", "--workers=1").wait(300) == 0
    known = {path: path.stat().st_mtime_ns for path in folder.glob("*.array_record")}
    journaled = [path for path, changed in kept.items() if known[path] == changed]
    assert len(journaled) >= 5  # finished shards were not made again
    assert vpo_tree.contents(tmp_path / "cut") == wanted


def test_a_process_that_dies_is_told(roots, tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "run", lambda work, items, workers: (pair for pair in [(0, runner.Crashed)]))
    with pytest.raises(InputError, match="clips 'trainclip_0' to 'trainclip_2' that can be read"):
        packed(tmp_path, "avsbench", root=str(roots / "avs"), setting="ms3", image_size=SIZE)


# ---- Bad clips, disks and folders


@pytest.fixture
def bad(roots, tmp_path):
    """A tree whose second training clip has a truncated frame."""
    shutil.copytree(roots / "avs", tmp_path / "avs")
    frame = tmp_path / "avs/Multi-sources/ms3_data/visual_frames/trainclip_1/trainclip_1.mp4_2.png"
    frame.write_bytes(frame.read_bytes()[:200])
    return tmp_path


def test_a_bad_clip_is_named(bad, capsys):
    assert main(*flags(bad / "pack", bad, "--split=train")) == 2
    err = capsys.readouterr().err
    assert "clip 'trainclip_1'" in err and "trainclip_1.mp4_2.png" in err and "--skip_bad" in err
    assert not (bad / "pack/train/index.json").exists()


def test_bad_clips_are_left_out(bad, capsys):
    assert main(*flags(bad / "pack", bad, "--split=train", "--skip_bad")) == 1
    assert "1 bad clips left out" in (out := capsys.readouterr().out) and "trainclip_1" in out
    shards = create_source("packed", root=bad / "pack")
    options = {"root": bad / "avs", "setting": "ms3", "image_size": SIZE}
    kept = checking.skip_bad(create_source("avsbench", **options))
    assert shards.ids == kept.ids == ("trainclip_0", "trainclip_2")
    assert packed_index.plain(kept.fingerprint()) == shards.fingerprint()  # a run with loader.skip_bad goes on
    assert_same(kept[1], shards[1])
    before = vpo_tree.contents(bad / "pack")
    next((bad / "pack/train").glob("*.array_record")).unlink()
    assert main(*flags(bad / "pack", bad, "--split=train", "--skip_bad")) == 1
    assert vpo_tree.contents(bad / "pack") == before


def test_a_full_disk_is_told_before(roots, tmp_path, monkeypatch, capsys):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(pack.shutil, "disk_usage", lambda _: usage(1 << 30, 1 << 30, 50_000))
    assert main(*flags(tmp_path / "out", roots)) == 2
    assert "MiB of free space, about" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_disk_that_fills_up_is_told(roots, tmp_path, monkeypatch):
    class Full:
        def __init__(self, *_):
            pass

        def write(self, _):
            pass

        def close(self):
            raise RuntimeError("write() failed: No space left on device")

    from array_record.python import array_record_module

    monkeypatch.setattr(array_record_module, "ArrayRecordWriter", Full)
    with pytest.raises(InputError, match=r"expected a place to write to; found .*No space left"):
        packed(tmp_path, "avsbench", root=str(roots / "avs"), setting="ms3", image_size=SIZE)
    assert not list((tmp_path / "pack/train").glob("*.part"))


def stranger(folder):
    (folder / "notes.txt").write_text("mine")


def plain_file(folder):
    shutil.rmtree(folder)
    folder.write_text("a file")


def other_options(folder):
    index = packed_index.read(folder / "index.json")
    index["plan"]["codec"] = "compressed"
    (folder / "index.json").write_bytes(packed_index.write(index))


def begun_otherwise(folder):
    index = folder / "index.json"
    (folder / ".progress.jsonl").write_text(json.dumps({**packed_index.read(index)["plan"], "shard_clips": 7}) + "\n")
    index.unlink()


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda folder: [shutil.rmtree(folder), folder.mkdir(), stranger(folder)], "found other files"),
        (plain_file, "expected a folder; found a file"),
        (other_options, "with 'raw' as 'codec'; found one with 'compressed'"),
        (begun_otherwise, "as 'shard_clips'; found one with 7"),
        (lambda folder: (folder / "index.json").write_text("{"), "the whole index of a packed data set"),
    ],
    ids=["other files", "a file", "another pack", "another pack begun", "damaged index"],
)
def test_nothing_of_others_is_overwritten(roots, tmp_path, capsys, change, message):
    folder = tmp_path / "out/val"
    assert main(*flags(tmp_path / "out", roots, "--split=val")) == 0
    change(folder)
    before = vpo_tree.contents(tmp_path / "out")
    assert main(*flags(tmp_path / "out", roots, "--split=val")) == 2
    assert message in capsys.readouterr().err
    assert vpo_tree.contents(tmp_path / "out") == before


def test_two_commands_do_not_pack_to_one_folder(roots, tmp_path):
    options = {"root": str(roots / "avs"), "setting": "ms3", "image_size": SIZE, "split": "train"}
    (plan,) = pack.make_plans(tmp_path, "avsbench", [options])
    journal = pack.Journal(plan.folder, plan.identity, plan.jobs)
    with pytest.raises(InputError, match="no other process that packs here"):
        pack.pack(plan, 0)
    journal.close()
    pack.pack(plan, 0)


@pytest.mark.parametrize(
    "argv, message",
    [
        ((), "--output"),
        (("--output=x",), "--data.source=<name>, or --config=<recipe>"),
        (("--output=gs://b/x", "--data.source=synthetic"), "--output: expected a folder"),
        (("--output=x", "--data.source=synthetik"), "Did you mean 'synthetic'"),
        (("--output=x", "--data.source=packed"), "a data set that is not packed"),
        (("--output=x", "--data.source=synthetic", "--data.lenght=3"), "Did you mean 'length'"),
        (("--output=x", "--data.source=synthetic", "--split=dev"), "some of train, val, test; found 'dev'"),
        (("--output=x", "--data.source=synthetic", "--data.split=val"), "--data.split"),
        (("--output=x", "--data.source=synthetic", "--codec=jpeg"), "--codec"),
        (("--output=x", "--data.source=synthetic", "--shard_mb=0"), "whole number of at least 1"),
        (("--output=x", "--data.source=avsbench", "--data.root=nowhere"), "nowhere"),
        (("--output=x", "--config=nowhere.py"), "nowhere.py"),
        (("--outptu=x", "--output=x", "--data.source=synthetic"), "Did you mean '--output'"),
    ],
    ids=range(13),
)
def test_a_bad_command_line_is_refused(argv, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(*argv) == 2
    assert message in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


# ---- Reading what is damaged or another


def edit_index(change):
    def apply(folder):
        index = packed_index.read(folder / "index.json")
        change(index)
        (folder / "index.json").write_bytes(packed_index.write(index))

    return apply


def flip(place):
    def apply(folder):
        (shard,) = folder.glob("*.array_record")
        content = bytearray(shard.read_bytes())
        content[place] ^= 16
        shard.write_bytes(content)

    return apply


def cut(count):
    def apply(folder):
        (shard,) = folder.glob("*.array_record")
        content = shard.read_bytes()[:count]
        shard.write_bytes(content)
        edit_index(lambda index: index["shards"][0].update(bytes=len(content)))(folder)

    return apply


def swap_ids(folder):
    edit_index(lambda index: index["ids"].reverse())(folder)


DAMAGE = {
    "no index": (lambda f: (f / "index.json").unlink(), "one that is not finished"),
    "index cut": (lambda f: (f / "index.json").write_bytes((f / "index.json").read_bytes()[:-50]), "the whole index"),
    "index changed": (lambda f: (f / "index.json").write_text(
        (f / "index.json").read_text().replace("trainclip_1", "trainclip_7")), "a checksum that is not"),
    "index of something else": (lambda f: (f / "index.json").write_text("[1, 2]"), "JSON of something else"),
    "another version": (edit_index(lambda index: index.update(version=9)), "version 1 of packed data sets"),
    "a field of another type": (edit_index(lambda index: index.update(ids="abc")), "'abc' as 'ids'"),
    "too few ids": (edit_index(lambda index: index["ids"].pop()), "2 ids and 3 checksums for 3 clips"),
    "a shard elsewhere": (edit_index(lambda index: index["shards"][0].update(file="../x")), "as a shard"),
    "another front end": (edit_index(lambda index: index["front_end"].update(version=0)), "version 1 of the front end"),
    "an unknown front end": (edit_index(lambda index: index["front_end"].update(name="ears")), "front end 'ears'"),
    "an unknown source": (edit_index(lambda index: index.update(source="avsbensch")), "Did you mean 'avsbench'"),
    "no shard": (lambda f: next(f.glob("*.array_record")).unlink(), "a shard of 3 clips; found no such file"),
    "shard cut": (lambda f: next(f.glob("*.array_record")).write_bytes(b"abc"), "found 3 bytes in place of"),
    "shard cut, and its index with it": (cut(70_000), "a whole shard"),
    "shard's footer": (flip(-65536 + 40), "a whole shard"),
    "shard's content": (flip(4000), "a whole shard"),
    "other clips' shard": (swap_ids, "clip 'trainclip_0' in place of 'trainclip_2'"),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_told(roots, tmp_path, damage):
    packed(tmp_path, "avsbench", root=str(roots / "avs"), setting="ms3", image_size=SIZE)
    change, message = DAMAGE[damage]
    change(tmp_path / "pack/train")
    with pytest.raises(InputError) as error:
        shards = create_source("packed", root=tmp_path / "pack")
        for i in range(3):
            shards[i]
    assert message in str(error.value)


def test_a_record_of_another_version_is_told(roots, tmp_path, monkeypatch):
    monkeypatch.setattr(clip_bytes, "VERSION", 2)
    _, shards = packed(tmp_path, "avsbench", root=str(roots / "avs"), setting="ms3", image_size=SIZE)
    monkeypatch.undo()
    with pytest.raises(InputError, match="clip 'trainclip_0': expected a record of version 1; found version 2"):
        shards[0]


@pytest.mark.parametrize(
    "options, message",
    [
        ({"root": ""}, "data.root: expected the folder of a packed data set; found nothing"),
        ({"root": "s3://bucket/x"}, "shards are read in place"),
        ({"root": "/nowhere/at/all"}, "found no such folder"),
        ({"split": "dev"}, "expected a packed split 'dev'; found only train"),
        ({"split": "../train"}, "expected a packed split"),
        ({"image_size": 64}, "data.image_size: expected 32, as "),
        ({"front_end": "waveform"}, "data.front_end: expected 'vggish', as "),
        ({"setting": "s4"}, "data.setting: expected 'ms3', as "),
        ({"pad": "buckets"}, "an option of the packed 'avsbench' source"),
        ({"imagesize": 32}, "Did you mean 'image_size'"),
    ],
    ids=range(10),
)
def test_contradicting_options_are_refused(roots, tmp_path, options, message):
    packed(tmp_path, "avsbench", root=str(roots / "avs"), setting="ms3", image_size=SIZE)
    with pytest.raises(InputError) as error:
        create_source("packed", **{"root": tmp_path / "pack", **options})
    assert message in str(error.value)


def test_a_video_needs_no_packed_data_set():
    """Where it is not at hand, the options of the run say what was packed, if they name its setting."""
    told = seen_by("packed", {"root": "away", "setting": "ms3", "image_size": 96, "split": "test"})
    assert told["image_size"] == 96 and told["num_frames"] == 5 and told["front_end"].name == "vggish"
    for name, setting in (("vpo", "vpo_ss"), ("single_plus", "salient"), ("avsbench", "avss")):
        options = {"setting": setting, "seconds": 1.0, "stereo": None}
        assert seen_by("packed", options) == seen_by(name, {"setting": setting, "seconds": 1.0})
    with pytest.raises(InputError, match="the packed data set that the run was trained on"):
        seen_by("packed", {"root": "away"})


def test_processes_open_their_own_shards(roots, tmp_path):
    _, shards = packed(tmp_path, "avsbench", root=str(roots / "avs"), setting="ms3", image_size=SIZE)
    shards[0]
    assert shards._readers and not pickle.loads(pickle.dumps(shards))._readers
    with pytest.raises(IndexError):
        shards[3]
    assert os.path.getsize(tmp_path / "pack/train/index.json") > 0
