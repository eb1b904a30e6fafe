"""The documentation holds: what it names exists, the shapes it states are the pipeline's, and its example runs."""

import ast
import functools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import avs_jax
from avs_jax import config as configs
from avs_jax import methods, overrides
from avs_jax.errors import InputError

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FOLDERS = "avs_jax|benchmarks|configs|docs|experiments|tests"


# ---- Names


def paths_in(text):
    """The files of this repository that a page names."""
    return set(re.findall(rf"(?<![\w/.~-])(?:{FOLDERS})/[\w/.-]+\.(?:py|md|png|json)\b", text))


def names_in(text):
    """The dotted names of this package that a page names, those of imports and of `python -m` among them."""
    names = set(re.findall(r"(?<![\w/.])avs_jax(?:\.[A-Za-z_]\w*)+(?![\w/])", text))
    for module, imported in re.findall(r"^\s*from (avs_jax[\w.]*) import (.+)$", text, re.MULTILINE):
        names |= {f"{module}.{name.split(' as ')[0].strip()}" for name in imported.split(",")}
    return names


@functools.cache
def definitions(file: Path) -> dict:
    """What a module or a class defines: name -> the same of it, {} for what is no class. Nothing is imported."""
    return members(ast.parse(file.read_text()))


def members(node) -> dict:
    found = {}
    for child in node.body:
        if isinstance(child, ast.ClassDef):
            found[child.name] = members(child)
        elif isinstance(child, ast.FunctionDef):
            found[child.name] = {}
        elif isinstance(child, ast.Assign):
            found |= {target.id: {} for target in child.targets if isinstance(target, ast.Name)}
        elif isinstance(child, ast.AnnAssign) and isinstance(child.target, ast.Name):
            found[child.target.id] = {}
    return found


def exists(name: str) -> bool:
    """Whether a dotted name is a package, a module, or what one of them defines, down to a class's own."""
    package, *parts = name.split(".")
    if len(parts) == 1 and parts[0] in avs_jax.__all__:  # found on first use
        return getattr(avs_jax, parts[0]) is not None
    place = ROOT / package
    while parts and ((place / parts[0]).is_dir() or (place / f"{parts[0]}.py").is_file()):
        place = place / parts.pop(0)
        if not place.is_dir():
            place = place.with_suffix(".py")
            break
    found = definitions(place / "__init__.py" if place.is_dir() else place)
    for part in parts:
        if part not in found:
            return False
        found = found[part]
    return True


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_names_exists(page):
    text = page.read_text()
    names, paths = names_in(text), paths_in(text)
    assert names and paths
    assert not [name for name in sorted(names) if not exists(name)]
    assert not [path for path in sorted(paths) if not (ROOT / path).is_file()]


def test_names_are_found_and_looked_up():
    text = "`avs_jax.a.b`, avs_jax/x.py, ~/avs_jax/y.py\nfrom avs_jax.c import d, e as f\n`docs/z.md`; ../configs/w.py"
    assert names_in(text) == {"avs_jax.a.b", "avs_jax.c", "avs_jax.c.d", "avs_jax.c.e"}
    assert paths_in(text) == {"avs_jax/x.py", "docs/z.md"}
    real = (
        "create",
        "train.train",
        "data.clip",
        "data.pipeline.Cached.visual",
        "methods.Method.loss",
        "config.defaults",
    )
    assert all(exists(f"avs_jax.{name}") for name in real)
    wrong = ("creat", "train.trian", "data.clips", "data.pipeline.Cached.visuals", "methods.Method.lose", "a.b")
    assert not any(exists(f"avs_jax.{name}") for name in wrong)


# ---- docs/batch.md


def test_the_batch_is_as_described():
    from avs_jax.data import pipeline
    from avs_jax.training import build

    text = (ROOT / "docs" / "batch.md").read_text()
    told = {
        field: (shape, dtype) for field, shape, dtype in re.findall(r"^\| `(\w+)` +\| (\(.+?\)) (\w+) ", text, re.M)
    }
    config = load(ROOT / "configs" / "quickstart.py").get_config()
    config.data.train.length = 8
    source = build.build_source(config, "train")
    batches = pipeline.train_batches(source, seed=0, batch_size=config.batch_size, augment=config.augment.to_dict())
    batch = next(batches)
    batches.close()
    assert told == {field: (str(value.shape), str(value.dtype)) for field, value in batch.items()}


def load(path: Path):
    from importlib import util

    spec = util.spec_from_file_location(path.stem, path)
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# ---- docs/new_method.md


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    """A folder with the files of the page: those whose first line is a comment with their name."""
    folder = tmp_path_factory.mktemp("example")
    text = (ROOT / "docs" / "new_method.md").read_text()
    for code in re.findall(r"^```python\n(.+?)^```$", text, re.MULTILINE | re.DOTALL):
        (folder / re.match(r"# (\w+\.py)\n", code)[1]).write_text(code)
    assert {path.name for path in folder.iterdir()} == {"my_method.py", "my_config.py"}
    return folder


