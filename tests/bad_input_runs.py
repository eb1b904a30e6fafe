"""Workdirs that are none, or another's: config.json, checkpoints and the method's file damaged, missing or changed."""

import json
from pathlib import Path

from bad_input import Row, at, cut, delete, folder, locked, put

EVALUATE, META = "evaluate --workdir=run", "run/checkpoints/2/meta/metadata"


def config(change):
    """Changes what config.json says."""

    def make(here: Path):
        path = here / "run/config.json"
        found = json.loads(path.read_text())
        change(found)
        path.write_text(json.dumps(found))

    return make


def without(*names):
    def change(found):
        for name in names[:-1]:
            found = found[name]
        del found[names[-1]]

    return config(change)


def given(section: str, **values):
    return config(lambda found: found[section].update(values))


def files_of(name: str, change):
    """Changes every file below a folder of the checkpoint."""

    def make(here: Path):
        for path in sorted((here / "run/checkpoints/2" / name).rglob("*")):
            if path.is_file():
                change(path)

    return make


def emptied(path: Path):
    delete(path)
    path.mkdir()


def own_program(here: Path):
    (here / "method.py").rename(here / "run" / "method.py")
    given("method", name="run/method.py")(here)


CONFIGS = {
    "missing": (at("run/config.json", delete), "run/config.json; no such file; --workdir"),
    "empty": (at("run/config.json", put("")), "run/config.json; JSON"),
    "no JSON": (at("run/config.json", put("{")), "run/config.json; JSON; double quotes"),
    "a list": (at("run/config.json", put("[1]")), "run/config.json; JSON; a list"),
    "an empty object": (at("run/config.json", put("{}")), "run/config.json, config.; a section; nothing"),
    "not UTF-8": (at("run/config.json", put(b"\xff\xfe")), "run/config.json; JSON; 0xff"),
    "nested beyond reason": (at("run/config.json", put("[" * 100000)), "run/config.json; recursion"),
    "a folder": (at("run/config.json", folder), "run/config.json; no such file"),
    "not to be read": (at("run/config.json", locked), "run/config.json; Permission denied"),
    "without a method": (without("method"), "config.method; nothing"),
    "without data": (without("data"), "config.data; nothing"),
    "without a data set's name": (without("data", "source"), "config.data.source; nothing"),
    "without the split": (without("data", "test"), "config.data.test; nothing"),
    "a number for a split": (given("data", test=3), "config.data.test; 3"),
    "without the method's name": (without("method", "name"), "config.method.name; nothing"),
    "a number for the method's name": (given("method", name=3), "config.method.name; 3"),
    "another method": (given("method", name="tpavi"), "method.nan_after; 'tpavi'"),
    "a method that is not there": (given("method", name="other.py"), "method.name; no file"),
    "a method in the workdir": (own_program, "run/config.json, method.name; outside of the run's folder"),
    "an option that does not exist": (given("method", colour="x"), "method.colour; 'method.py'"),
    "text for a number": (given("eval", batch_size="x"), "config.eval.batch_size; 'x'"),
    "a batch of none": (given("eval", batch_size=0), "eval.batch_size; at least 1; 0"),
    "no figure": (given("eval", best=None), "config.eval.best; text; None"),
    "threads below zero": (given("loader", threads=-3), "loader.threads; -3"),
    "an unknown precision": (config(lambda found: found.update(precision="f16")), "precision; 'f16'"),
    "a data set that is not there": (
        given("data", source="avsbench", setting="ms3", root="nowhere", train={}, eval={}, test={"split": "test"}),
        "nowhere; the folder of AVSBench",
    ),
}
CHECKPOINTS = {
    "missing": (at("run/checkpoints", delete), "run/checkpoints; a checkpoint; none"),
    "none in it": (at("run/checkpoints", emptied), "run/checkpoints; a checkpoint; none"),
    "a file": (at("run/checkpoints", delete, put("x")), "run/checkpoints; a checkpoint; none"),
    "an empty one": (at("run/checkpoints/2", emptied), "run/checkpoints; only damaged ones"),
    "meta data garbage": (at(META, put("garbage")), "run/checkpoints; only damaged ones"),
    "meta data empty": (at(META, put("")), "run/checkpoints; only damaged ones"),
    "meta data a list": (at(META, put("[1]")), "run/checkpoints; only damaged ones"),
    "meta data an empty object": (at(META, put("{}")), "run/checkpoints; only damaged ones"),
    "meta data missing": (at("run/checkpoints/2/meta", delete), "run/checkpoints; only damaged ones"),
    "variables missing": (at("run/checkpoints/2/variables", delete), "run/checkpoints; only damaged ones"),
    "arrays cut short": (files_of("variables", cut(0.5)), "run/checkpoints; only damaged ones"),
    "arrays of zeros": (
        files_of("variables", lambda path: path.write_bytes(bytes(path.stat().st_size))),
        "run/checkpoints; only damaged ones",
    ),
}
DEFAULTS = "from avs_jax import config\n\n\ndef get_config(arg=None):\n    c = config.defaults()\n"
OTHERS = [
    Row("run: predicts with a checkpoint that is missing", "run/checkpoints; a checkpoint; none",
        "predict --workdir=run --input=clip.mp4 --output=out", at("run/checkpoints", delete)),
    Row("run: explains with a checkpoint that is missing", "run/checkpoints; a checkpoint; none",
        "explain attention --workdir=run", at("run/checkpoints", delete)),
    Row("run: is converted without a checkpoint", "run/checkpoints; a checkpoint; none",
        "weights convert run x.pth", at("run/checkpoints", delete)),
    Row("run: goes on where checkpoints is a file", "run; can be written to; Not a directory",
        "train --config=recipe.py --workdir=run --config.steps=4", at("run/checkpoints", delete, put("x"))),
    Row("run: another method goes on in it", "method.nan_after; an option of 'tpavi'",
        "train --config=recipe.py --workdir=run --config.method.name=tpavi"),
    Row("run: starts from a run of another architecture", "config.pretrained.method",
        "train --config=tiny.py --workdir=out --config.pretrained.method=run",
        at("tiny.py", put(
            DEFAULTS + "    c.method.update(name='tpavi', setting='ms3', backbone='resnet10', width=4, channels=4,\n"
            "        neck_dilations=(1, 2), head_channels=(4, 4), audio_width=2, audio_hidden=8)\n"
            "    c.data.update(source='synthetic', image_size=32)\n    return c\n"))),
    Row("run: its data set has other classes than its method", "method.num_classes; expected 9, the classes; found 71",
        "train --config=classes.py --workdir=out",
        at("classes.py", put(
            DEFAULTS + "    c.method.update(name='tpavi', setting='avss')\n"
            "    c.data.update(source='synthetic', setting='semantic', image_size=32)\n    return c\n"))),
    Row("run: classes of a method without them", "method.num_classes; expected 2, the classes; found 22",
        "train --config=recipe.py --workdir=out --config.method.name=cavp.py", at("cavp.py", put(
            "from avs_jax.methods import cavp\n\n\ndef create(nan_after=0, width=6):\n"
            "    return cavp.create('vpo_ss', backbone='resnet10', width=4)\n"))),
]  # fmt: skip


def rows():
    for name, (make, told) in CONFIGS.items():
        yield Row(f"config.json: {name}", told, EVALUATE, make)
    for name, (make, told) in CHECKPOINTS.items():
        yield Row(f"checkpoint: {name}", told, EVALUATE, make)
    yield from OTHERS


ROWS = list(rows())
