"""Run folders and data in buckets: with fsspec's interface over a store in memory, and (slow) with the real clients and
Orbax's own driver over HTTP against servers on this machine."""

import dataclasses
import hashlib
import io
import json
import os
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import fsspec
import jax
import numpy as np
import pytest
import soundfile
from avsbench_tree import write_tree
from avss_tree import write_avss_tree
from forked_commands import Commands
from object_store import GCS, S3, Store, serving
from PIL import Image
from runs import RECIPE, ROOT

import avs_jax
from avs_jax import cli, paths, torch_files
from avs_jax import config as configs
from avs_jax.data import images, media
from avs_jax.data.prepare import vpo_classes
from avs_jax.data.video_writer import VideoWriter
from avs_jax.errors import InputError, TrainingError
from avs_jax.evaluate import evaluate_run
from avs_jax.paths import RemotePath, to_path
from avs_jax.prediction import output
from avs_jax.train import train
from avs_jax.training.embedding_cache import Shards, SoundFiles
from avs_jax.weights.files import read_state_dict
from avs_jax.weights.public import locate
from avs_jax.weights.writing import save_state_dict


class Fake(fsspec.AbstractFileSystem):
    """fsspec's interface over a `Store`, as the clients of the clouds behave: no folders, files whole or not at all."""

    store: Store
    cachable = False

    def _thing(self, path):
        bucket, _, name = self._strip_protocol(path).partition("/")
        if self.store.fail("", bucket, name):
            raise PermissionError("Forbidden")
        return bucket, name, self.store.things.get((bucket, name))

    def info(self, path, **_):
        bucket, name, thing = self._thing(path)
        path = f"{bucket}/{name}".rstrip("/")
        if thing:
            return {"name": path, "size": len(thing.data), "type": "file", "etag": thing.etag}
        if not self.store.names(bucket, f"{name}/" if name else ""):
            raise FileNotFoundError(path)
        return {"name": path, "size": 0, "type": "directory"}

    def ls(self, path, detail=True, **_):
        bucket, name, thing = self._thing(path)
        names, folders = self.store.listing(bucket, f"{name}/" if name else "", "/")
        found = [f"{bucket}/{n.rstrip('/')}" for n in ([name] if thing else [*names, *folders])]
        if not found:
            raise FileNotFoundError(path)
        return [self.info(f) for f in found] if detail else found

    def cat_file(self, path, start=None, end=None, **_):
        *_, thing = self._thing(path)
        if thing is None:
            raise FileNotFoundError(path)
        return thing.data[start:end]

    def pipe_file(self, path, value, mode="overwrite", **_):
        bucket, name, _ = self._thing(path)
        self.store.put(bucket, name, value)

    def rm_file(self, path):
        bucket, name, _ = self._thing(path)
        self.store.things.pop((bucket, name), None)

    def cp_file(self, path1, path2, **_):
        self.pipe_file(path2, self.cat_file(path1))

    def get_file(self, rpath, lpath, **_):
        Path(lpath).write_bytes(self.cat_file(rpath))

    def put_file(self, lpath, rpath, **_):
        self.pipe_file(rpath, Path(lpath).read_bytes())

    def _open(self, path, mode="rb", **_):
        if mode == "rb":
            return io.BytesIO(self.cat_file(path))
        file = io.BytesIO()
        file.close = lambda: self.pipe_file(path, file.getvalue())
        return file


@pytest.fixture
def store(monkeypatch):
    """The store behind gs:// and s3:// in this process."""
    store = Store(("bucket",))
    for scheme in ("gs", "s3"):
        client = type(f"Fake_{scheme}", (Fake,), {"protocol": scheme, "store": store})
        monkeypatch.setitem(sys.modules["fsspec.registry"]._registry, scheme, client)
    paths._filesystem.cache_clear()
    yield store
    paths._filesystem.cache_clear()


def copied(folder: Path, store: Store, name: str) -> str:
    """The folder, copied to the bucket."""
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            store.put("bucket", f"{name}/{file.relative_to(folder)}", file.read_bytes())
    return f"bucket/{name}"


# ---- text to path


def test_local_text_stays_local():
    assert to_path("a/b") == Path("a/b") and to_path(Path("/x")) == Path("/x")
    assert to_path("~/x") == Path.home() / "x"
    assert to_path("x:y/z") == Path("x:y/z") and to_path("x:/y") == Path("x:/y")


