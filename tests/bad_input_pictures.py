"""Ways in which VPO's and AVSBench-Single+'s trees and options can be bad."""

import shutil
from pathlib import Path

import numpy as np
import soundfile
from bad_input import Row, as_problems, at, cut, delete, folder, image, put, text
from PIL import Image
from vpo_tree import write_coco, write_single_plus, write_vggsound

import avs_jax
from avs_jax.data.prepare.vpo_build import Options, build

SS, MS, MSMI = (f"VPO/VPO-{s.upper()}/vpo_{s}_data_stereo.csv" for s in ("ss", "ms", "msmi"))
SOUNDS = "vggsound_bench/VGGSound/audios"
PLUS = "single"
FIRST = "train-clip_0"


def write_vpo(root: Path) -> None:
    """The world of VPO's rows: all three settings, built of a tiny COCO and VGGSound."""
    coco, sounds = write_coco(root / "coco", 3, images=12), write_vggsound(root / "vggsound")
    for setting, counts in (("ss", {"train": 4, "test": 2}), ("ms", {"train": 5, "test": 3}), ("msmi", {})):
        build(Options(coco, sounds, root, setting, counts=counts, silence=0.0))
    shutil.rmtree(coco)
    shutil.rmtree(sounds)


def write_plus(root: Path) -> None:
    """The world of AVSBench-Single+'s rows."""
    write_single_plus(root / PLUS, root / SOUNDS)


def cell(column: str, value: str):
    """Writes another value into the first line after the table's header."""

    def change(path: Path):
        lines = [line.split(",") for line in path.read_text().splitlines()]
        lines[1][lines[0].index(column)] = value
        path.write_text("\n".join(map(",".join, lines)) + "\n")

    return change


def lines(change):
    """The table's lines as `change` makes them."""
    return lambda path: path.write_text("\n".join(change(path.read_text().splitlines())))


def vpo(setting: str = "vpo_ss", **options):
    options = {"setting": setting, "seconds": 0.5, **options}
    return lambda here: avs_jax.create_source("vpo", **{"root": str(here), **options})


def plus(setting: str = "single_plus", **options):
    options = {"setting": setting, **options}
    return lambda here: avs_jax.create_source("single_plus", root=str(here / PLUS), **options)


def first(create):
    """Reads the first clip."""
    return lambda here: as_problems(create(here), 0)


def of_first(kind: str, change):
    """Changes the picture, mask or (first) sound of VPO-MS's first clip."""

    def make(here: Path):
        source = vpo("vpo_ms")(here)
        name = source.ids[0]
        row = (here / MS).read_text().splitlines()[1].split(",")
        change({"picture": here / f"VPO/VPO-MS/data/{name}.jpg", "mask": here / f"VPO/VPO-MS/mask/{name}.png",
                "sound": here / SOUNDS / f"{row[4]}.wav"}[kind])  # fmt: skip

    return make


def pixel(value: int):
    def change(path: Path):
        values = np.asarray(Image.open(path)).copy()
        values[0, 0] = value
        Image.fromarray(values).save(path)

    return change


def shorter(path: Path):
    Image.fromarray(np.asarray(Image.open(path))[:-1]).save(path)


def wave(samples, rate: int = 16000):
    return lambda path: soundfile.write(path, samples, rate, subtype="FLOAT")


