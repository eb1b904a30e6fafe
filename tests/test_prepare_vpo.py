"""Building VPO: its rules as properties of many made inputs, its bytes, its resumption, and what bad inputs get."""

import csv
import dataclasses
import hashlib
import json
import os
import re
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile
import vpo_tree
from PIL import Image
from pycocotools import mask as coco_mask

from avs_jax import prepare
from avs_jax.data.prepare import vpo, vpo_build, vpo_masks, vpo_people, vpo_report, vpo_write
from avs_jax.data.prepare.vpo_build import Options, build, folder_of, table_of
from avs_jax.data.prepare.vpo_classes import BABY, FEMALE, MALE, classes, label_table
from avs_jax.errors import InputError

SEEDS = range(4)


@pytest.fixture(scope="module")
def sounds(tmp_path_factory):
    return vpo_tree.write_vggsound(tmp_path_factory.mktemp("vggsound"))


@pytest.fixture(scope="module")
def cocos(tmp_path_factory):
    root = tmp_path_factory.mktemp("coco")
    return [vpo_tree.write_coco(root / str(seed), seed) for seed in SEEDS]


def options(coco, sounds, output, setting="ss", **more) -> Options:
    return Options(coco, sounds, output, setting, **more)


def rows_of(output, setting):
    with table_of(output, setting).open(newline="") as file:
        return list(csv.DictReader(file))


def annotations(coco):
    """Annotation id -> annotation, image id -> (height, width), of both splits."""
    found, sizes = {}, {}
    for split in ("train", "val"):
        data = json.loads((coco / "annotations" / f"instances_{split}2017.json").read_text())
        found |= {row["id"]: row for row in data["annotations"]}
        sizes |= {row["id"]: (row["height"], row["width"]) for row in data["images"]}
    return found, sizes


def mask_of(folder, row, setting):
    image, number = int(row["img_Id"]), int(row["ann_Ids"])
    name = f"{row['cateName']}/{image:012d}_{number:012d}.png" if setting == "ss" else f"{image:012d}.png"
    return np.asarray(Image.open(folder / "mask" / name))


def decoded(row, size):
    shape = row["segmentation"]
    return coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(shape, *size)) if isinstance(shape, list)
                            else coco_mask.frPyObjects(shape, *size) if isinstance(shape["counts"], list)
                            else {**shape, "counts": shape["counts"].encode()}).astype(bool)  # fmt: skip


# ------------------------------------------------------------------------------------------------ rules


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("setting", ["ss", "ms"])
def test_rules_of_single_instances(seed, setting, cocos, sounds, tmp_path):
    report = build(options(cocos[seed], sounds, tmp_path, setting, seed=seed))
    rows, (found, sizes) = rows_of(tmp_path, setting), annotations(cocos[seed])
    assert tuple(rows[0]) == vpo_build.COLUMNS and len(rows) == report["masks"] > 5
    folder, labels = folder_of(tmp_path, setting), {entry.id: entry for entry in classes()}
    per_image = Counter(row["img_Id"] for row in rows)
    if setting == "ss":
        assert set(per_image.values()) == {1}  # every picture once
    for image in per_image:
        own = [row for row in rows if row["img_Id"] == image]
        assert len({row["split"] for row in own}) == 1 and len(own) <= 5
        assert len({row["cateName"] for row in own}) == len(own)  # one instance of a class
        stored, size = mask_of(folder, own[0], setting), sizes[int(image)]
        assert set(np.unique(stored)) == {0, *(int(row["cateId"]) for row in own)} and stored.shape == size
        expected = np.zeros(size, bool)
        for row in own:
            true = found[int(row["ann_Ids"])]
            category = true["category_id"]
            entry = labels[int(row["cateId"])]
            assert entry.name == row["cateName"] and entry.id == (category if category != 1 else entry.id)
            assert true["image_id"] == int(image) and not true["iscrowd"]
            same = [a for a in found.values() if (a["image_id"], a["category_id"]) == (int(image), category)]
            assert len(same) == 1
            mask = decoded(true, size)
            expected |= mask
            assert abs(float(row["audio_pos"]) - (np.nonzero(mask)[1] + 0.5).mean() / size[1]) < 1e-6
            assert row["vgg_file"].startswith(f"{row['cateName'][:4]}-{row['split']}")  # of its class and split
            assert (tmp_path / vpo_build.SOUNDS / f"{row['vgg_file']}.wav").is_file()
        assert ((stored > 0) == expected).all()  # what does not sound is background
    split_of = {row["img_Id"]: row["split"] for row in rows}
    assert all((int(image) > 1000) == (split == "test") for image, split in split_of.items())
    assert not any(row["cateName"] == "bird" for row in rows)
    assert report["rejected"]["no sound of the class"]["by_class"].keys() == {"bird"}