@pytest.mark.parametrize("text", ["gs://bucket/a/b.txt", "s3://bucket/a/b.txt", Path("s3://bucket/a/b.txt")], ids=str)
def test_remote_paths_have_pathlibs_names(text):
    path = to_path(text)
    assert isinstance(path, RemotePath) and to_path(path) is path
    assert str(path) == str(text).replace(":/b", "://b")
    assert (path.name, path.stem, path.suffix, path.parent.name) == ("b.txt", "b", ".txt", "a")
    assert path.parent / "c" / "d" == to_path(f"{path.scheme}://bucket/a/c/d") != path
    assert path.with_name("e.f").with_suffix(".g") == path.parent / "e.g"
    assert path.parent.parent.parent == path.parent.parent == to_path(f"{path.scheme}://bucket")
    assert path.resolve() == path.expanduser() == path.absolute() == path
    assert sorted([path / "b", path / "a"])[0].name == "a" and len({path, to_path(str(path))}) == 1
    assert path.is_relative_to(path.parent) and not path.is_relative_to(Path("bucket"))
    assert pickle.loads(pickle.dumps(path)) == path


def test_nothing_takes_a_remote_path_for_a_local_one(tmp_path):
    for use in (Path, open, os.stat, os.listdir):
        with pytest.raises(TypeError):
            use(to_path("gs://bucket/a"))


@pytest.mark.parametrize("text, hint", [
    ("http://host/a", ""), ("gcs://bucket/a", "Write gs://."), ("S3://bucket/a", "Write s3://."),
    ("s3a://bucket", "Write s3://."), ("file:///a", "Leave out file://."), ("gs://", ""), ("az://a/b", ""),
])  # fmt: skip
def test_other_schemes_are_refused(text, hint):
    with pytest.raises(InputError, match="expected a local path, or one that begins with") as caught:
        to_path(text)
    assert caught.value.where == text and caught.value.hint == hint


@pytest.mark.parametrize("scheme, module, extra", [("s3", "s3fs", "s3"), ("gs", "gcsfs", "gcs")])
def test_a_missing_client_is_named(monkeypatch, scheme, module, extra):
    monkeypatch.setitem(sys.modules, module, None)
    paths._filesystem.cache_clear()
    with pytest.raises(InputError, match=rf"pip install 'avs_jax\[{extra}\]'"):
        configs.load(f"{scheme}://bucket/run/config.json")


def test_what_works_on_disks_refuses_buckets(tmp_path):
    with pytest.raises(InputError, match=r"^--output: expected a path on this machine; found gs://bucket/a. Copy it"):
        paths.local_path("gs://bucket/a", "--output")
    with pytest.raises(InputError, match=r"^method.name: expected a path on this machine"):
        avs_jax.create("s3://bucket/method.py")
    assert paths.local_path(tmp_path, "--output") == tmp_path


def test_files_of_a_bucket(store):
    root = to_path("s3://bucket/a")
    assert not root.exists() and list(root.glob("*")) == []
    (root / "b" / "c.txt").write_text("é")
    assert root.is_dir() and (root / "b/c.txt").is_file() and not (root / "b").is_file()
    assert (root / "b/c.txt").read_text() == "é" and (root / "b/c.txt").stat().st_size == 2
    assert [p.name for p in root.iterdir()] == ["b"] and list((root / "b").glob("*.txt")) == [root / "b/c.txt"]
    with (root / "d.csv").open("w", newline="", encoding="utf-8") as file:
        file.write("1\r\n")
    assert (root / "d.csv").read_bytes() == b"1\r\n"
    version = (root / "d.csv").stat().st_ino
    (root / "d.csv").write_bytes(b"2\r\n")
    assert (root / "d.csv").stat().st_ino != version
    (root / "b").rename(root / "e")
    assert store.names("bucket") == ["a/d.csv", "a/e/c.txt"]
    with paths.local_copy(root) as copy:
        assert (copy / "e/c.txt").read_text() == "é"
        (copy / "f").write_text("")
        paths.upload(copy, root, ["f"])
    assert not copy.exists() and (root / "f").exists()
    with pytest.raises(InputError, match=r"^s3://bucket/none: expected a file of tensors; found no such file"):
        torch_files.load(root.with_name("none"))
    paths.remove_tree(root)
    assert store.names("bucket") == []


def test_denied_access_is_told_in_one_line(store):
    write_error = r"^gs://bucket/a.png: expected access to it; found PermissionError: Forbidden. Are the bucket's name"
    store.fail = lambda *_: True
    with pytest.raises(InputError, match=write_error):
        images.read_frame("gs://bucket/a.png")


# ---- data


def same_clips(local, remote, indices=(0, -1)):
    assert local.ids == remote.ids and local.fingerprint() == remote.fingerprint()
    remote = pickle.loads(pickle.dumps(remote))  # as data processes get it
    for index in indices:
        a, b = local[index % len(local)], remote[index % len(local)]
        assert a.keys() == b.keys()
        for name in a:
            assert np.array_equal(a[name], b[name]), name


