"""VPO and AVSBench-Single+ as sources: what a tree of files becomes, what is wrong with a bad one, crops and flips."""

import json
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import vpo_tree
from PIL import Image

import avs_jax
from avs_jax import check
from avs_jax.data import audio, augment
from avs_jax.data.clip import validate
from avs_jax.data.pairing import class_table
from avs_jax.data.pipeline import eval_batches, train_batches
from avs_jax.data.prepare import vpo_classes
from avs_jax.data.prepare.vpo_build import Options, build
from avs_jax.data.sources.subset import Subset
from avs_jax.errors import InputError

SECONDS = 0.5
ROWS = {
    "ss": "VPO/VPO-SS/vpo_ss_data_stereo.csv",
    "ms": "VPO/VPO-MS/vpo_ms_data_stereo.csv",
    "msmi": "VPO/VPO-MSMI/vpo_msmi_data_stereo.csv",
}
SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """All three settings of VPO, built from made pictures."""
    base = tmp_path_factory.mktemp("vpo")
    coco, sounds = vpo_tree.write_coco(base / "coco", 3, images=12), vpo_tree.write_vggsound(base / "sounds")
    for setting, counts in (("ss", {}), ("ms", {"train": 5, "test": 3}), ("msmi", {})):
        build(Options(coco, sounds, base / "data", setting, counts=counts, silence=0.0))
    return base / "data"


@pytest.fixture
def copy(root, tmp_path):
    return shutil.copytree(root, tmp_path / "copy")


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    base = tmp_path_factory.mktemp("single")
    return vpo_tree.write_single_plus(base / "avsbench_data_single_plus", base / "vggsound_bench/VGGSound/audios")


def vpo(root, setting="vpo_ss", **more):
    return avs_jax.create_source("vpo", root=str(root), setting=setting, **({"seconds": SECONDS} | more))


def table(root, setting):
    return (root / ROWS[setting]).read_text().splitlines()


# ------------------------------------------------------------------------------------------------ records


@pytest.mark.parametrize("setting", ["vpo_ss", "vpo_ms", "vpo_msmi"])
@pytest.mark.parametrize("split", ["train", "test"])
def test_every_clip_is_a_valid_record(setting, split, root):
    source = vpo(root, setting, split=split)
    assert len(source) > 2 and len(set(source.ids)) == len(source) and source.num_frames == 1
    assert source.class_names == ("background", *(entry.name for entry in vpo_classes.classes()))
    for i in range(len(source)):
        clip = validate(source[i], num_classes=22)
        assert (
            clip["frames"].shape[0] == 1 and clip["audio"].shape == (1, int(16000 * SECONDS)) and clip["labelled"].all()
        )
        shown = np.unique(clip["labels"])
        np.testing.assert_array_equal(shown, np.flatnonzero(source.image_classes(i)))
        np.testing.assert_array_equal(source.sounds(i)[0], source.image_classes(i)[1:])
        assert source.problems(i) == []
        visual = source.visual(i)
        assert "audio" not in visual and np.array_equal(visual["frames"], clip["frames"])
    np.testing.assert_array_equal(class_table(source), [source.image_classes(i) for i in range(len(source))])
    again = pickle.loads(pickle.dumps(source))
    assert again.ids == source.ids and json.dumps(again.fingerprint()) == json.dumps(source.fingerprint())


def test_labels_are_the_classes_of_the_stored_ids(root):
    """Against the files themselves: a car stays a car where an airplane is in the picture too."""
    source, both = vpo(root, "vpo_ms"), 0
    ids = {entry.id: label for label, entry in enumerate(vpo_classes.classes(), 1)}
    for i, name in enumerate(source.ids):
        stored = np.asarray(Image.open(root / "VPO/VPO-MS/mask" / f"{name}.png"))
        labels = source.visual(i)["labels"][0]
        for value in np.unique(stored):
            assert (labels[stored == value] == ids.get(int(value), 0)).all()
        both += {3, 5} <= set(np.unique(stored))
    assert both


def test_pictures_are_the_files(root):
    source = vpo(root, "vpo_ss", split="test")
    row = table(root, "ss")[-1].split(",")
    path = root / "VPO/VPO-SS/data" / row[2] / f"{int(row[0]):012d}.jpg"
    np.testing.assert_array_equal(source.visual(len(source) - 1)["frames"][0], Image.open(path).convert("RGB"))
    assert source.ids[-1] == f"{int(row[0]):012d}_{int(row[1]):012d}"
    assert vpo(root / "VPO", split="test").ids == vpo(root / "VPO/VPO-SS", split="val").ids == source.ids


