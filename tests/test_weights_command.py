"""python -m avs_jax.weights: looking into files and converting them, as a user would."""

import json

import jax
import numpy as np
import pytest
from test_weights import SMALL, made_up, same, split

import avs_jax
from avs_jax import config as configs
from avs_jax.weights.__main__ import main, options_of
from avs_jax.weights.files import read_state_dict
from avs_jax.weights.writing import save_state_dict

OPTIONS = ("setting=ms3,backbone=resnet10,width=4,channels=4,neck_dilations=[1,2],head_channels=[4,4],audio_width=2,"
           "audio_hidden=8")  # fmt: skip
RECIPE = """
from avs_jax import config

def get_config(arg=None):
    a = config.parse_arg(arg, setting="ms3")
    c = config.defaults()
    c.method.update(name="tpavi", setting=a.setting, {options})
    c.data.update(source="synthetic", image_size=32, setting="multi")
    c.data.test.length = 2
    return c
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The two public files of a small network, and the recipe of a run of it."""
    folder = tmp_path_factory.mktemp("files")
    method = avs_jax.create("tpavi", **SMALL)
    network, audio = split(made_up(method))
    save_state_dict(folder / "network.pth", network)
    save_state_dict(folder / "audio.safetensors", audio)
    options = ", ".join(f"{k}={v!r}" for k, v in SMALL.items())
    (folder / "recipe.py").write_text(RECIPE.format(options=options))
    return folder


@pytest.fixture(scope="module")
def workdir(folder):
    """Made by the command itself."""
    out = folder / "run"
    files = [str(folder / name) for name in ("network.pth", "audio.safetensors")]
    assert main(["convert", *files, str(out), "--config", f"{folder / 'recipe.py'}:setting=ms3"]) == 0
    return out


def run(capsys, *args):
    status = main([str(a) for a in args])
    out, err = capsys.readouterr()
    return status, out, err


def test_inspect_lists_everything(folder, capsys):
    status, out, _ = run(capsys, "inspect", folder / "network.pth", folder / "audio.safetensors")
    lines = out.splitlines()
    for key, array in read_state_dict(folder / "network.pth").items():
        shape = "x".join(map(str, array.shape)) or "scalar"
        assert any(line.split() == [key, shape, str(array.dtype)] for line in lines), key
    assert status == 0 and "torch file (zip)" in out and ", safetensors" in out
    brief = run(capsys, "inspect", "--brief", folder / "network.pth")[1]
    assert "resnet.conv1.weight " not in brief and "tensors," in brief


def test_inspect_beside_a_model(folder, capsys):
    files = (folder / "network.pth", folder / "audio.safetensors")
    status, out, _ = run(capsys, "inspect", "--brief", *files, "--method", "tpavi", "--options", OPTIONS)
    assert status == 0 and "248 of its 248 keys fit" in out
    status, out, _ = run(capsys, "inspect", "--brief", files[0], "--method", "tpavi", "--options", OPTIONS)
    assert status == 0 and "230 of its 248 keys fit" in out  # the sound has a file of its own
    status, out, _ = run(
        capsys, "inspect", "--brief", *files, "--method", "tpavi", "--options", OPTIONS + ",fusion=add"
    )
    assert status == 1 and "tpavi_b1.theta.weight" in out and "more)" not in out
    status, out, _ = run(capsys, "inspect", "--brief", files[1], "--encoder", "vggish", "--options", "width=2,hidden=9")
    assert status == 1 and "embeddings.0.weight (8, 384) in place of (9, 384)" in out


def test_a_workdir_of_public_files_evaluates_and_starts_another_run(workdir, folder, capsys):
    from avs_jax.evaluate import evaluate_run
    from avs_jax.weights.pretrained import load_pretrained

    method, variables = avs_jax.load_checkpoint(workdir)
    truth = avs_jax.load_torch(method, [folder / "network.pth", folder / "audio.safetensors"])
    jax.tree.map(np.testing.assert_array_equal, variables, truth)
    report = evaluate_run(workdir, pictures=0, progress=False, conditions=("true",), bootstrap=0)
    figures = avs_jax.metrics.evaluate(
        method, truth, avs_jax.create_source("synthetic", **configs.split_options(
            configs.load(workdir / "config.json"), "test")), conditions=("true",))  # fmt: skip
    assert report.figures["miou"] == figures["miou"]
    section = {"method": str(workdir), "encoder": "", "audio": "", "folder": "weights"}
    fresh = method.init(jax.random.key(1))
    started = load_pretrained(method, fresh, section)
    assert jax.tree.structure(started) == jax.tree.structure(fresh)
    jax.tree.map(np.testing.assert_array_equal, started["params"], truth["params"])


