"""Every command on a run of CAVP on VPO: evaluate, predict, explain, check; and what they say of bad data."""

import csv
import json
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import optax
import pytest
import soundfile
import vpo_tree
from media_files import tone, write_video
from PIL import Image
from test_training import recipe

from avs_jax import check, evaluate, explain, pictures
from avs_jax import config as configs
from avs_jax.data.prepare.vpo_build import Options
from avs_jax.data.prepare.vpo_build import build as build_vpo
from avs_jax.data.sources import create_source
from avs_jax.errors import InputError
from avs_jax.predict import predict_run
from avs_jax.training import build
from avs_jax.training.checkpoint import Checkpoints, load_checkpoint
from avs_jax.training.state import TrainState

CONFIG = Path(__file__).parent.parent / "configs" / "cavp.py"
SECONDS = 0.5


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    base = tmp_path_factory.mktemp("vpo")
    coco, sounds = vpo_tree.write_coco(base / "coco", 3, images=12), vpo_tree.write_vggsound(base / "sounds")
    build_vpo(Options(coco, sounds, base / "data", "ss", counts={"train": 8, "test": 5}, silence=0.0))
    return base / "data"


def small(root, arg="", **changes):
    c = recipe(CONFIG, f"setting=vpo_ss,scale=tiny,root={root}" + arg)
    c.method.update(width=4, channels=12, low=4, projector=8, audio_width=4, max_views=8)
    c.data.update(image_size=32, seconds=SECONDS)
    c.optimizer.warmup_steps = 0
    c.update_from_flattened_dict(changes)
    return c


def workdir(folder, config):
    """A workdir as training writes it before its first step, which takes long to compile."""
    method = build.build_method(config)
    checkpoints = Checkpoints(folder, keep=1, best=config.eval.best)
    state = TrainState.create(jax.jit(lambda: method.init(jax.random.key(1)))(), optax.identity())
    checkpoints.save(0, state, identity={"config": build.identity(config), "data": {}})
    checkpoints.close()
    build.save_config(config, folder)
    return folder


@pytest.fixture(scope="module")
def run(root, tmp_path_factory):
    return workdir(tmp_path_factory.mktemp("run"), small(root))


@pytest.fixture(scope="module")
def stereo(root, tmp_path_factory):
    return workdir(tmp_path_factory.mktemp("stereo"), small(root, ",stereo=true"))


# ------------------------------------------------------------------------------------------------ evaluate


def evaluated(run, tmp_path, *more):
    status = evaluate.main([f"--workdir={run}", "--checkpoint=latest", f"--output={tmp_path}", *more])
    return status, {p.name for p in tmp_path.iterdir()} if tmp_path.exists() else set()