@pytest.mark.parametrize("setting, sound", [("s4", "log_mel"), ("ms3", "wav")])
def test_avsbench_in_a_bucket(store, tmp_path, setting, sound):
    local = write_tree(tmp_path, setting, sound=sound)
    root = f"gs://{copied(local, store, 'data')}"
    options = {"setting": setting, "split": "train", "image_size": 32}
    local, remote = (avs_jax.create_source("avsbench", root=str(at), **options) for at in (local, root))
    same_clips(local, remote)
    assert remote.problems(0) == []
    frame = next(n for n in store.names("bucket") if n.endswith("_2.png") and "visual" in n and "trainclip_0" in n)
    store.put("bucket", frame, store.things["bucket", frame].data[:99])
    with pytest.raises(InputError, match=f"^gs://bucket/{frame}: "):
        remote[0]
    del store.things["bucket", frame]
    with pytest.raises(InputError, match="missing"):
        remote[0]


def test_avsbench_semantic_in_a_bucket(store, tmp_path):
    local = write_avss_tree(tmp_path)
    root = f"s3://{copied(local, store, 'data')}"
    same_clips(
        *(avs_jax.create_source("avsbench", root=str(at), setting="avss", image_size=24) for at in (local, root))
    )


def test_vpo_in_a_bucket(store, tmp_path):
    for folder in ("VPO/VPO-SS/data/dog", "VPO/VPO-SS/mask/dog", "vggsound_bench/VGGSound/audios"):
        (tmp_path / folder).mkdir(parents=True)
    rng = np.random.default_rng(0)
    dog = next(c for c in vpo_classes.classes(False) if c.name == "dog")
    Image.fromarray(rng.integers(0, 255, (20, 30, 3), np.uint8)).save(tmp_path / f"VPO/VPO-SS/data/dog/{7:012d}.jpg")
    mask = Image.fromarray(np.where(rng.random((20, 30)) < 0.5, dog.id, 0).astype(np.uint8))
    mask.save(tmp_path / f"VPO/VPO-SS/mask/dog/{7:012d}_{9:012d}.png")
    soundfile.write(tmp_path / "vggsound_bench/VGGSound/audios/abc_10.wav", rng.uniform(-1, 1, 16000), 16000)
    table = f"img_Id,ann_Ids,cateName,cateId,vgg_file,split\n7,9,dog,{dog.id},abc_10,train\n"
    (tmp_path / "VPO/VPO-SS/vpo_ss_data_stereo.csv").write_text(table)
    root = f"s3://{copied(tmp_path, store, 'data')}"
    local, remote = (avs_jax.create_source("vpo", root=str(at), setting="vpo_ss") for at in (tmp_path, root))
    same_clips(local, remote, [0])
    assert str(remote.sound_file(0)) == "s3://bucket/data/vggsound_bench/VGGSound/audios/abc_10.wav"


def test_no_such_data(store):
    with pytest.raises(InputError, match=r"^s3://bucket/none: expected the folder of AVSBench; found no such folder"):
        avs_jax.create_source("avsbench", root="s3://bucket/none", setting="s4")


# ---- weights, videos, predictions, sounds' checksums


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_weights_in_a_bucket(store, suffix):
    path = to_path(f"gs://bucket/weights/a{suffix}")
    written = {"layer.weight": np.arange(6, dtype=np.float32).reshape(2, 3)}
    save_state_dict(path, written)
    assert store.names("bucket") == [f"weights/a{suffix}"]
    read = read_state_dict(str(path))
    assert read.keys() == written.keys() and np.array_equal(read["layer.weight"], written["layer.weight"])
    assert locate(str(path), field="config.pretrained.method", folder="weights") == path
    assert locate(f"a{suffix}", field="config.pretrained.method", folder="gs://bucket/weights") == path
    store.put("bucket", f"weights/a{suffix}", store.things["bucket", f"weights/a{suffix}"].data[:-9])
    with pytest.raises(InputError) as caught:
        read_state_dict(str(path))
    assert caught.value.where.startswith(str(path))
    with pytest.raises(InputError, match="no such file"):
        locate("s3://bucket/none.pth", field="config.pretrained.method", folder="weights")