@pytest.mark.parametrize("name", ["back.pth", "back.safetensors"])
def test_a_workdir_becomes_the_public_files_again(workdir, folder, tmp_path, capsys, name):
    for part, source in (("network", "network.pth"), ("audio", "audio.safetensors")):
        status, out, _ = run(capsys, "convert", workdir, tmp_path / f"{part}-{name}", "--part", part)
        assert status == 0 and f"{part}-{name}" in out
        found, truth = (read_state_dict(p) for p in (tmp_path / f"{part}-{name}", folder / source))
        if {name, source} != {"back.pth", "network.pth"}:  # .safetensors keeps no order
            found, truth = (dict(sorted(d.items())) for d in (found, truth))
        assert same(found, truth)


def test_files_become_one_file_as_they_are_or_as_a_model_has_them(folder, tmp_path, capsys):
    files = [folder / "network.pth", folder / "audio.safetensors"]
    truth = {k: v for f in files for k, v in read_state_dict(f).items()}
    half = {k: v.astype(np.float16) if v.dtype == np.float32 else v for k, v in truth.items()}
    half = {k: v for k, v in half.items() if not k.endswith("tracked")}
    save_state_dict(tmp_path / "half.safetensors", half)
    status, out, _ = run(capsys, "convert", tmp_path / "half.safetensors", tmp_path / "same.pth")
    assert status == 0 and f"{len(half)} tensors" in out
    assert same(dict(sorted(read_state_dict(tmp_path / "same.pth").items())), dict(sorted(half.items())))
    args = ("convert", *files, tmp_path / "model.pth", "--method", "tpavi", "--options", OPTIONS)
    assert run(capsys, *args)[0] == 0
    method = avs_jax.create("tpavi", **SMALL)
    assert same(read_state_dict(tmp_path / "model.pth"), {r.key: truth[r.key] for r in method.torch_keys.rules})
    assert run(capsys, *args)[0] == 2 and run(capsys, *args, "--overwrite")[0] == 0
    alone = ("convert", files[0], tmp_path / "network.pth", "--method", "tpavi", "--options", OPTIONS)
    assert run(capsys, *alone)[0] == 2  # the sound is missing
    assert run(capsys, *alone, "--part", "network")[0] == 0
    assert same(read_state_dict(tmp_path / "network.pth"), read_state_dict(files[0]))


def test_a_workdir_without_a_recipe(folder, tmp_path, capsys):
    files = (folder / "network.pth", folder / "audio.safetensors")
    status, out, _ = run(capsys, "convert", *files, tmp_path / "run", "--method", "tpavi", "--options", OPTIONS)
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert status == 0 and "avs_jax.evaluate --workdir=" in out
    assert config["data"]["source"] == "avsbench" and config["data"]["setting"] == "ms3"
    assert config["method"]["width"] == 4


@pytest.mark.parametrize("args, words", [
    ([], "command line"),
    (["inspect", "nowhere.pth"], "no such file"),
    (["inspect", "resnet18-f37072fd.pth"], "Fetch https://download.pytorch.org/models/resnet18-f37072fd.pth"),
    (["inspect", "{run}"], "A workdir's weights can be written to a file"),
    (["inspect", "{net}", "--encoder", "resnet5"], "'resnet50'"),
    (["inspect", "{net}", "--encoder", "resnet50", "--method", "tpavi"], "found both"),
    (["inspect", "{net}", "--options", "width=3"], "found neither"),
    (["inspect", "{net}", "--encoder", "resnet50", "--options", "width"], "name=value"),
    (["inspect", "{net}", "--methd", "tpavi"], "--methd"),
    (["convert", "{net}", "{out}/run"], "expected --config or --method"),
    (["convert", "{net}", "{out}/run", "--config", "nowhere.py"], "the file of a recipe"),
    (["convert", "{net}", "{out}/run", "--config", "{recipe}"], "a file of its own"),
    (["convert", "{net}", "{net}", "{out}/a.pth"], "keys that no other of the files has"),
    (["convert", "{net}", "{run}", "--config", "{recipe}"], "an empty or new folder"),
    (["convert", "{net}", "{out}/a.pth", "--part", "audio"], "where no method is named"),
    (["convert", "{net}", "{out}/a.pth", "--config", "{recipe}"], "a workdir as OUT"),
    (["convert", "{run}", "{net}", "{out}/a.pth"], "one workdir, or files"),
    (["convert", "{run}", "{out}/run2", "--config", "{recipe}"], "a folder"),
])  # fmt: skip
def test_bad_command_lines_are_refused(workdir, folder, tmp_path, monkeypatch, capsys, args, words):
    monkeypatch.chdir(tmp_path)
    names = {"run": workdir, "net": folder / "network.pth", "recipe": folder / "recipe.py", "out": tmp_path}
    status, out, err = run(capsys, *(a.format(**names) for a in args))
    assert status == 2 and err.startswith("error: ") and words in err, err
    assert not out and not list(tmp_path.iterdir())


def test_options_are_read_as_they_are_meant():
    text = "setting=ms3,tpavi_stages=[2, 3],dice=0.5,train_audio=True,width=null,avm=auto"
    assert options_of(text) == {"setting": "ms3", "tpavi_stages": [2, 3], "dice": 0.5, "train_audio": True,
                                "width": None, "avm": "auto"}  # fmt: skip
    assert options_of("") == {}
