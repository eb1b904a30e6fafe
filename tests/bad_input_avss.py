"""Ways in which an AVSBench-semantic tree, its table, classes, clips and options can be bad."""

import json
from pathlib import Path

import numpy as np
from avsbench_tree import save
from avss_tree import CLASSES, write_avss_tree
from bad_input import Row, as_problems, at, delete, put, text
from PIL import Image

import avs_jax
from avs_jax.data.sources.avsbench_semantic import AVSBenchSemanticSource

SIZE = 16


def write(root: Path) -> None:
    """The world of these rows."""
    write_avss_tree(root)


def names(change=None, count=CLASSES):
    """Rewrites label2idx.json."""
    return put(json.dumps({"background": 0, **{f"thing {k}": k for k in range(1, count)}, **(change or {})}))


TABLE, JSON = "metadata.csv", "label2idx.json"
TABLES = {  # name: (file, how to break it, words of the error)
    "table missing": (TABLE, delete, "metadata.csv in it, or in one of its folders; label2idx.json, v1m, v1s, v2"),
    "table of MS3": (TABLE, put("video_id,split\na,val\n"), "columns uid, label, split, each once; video_id, split"),
    "label missing": (TABLE, text("split,label", "split,lable"), "columns uid, label, split, each once; lable"),
    "uid twice in the header": (TABLE, text("vid,uid", "uid,uid"), "columns uid, label, split, each once"),
    "part of another name": (TABLE, text("val,v1s", "val,v1_s"), "line 5; v1s, v1m or v2; 'v1_s'; Did you mean 'v1s'?"),
    "label climbs out": (TABLE, text("val,v1s", "val,.."), "line 5; v1s, v1m or v2; '..'"),
    "uid climbs out": (TABLE, text("val_1", "../val_1"), "line 6; a plain name in column 'uid'; '../val_1'"),
    "uid missing": (TABLE, text("val_1", ""), "line 6; a plain name in column 'uid'; ''"),
    "uid twice": (TABLE, text("x1,val_1,0,1,\"one, two\",val,v2", 'x,val_0,0,0,,val,v1s'), "line 6; 'val_0' again"),
    "split swapped": (TABLE, text("val,v1s", "v1s,val"), "line 5; train, val or test; 'v1s'; 'label' and 'split' are"),
    "values too many": (TABLE, text('"one, two",val', "one, two,val"), "line 5; 7 values; found 8"),
    "split empty": (TABLE, text("val,v", "test,v"), "clips of split 'val'; 3 of 'train', 5 of 'test'"),
    "not UTF-8": (TABLE, lambda p: p.write_bytes(p.read_bytes() + b"\xff"), "line 10; UTF-8 text"),
    "classes missing": (JSON, delete, "class names and their numbers, from 0; no such file; comes with the data set"),
    "classes are no JSON": (JSON, put("{background: 0}"), "class names and their numbers; Expecting property name"),
    "classes are a list": (JSON, put('["background", "thing"]'), "class names and their numbers; a list"),
    "classes nested beyond reason": (JSON, put("[" * 200000), "class names and their numbers; recursion"),
    "one class": (JSON, names(count=1), "1 classes"),
    "too many classes": (JSON, names(count=256), "256 classes; 2 to 255"),
    "number missing": (JSON, names({"thing 3": 71}), "71 for 'thing 3' among 71 classes"),
    "number twice": (JSON, names({"thing 3": 4}), "number 4 for 'thing 3' and 'thing 4'"),
    "name twice": (JSON, put('{"background": 0, "a": 1, "a": 2}'), "'a' twice"),
    "number is text": (JSON, names({"thing 3": "3"}), "'3' for 'thing 3'"),
    "number is true": (JSON, names({"thing 1": True}), "True for 'thing 1'"),
}  # fmt: skip
CLIP = "v2/val_1"
CLIPS = {
    "frames missing": (f"{CLIP}/frames", delete, "a folder of 10 images; no such folder"),
    "frame missing": (f"{CLIP}/frames/4.jpg", delete, "10 images, 0.jpg to 9.jpg; 9 of them: 4.jpg missing"),
    "frame too many": (f"{CLIP}/frames/10.jpg", lambda p: save(p, np.zeros((9, 9, 3), np.uint8)), "10.jpg too many"),
    "frame cut short": (f"{CLIP}/frames/0.jpg", lambda p: p.write_bytes(p.read_bytes()[:-40]), "a whole image"),
    "frame is text": (f"{CLIP}/frames/0.jpg", put("hello"), "a PNG or JPEG image; 5 bytes that do not decode"),
    "mask missing": (f"{CLIP}/labels_rgb/9.png", delete, "10 images, 0.png to 9.png; 9.png missing"),
    "mask is a JPEG": (f"{CLIP}/labels_rgb/9.png", lambda p: Image.open(p).convert("RGB").save(p, "JPEG"),
                       "a PNG image; a JPEG, which blurs the edge"),
    "sound missing": (f"{CLIP}/audio.wav", delete, "a sound file; no such file"),
    "sound empty": (f"{CLIP}/audio.wav", put(""), "a sound file; 0 bytes that do not decode"),
}  # fmt: skip
OPTIONS = [
    ({"subsets": "v1"}, "data.subsets; v1s, v1m, v2; 'v1'; Did you mean"),
    ({"subsets": ["v2", "v2"]}, "data.subsets; each once"),
    ({"subsets": "v1m", "split": "val"}, "data.subsets; at least one clip; none of split 'val'"),
    ({"fit": "pad"}, "data.fit; auto, crop, squash; 'pad'"),
    ({"sound": "log_mel"}, "data.sound; wav; 'log_mel'"),
    ({"absent": "0"}, "data.absent; background, ignore"),
    ({"unknown": "error"}, "data.unknown; background, ignore"),
    ({"split": "eval"}, "data.split; train, val, test"),
    ({"root": ""}, "data.root; the folder of AVSBench-semantic; nothing"),
    ({"root": "no/where"}, "no/where; no such folder; metadata.csv, label2idx.json, v1s/"),
    ({"resize": True}, "data.resize; an option of the 'avsbench' source"),
    ({"setting": "ms3", "subsets": "v2"}, "data.subsets; an option of the 'avsbench' source"),
    ({"setting": "avs"}, "data.setting; one of s4, ms3, avss; Did you mean 'avss'?"),
]  # fmt: skip