def test_evaluate(run, root, tmp_path, capsys):
    status, written = evaluated(run, tmp_path, "--bootstrap=20", "--pictures=2")
    assert status == 0 and written == {"test.json", "test_clips.csv", "test.png", "test_curves.png"}
    text = capsys.readouterr().out
    order = [text.index(words) for words in ("Pixels of all clips", "Frame by frame", "Sounding or not", "zebra")]
    assert order == sorted(order) and "batches of 4" not in text and "- to" not in text
    report = json.loads((tmp_path / "test.json").read_text())
    assert [row["class"] for row in report["classes"]] == list(create_source("vpo", root=str(root)).class_names)
    assert {"miou_all_classes", "f1", "fdr", "f03", "j_swap", "j_silence", "j_noise"} <= set(report["figures"])
    with (tmp_path / "test_clips.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    source = create_source("vpo", root=str(root), split="test", fit="squash", image_size=32)
    assert [row["id"] for row in rows] == list(source.ids)
    truth = [int((clip["labels"] > 0).sum()) for clip in map(source.visual, range(len(source)))]
    assert [int(row["true_pixels"]) for row in rows] == truth
    with Image.open(tmp_path / "test.png") as image:
        assert image.size[1] < 1600  # stills are not drawn over the whole page


def test_pictures_of_many_sizes_one_by_one(run, root, tmp_path, capsys):
    options = ["--data.fit=none", "--max-clips=2", "--bootstrap=0", "--pictures=0", "--conditions=true"]
    status, _ = evaluated(run, tmp_path / "a", "--batch-size=1", *options)
    assert status == 0
    capsys.readouterr()
    source = create_source("vpo", root=str(root), split="test")
    with (tmp_path / "a" / "test_clips.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["true_pixels"]) for row in rows] == [int((source.visual(i)["labels"] > 0).sum()) for i in (0, 1)]
    assert evaluated(run, tmp_path / "b", "--batch-size=2", *options)[0] == 2
    error = capsys.readouterr().err.replace("\r", "\n").strip().split("\n")[-1]  # after the bar
    assert error.startswith("error: ") and "augment.crop" in error and "batch of 1" in error


def test_title_of_a_picture():
    method = type("method", (), {"name": "cavp"})
    title = evaluate._title(method, "test", {"miou": 0.3, "miou_classes": 0.42, "audio_gain": 0.1})
    assert title == (
        "cavp, split 'test': mIoU 0.420 of all pixels together, 0.300 frame by frame, of which the sound is worth 0.100"
    )
    assert evaluate._title(method, "val", {"miou": 0.3, "audio_gain": float("nan")}) == "cavp, split 'val': J 0.300"


# ------------------------------------------------------------------------------------------------ predict


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    """A photo of an odd size, and a sound."""
    path = tmp_path_factory.mktemp("photo")
    pixels = np.random.default_rng(0).integers(0, 256, (45, 71, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path / "photo.png")
    soundfile.write(path / "bark.wav", tone(2, 16000), 16000)
    return path / "photo.png"


def labels_of(folder):
    frames = json.loads((folder / "predictions.json").read_text())["frames"]
    with Image.open(folder / frames[0]["mask"]) as mask:
        assert mask.mode == "P"
        return np.asarray(mask)


def predicted(run, photo, folder, **options):
    options = {"checkpoint": "latest", "audio": photo.parent / "bark.wav", "progress": False, **options}
    return predict_run(run, photo, folder, **options)


def test_predict_a_photo_with_and_without_the_data_set(run, root, photo, tmp_path):
    predicted(run, photo, tmp_path / "a")
    labels = labels_of(tmp_path / "a")
    method, variables = load_checkpoint(run, which="latest")
    with Image.open(photo) as image:
        small = np.asarray(image.resize((32, 32), Image.Resampling.BILINEAR))
    middle = tone(2, 16000)[16000 - 4000 : 16000 + 4000].astype(np.float32)
    found = method.predict(variables, {"frames": small[None, None], "audio": middle.reshape(1, 1, -1)})
    assert labels.shape == (45, 71)
    written = json.loads((tmp_path / "a" / "predictions.json").read_text())
    assert written["classes"][17] == "sheep" and len(written["classes"]) == 22
    shares = np.bincount(np.asarray(found.labels).ravel(), minlength=22) / 1024
    np.testing.assert_allclose(np.bincount(labels.ravel(), minlength=22) / labels.size, shares, atol=0.1)
    away = root.with_name("away")
    root.rename(away)
    try:
        predicted(run, photo, tmp_path / "b")
        with pytest.raises(InputError, match="no such folder"):
            predict_run(run, "000000001001_000000100100", tmp_path / "c")
    finally:
        away.rename(root)
    np.testing.assert_array_equal(labels_of(tmp_path / "b"), labels)
    assert (tmp_path / "b" / "predictions.json").read_text() == (tmp_path / "a" / "predictions.json").read_text()


@pytest.mark.slow
def test_predict_at_the_size_of_the_input(run, root, photo, tmp_path):
    own = tmp_path / "own"
    shutil.copytree(run, own)
    configs.save(small(root, **{"data.fit": "none", "augment.crop": 32}), own / "config.json")
    predicted(own, photo, tmp_path / "a", overlay=False)
    method, variables = load_checkpoint(run, which="latest")
    with Image.open(photo) as image:
        frames = np.asarray(image)[None, None]
    audio = tone(2, 16000)[16000 - 4000 : 16000 + 4000].astype(np.float32).reshape(1, 1, -1)
    whole = np.asarray(method.predict(variables, {"frames": frames, "audio": audio}).labels)[0, 0]
    assert (labels_of(tmp_path / "a") == whole).mean() > 0.99  # 16-bit samples of the file


def test_predict_a_video_in_stereo(stereo, tmp_path):
    video = write_video(tmp_path / "v.mp4", seconds=3, sound=tone(3, 16000, 2), rate=16000)
    result = predict_run(stereo, video, tmp_path / "out", checkpoint="latest", progress=False)
    assert result["masks"] == 3
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"masks", "overlay.mp4", "predictions.json"}


# ------------------------------------------------------------------------------------------------ explain


def test_explain_attention(run, tmp_path, capsys):
    path = tmp_path / "x.png"
    assert explain.main(["attention", f"--workdir={run}", "--checkpoint=latest", f"--output={path}", "--clips=2"]) == 0
    assert "gate: AUC" in capsys.readouterr().out
    written = json.loads(path.with_suffix(".json").read_text())
    for row in written["clips"]:
        (gate,) = row["stages"].values()
        assert 0 < gate["low"] <= gate["bound"] < 1


def test_explain_tsne_of_the_last_features(run, tmp_path, capsys):
    path = tmp_path / "x.png"
    command = ["tsne", f"--workdir={run}", "--checkpoint=latest", f"--output={path}", "--mask=true", "--split=train"]
    assert explain.main(command) == 0
    written = json.loads(path.with_suffix(".json").read_text())
    assert written["stage"] == "fused" and written["runs"][0]["points"] == 8
    assert len(written["clusters"]) <= 4  # not a cluster for each of eight sounds
    capsys.readouterr()
    assert explain.main([*command, "--stage=4"]) == 2
    assert re.search(r"error: --stage: .*'4'.*fused, image", capsys.readouterr().err)


def test_features_are_those_before_and_after_the_sound(run, root):
    method, variables = load_checkpoint(run, which="latest")
    source = create_source("vpo", root=str(root), split="test", fit="squash", image_size=32, seconds=SECONDS)
    clips = [source[0], source[1]]
    batch = {k: np.stack([clip[k] for clip in clips]) for k in ("frames", "audio")}
    found = method.features(variables, batch)
    assert {k: v.shape for k, v in found["visual"].items()} == {"image": (2, 1, 8, 8, 16), "fused": (2, 1, 8, 8, 16)}
    assert found["audio"]["embedding"].shape == (2, 1, 16)
    other = method.features(variables, {**batch, "audio": batch["audio"][::-1]})
    np.testing.assert_array_equal(other["visual"]["image"], found["visual"]["image"])
    assert np.abs(other["visual"]["fused"] - found["visual"]["fused"]).max() > 1e-3
    np.testing.assert_allclose(other["audio"]["embedding"], found["audio"]["embedding"][::-1], atol=1e-5)


def test_features_without_sound(root):
    config = small(root, ",fusion=none")
    method = build.build_method(config)
    variables = method.init(jax.random.key(0))
    found = method.features(variables, {"frames": np.zeros((1, 1, 32, 32, 3), np.uint8)})
    assert list(found["visual"]) == ["image"] and found["audio"] == {} and method.attention is None


def test_views_in_stereo_name_their_channels(stereo, root):
    method, variables = load_checkpoint(stereo, which="latest")
    source = build.build_source(configs.load(stereo / "config.json"), "test")
    (view,) = pictures.predicted_views(method, variables, source, [0])
    rows = pictures.clip_rows(view)
    assert [row.label.split("\n")[0] for row in rows] == [
        "own sound", "picture", "truth", "prediction with", "swapped sound", "prediction with"]  # fmt: skip
    assert rows[0].label.endswith("(left above right)") and rows[0].captions[0] in source.class_names


# ------------------------------------------------------------------------------------------------ check, bad data


def checked(root):
    return check.check_splits(small(root), ["train", "eval", "test"])


def test_check(root, tmp_path):
    results = checked(root)
    assert {name: (n, len(p)) for name, (n, p) in results.items()} == {"train": (8, 0), "eval, test": (5, 0)}
    assert "eval, test: 5 clips, no problems" in check.summary(results, 3)
    broken = shutil.copytree(root, tmp_path / "broken")
    source = create_source("vpo", root=str(broken), split="test")
    source._picture(source._rows[0]).write_bytes(b"no picture")
    mask = source._path(source._rows[1], "mask", f"{source._rows[1].mask}.png")
    Image.fromarray(np.full((4, 4), 99, np.uint8)).save(mask)
    source.sound_file(2).unlink()
    count, problems = checked(broken)["eval, test"]
    assert count == 5 and {p.id for p in problems} >= set(source.ids[:3])
    text = check.summary({"test": (count, problems[:1])}, 3)
    assert "test: 5 clips, 1 problem in 1" in text
    table = source._table
    table.write_text(table.read_text().replace(",test", ",tset", 1))
    assert "cannot be opened" in check.summary(checked(broken), 1)


@pytest.mark.parametrize(
    "arg, changes, message",
    [
        (
            "",
            {"method.setting": "single_plus", "method.audio_encoder": "resnet10"},
            "num_classes: expected 22.*found 24",
        ),
        ("", {"method.setting": "salient", "method.audio_encoder": "resnet10"}, "num_classes: expected 22.*found 2"),
        (",fold_person=true", {"method.num_classes": 22}, "num_classes: expected 20.*found 22"),
        ("", {"data.root": "nowhere"}, "nowhere: .*no such folder.*data.root"),
        ("", {"data.setting": "vpo_ms"}, "VPO-MS/vpo_ms_data_stereo.csv"),
        ("", {"pairing.rate": 2.0}, "pairing.rate"),
        ("", {"optimizer.warmup_steps": 9, "steps": 5}, "optimizer.warmup_steps=0"),
    ],
)
def test_recipes_that_do_not_go_together(root, tmp_path, arg, changes, message):
    from avs_jax.train import train

    config = small(root, arg, **changes)
    with pytest.raises(InputError, match=f"(?s){message}") as error:
        train(config, tmp_path)
    assert "\n" not in str(error.value)


def test_channels_that_do_not_fit(root):
    method = build.build_method(small(root, **{"method.audio_channels": 2}))
    clip = build.build_source(small(root), "train")[0]
    with pytest.raises(InputError, match=r"'audio'.*1, 1, 2, samples.*audio_channels is 2; data.stereo"):
        method.init(jax.random.key(0), {"frames": clip["frames"][None], "audio": clip["audio"][None]})


def test_folded_persons_are_a_recipe_of_their_own(root):
    config = small(root, ",fold_person=true")
    method, source = build.build_method(config), build.build_source(config, "train")
    build.check_classes(method, source)
    assert method.num_classes == len(source.class_names) == 20


def test_a_binary_method_takes_what_sounds_for_one_class(root):
    config = small(root, ",fusion=none", **{"method.setting": "salient", "method.audio_encoder": "resnet10"})
    method = build.build_method(config)
    build.check_classes(method, build.build_source(config, "train"))
    variables = method.init(jax.random.key(0))
    frames = np.random.default_rng(0).integers(0, 256, (2, 1, 32, 32, 3), dtype=np.uint8)
    labels = np.zeros((2, 1, 32, 32), np.uint8)
    labels[:, :, :9] = 1
    labels[:, :, 9:12] = 255
    batch = {"frames": frames, "labels": labels, "labelled": np.ones((2, 1), bool)}

    @jax.jit
    def loss(labels):
        state = {k: v for k, v in variables.items() if k != "params"}
        return method.loss(variables["params"], state, {**batch, "labels": labels}, jax.random.key(0), 0)[0]

    assert loss(labels) == loss(np.where(labels == 1, 17, labels).astype(np.uint8)) != loss(np.zeros_like(labels))


def test_interrupted_commands_clean_up_and_say_so(tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from avs_jax import cli\n"
        f"with cli.interruptible('interrupted here', lambda: Path({str(tmp_path / 'left')!r}).unlink()):\n"
        "    try:\n        print('ready', flush=True); time.sleep(60)\n"
        "    except BaseException: print('seen')\n"
    )
    for number in (signal.SIGINT, signal.SIGTERM):
        (tmp_path / "left").touch()
        process = subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        out, error = process.communicate(timeout=60)
        assert process.returncode == 128 + number and error == "\ninterrupted here\n" and out == ""
        assert not (tmp_path / "left").exists()


def test_handlers_are_given_back():
    from avs_jax import cli

    before = signal.getsignal(signal.SIGINT)
    with cli.interruptible("x"):
        assert signal.getsignal(signal.SIGINT) is not before
    assert signal.getsignal(signal.SIGINT) is before
