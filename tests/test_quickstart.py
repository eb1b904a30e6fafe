"""The quickstart's own recipe, made tiny: sounds named first, training, resuming, the report and its picture."""

import importlib.util
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from avs_jax.errors import InputError
from avs_jax.train import train
from avs_jax.training import embeddings, tagging
from avs_jax.training.checkpoint import load_checkpoint

ROOT = Path(__file__).resolve().parent.parent


def recipe(arg=None):
    spec = importlib.util.spec_from_file_location("quickstart", ROOT / "configs" / "quickstart.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(arg)


def tiny(arg=None):
    config = recipe(arg)
    config.data.image_size = 32
    config.data.train.length, config.data.eval.length, config.data.test.length = 20, 4, 4
    config.method.update(width=4, channels=8, audio_width=2, audio_hidden=16)
    config.steps, config.optimizer.warmup_steps = 4, 1
    config.tagging.steps = min(config.tagging.steps, 3)
    config.checkpoint.every_steps, config.log.every_steps, config.log.tensorboard = 2, 1, False
    return config


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    config = tiny()
    config.loader.embeddings = str(workdir / "embeddings")
    return workdir, train(config, workdir)


def test_ends_with_the_report_and_its_picture(run):
    workdir, _ = run
    written = json.loads((workdir / "evaluation" / "test.json").read_text())
    figures = written["figures"]
    assert {"miou", "fscore", "audio_gain", "j_swap", "j_silence", "j_noise"} <= figures.keys()
    assert figures["audio_gain"] == pytest.approx(figures["miou"] - figures["j_swap"])
    assert (workdir / "evaluation" / "test_clips.csv").read_text().count("\n") == 5
    with Image.open(workdir / "evaluation" / "test.png") as picture:
        assert min(picture.size) > 300


def test_resumes_to_the_same_bits_with_cached_embeddings(run, tmp_path, capsys):
    workdir, result = run
    again = tmp_path / "run"
    shutil.copytree(workdir, again)
    shutil.rmtree(again / "checkpoints" / "4")  # as if killed before the last save
    config = tiny()
    config.loader.embeddings = str(again / "embeddings")
    resumed = train(config, again)
    assert "audio embeddings: 8 clips, all in" in capsys.readouterr().out
    assert int(resumed.state.step) == 4
    for a, b in zip(jax.tree.leaves(result.state), jax.tree.leaves(resumed.state), strict=True):
        assert np.array_equal(a, b)
    assert (again / "metrics.jsonl").read_bytes() == (workdir / "metrics.jsonl").read_bytes()


def test_training_leaves_the_taught_audio_encoder_alone(run):
    workdir, result = run
    method, variables = load_checkpoint(workdir, which="latest")
    for a, b in zip(jax.tree.leaves(result.state.params["audio"]), jax.tree.leaves(variables["params"]["audio"]),
                    strict=True):  # fmt: skip
        assert np.array_equal(a, b)
    fresh = method.init(jax.random.key(0))["params"]["audio"]
    assert not np.array_equal(fresh["dense2"]["kernel"], variables["params"]["audio"]["dense2"]["kernel"])


def test_tagging_learns_and_brings_embeddings_to_order_one():
    from avs_jax.training.build import build_method, build_source

    config = tiny()
    config.method.update(audio_width=4, audio_hidden=64)
    config.data.train.length = 60
    method, source = build_method(config), build_source(config, "train")
    variables, audio = method.init(jax.random.key(0)), tagging.load_audio(source)
    taught = tagging.teach(method, variables, source, audio, steps=60, batch_size=16, lr=2e-3, seed=0)
    embedded = embeddings.Encoder(method, taught["params"]["audio"], audio.shape[1:])(audio)
    assert embedded.shape == (60, 5, 128) and 0.5 < embedded.std() < 2
    x, y = embedded.reshape(300, -1), np.stack([source.sounds(i) for i in range(60)]).reshape(300, -1)
    x = np.concatenate([x, np.ones((300, 1))], 1)
    fit = np.linalg.lstsq(x[:200], y[:200] * 2.0 - 1, rcond=1e-3)[0]
    chance = max(y[200:].mean(), 1 - y[200:].mean())
    assert ((x[200:] @ fit > 0) == y[200:]).mean() > chance + 0.05
    wrapped = embeddings.WithEmbeddings(source, embedded)
    assert "audio" not in wrapped[3] and np.array_equal(wrapped[3]["audio_embedding"], embedded[3])
    assert wrapped.ids == source.ids


def test_tagging_needs_sounds_with_names():
    class Silent:
        ids = ("a",)

    with pytest.raises(InputError, match=r"tagging.steps: expected 0, for a data set"):
        tagging.teach(None, {}, Silent(), None, steps=1, batch_size=1, lr=1e-3, seed=0)


@pytest.mark.parametrize("arg, option", [(None, "clip"), ("schedule=per_second", "frame")])
def test_schedules_pick_the_span_of_attention(arg, option):
    assert recipe(arg).method.attend == option


def test_the_control_hears_nothing():
    config = recipe("fusion=none")
    assert config.method.fusion == "none" and config.tagging.steps == 0


def test_the_readme_trains_this_recipe():
    readme = (ROOT / "README.md").read_text()
    assert "--config=configs/quickstart.py --workdir=runs/quickstart" in readme
    assert "<!-- test command -->" in readme  # what .ci/run runs