def construct(here: Path):
    AVSBenchSemanticSource(here, split="val")


def read(here: Path):
    source = AVSBenchSemanticSource(here, split="val", image_size=SIZE)
    assert source.problems(0) == []
    as_problems(source, 1)


def look(here: Path):
    """What can be read, and is wrong all the same: the check tells."""
    source = AVSBenchSemanticSource(here, split="val", image_size=SIZE)
    assert source[1]["id"] == "val_1" and source.problems(0) == []
    (problem,) = source.problems(1)
    raise problem


def in_two_splits(table: Path):
    """val_1; the other val_0 is another clip, of another part."""
    with open(table, "a") as file:
        file.write("x,val_1,0,0,,test,v2\nx,val_0,0,0,,test,v2\n")


def create(options: dict):
    return lambda here: avs_jax.create_source("avsbench", **{"root": here, "setting": "avss", **options})


def twice(here: Path):
    for name in ("a", "b"):
        (here / name).mkdir()
        (here / TABLE).rename(here / name / TABLE) if name == "a" else put("uid,label,split\n")(here / name / TABLE)


def rows():
    for name, (file, how, words) in TABLES.items():
        yield Row(f"AVSS: {name}", words, construct, at(file, how), "avss")
    yield Row("AVSS: two trees in one folder", "it in each of a, b", construct, twice, "avss")
    for name, (file, how, words) in CLIPS.items():
        yield Row(f"AVSS: {name}", f"{CLIP}; {words}", read, at(file, how), "avss")
    grey = at(f"{CLIP}/labels_rgb/9.png", lambda path: save(path, np.full((24, 40), 3, np.uint8)))
    yield Row("AVSS: mask of numbers", "another in 100.00% of the pixels, first #030303", look, grey, "avss")
    told = "clip 'val_1'; every clip in one split; 'test' (line 10)"
    yield Row("AVSS: a clip in two splits", told, look, at(TABLE, in_two_splits), "avss")
    for options, words in OPTIONS:
        yield Row(f"AVSS's options: {options}", words, create(options), world="avss")


ROWS = list(rows())