@pytest.mark.parametrize("seed", SEEDS)
def test_several_classes_come_first_and_classes_come_out_even(seed, cocos, sounds, tmp_path):
    every = build(options(cocos[seed], sounds, tmp_path / "all", "ms"))
    some = build(options(cocos[seed], sounds, tmp_path / "some", "ms", counts={"train": 4, "test": 2}))
    assert [some["splits"][split]["images"] for split in ("train", "test")] == [4, 2]
    present = {split: every["splits"][split]["images_with_several_classes_present"] for split in ("train", "test")}
    for split, count in (("train", 4), ("test", 2)):
        assert some["splits"][split]["images_with_several_classes_present"] >= min(count, present[split]) - 1
    assert {row["img_Id"] for row in rows_of(tmp_path / "some", "ms")} <= {
        row["img_Id"] for row in rows_of(tmp_path / "all", "ms")
    }
    even = build(options(cocos[seed], sounds, tmp_path / "even", "ss", counts={"train": 6}))["splits"]["train"]
    taken = even["masks_by_class"]
    for name, count in taken.items():  # who has fewer than another could not have had more
        available = even["usable_images_by_class"][name] if even["usable_sounds_by_class"][name] else 0
        assert count >= min(max(taken.values()) - 1, available) or available > count
    assert max(taken.values()) <= 3


@pytest.mark.parametrize("setting", ["ss", "ms"])
def test_quotas(setting, cocos, sounds, tmp_path):
    quota = {"train": {"dog": 1, "car": 0}, "test": {"dog": 1}}
    for seed in SEEDS:
        report = build(options(cocos[seed], sounds, tmp_path / str(seed), setting, quota=quota))
        for split, limits in quota.items():
            counts = report["splits"][split]["masks_by_class"]
            assert all(counts[name] <= most for name, most in limits.items())
        assert report["splits"]["train"]["masks_by_class"]["airplane"] > 0


@pytest.mark.parametrize("silence", [0.0, 0.5, 1.0])
def test_objects_beyond_two_lose_their_sound_and_become_background(silence, sounds, tmp_path):
    coco = crowded(tmp_path / "coco", count=8)
    output = tmp_path / "out"
    report = build(options(coco, sounds, output, "ms", silence=silence))
    rows, (found, sizes) = rows_of(output, "ms"), annotations(coco)
    per_image = Counter(row["img_Id"] for row in rows)
    objects = Counter(row["image_id"] for row in found.values())
    for image, heard in per_image.items():
        count = objects[int(image)]
        if count <= 2:
            assert heard == count
        else:
            assert heard == {0.0: min(count, 5), 1.0: 1}.get(silence, heard) and 1 <= heard <= 5
        own = {int(row["ann_Ids"]) for row in rows if row["img_Id"] == image}
        stored = mask_of(folder_of(output, "ms"), {"img_Id": image, "ann_Ids": 0}, "ms")
        for row in found.values():
            if row["image_id"] == int(image):
                assert (stored[decoded(row, sizes[int(image)])] > 0).all() == (row["id"] in own)
    lost = sum(entry["objects_that_lost_their_sound"] for entry in report["splits"].values())
    assert lost == sum(objects[int(image)] - heard for image, heard in per_image.items())
    assert silence or max(per_image.values()) == 5