def test_videos_in_a_bucket(store, tmp_path):
    frames = np.random.default_rng(0).integers(0, 255, (6, 32, 48, 3), np.uint8)
    with VideoWriter(tmp_path / "a.mp4", (32, 48), 3, sound=(np.zeros(32000, np.float32), 16000)) as writer:
        for frame in frames:
            writer.write(frame)
    store.put("bucket", "a.mp4", (tmp_path / "a.mp4").read_bytes())
    here, there = (media.probe(at) for at in (tmp_path / "a.mp4", "s3://bucket/a.mp4"))
    assert dataclasses.replace(there, path=here.path) == here and there.num_frames == 6
    for a, b in zip(media.read_frames(tmp_path / "a.mp4"), media.read_frames("s3://bucket/a.mp4"), strict=True):
        assert np.array_equal(a.rgb(), b.rgb())
    store.put("bucket", "b.mp4", store.things["bucket", "a.mp4"].data[:400])
    with pytest.raises(InputError, match=r"^s3://bucket/b.mp4: "):
        media.probe("s3://bucket/b.mp4")
    with pytest.raises(InputError, match=r"^s3://bucket/c.mp4: expected a media file; found no such file"):
        media.probe("s3://bucket/c.mp4")


def test_a_prediction_is_in_the_bucket_whole_or_not_at_all(store):
    def predict(text):
        with output.staged("gs://bucket/out") as stage:
            (stage / output.MASKS / "000000.png").write_bytes(b"mask")
            (stage / output.REPORT).write_text(text)
            if text == "fails":
                raise InputError("frame", expected="a frame", found="none")

    with pytest.raises(InputError):
        predict("fails")
    assert store.names("bucket") == []
    predict(output.FORMAT)
    assert store.names("bucket") == ["out/masks/000000.png", "out/predictions.json"]
    predict(output.FORMAT + " again")  # replaces its own
    assert b"again" in store.things["bucket", "out/predictions.json"].data
    store.put("bucket", "out/foreign.txt", b"")
    with pytest.raises(InputError, match="--overwrite"):
        predict(output.FORMAT)


def test_checksums_of_sounds_in_a_bucket(store):
    sound, known = to_path("s3://bucket/a.wav"), to_path("s3://bucket/cache/sound-files.json")
    sound.write_bytes(b"one")
    files = SoundFiles(known)
    checksum, stamp = files.checksum(sound)
    assert checksum == hashlib.sha256(b"one").hexdigest()
    files.save()
    assert json.loads(store.things["bucket", "cache/sound-files.json"].data) == {
        "s3://bucket/a.wav": [checksum, *stamp]
    }
    assert SoundFiles(known).checksum(sound) == (checksum, stamp)
    sound.write_bytes(b"two")
    assert SoundFiles(known).checksum(sound)[0] == hashlib.sha256(b"two").hexdigest()
    shards = Shards(to_path("s3://bucket/cache/encoder"), (2, 3))
    shards.add({b"k" * 32: np.ones((2, 3), np.float32)})
    assert np.array_equal(shards.read()[b"k" * 32], np.ones((2, 3)))


# ---- runs


def recipe(steps=12):
    return cli.read_recipe(f"{RECIPE}:steps={steps}")


def metrics(store, run):
    return store.things["bucket", f"{run}/metrics.jsonl"].data