def test_msmi_reads_its_single_instances_from_ms(root):
    source, ms = vpo(root, "vpo_msmi"), vpo(root, "vpo_ms")
    shared = set(source.ids) & set(ms.ids)
    assert shared == set(ms.ids) and len(source) > len(ms)
    name = ms.ids[0]
    a, b = source[source.ids.index(name)], ms[0]
    assert all(np.array_equal(a[field], b[field]) for field in ("frames", "labels", "audio"))


# ------------------------------------------------------------------------------------------------ sound


def middle(path, seconds):
    """The middle of a sound, by hand; short ones from their beginning again and again."""
    wave, rate = soundfile.read(path)
    count = round(seconds * rate)
    wave = np.concatenate([wave] * -(-count // len(wave))) if len(wave) < count else wave[len(wave) // 2 - count // 2 :]
    return wave[:count]


@pytest.mark.parametrize("seconds", [0.5, 3.0])
def test_sounds_are_cut_and_added(seconds, root):
    source = vpo(root, "vpo_ms", seconds=seconds)
    rows = [line.split(",") for line in table(root, "ms")[1:]]
    most = 0
    for i, name in enumerate(source.ids):
        files = [row[4] for row in rows if int(row[0]) == int(name)]
        most = max(most, len(files))
        expected = sum(middle(root / f"vggsound_bench/VGGSound/audios/{stem}.wav", seconds) for stem in files)
        np.testing.assert_allclose(source[i]["audio"][0], expected, atol=1e-6)
        np.testing.assert_array_equal(source.audio(i), source[i]["audio"])
    assert most >= 2


def test_stereo_follows_the_objects_and_a_flip(root):
    source = vpo(root, "vpo_ms", stereo=True)
    rows = [line.split(",") for line in table(root, "ms")[1:]]
    for i, name in enumerate(source.ids):
        heard = source.audio(i)
        assert heard.shape == (1, 2, int(16000 * SECONDS))
        expected = 0
        for row in (row for row in rows if int(row[0]) == int(name)):
            wave = middle(root / f"vggsound_bench/VGGSound/audios/{row[4]}.wav", SECONDS)
            expected += np.outer([1 - float(row[6]), float(row[6])], wave)
        np.testing.assert_allclose(heard[0], expected, atol=1e-6)
        np.testing.assert_allclose(heard.sum(1)[0], vpo(root, "vpo_ms").audio(i)[0], atol=1e-6)
        flipped = augment.Augment(hflip=1.0)(source[i], np.random.default_rng(0))
        np.testing.assert_array_equal(flipped["audio"][0], heard[0, ::-1])
        np.testing.assert_array_equal(flipped["labels"], source[i]["labels"][:, :, ::-1])
        crop = augment.Augment(hflip=1.0, crop=(16, 16))(source[i], np.random.default_rng(0))
        np.testing.assert_array_equal(crop["audio"][0], heard[0, ::-1])
    mono = augment.Augment(hflip=1.0)(vpo(root, "vpo_ms")[0], np.random.default_rng(0))
    np.testing.assert_array_equal(mono["audio"], vpo(root, "vpo_ms")[0]["audio"])
    with pytest.raises(InputError, match=r"data.stereo"):
        vpo(root, stereo=True, front_end="vggish")


def test_other_front_ends_hear_the_mixture(root):
    source = vpo(root, "vpo_ms", front_end="vggish", seconds=1.0)
    heard = audio.vggish_log_mel(source.waveform(0), 16000, 1)
    np.testing.assert_array_equal(source.audio(0), heard)


def test_origin_of_a_single_sound(root):
    source = vpo(root, "vpo_ms")
    count = [source.image_classes(i)[1:].sum() for i in range(len(source))]
    for i, n in enumerate(count):
        origin = source.audio_origin(i)
        assert (origin is None) == (n > 1) == (source.sound_file(i) is None)
        if origin:
            assert origin[1].is_file() and json.dumps(origin[0])


# ------------------------------------------------------------------------------------------------ sizes


def test_padding_makes_few_shapes_and_changes_no_pixel(root):
    plain, padded, fixed = vpo(root), vpo(root, pad=32), vpo(root, pad=(64, 96))
    assert fixed.image_size == (64, 96)
    for i in range(len(plain)):
        a, b, c = plain[i], padded[i], fixed[i]
        height, width = a["labels"].shape[1:]
        assert b["labels"].shape[1:] == (-(-height // 32) * 32, -(-width // 32) * 32) and c["labels"].shape == (
            1,
            64,
            96,
        )
        for clip in (b, c):
            np.testing.assert_array_equal(clip["frames"][:, :height, :width], a["frames"])
            np.testing.assert_array_equal(clip["labels"][:, :height, :width], a["labels"])
            assert (clip["labels"] == 255).sum() == clip["labels"].size - height * width
            assert (clip["frames"][0, height:] == augment.FILL).all()
    batches = list(eval_batches(fixed, batch_size=2))
    assert {batch["frames"].shape for batch in batches} == {(2, 1, 64, 96, 3)}
    assert {len(batch["frames"]) for batch in eval_batches(plain, batch_size=1)} == {1}
    with pytest.raises(InputError, match=r"at most data.pad = 16 x 16"):
        vpo(root, pad=(16, 16))[0]


def test_scaled_pictures(root):
    for fit in ("squash", "crop"):
        clip = validate(vpo(root, image_size=(24, 40), fit=fit)[0], num_classes=22)
        assert clip["labels"].shape == (1, 24, 40)


def test_crops_for_training_depend_on_seed_and_step_alone(root):
    source = vpo(root, "vpo_ms", stereo=True)
    options = {"hflip": 0.5, "color": 0.5, "hue": 0.25, "crop": 48, "scales": SCALES}
    runs = [train_batches(source, seed=1, batch_size=2, augment=options, threads=n) for n in (0, 2)]
    later = train_batches(source, seed=1, batch_size=2, augment=options, start_step=2)
    other = train_batches(source, seed=2, batch_size=2, augment=options)
    batches = [[next(run) for _ in range(4)] for run in runs]
    for a, b in zip(*batches, strict=True):
        assert a["frames"].shape == (2, 1, 48, 48, 3) and a["labels"].shape == (2, 1, 48, 48)
        assert all(np.array_equal(a[field], b[field]) for field in a)
    assert np.array_equal(next(later)["frames"], batches[0][2]["frames"])
    assert not np.array_equal(next(other)["frames"], batches[0][0]["frames"])
    assert any((batch["labels"] == 255).any() for batch in batches[0])
    for run in (*runs, later, other):
        run.close()


# ------------------------------------------------------------------------------------------------ crops, by hand


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("size", [(33, 70), (50, 40)])
def test_a_crop_is_a_part_of_the_whole_image_resized(scale, size):
    rng = np.random.default_rng(3)
    smooth = Image.fromarray(rng.integers(0, 255, (6, 6, 3)).astype(np.uint8)).resize(
        size[::-1], Image.Resampling.BICUBIC
    )
    frame, labels = np.asarray(smooth), rng.integers(0, 22, size).astype(np.uint8)
    for corner in ((0, 0), (0.5, 0.9), (0.999, 0.3)):
        found, marked = augment.rescaled_crop(frame[None], labels[None], scale, (40, 44), corner)
        height, width = int(size[0] * scale), int(size[1] * scale)
        whole = np.full((max(height, 40), max(width, 44), 3), augment.CROP_FILL)
        whole[:height, :width] = smooth.resize((width, height), Image.Resampling.BICUBIC)
        true = np.full(whole.shape[:2], 255)
        true[:height, :width] = Image.fromarray(labels).resize((width, height), Image.Resampling.NEAREST)
        y, x = (int(c * (n - m + 1)) for c, n, m in zip(corner, true.shape, (40, 44), strict=True))
        off = np.abs(whole[y : y + 40, x : x + 44] - found[0].astype(int))
        assert off.max() <= 2 and off.mean() < 0.25  # weights of the part are rounded anew
        np.testing.assert_array_equal(true[y : y + 40, x : x + 44], marked[0])


def test_hue_and_order():
    frame = np.array([[[[200, 40, 40], [90, 90, 90]]]], np.uint8)
    third = augment.color_jitter(frame, 1, 1, 1, 1 / 3, (3, 0, 1, 2))
    assert third[0, 0, 0].argmax() == 1 and (third[0, 0, 1] == 90).all()  # red became green, grey has no hue
    back = augment.color_jitter(frame, 1, 1, 1, -1 / 3, (3, 0, 1, 2))
    assert back[0, 0, 0].argmax() == 2
    one, other = (augment.color_jitter(frame, 2.0, 0.5, 1, 0, order) for order in ((0, 1, 2, 3), (1, 0, 2, 3)))
    assert not np.array_equal(one, other)


def test_an_old_recipe_draws_the_same_numbers():
    clip = {
        "frames": np.arange(2 * 8 * 9 * 3, dtype=np.uint8).reshape(2, 8, 9, 3),
        "labels": np.zeros((2, 8, 9), np.uint8),
    }
    transform = augment.Augment(hflip=0.5, scale=(0.7, 1.3), color=0.2)
    for seed in range(5):
        rng = np.random.default_rng(seed)
        flip, scale, corner = rng.random(), rng.uniform(0.7, 1.3), rng.random(2)
        frames = augment.jitter(clip["frames"], *(1 + 0.2 * rng.uniform(-1, 1, 3)))
        frames, labels = augment.rescale(frames, clip["labels"], scale, corner)
        out = transform(clip, np.random.default_rng(seed))
        np.testing.assert_array_equal(out["frames"], frames[:, :, ::-1] if flip < 0.5 else frames)
        np.testing.assert_array_equal(out["labels"], labels[:, :, ::-1] if flip < 0.5 else labels)


@pytest.mark.parametrize(
    "options, where",
    [
        ({"hue": 0.6}, "augment.hue"),
        ({"crop": -1}, "augment.crop"),
        ({"crop": (8, 0)}, "augment.crop"),
        ({"crop": 8.5}, "augment.crop"),
        ({"scales": (1.0,)}, "augment.scales"),
        ({"scales": (0.0,), "crop": 8}, "augment.scales"),
        ({"scales": (1.0,), "crop": 8, "scale": (0.5, 1.0)}, "augment.scales"),
    ],
    ids=str,
)
def test_bad_crops(options, where):
    with pytest.raises(InputError) as error:
        augment.make(options)
    assert error.value.where == where


# ------------------------------------------------------------------------------------------------ classes


def test_clips_of_a_class(root):
    source = vpo(root, "vpo_ms")
    for label in range(1, 22):
        found = source.clips_of_class(label)
        assert all(np.flatnonzero(source.image_classes(i)).tolist() == [0, label] for i in found)
    single = [i for i in range(len(source)) if source.image_classes(i).sum() == 2]
    assert sorted(np.concatenate([source.clips_of_class(label) for label in range(1, 22)])) == single


def test_folded_persons(root):
    plain, folded = vpo(root), vpo(root, fold_person=True)
    assert len(folded.class_names) == 20 and "person" in folded.class_names and folded.ids == plain.ids
    for i in range(len(plain)):
        (name,) = (plain.class_names[k] for k in np.flatnonzero(plain.image_classes(i)[1:]) + 1)
        expected = "person" if name in ("male", "female", "baby") else name
        shown = np.unique(folded.visual(i)["labels"]).tolist()
        assert shown == [0, folded.class_names.index(expected)]


# ------------------------------------------------------------------------------------------------ bad data


def test_all_problems_of_a_clip_are_told(copy):
    source = vpo(copy, "vpo_ms")
    name = source.ids[0]
    mask = copy / "VPO/VPO-MS/mask" / f"{name}.png"
    values = np.asarray(Image.open(mask)).copy()
    values[0, 0] = 7  # a train, which is none of the classes
    Image.fromarray(values).save(mask)
    stem = table(copy, "ms")[1].split(",")[4]
    (copy / f"vggsound_bench/VGGSound/audios/{stem}.wav").write_bytes(b"RIFF")
    found = [str(problem) for problem in source.problems(0)]
    assert len(found) == 2 and "value 7" in found[0] and f"{stem}.wav" in found[1]
    with pytest.raises(InputError, match="value 7"):
        source[0]
    Image.fromarray(values[:-1]).save(mask)
    assert "as its picture" in str(source.problems(0)[0])
    (copy / "VPO/VPO-MS/data" / f"{name}.jpg").unlink()
    assert all("no such file" in str(p) or "RIFF" in str(p) or "decode" in str(p) for p in source.problems(0))
    assert isinstance(check.skip_bad(source), Subset)


def test_a_picture_in_both_splits_is_told(copy):
    first = table(copy, "ms")[1]
    with (copy / ROWS["ms"]).open("a") as file:
        file.write(first.replace(",train,", ",test,") + "\n")
    source = vpo(copy, "vpo_ms")
    assert "every clip in one split" in str(source.problems(0)[0])


def test_masks_with_ignored_pixels_and_palettes(copy):
    source = vpo(copy, "vpo_ms")
    mask = copy / "VPO/VPO-MS/mask" / f"{source.ids[0]}.png"
    values = np.asarray(Image.open(mask)).copy()
    values[:2] = 255
    Image.fromarray(values).save(mask)
    assert (source.visual(0)["labels"][0, :2] == 255).all()
    before = source.visual(0)["labels"]
    picture = Image.fromarray(values, "P")
    picture.putpalette(list(range(256)) * 3)
    picture.save(mask)
    np.testing.assert_array_equal(source.visual(0)["labels"], before)
    Image.fromarray(values).convert("RGB").save(mask)
    with pytest.raises(InputError, match="mode"):
        source.visual(0)


# ------------------------------------------------------------------------------------------------ Single+


def plus(root, setting="single_plus", **more):
    return avs_jax.create_source("single_plus", root=str(root), setting=setting, **more)


@pytest.mark.parametrize("setting, classes", [("single_plus", 24), ("salient", 2), ("avs_m", 2)])
@pytest.mark.parametrize("split, count", [("train", 4), ("val", 2), ("test", 3)])
def test_single_plus_records(setting, classes, split, count, single):
    source = plus(single.parent, setting, split=split)
    assert len(source) == count and len(source.class_names) == classes
    for i in range(count):
        clip = validate(source[i], num_classes=classes)
        assert clip["audio"].shape == (1, 16000) and source.problems(i) == []
        label = (4, 7, 23)[i % 3] if classes == 24 else 1
        assert np.unique(clip["labels"]).tolist() == [0, label]
        np.testing.assert_array_equal(np.flatnonzero(source.image_classes(i)), [0, label])
        assert i in source.clips_of_class(label)
        size = (30 + 4 * i, 50 - 2 * i) if classes == 24 else (224, 224)
        assert clip["labels"].shape == (1, *size)
        own = single / "audios" / f"{split}-clip_{i}.wav"
        other = single.parent / f"vggsound_bench/VGGSound/audios/other{split}{i}.wav"
        expected = other if (setting, split) == ("avs_m", "train") else own
        assert source.sound_file(i) == expected == source.audio_origin(i)[1]
        np.testing.assert_allclose(clip["audio"][0], soundfile.read(expected)[0], atol=1e-6)
    sounding = [np.flatnonzero(row).tolist() for row in class_table(source)]
    assert sounding == [[0, (4, 7, 23)[i % 3]] for i in range(count)], "pairs are made by category, whatever the labels"
    assert pickle.loads(pickle.dumps(source)).fingerprint() == source.fingerprint()
    assert source.fingerprint() != plus(single, "single_plus", split=split, seconds=0.5).fingerprint()


def test_single_plus_with_vggish_and_crops(single):
    source = plus(single, front_end="vggish")
    np.testing.assert_array_equal(source.audio(0), audio.vggish_log_mel(source.waveform(0), 16000, 1))
    options = {"crop": 32, "scales": (0.5, 0.75, 1.0), "hflip": 0.5}
    batches = train_batches(plus(single), seed=0, batch_size=4, augment=options)
    assert next(batches)["frames"].shape == (4, 1, 32, 32, 3)
    batches.close()


# ------------------------------------------------------------------------------------------------ real photographs


def shared() -> Path:
    root = os.environ.get("AVS_SHARED")
    return (Path(root) if root else Path(__file__).resolve().parents[2] / "shared") / "data"


@pytest.mark.skipif(not (shared() / "coco_mini").is_dir(), reason="no real photographs in $AVS_SHARED/data/coco_mini")
def test_real_photographs_come_through_whole(tmp_path):
    build(
        Options(
            shared() / "coco_mini", shared() / "audio", tmp_path, "ms", fold_person=True, counts={"train": 8, "test": 4}
        )
    )
    source = vpo(tmp_path, "vpo_ms", fold_person=True, seconds=3.0, stereo=True)
    assert check.check(source) == [] and len(source) == 8
    for i in range(len(source)):
        clip = validate(source[i], num_classes=20)
        assert min(clip["labels"].shape[1:]) >= 300 and 0 < np.abs(clip["audio"]).max() < 4
        np.testing.assert_array_equal(np.unique(clip["labels"]), np.flatnonzero(source.image_classes(i)))
    options = {"hflip": 0.5, "color": 0.5, "hue": 0.25, "crop": 512, "scales": SCALES}
    batches = train_batches(source, seed=0, batch_size=2, augment=options)
    batch = next(batches)
    batches.close()
    assert batch["frames"].shape == (2, 1, 512, 512, 3) and batch["audio"].shape == (2, 1, 2, 48000)