def crowded(root: Path, count: int) -> Path:
    """COCO pictures with 1 to 6 objects of as many classes, side by side."""
    order = [5, 3, 18, 17, 1, 16]
    names = {16: 22}  # an elephant in place of the bird, which has no sounds
    for k, split in enumerate(("train", "val")):
        data, captions, pictures = {"images": [], "annotations": [], "categories": []}, {"annotations": []}, {}
        data["categories"] = [{"id": 3, "name": "car"}]
        for image in range(1 + 100 * k, 1 + 100 * k + count):
            data["images"].append({"id": image, "file_name": f"{image}.jpg", "height": 20, "width": 72})
            pictures[f"{image}.jpg"] = np.full((20, 72, 3), 90, np.uint8)
            captions["annotations"] += [{"image_id": image, "caption": "A lady."} for _ in range(3)]
            for place in range(1 + image % 6):
                box = (12 * place, 2, 12 * place + 10, 15)
                category = names.get(order[place], order[place])
                row = vpo_tree.annotation(10 * image + place, image, category, box, (20, 72), "runs")
                data["annotations"].append(row)
        vpo_tree.write_split(root, split, data, captions, pictures)
    return root


@pytest.mark.parametrize("seed", SEEDS)
def test_sounds_repeat_only_when_they_must(seed, cocos, sounds, tmp_path):
    build(options(cocos[seed], sounds, tmp_path, "ms", seed=seed))
    rows = rows_of(tmp_path, "ms")
    for split in ("train", "test"):
        for name in {row["cateName"] for row in rows}:
            used = Counter(r["vgg_file"] for r in rows if (r["split"], r["cateName"]) == (split, name))
            assert not used or max(used.values()) - (min(used.values()) if len(used) == 3 else 0) <= 1


@pytest.mark.parametrize("seed", SEEDS)
def test_msmi_adds_pictures_with_several_instances(seed, cocos, sounds, tmp_path):
    build(options(cocos[seed], sounds, tmp_path, "ms", counts={"train": 4, "test": 2}))
    before = vpo_tree.contents(folder_of(tmp_path, "ms"))
    build(options(cocos[seed], sounds, tmp_path, "msmi", silence=0.0))
    assert vpo_tree.contents(folder_of(tmp_path, "ms")) == before
    rows = rows_of(tmp_path, "msmi")
    old = [{k: v for k, v in row.items() if k != "multi_instance"} for row in rows if row["multi_instance"] == "0"]
    assert old == rows_of(tmp_path, "ms")
    new = [row for row in rows if row["multi_instance"] == "1"]
    assert new and not {row["img_Id"] for row in new} & {row["img_Id"] for row in old}
    for image in {row["img_Id"] for row in new}:
        own = [row for row in new if row["img_Id"] == image]
        assert len(own) <= 5 and max(Counter(row["cateName"] for row in own).values()) > 1
        assert len({row["vgg_file"] for row in own}) == len(own)
        assert (folder_of(tmp_path, "msmi") / "mask" / f"{int(image):012d}.png").is_file()


def test_msmi_needs_ms(cocos, sounds, tmp_path):
    with pytest.raises(InputError, match=r"VPO-MS, which.*--setting=ms first"):
        build(options(cocos[0], sounds, tmp_path, "msmi"))


def test_folded_persons(cocos, sounds, tmp_path):
    report = build(options(cocos[0], sounds, tmp_path, "ms", fold_person=True))
    people = [row for row in rows_of(tmp_path, "ms") if row["cateName"] == "person"]
    assert people and {row["cateId"] for row in people} == {"1"}
    assert {row["vgg_file"][:4] for row in people} <= {"male", "fema", "baby"}
    assert len(report["splits"]["train"]["masks_by_class"]) == 19


# ------------------------------------------------------------------------------------------------ bytes