NAN = np.full(800, np.nan, np.float32)
TABLES = {
    "picture's number is text": ("img_Id", "x", "whole number in column 'img_Id'"),
    "mask's number missing": ("ann_Ids", "", "whole number in column 'ann_Ids'"),
    "class misspelt": ("cateName", "dgo", "class of VPO in column 'cateName'; Did you mean 'dog'"),
    "class person without fold_person": ("cateName", "person", "fold_person"),
    "class and number disagree": ("cateId", "77", "in column 'cateId'"),
    "split of another name": ("split", "valid", "train or test"),
    "sound climbs out": ("vgg_file", "../../x", "plain name"),
    "place outside of the picture": ("audio_pos", "1.2", "0 to 1"),
    "place is NaN": ("audio_pos", "nan", "0 to 1"),
}
FILES = {
    "table empty": (SS, put(""), vpo(), "an empty file"),
    "table of another data set": (SS, put("a,b\n1,2\n"), vpo(), "columns img_Id"),
    "table is a header": (SS, lines(lambda rows: rows[:1]), vpo(), "0 pictures of others"),
    "a mask twice": (SS, lines(lambda rows: [*rows, rows[1]]), vpo(), "every mask once"),
    "a line too short": (SS, lines(lambda rows: [*rows, "1,2"]), vpo(), "7 values"),
    "table missing": (SS, delete, vpo(), "vpo_ss_data_stereo.csv in it"),
    "table not UTF-8": (SS, lambda p: p.write_bytes(p.read_bytes() + b"\xff"), vpo(), "UTF-8 text; 0xff"),
    "table with NUL bytes": (SS, lambda p: p.write_bytes(p.read_bytes() + b"\0\0"), vpo(), "line 8; 7 values"),
    "table with semicolons": (SS, text(",", ";"), vpo(), "columns img_Id"),
    "sounds missing": (SOUNDS, delete, vpo("vpo_ms"), "data.sounds"),
    "several instances of another name": (MSMI, text(",multi_instance", ",other"), vpo("vpo_msmi"), "multi_instance"),
}
CLIPS = {
    "mask of a class that is none": ("mask", pixel(7), "value 7"),
    "mask of another size": ("mask", shorter, "as its picture"),
    "mask in colours": ("mask", image("RGB"), "mode"),
    "mask of 16 bits": ("mask", image("I;16"), "mode"),
    "mask missing": ("mask", delete, "no such file"),
    "mask is a folder": ("mask", folder, "a folder"),
    "picture missing": ("picture", delete, "no such file"),
    "picture cut short": ("picture", cut(0.5), "image"),
    "picture is a GIF": ("picture", image("P", format="GIF"), "image"),
    "picture is text": ("picture", put("hello"), "5 bytes that do not decode"),
    "sound empty": ("sound", put(b""), "0 bytes that do not decode"),
    "sound cut in its header": ("sound", put(b"RIFF"), "4 bytes that do not decode"),
    "sound without samples": ("sound", wave(np.zeros(0, np.float32)), "zero samples"),
    "sound with NaN": ("sound", wave(NAN), "finite samples; NaN"),
    "sound missing": ("sound", delete, "no such file"),
}
OPTIONS = {
    "unknown setting": ({"setting": "vpo_sss"}, "data.setting; Did you mean 'vpo_ss'?"),
    "unknown split": ({"split": "valid"}, "data.split; 'valid'"),
    "unknown fit": ({"fit": "stretch"}, "data.fit; 'stretch'"),
    "negative pad": ({"pad": -1}, "data.pad; -1"),
    "one pad of two": ({"pad": (8,)}, "data.pad; (8,)"),
    "pad of pictures of one size": ({"pad": 8, "fit": "squash"}, "data.pad"),
    "image size of zero": ({"image_size": 0}, "data.image_size; 0"),
    "no seconds": ({"seconds": 0}, "data.seconds; 0"),
    "unknown crop": ({"crop": "random"}, "data.crop"),
    "unknown front end": ({"front_end": "wave"}, "data.front_end; 'wave'"),
    "sounds nowhere": ({"sounds": "/nowhere"}, "data.sounds; /nowhere"),
    "root not given": ({"root": ""}, "data.root; nothing"),
    "unknown option": ({"colour": 1}, "data.colour"),
}
PLUS_TABLE = f"{PLUS}/single_plus.csv"
PLUS_FILES = {
    "name climbs out": (PLUS_TABLE, text("0,train-clip_0,", "0,train-clip_9/x,", 1), plus(), "plain name"),
    "split of another name": (PLUS_TABLE, text('background",train', 'background",valid', 1), plus(),
                              "train, val or test"),
    "class misspelt": (PLUS_TABLE, text("dog_barking", "dog_barkin", 1), plus(), "Did you mean 'dog_barking'"),
    "two classes": (PLUS_TABLE, text("dog_barking,background", "dog_barking,cat_meowing", 1), plus(), "one class"),
    "no class": (PLUS_TABLE, text("dog_barking,background", "background", 1), plus(), "one class"),
    "frame twice": (PLUS_TABLE, text("train-clip_1", "train-clip_0", 1), plus(), "every frame once"),
    "column misspelt": (PLUS_TABLE, text("category", "class", 1), plus(), "columns name, category"),
    "table empty": (PLUS_TABLE, put(""), plus(), "an empty file"),
    "two tables": (f"{PLUS}/more.csv", put("x"), plus(), "one .csv; more.csv, single_plus.csv"),
    "frames missing": (f"{PLUS}/frames", delete, plus(), "frames/ in it"),
    "others' sounds missing": ("vggsound_bench", delete, plus("avs_m"), "data.sounds"),
    "label of a class that is none": (f"{PLUS}/labels/{FIRST}.png", pixel(24), first(plus()), "value 24"),
    "frame missing": (f"{PLUS}/frames/{FIRST}.png", delete, first(plus()), "no such file"),
    "frame cut short": (f"{PLUS}/frames/{FIRST}.png", cut(0.4), first(plus()), "image"),
    "sound missing": (f"{PLUS}/audios/{FIRST}.wav", delete, first(plus()), "no such file"),
    "sound is text": (f"{PLUS}/audios/{FIRST}.wav", put("no sound"), first(plus()), "8 bytes that do not decode"),
}  # fmt: skip

ROWS = [
    *(Row(f"VPO's table: {name}", f"line 2; {told}", vpo(), at(SS, cell(column, value)), "vpo")
      for name, (column, value, told) in TABLES.items()),
    *(Row(f"VPO: {name}", told, attempt, at(file, how), "vpo") for name, (file, how, attempt, told) in FILES.items()),
    *(Row(f"VPO: {name}", told, first(vpo("vpo_ms")), of_first(kind, how), "vpo")
      for name, (kind, how, told) in CLIPS.items()),
    *(Row(f"VPO's options: {name}", told, vpo(**options), world="vpo") for name, (options, told) in OPTIONS.items()),
    *(Row(f"Single+: {name}", told, attempt, at(file, how), "plus")
      for name, (file, how, attempt, told) in PLUS_FILES.items()),
    Row("Single+'s options: unknown setting", "data.setting; 'single'", plus("single"), world="plus"),
    Row("Single+'s options: unknown split", "data.split; 'valid'", plus(split="valid"), world="plus"),
    Row("Single+'s options: a table that is not there", "no.csv", plus(table="no.csv"), world="plus"),
]  # fmt: skip
