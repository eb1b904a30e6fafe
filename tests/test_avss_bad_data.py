"""One row for each way an AVSBench-semantic tree can be wrong: break a valid one, expect one telling error."""

import json
import shutil

import numpy as np
import pytest
from avsbench_tree import save
from avss_tree import CLASSES, write_avss_tree
from PIL import Image

import avs_jax
from avs_jax.data.sources.avsbench_semantic import AVSBenchSemanticSource
from avs_jax.errors import InputError

SIZE = 16


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_avss_tree(tmp_path_factory.mktemp("data") / "AVSBench-semantic")


@pytest.fixture
def copy(root, tmp_path):
    return shutil.copytree(root, tmp_path / "copy")


def edit(old, new):
    def change(path):
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))

    return change


def put(data):
    return lambda path: path.write_text(data)


def names(change=None, count=CLASSES):
    """Rewrites label2idx.json."""
    return put(json.dumps({"background": 0, **{f"thing {k}": k for k in range(1, count)}, **(change or {})}))


def delete(path):
    shutil.rmtree(path) if path.is_dir() else path.unlink()


TABLE, JSON = "metadata.csv", "label2idx.json"
CONSTRUCTION = {  # name: (file, how to break it, words of the error)
    "table missing": (TABLE, delete, "metadata.csv in it, or in one of its folders; label2idx.json, v1m, v1s, v2"),
    "table of MS3": (TABLE, put("video_id,split\na,val\n"), "columns uid, label, split, each once; video_id, split"),
    "label missing": (TABLE, edit("split,label", "split,lable"), "columns uid, label, split, each once; lable"),
    "uid twice in the header": (TABLE, edit("vid,uid", "uid,uid"), "columns uid, label, split, each once"),
    "part of another name": (TABLE, edit("val,v1s", "val,v1_s"), "line 5; v1s, v1m or v2; 'v1_s'; Did you mean 'v1s'?"),
    "label climbs out": (TABLE, edit("val,v1s", "val,.."), "line 5; v1s, v1m or v2; '..'"),
    "uid climbs out": (TABLE, edit("val_1", "../val_1"), "line 6; a plain name in column 'uid'; '../val_1'"),
    "uid missing": (TABLE, edit("val_1", ""), "line 6; a plain name in column 'uid'; ''"),
    "uid twice": (TABLE, edit("x1,val_1,0,1,\"one, two\",val,v2", 'x,val_0,0,0,,val,v1s'), "line 6; 'val_0' again"),
    "split swapped": (TABLE, edit("val,v1s", "v1s,val"), "line 5; train, val or test; 'v1s'; 'label' and 'split' are"),
    "values too many": (TABLE, edit('"one, two",val', "one, two,val"), "line 5; 7 values; found 8"),
    "split empty": (TABLE, edit("val,v", "test,v"), "clips of split 'val'; 3 of 'train', 5 of 'test'"),
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
ACCESS = {
    "frames missing": (f"{CLIP}/frames", delete, "a folder of 10 images; no such folder"),
    "frame missing": (f"{CLIP}/frames/4.jpg", delete, "10 images, 0.jpg to 9.jpg; 9 of them: 4.jpg missing"),
    "frame too many": (f"{CLIP}/frames/10.jpg", lambda p: save(p, np.zeros((9, 9, 3), np.uint8)), "10.jpg too many"),
    "frame cut short": (f"{CLIP}/frames/0.jpg", lambda p: p.write_bytes(p.read_bytes()[:-40]), "a whole image"),
    "frame is text": (f"{CLIP}/frames/0.jpg", put("hello"), "a PNG or JPEG image; 5 bytes that do not decode"),
    "mask missing": (f"{CLIP}/labels_rgb/9.png", delete, "10 images, 0.png to 9.png; 9.png missing"),
    "mask is a JPEG": (f"{CLIP}/labels_rgb/9.png", lambda p: Image.open(p).convert("RGB").save(p, "JPEG"),
                       "a PNG image; a JPEG, which blurs the edge"),
    "mask of numbers": (f"{CLIP}/labels_rgb/9.png", lambda p: save(p, np.full((24, 40), 3, np.uint8)), None),
    "sound missing": (f"{CLIP}/audio.wav", delete, "a sound file; no such file"),
    "sound empty": (f"{CLIP}/audio.wav", put(""), "a sound file; 0 bytes that do not decode"),
}  # fmt: skip


def assert_tells(error, words):
    for word in words.split("; "):
        assert word in str(error), f"'{word}' is not in: {error}"
    assert "\n" not in str(error)


@pytest.mark.parametrize("name", CONSTRUCTION)
def test_bad_tables_and_classes(copy, name):
    file, how, words = CONSTRUCTION[name]
    how(copy / file)
    with pytest.raises(InputError) as caught:
        AVSBenchSemanticSource(copy, split="val")
    assert str(copy) in str(caught.value)
    assert_tells(caught.value, words)


@pytest.mark.parametrize("name", ACCESS)
def test_bad_clips(copy, name):
    file, how, words = ACCESS[name]
    how(copy / file)
    source = AVSBenchSemanticSource(copy, split="val", image_size=SIZE)
    if words is None:  # readable, and wrong: only the check tells
        source[1]
        assert_tells(source.problems(1)[0], "another in 100.00% of the pixels, first #030303")
    else:
        with pytest.raises(InputError) as caught:
            source[1]
        folder = copy / CLIP if file.endswith("10.jpg") or "missing" in name else copy / file
        assert str(folder) in str(caught.value)
        assert_tells(caught.value, words)
        assert [str(problem) for problem in source.problems(1)] == [str(caught.value)]
    assert source.problems(0) == []


def test_a_clip_in_two_splits_is_reported(copy):
    with open(copy / TABLE, "a") as table:
        table.write("x,val_1,0,0,,test,v2\nx,val_0,0,0,,test,v2\n")  # the latter is another clip: another part
    source = AVSBenchSemanticSource(copy, split="val", image_size=SIZE)
    (problem,) = source.problems(1)
    assert_tells(problem, "clip 'val_1'; every clip in one split; 'test' (line 10)")
    assert source.problems(0) == []


@pytest.mark.parametrize("options, words", [
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
])  # fmt: skip
def test_bad_options(root, options, words):
    with pytest.raises(InputError) as caught:
        avs_jax.create_source("avsbench", **{"root": root, "setting": "avss", **options})
    assert_tells(caught.value, words)


def test_two_trees_in_one_folder_are_not_guessed_between(root, tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / TABLE).write_text("uid,label,split\n")
    with pytest.raises(InputError, match="it in each of a, b"):
        AVSBenchSemanticSource(tmp_path)