def test_same_bytes_for_any_workers_order_and_place(sounds, tmp_path):
    first = vpo_tree.write_coco(tmp_path / "a", 7, images=8)
    second = vpo_tree.write_coco(tmp_path / "b", 7, images=8, shuffle=3)
    (second / "images").mkdir()
    for folder in ("train2017", "val2017"):
        shutil.move(second / folder, second / "images" / folder)
    other = vpo_tree.write_vggsound(tmp_path / "s", folder="deep/down")
    results = []
    for name, coco, clips, workers in (("1", first, sounds, 1), ("3", second, other, 3)):
        build(options(coco, clips, tmp_path / name, "ms", seed=5, workers=workers))
        results.append(vpo_tree.contents(tmp_path / name))
    table, manifest = "VPO/VPO-MS/vpo_ms_data_stereo.csv", "VPO/VPO-MS/MANIFEST.json"
    identities = [json.loads(result.pop(manifest)) for result in results]  # another order in a file is another file
    assert results[0] == results[1] and table in results[0]
    assert identities[0]["outputs"] == identities[1]["outputs"]
    for name, entry in identities[0]["outputs"].items():
        content = results[0].pop(name)
        assert entry == {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    assert not results[0]  # the manifest names every file


def test_the_manifest_is_the_same_bytes_and_seeds_differ(cocos, sounds, tmp_path):
    for name, seed, link in (("a", 1, "copy"), ("b", 1, "hard"), ("c", 2, "symbolic")):
        build(options(cocos[1], sounds, tmp_path / name, "ss", seed=seed, link=link))
    a, b, c = (vpo_tree.contents(tmp_path / name) for name in "abc")
    assert a == b and a != c
    assert any(path.is_symlink() for path in (tmp_path / "c").rglob("*.jpg"))


@pytest.mark.parametrize("after", [1, 7])
def test_an_interrupted_run_goes_on(after, cocos, sounds, tmp_path, monkeypatch):
    build(options(cocos[2], sounds, tmp_path / "whole", "ms"))
    work, calls = vpo_write.write, []

    def interrupted(job):
        if len(calls) == after:
            (job.target if hasattr(job, "target") else job.mask).parent.mkdir(parents=True, exist_ok=True)
            (folder_of(tmp_path / "out", "ms") / "mask" / ".half.png.1.part").write_bytes(b"x")
            raise KeyboardInterrupt
        calls.append(job)
        return work(job)

    monkeypatch.setattr(vpo_write, "write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        build(options(cocos[2], sounds, tmp_path / "out", "ms"))
    assert not (folder_of(tmp_path / "out", "ms") / "MANIFEST.json").exists()
    (tmp_path / "out" / "VPO" / "VPO-MS" / ".progress.jsonl").open("a").write('{"key": "cut sh')
    again = []
    monkeypatch.setattr(vpo_write, "write", lambda job: again.append(job) or work(job))
    build(options(cocos[2], sounds, tmp_path / "out", "ms"))
    assert vpo_tree.contents(tmp_path / "out") == vpo_tree.contents(tmp_path / "whole")
    assert again and not set(map(str, again)) & set(map(str, calls))  # what was done is not done again
    monkeypatch.setattr(vpo_write, "write", lambda job: pytest.fail("all is there"))
    build(options(cocos[2], sounds, tmp_path / "out", "ms"))


def test_a_damaged_file_is_made_again(cocos, sounds, tmp_path):
    build(options(cocos[0], sounds, tmp_path, "ss"))
    before = vpo_tree.contents(tmp_path)
    next(folder_of(tmp_path, "ss").rglob("*.png")).write_bytes(b"")
    next(folder_of(tmp_path, "ss").rglob("*.jpg")).unlink()
    build(options(cocos[0], sounds, tmp_path, "ss"))
    assert vpo_tree.contents(tmp_path) == before


def test_another_data_set_is_not_written_over(cocos, sounds, tmp_path):
    build(options(cocos[0], sounds, tmp_path, "ss"))
    before = vpo_tree.contents(tmp_path)
    with pytest.raises(InputError, match="same inputs and options"):
        build(options(cocos[0], sounds, tmp_path, "ss", seed=1))
    assert vpo_tree.contents(tmp_path) == before
    stranger = folder_of(tmp_path, "ms")
    stranger.mkdir()
    (stranger / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="other files"):
        build(options(cocos[0], sounds, tmp_path, "ms"))
    assert vpo_tree.contents(stranger) == {"thesis.txt": b"years of work"}


def test_sounds_already_there_stay(cocos, sounds, tmp_path):
    build(options(cocos[0], sounds, tmp_path, "ss"))
    used = {row["vgg_file"] for row in rows_of(tmp_path, "ss")}
    build(options(cocos[0], sounds, tmp_path, "ms"))  # the same sounds, in the same root
    assert used <= {path.stem for path in (tmp_path / vpo_build.SOUNDS).iterdir()}
    other = tmp_path / "other"
    (other / vpo_build.SOUNDS).mkdir(parents=True)
    mine = other / vpo_build.SOUNDS / f"{min(used)}.wav"
    soundfile.write(mine, np.full(16000, 0.5), 16000)
    with pytest.raises(InputError, match=f"{mine.name}.*another"):
        build(options(cocos[0], sounds, other, "ss"))


# ------------------------------------------------------------------------------------------------ bad inputs


def copied(coco, sounds, tmp_path):
    return shutil.copytree(coco, tmp_path / "coco"), shutil.copytree(sounds, tmp_path / "sounds")


def edit(coco, change, split="train", kind="instances"):
    path = coco / "annotations" / f"{kind}_{split}2017.json"
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def first(data, category=None):
    return next(row for row in data["annotations"] if category in (None, row["category_id"]))


ERRORS = [
    ("not json", lambda c, s: (c / "annotations/instances_train2017.json").write_text("{"), "COCO's instances"),
    ("not utf-8", lambda c, s: (c / "annotations/instances_val2017.json").write_bytes(b"\xff\xfe{"), "COCO's inst"),
    ("a list", lambda c, s: (c / "annotations/instances_train2017.json").write_text("[]"), "list 'images'"),
    ("no test set", lambda c, s: (c / "annotations/instances_val2017.json").unlink(), r"instances_val\*\.json"),
    ("two train sets", lambda c, s: shutil.copy(c / "annotations/instances_train2017.json",
                                                c / "annotations/instances_train2014.json"), "one instances_train"),
    ("other categories", lambda c, s: edit(c, lambda d: d["categories"][0].update(name="car")), "to be COCO's"),
    ("no categories", lambda c, s: edit(c, lambda d: d.update(categories=[])), "COCO's categories"),
    ("no pictures", lambda c, s: edit(c, lambda d: d.update(images=[{"id": "x"}])), "pictures with id"),
    ("picture twice", lambda c, s: edit(c, lambda d: d["images"].append(d["images"][0])), "every picture once"),
    ("annotation twice", lambda c, s: edit(c, lambda d: d["annotations"].append(first(d, 3))), "every annotation once"),
    ("one split in both", lambda c, s: shutil.copy(c / "annotations/instances_train2017.json",
                                                   c / "annotations/instances_val2017.json"), "training file"),
    ("instances as captions", lambda c, s: shutil.copy(c / "annotations/instances_val2017.json",
                                                       c / "annotations/captions_val2017.json"), "'caption'"),
    ("no table", lambda c, s: (s / "vggsound.csv").unlink(), "VGGSound's table"),
    ("table of others", lambda c, s: (s / "vggsound.csv").write_text("a,b\nc,d\n"), "line 1: 2 values"),
    ("empty table", lambda c, s: (s / "vggsound.csv").write_text(""), "an empty file"),
    ("table not utf-8", lambda c, s: (s / "vggsound.csv").write_bytes(b"\xff,1,x,train"), "start second"),
    ("quote not closed", lambda c, s: (s / "vggsound.csv").write_text('a,1,"x,train\n'), "start second"),
    ("no clips", lambda c, s: shutil.rmtree(s / "audio"), "none of a class of VPO's among 0 sounds"),
    ("no pictures on disk", lambda c, s: [shutil.rmtree(c / f) for f in ("train2017", "val2017")],
     "picture without a file"),
]  # fmt: skip


@pytest.mark.parametrize("name, damage, message", ERRORS, ids=[error[0] for error in ERRORS])
def test_bad_inputs_are_refused(name, damage, message, cocos, sounds, tmp_path, capsys):
    coco, clips = copied(cocos[0], sounds, tmp_path)
    damage(coco, clips)
    argv = ["vpo", f"--coco={coco}", f"--vggsound={clips}", "--setting=ss", f"--output={tmp_path / 'o'}", "--workers=0"]
    assert prepare.main(argv) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert len(lines) == 1
    assert re.search(message, lines[0]), lines[0]
    assert not (folder_of(tmp_path / "o", "ss") / "MANIFEST.json").exists()


def add(sounds, line):
    with (sounds / "vggsound.csv").open("a") as file:
        file.write(line)


def double(sounds, name):
    (sounds / "b").mkdir()
    shutil.copy(sounds / "audio" / name, sounds / "b")


def spoil(change):
    return lambda c, s: edit(c, lambda d: change(first(d, 3)))


REJECTIONS = [
    ("malformed annotation", spoil(lambda row: row.pop("segmentation"))),
    ("malformed annotation", spoil(lambda row: row.update(area="big"))),
    ("malformed annotation", spoil(lambda row: row.update(id=None))),
    ("malformed annotation", lambda c, s: edit(c, lambda d: d["annotations"].append("what"))),
    ("picture with a malformed annotation", spoil(lambda row: row.update(category_id="car"))),
    ("annotation of a picture that is not listed", spoil(lambda row: row.update(image_id=77777))),
    ("malformed entry of a picture", lambda c, s: edit(c, lambda d: d["images"][0].update(file_name="../../x.jpg"))),
    ("malformed entry of a picture", lambda c, s: edit(c, lambda d: d["images"][0].update(height=-1))),
    ("malformed line of the table of sounds", lambda c, s: add(s, "x,ten,dog barking,train\n")),
    ("malformed line of the table of sounds", lambda c, s: add(s, "x,10,dog barking,valid\n")),
    ("malformed line of the table of sounds", lambda c, s: add(s, "../x,1,a,train\n")),
    ("sound in both splits", lambda c, s: add(s, "car-train0,0,car passing by,test\n")),
    ("sound under two labels", lambda c, s: add(s, "car-train0,0,dog barking,train\n")),
    ("sound without a file", lambda c, s: (s / "audio/car-train0_000000.wav").unlink()),
    ("sound that does not decode", lambda c, s: [p.write_bytes(b"RIFF") for p in (s / "audio").glob("car-train0*")]),
    ("silent sound", lambda c, s: soundfile.write(s / "audio/car-train0_000000.wav", np.zeros(16000), 16000)),
    ("sound too short", lambda c, s: soundfile.write(s / "audio/car-train0_000000.wav", np.full(100, 0.5), 16000)),
    ("further file of the same sound", lambda c, s: double(s, "car-train0_000000.wav")),
]  # fmt: skip


@pytest.mark.parametrize("reason, damage", REJECTIONS, ids=[f"{r}-{k}" for k, (r, _) in enumerate(REJECTIONS)])
def test_bad_entries_are_counted_and_left_out(reason, damage, cocos, sounds, tmp_path):
    clean = build(options(cocos[0], sounds, tmp_path / "clean", "ms"))
    coco, clips = copied(cocos[0], sounds, tmp_path)
    damage(coco, clips)
    report = build(options(coco, clips, tmp_path / "o", "ms"))
    found = report["rejected"].get(reason)
    assert found and found["count"] == clean["rejected"].get(reason, {"count": 0})["count"] + 1, report["rejected"]
    assert found["examples"] and reason in vpo_report.text(report)
    stems = {row["vgg_file"] for row in rows_of(tmp_path / "o", "ms")}
    if "sound" in reason and "further" not in reason and "table" not in reason:
        assert "car-train0_000000" not in stems


PICTURES = [
    ("picture without a file", lambda path, row: path.unlink()),
    ("picture that does not decode", lambda path, row: path.write_bytes(path.read_bytes()[:200])),
    ("picture that is no JPEG", lambda path, row: Image.open(path).convert("RGB").save(path, "PNG")),
    ("picture of another size than annotated", lambda path, row: Image.new("RGB", (9, 9)).save(path)),
    ("mask that cannot be used", lambda path, row: row.update(segmentation={"size": [9, 9], "counts": [81]})),
    ("mask that cannot be used", lambda path, row: row.update(segmentation=[[0, 0, 1e9, 0, 5, 5]])),
    ("mask that cannot be used", lambda path, row: row.update(segmentation=[[0, 0, "a", 0, 5, 5]])),
    ("mask that cannot be used", lambda path, row: row.update(segmentation=[[0.1, 0.1, 0.2, 0.1, 0.2, 0.2]])),
]


@pytest.mark.parametrize("reason, damage", PICTURES, ids=[f"{r}-{k}" for k, (r, _) in enumerate(PICTURES)])
def test_what_is_bad_when_it_is_opened_is_left_out(reason, damage, cocos, sounds, tmp_path):
    build(options(cocos[0], sounds, tmp_path / "clean", "ss"))
    row = next(row for row in rows_of(tmp_path / "clean", "ss") if row["split"] == "train")
    coco, clips = copied(cocos[0], sounds, tmp_path)
    path = coco / "train2017" / f"{int(row['img_Id']):012d}.jpg"
    edit(coco, lambda d: damage(path, next(a for a in d["annotations"] if a["id"] == int(row["ann_Ids"]))))
    report = build(options(coco, clips, tmp_path / "o", "ss"))
    assert report["rejected"][reason]["count"] == 1
    rows = rows_of(tmp_path / "o", "ss")
    assert row["ann_Ids"] not in {other["ann_Ids"] for other in rows}
    if reason.startswith("picture"):
        assert row["img_Id"] not in {other["img_Id"] for other in rows}
    listed = json.loads((folder_of(tmp_path / "o", "ss") / "MANIFEST.json").read_text())["outputs"]
    assert set(vpo_tree.contents(tmp_path / "o")) == {*listed, "VPO/VPO-SS/MANIFEST.json"}  # nothing of it is left


@pytest.mark.parametrize(
    "argv, message",
    [
        (["--setting=sss"], "--setting"),
        (["--setting=ss", "--counts=many"], "--counts"),
        (["--setting=ss", "--counts=valid=3"], "train=N,test=N"),
        (["--setting=ss", "--quota=nowhere.json"], "no such file"),
        (["--setting=ss", "--silence=2"], "--silence"),
        (["--setting=ss", "--seed=-1"], "--seed"),
        (["--setting=ss", "--colour=1"], "--colour"),
    ],
    ids=str,
)
def test_bad_command_lines(argv, message, tmp_path, capsys):
    assert prepare.main(["vpo", f"--coco={tmp_path}", f"--vggsound={tmp_path}", *argv]) == 2
    assert message in capsys.readouterr().err


def test_options_of_counts_and_quotas(tmp_path):
    base = ["--coco=c", "--vggsound=v"]
    assert vpo.parse([*base, "--setting=ss"]).counts == {"train": 11312, "test": 890}
    assert vpo.parse([*base, "--setting=ms"]).counts == {"train": 8380, "test": 1437}
    assert vpo.parse([*base, "--setting=ms", "--counts=all"]).counts == {"train": None, "test": None}
    assert vpo.parse([*base, "--setting=ms", "--counts=test=3"]).counts == {"test": 3}
    assert vpo.parse([*base, "--setting=ms", "--quota=test=3"]).quota["test"]["zebra"] == 3
    path = tmp_path / "q.json"
    path.write_text('{"train": {"dog": 2}}')
    assert vpo.parse([*base, "--setting=ms", f"--quota={path}"]).quota == {"train": {"dog": 2}}
    for text in ('{"valid": {}}', '{"train": {"dgo": 2}}', '{"train": {"dog": -1}}', "[]"):
        path.write_text(text)
        with pytest.raises(InputError):
            vpo.parse([*base, "--setting=ms", f"--quota={path}"])


# ------------------------------------------------------------------------------------------------ parts


@pytest.mark.parametrize(
    "captions, expected",
    [
        (["A man on a bench.", "A guy sits.", "Someone."], MALE),
        (["A woman.", "A girl in red.", "The lady."], FEMALE),
        (["A baby boy sleeps.", "An infant in bed."], BABY),
        (["A man with a dog.", "A woman with a dog."], None),
        (["A man.", "Something.", "Something.", "Something.", "Something."], None),
        (["Two men.", "A man."], None),
        (["A snowman and a cowboy hat.", "A woman.", "A woman."], FEMALE),
        (["A man beside a baby elephant.", "A man."], MALE),
        (["A zebra.", "A zebra."], None),
        ([], None),
    ],
    ids=str,
)
def test_persons_by_captions(captions, expected):
    part, reason = vpo_people.part_of_person(captions)
    assert part == expected and bool(reason) == (expected is None)
    assert vpo_people.part_of_person(captions[::-1])[0] == expected


@pytest.mark.parametrize("seed", SEEDS)
def test_run_lengths_against_pycocotools(seed):
    rng = np.random.default_rng(seed)
    for _ in range(20):
        size = tuple(int(n) for n in rng.integers(1, 40, 2))
        mask = rng.random(size) < rng.choice([0.02, 0.5, 0.98])
        packed = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"].decode()
        np.testing.assert_array_equal(vpo_masks.decode({"size": list(size), "counts": packed}, size), mask)
        kind = vpo_tree.annotation(1, 1, 3, (0, 0, 1, 1), size, "runs")["segmentation"]
        assert vpo_masks.decode(kind, size).sum() == 1


@pytest.mark.parametrize(
    "segmentation",
    [None, [], {}, "x", [[1, 2, 3]], [[1, 2, 3, 4, 5]], [[0, 0, 1, 1, float("nan"), 1]], {"size": [4, 4]},
     {"size": [4, 4], "counts": ""},
     {"size": [4, 4], "counts": [20]}, {"size": [4, 4], "counts": [15]}, {"size": [4, 4], "counts": [-1, 17]},
     {"size": [4, 4], "counts": [True, 15]}, {"size": [5, 4], "counts": [20]}, {"size": [4, 4], "counts": "~~~~"},
     {"size": [4, 4], "counts": "oooooooooooooooooooo"}, {"size": [4, 4], "counts": "o"}],
    ids=str,
)  # fmt: skip
def test_bad_masks(segmentation):
    with pytest.raises(vpo_masks.BadMask):
        vpo_masks.decode(segmentation, (4, 4))


def test_classes_are_those_of_the_public_code():
    names = [entry.name for entry in classes()]
    assert len(names) == 21 and names == sorted(names) and names.index("car") == 4
    labels, known = label_table()
    values = np.array([5, 3, 94, 93, 92, 24, 255, 0], np.uint8)
    np.testing.assert_array_equal(labels[values], [1, 5, 2, 11, 14, 21, 255, 0])
    assert known.sum() == 23 and not known[1]
    folded, known = label_table(fold_person=True)
    assert folded[1] == folded[92] == folded[94] == 12 and known[1] and known.sum() == 24


# ------------------------------------------------------------------------------------------------ real photographs


def shared() -> Path:
    root = os.environ.get("AVS_SHARED")
    return (Path(root) if root else Path(__file__).resolve().parents[2] / "shared") / "data"


@pytest.mark.skipif(not (shared() / "coco_mini").is_dir(), reason="no real photographs in $AVS_SHARED/data/coco_mini")
@pytest.mark.parametrize("setting", ["ss", "ms"])
def test_real_photographs_and_sounds(setting, tmp_path):
    made = options(shared() / "coco_mini", shared() / "audio", tmp_path, setting, fold_person=True)
    report = build(made)
    assert report["images"] == 74 and report["masks"] == (74 if setting == "ss" else 81)
    assert report["rejected"]["crowd of the class"]["count"] == 11
    split = build(dataclasses.replace(made, output=tmp_path / "split", fold_person=False))
    assert split["rejected"]["person without captions"]["count"] > 40 and split["images"] > 20
    with Image.open(folder_of(tmp_path, setting) / "contact_sheet.png") as sheet:
        assert sheet.width > 800 and np.asarray(sheet).std() > 20