def test_a_run_in_a_bucket_is_lost_and_found(store, tmp_path, capsys):
    """It stops as a checkpoint cannot be copied, goes on, and ends as a local one; is evaluated; its last checkpoint is
    damaged, and it ends so again from the one before."""
    train(recipe(), tmp_path / "local")
    expected = (tmp_path / "local" / "metrics.jsonl").read_bytes()
    store.fail = lambda verb, bucket, name: "checkpoints/8/variables" in name
    told = "step 8 could not be saved in s3://bucket/run/checkpoints: .*Forbidden.*the last good one is that of step 6"
    with pytest.raises(TrainingError, match=told):
        train(recipe(), "s3://bucket/run")
    assert "run/checkpoints/6/meta/metadata" in store.names("bucket")
    assert "run/checkpoints/8/meta/metadata" not in store.names("bucket")
    store.fail = lambda *_: False
    store.put("bucket", "run/checkpoints/8/variables/_METADATA", b"as far as a killed process came")
    capsys.readouterr()
    result = train(recipe(), "s3://bucket/run")
    assert "resuming at step 6" in capsys.readouterr().out
    assert int(result.state.step) == 12 and metrics(store, "run") == expected
    _, here = avs_jax.load_checkpoint(tmp_path / "local", "latest")
    _, there = avs_jax.load_checkpoint("s3://bucket/run", "latest")
    jax.tree.map(np.testing.assert_array_equal, here, there)

    evaluate_run("s3://bucket/run", checkpoint="latest", split="test", pictures=1, progress=False, bootstrap=0,
                 conditions=("true",))  # fmt: skip
    report = json.loads(store.things["bucket", "run/evaluation/test.json"].data)
    assert report["settings"]["workdir"] == "s3://bucket/run"
    assert {"run/evaluation/test_clips.csv", "run/evaluation/test.png"} <= set(store.names("bucket"))

    for name in store.names("bucket", "run/checkpoints/12/variables/d/"):
        data = bytearray(store.things["bucket", name].data)
        data[len(data) // 2] ^= 255
        store.put("bucket", name, data)
    train(recipe(), "s3://bucket/run")
    printed = capsys.readouterr()
    assert "checkpoint of step 12 is damaged" in printed.err and "resuming at step 8" in printed.out
    assert metrics(store, "run") == expected
    assert store.names("bucket", "run/checkpoints-damaged/12-0/meta/")
    avs_jax.load_checkpoint("s3://bucket/run", "latest")


# ---- the real clients

ON_FILES = """
import sys
sys.path.insert(0, {recipes!r})
import small

def get_config(arg=None):
    c = small.get_config(arg)
    c.method.name = {recipes!r} + "/small_method.py"  # for commands that run no recipe
    del c.data.train.length, c.data.eval.length, c.data.test
    c.data.update(source="avsbench", setting="s4", root="", image_size=32, test=dict(split="test"))
    c.data.eval.split = "val"
    c.log.tensorboard = True
    return c
"""


class Clouds(NamedTuple):
    """stores: scheme -> what is behind a server on this machine. commands: know the servers. tree: of data; and a local
    run on them. train: (place, flags, disturbed) -> how the command ended."""

    stores: dict
    commands: Commands
    folder: Path
    train: Callable


@pytest.fixture(scope="module")
def clouds(tmp_path_factory):
    folder = tmp_path_factory.mktemp("local")
    recipe = folder / "recipe.py"
    recipe.write_text(ON_FILES.format(recipes=str(RECIPE.parent)))
    write_tree(folder / "data", "s4", clips={"train": 4, "val": 2, "test": 2})
    with (
        serving(S3, "bucket") as (s3, s3_url),
        serving(GCS, "bucket") as (gcs, gcs_url),
        pytest.MonkeyPatch.context() as m,
    ):
        settings = {"AWS_ENDPOINT_URL": s3_url, "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret",
                    "AWS_DEFAULT_REGION": "us-east-1", "STORAGE_EMULATOR_HOST": gcs_url,
                    "TENSORSTORE_GCS_HTTP_URL": gcs_url, "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false"}  # fmt: skip
        for name, value in settings.items():
            m.setenv(name, value)
        commands = Commands()

        def run(place, *flags, **disturbed):
            hook = ("killed", disturbed) if disturbed else None
            argv = (f"--config={recipe}:steps=12", f"--workdir={place}/run", f"--config.data.root={place}/data", *flags)
            return commands.run("train", *argv, cwd=ROOT, hook=hook, timeout=240)

        done = run(folder)
        assert done.status == 0, done.err
        yield Clouds({"s3": s3, "gs": gcs}, commands, folder, run)
        commands.close()


@pytest.mark.slow
@pytest.mark.parametrize("scheme, client", [("s3", "s3fs"), ("gs", "gcsfs")])
def test_the_real_clients_resume_a_killed_run(request, scheme, client):
    """Data and run in the bucket: killed while saving, resumed with data processes, evaluated, predicted."""
    pytest.importorskip(client)
    clouds = request.getfixturevalue("clouds")
    store, remote = clouds.stores[scheme], f"{scheme}://bucket"
    copied(clouds.folder / "data", store, "data")
    done = clouds.train(remote, moment="saving", n=2)
    assert done.status == -9, done.err
    done = clouds.train(remote, "--config.loader.workers=1")
    assert done.status == 0 and "resuming at step 4" in done.out, done.err
    assert metrics(store, "run") == (clouds.folder / "run" / "metrics.jsonl").read_bytes()

    options, run = (f"--workdir={remote}/run", "--checkpoint=latest"), clouds.commands.run
    done = run("evaluate", *options, "--conditions=true", "--bootstrap=0", "--pictures=0", cwd=ROOT)
    assert done.status == 0, done.err
    done = run("predict", *options, "--input=testclip_0_10000", f"--output={remote}/out", cwd=ROOT)
    assert done.status == 0, done.err
    names = store.names("bucket")
    assert any(name.startswith("run/tensorboard/events") for name in names)
    assert {"run/evaluation/test.json", "run/evaluation/test_clips.csv", "out/predictions.json"} <= set(names)
    assert sum(name.startswith("out/masks/") for name in names) == 5