def run(folder, module, *arguments):
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run([sys.executable, "-m", f"avs_jax.{module}", *arguments], cwd=folder, timeout=600,
                          env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def trained(example):
    """The page's command for a few steps on a few small clips; `channels` is an option that the recipe names."""
    small = {"steps": 3, "batch_size": 2, "tagging.steps": 2, "tagging.batch_size": 4, "data.image_size": 32,
             "data.train.length": 8, "data.eval.length": 2, "data.test.length": 2, "method.channels": 8,
             "method.width": 8, "method.audio_hidden": 16, "loader.embeddings": example / "embeddings",
             "method.dice": 0.5, "log.tensorboard": False}  # fmt: skip
    options = [f"--config.{name}={value}" for name, value in small.items()]
    told = run(example, "train", "--config=my_config.py", "--workdir=runs/mine", *options)
    return example, told


def test_the_example_trains(trained):
    folder, told = trained
    assert "film" in told and "8 clips, 3 steps" in told and "audio embeddings: " in told
    lines = [json.loads(line) for line in (folder / "runs/mine/metrics.jsonl").read_text().splitlines()]
    assert lines[0]["bce"] > 0 and lines[0]["grad_norm"] > 0
    saved = configs.load(folder / "runs/mine/config.json")
    assert saved.method.name == "my_method.py" and saved.method.channels == 8 and saved.method.dice == 0.5


def test_the_example_is_evaluated_and_predicts(trained):
    folder, _ = trained
    told = run(folder, "evaluate", "--workdir=runs/mine", "--bootstrap=0", "--pictures=0", "--conditions=true")
    assert "runs/mine, best checkpoint, split 'test'" in told
    report = json.loads((folder / "runs/mine/evaluation/test.json").read_text())
    assert report["settings"]["method"] == "film"
    run(folder, "predict", "--workdir=runs/mine", "--input=multi-test-00000", "--output=out", "--overlay=false")
    masks = sorted((folder / "out").rglob("*.png"))
    assert len(masks) >= 5 and Image.open(masks[0]).size == (32, 32)


def test_an_option_of_the_example_that_its_recipe_does_not_name(example, monkeypatch):
    monkeypatch.chdir(example)
    config = load(example / "my_config.py").get_config()

    class Values:
        pass

    values = Values()
    values.config = config.lock()
    _, taken = overrides.take(["--config.method.dice=0.25"], config)
    overrides.apply(taken, values)
    assert config.method.dice == 0.25
    with pytest.raises(InputError, match=r"method\.dise.*'dice'"):
        overrides.apply({"method.dise": "1"}, values)


# ---- One's own method by name

GOOD = """
from avs_jax.methods import Method
def create(width: int = {width}):
    return Method("own", {{"width": width}}, 1, "vggish", *[lambda *a: None] * 4)
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "own_package").mkdir()
    for name in ("own.py", "random.py", "own_package/__init__.py", "own_package/own.py"):
        (tmp_path / name).write_text(GOOD.format(width=7))
    (tmp_path / "empty.py").write_text("create = None\n")
    (tmp_path / "wrong.py").write_text("def create():\n    return 3\n")
    (tmp_path / "own_package" / "broken.py").write_text("import no_such_module_at_all\n")
    return tmp_path


def test_own_methods(folder):
    for name in ("own.py", str(folder / "own.py"), folder / "own.py", "./own.py", "own_package.own"):
        method = avs_jax.create(name)
        assert method.name == "own" and method.options == {"width": 7}
        assert avs_jax.create(name, width=3).options == {"width": 3}
    assert avs_jax.create("random.py").name == "own"
    import random

    assert random.random() < 1  # a file's name takes no module's place
    (folder / "own.py").write_text(GOOD.format(width=8888))
    assert avs_jax.create("own.py").options == {"width": 8888}


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("ownn.py", "method.name: expected a Python file .*; found no file .*ownn.py"),
        ("empty.py", "'empty.py', with a function `create`"),
        ("wrong.py", "returns an avs_jax.methods.Method; found one that returns int"),
        ("own_package.other", "found no module 'own_package.other'"),
        ("no_package.own", "found no module 'no_package.own'"),
        ("own_package..own", "found 'own_package..own'"),
        ("tpavy", "found 'tpavy'. Did you mean 'tpavi'?"),
    ],
)
def test_own_methods_that_are_not_there(folder, name, told):
    with pytest.raises(InputError, match=told):
        methods.create(name)


def test_errors_inside_own_methods_are_told_as_they_are(folder):
    with pytest.raises(ModuleNotFoundError, match="no_such_module_at_all"):
        methods.create("own_package.broken")
    with pytest.raises(InputError, match=r"method\.widht.*'width'"):
        methods.create("own.py", widht=3)


@pytest.mark.parametrize("name", ["runs/sent/method.py", "runs.sent.method"])
def test_a_workdir_brings_no_program_along(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    workdir = tmp_path / "runs" / "sent"
    workdir.mkdir(parents=True)
    (workdir / "method.py").write_text("raise SystemExit('ran')")
    config = configs.defaults().to_dict()
    (workdir / "config.json").write_text(json.dumps(config | {"method": {"name": name}}))
    with pytest.raises(InputError, match=r"method\.name.*outside"):
        configs.load(workdir / "config.json")
    monkeypatch.chdir(workdir)
    for name in ("my_lab/method.py", "tpavi"):
        method = {"name": f"../{name}" if "/" in name else name}
        (workdir / "config.json").write_text(json.dumps(config | {"method": method}))
        assert configs.load("config.json").method.name.endswith(name)
