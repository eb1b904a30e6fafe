"""AVSBench-semantic: what a tree of files becomes, what is wrong with a bad one, and the way through to the figures."""

import json
import pickle
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from avsbench_tree import RATE, save
from avss_tree import CLASSES, FRAMES, classes_in, colour, picture, write_avss_tree
from PIL import Image
from toy import VARIABLES, ToySource

import avs_jax
from avs_jax import check, pictures
from avs_jax.data import augment, images
from avs_jax.data.audio import read_audio, vggish_log_mel
from avs_jax.data.clip import validate
from avs_jax.data.pipeline import eval_batches, train_batches
from avs_jax.data.sources.avsbench_semantic import AVSBenchSemanticSource
from avs_jax.data.sources.subset import Subset
from avs_jax.errors import InputError
from avs_jax.methods import Method, Prediction
from avs_jax.metrics import evaluate, evaluate_rows
from avs_jax.predict import predict_media

SIZE = 16


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_avss_tree(tmp_path_factory.mktemp("data") / "AVSBench-semantic")


@pytest.fixture
def copy(root, tmp_path):
    return shutil.copytree(root, tmp_path / "copy")


# ------------------------------------------------------------------------------------------------ records


@pytest.mark.parametrize("split, parts", [("train", "v1s v1m v2"), ("val", "v1s v2"), ("test", "v1s v1m v2")])
def test_every_clip_is_a_valid_record(root, split, parts):
    source = avs_jax.create_source("avsbench", root=str(root), setting="avss", split=split, image_size=SIZE)
    assert source.parts == tuple(parts.split()) and source.num_frames == 10 and source.image_size == (SIZE, SIZE)
    assert len(source.class_names) == CLASSES and source.class_names[:2] == ("background", "thing 1")
    for i, part in enumerate(source.parts):
        clip = validate(source[i], num_classes=CLASSES)
        count = FRAMES[part]
        labelled = 1 if (split, part) == ("train", "v1s") else count
        assert clip["id"] == source.ids[i] == f"{split}_{i}"
        assert clip["frames"].shape == (10, SIZE, SIZE, 3) and clip["labels"].shape == (10, SIZE, SIZE)
        np.testing.assert_array_equal(clip["present"], np.arange(10) < count)
        np.testing.assert_array_equal(clip["labelled"], np.arange(10) < labelled)
        assert (clip["labels"][labelled:count] == 255).all()  # may not be used
        assert (clip["labels"][count:] == 0).all() and (clip["frames"][count:] == 0).all()
        assert set(np.unique(clip["labels"][:labelled])) == {0, *classes_in(clip["id"])}
        visual = source.visual(i)
        assert visual.keys() == clip.keys() - {"audio"}
        assert source.problems(i) == []


def test_sound_that_does_not_fill_a_clip_is_followed_by_zeros(root, copy):
    source = AVSBenchSemanticSource(root, split="val", image_size=SIZE)
    for i, part in enumerate(source.parts):
        wave, rate = read_audio(root / part / f"val_{i}" / "audio.wav")
        assert source.sound_file(i) == root / part / f"val_{i}" / "audio.wav" and rate == RATE
        count = FRAMES[part]
        heard = source.audio(i)
        assert heard.shape == (10, 96, 64) and heard.dtype == np.float32
        np.testing.assert_array_equal(heard[:count], vggish_log_mel(wave, rate, count))
        assert (heard[count:] == 0).all() and (heard[count - 1] != 0).all()
    long = copy / "v1s/val_0/audio.wav"  # the wav may hold the seconds that the frames do not show
    shutil.copy(copy / "v2/val_1/audio.wav", long)
    heard = AVSBenchSemanticSource(copy, split="val", image_size=SIZE).audio(0)
    assert (heard[4] != 0).all() and (heard[5:] == 0).all()
    long.unlink()
    assert AVSBenchSemanticSource(copy, split="val", image_size=SIZE).sound_file(0) is None


def test_images_come_to_size_as_in_the_public_code(root):
    """Training: the short side to the size, then the centre; otherwise squashed."""
    path = root / "v2/train_2/frames/3.jpg"
    mask = root / "v2/train_2/labels_rgb/3.png"
    for width in (SIZE, 17):  # an odd number to crop away too
        for name, read, how in ((path, images.read_fitted, "BILINEAR"), (mask, images.read_colours, "NEAREST")):
            with Image.open(name) as image:
                image = image.convert("RGB")
            assert image.size == (40, 24)
            scaled = image.resize((int(40 * width / 24), width), Image.Resampling[how])
            left = round((scaled.width - width) / 2)
            cropped = np.asarray(scaled)[:, left : left + width]
            np.testing.assert_array_equal(read(name, (width, width), "crop"), cropped)
            squashed = np.asarray(image.resize((width, width), Image.Resampling[how]))
            np.testing.assert_array_equal(read(name, (width, width), "squash"), squashed)
    train, val = (AVSBenchSemanticSource(root, split=split, image_size=SIZE) for split in ("train", "val"))
    assert (train.fit, val.fit) == ("crop", "squash")
    np.testing.assert_array_equal(train[2]["frames"][3], images.read_fitted(path, (SIZE, SIZE), "crop"))
    squashing = AVSBenchSemanticSource(root, split="train", image_size=SIZE, fit="squash")
    np.testing.assert_array_equal(squashing[2]["frames"][3], images.read_fitted(path, (SIZE, SIZE), "squash"))


@pytest.mark.parametrize("size", [(7, 30), (30, 7), (9, 9), (24, 40), (50, 11)])
@pytest.mark.parametrize("shape", [(24, 40), (40, 24), (23, 23)])
def test_a_crop_covers_its_size(shape, size):
    ramp = np.add.outer(np.arange(shape[0]), np.arange(shape[1])).astype(np.uint8)
    found = np.asarray(images.fitted(Image.fromarray(ramp), size, "crop", Image.Resampling.NEAREST))
    assert found.shape == size and (found > 0).sum() >= found.size - 1  # outside an image, Pillow's crop is 0
    middle = (shape[0] + shape[1]) / 2
    assert abs(found.astype(float).mean() - middle) < 2.5  # the centre


def test_at_the_size_on_disk_labels_are_the_files_own(root):
    source = AVSBenchSemanticSource(root, split="test", image_size=(24, 40))
    for i, part in enumerate(source.parts):
        clip = source[i]
        for k in range(FRAMES[part]):
            _, classes = picture((24, 40), source.ids[i], k)
            np.testing.assert_array_equal(clip["labels"][k], classes)
            bright = clip["frames"][k].min(-1) > 125  # JPEG blurs edges
            assert (bright == (classes > 0)).mean() > 0.95


def test_labels_of_absent_frames_may_be_ignored(root):
    source = AVSBenchSemanticSource(root, split="val", image_size=SIZE, absent="ignore")
    assert (validate(source[0], num_classes=CLASSES)["labels"][5:] == 255).all()
    assert (source[1]["labels"] < CLASSES).all()


def test_parts_can_be_chosen(root):
    for subsets in ("v2, v1s", ["v2", "v1s"]):
        source = AVSBenchSemanticSource(root, split="test", image_size=SIZE, subsets=subsets)
        assert source.parts == ("v1s", "v2") and source.ids == ("test_0", "test_2")
    whole = AVSBenchSemanticSource(root, split="test", image_size=SIZE)
    np.testing.assert_array_equal(source[1]["frames"], whole[2]["frames"])
    prints = [
        AVSBenchSemanticSource(root, image_size=SIZE, **options).fingerprint()
        for options in (
            {},
            {"subsets": "v2"},
            {"fit": "squash"},
            {"absent": "ignore"},
            {"unknown": "ignore"},
            {"split": "val"},
        )
    ]
    assert len({json.dumps(p) for p in prints}) == 6  # fmt: skip
    moved = pickle.loads(pickle.dumps(whole))
    assert moved.fingerprint() == whole.fingerprint()
    np.testing.assert_array_equal(moved[1]["labels"], whole[1]["labels"])
    assert Subset(whole, [2])[0].keys() == whole[2].keys()
    with pytest.raises(IndexError):
        whole[3]
    with pytest.raises(IndexError):
        whole[-1]


def test_the_folder_above_is_a_root(root, tmp_path):
    (root.parent / "Single-source").mkdir(exist_ok=True)
    assert AVSBenchSemanticSource(root.parent).root == root


def test_parts_may_share_a_uid(copy):
    table = copy / "metadata.csv"
    table.write_text(table.read_text().replace("test_1,", "test_0,"))
    (copy / "v1m/test_1").rename(copy / "v1m/test_0")
    source = AVSBenchSemanticSource(copy, split="test", image_size=SIZE)
    assert source.ids == ("v1s_test_0", "v1m_test_0", "test_2")
    assert [source.problems(i) for i in range(3)] == [[], [], []] and source[1]["id"] == "v1m_test_0"
    assert AVSBenchSemanticSource(copy, split="test", subsets="v1m").ids == ("v1m_test_0",)  # whatever else is read


# ------------------------------------------------------------------------------------------------ colours


def test_palette():
    colours = images.palette(255)
    np.testing.assert_array_equal(colours, [colour(k) for k in range(255)])
    assert len(np.unique(colours, axis=0)) == 255
    known = {1: (128, 0, 0), 2: (0, 128, 0), 15: (192, 128, 128), 20: (0, 64, 128)}  # PASCAL VOC's first classes
    assert {k: tuple(colours[k]) for k in known} == known


@pytest.mark.parametrize("classes", [2, 24, 71, 255])
def test_every_colour_finds_its_class_or_none(classes):
    rng = np.random.default_rng(classes)
    pixels = rng.integers(0, 256, (4, 5000, 3)).astype(np.uint8)
    pixels[1] = images.palette(256)[rng.integers(0, 256, 5000)]
    pixels[2] = images.palette(classes)[rng.integers(0, classes, 5000)]
    pixels[3] = pixels[2] ^ (rng.random((5000, 3)) < 0.3).astype(np.uint8)  # off by one
    table = {tuple(c): k for k, c in reversed(list(enumerate(images.palette(classes).tolist())))}
    found, known = images.classes_of(pixels, classes)
    expected = [[table.get(tuple(c), -1) for c in row] for row in pixels.tolist()]
    np.testing.assert_array_equal(np.where(known, found.astype(int), -1), expected)
    assert found.dtype == np.uint8 and (found[~known] == 0).all() and known[2].all()


def paint(path, pixels):
    values = np.array(Image.open(path).convert("RGB"))
    values[0, :4] = pixels
    save(path, values)


def test_unknown_colours_are_background_and_reported(copy):
    paint(copy / "v2/val_1/labels_rgb/7.png", [(9, 9, 9), colour(71), colour(70), (255, 255, 255)])
    kept = AVSBenchSemanticSource(copy, split="val", image_size=(24, 40))
    np.testing.assert_array_equal(validate(kept[1], num_classes=CLASSES)["labels"][7, 0, :5], [0, 0, 70, 0, 0])
    ignored = AVSBenchSemanticSource(copy, split="val", image_size=(24, 40), unknown="ignore")
    np.testing.assert_array_equal(ignored[1]["labels"][7, 0, :5], [255, 255, 70, 255, 0])
    assert (ignored[1]["labels"][8] != 255).all()
    (problem,) = check.check(kept, threads=1)
    assert problem.id == "val_1" and problem.error.where.endswith("val_1/labels_rgb/7.png")
    assert "0.31% of the pixels, first #090909" in str(problem.error) and "71 classes" in str(problem.error)


@pytest.mark.parametrize("mode", ["RGBA", "P"])
def test_masks_of_other_modes(copy, mode):
    path = copy / "v2/val_1/labels_rgb/7.png"
    with Image.open(path) as image:
        image.convert(mode, dither=Image.Dither.NONE, palette=Image.Palette.ADAPTIVE).save(path)
    whole = AVSBenchSemanticSource(copy, split="val", image_size=(24, 40))
    np.testing.assert_array_equal(whole[1]["labels"][7], picture((24, 40), "val_1", 7)[1])


# ------------------------------------------------------------------------------------------------ presence


def assert_tells(error, words):
    for word in words.split("; "):
        assert word in str(error), f"'{word}' is not in: {error}"
    assert "\n" not in str(error)


@pytest.mark.parametrize("change, words", [
    ({"present": np.ones(9, bool)}, "field 'present'; (10,) bool; (9,) bool"),
    ({"present": np.ones(10, np.uint8)}, "field 'present'; (10,) bool; (10,) uint8"),
    ({"present": np.zeros(10, bool)}, "field 'present'; at least one frame to be present"),
    ({"labelled": np.ones(10, bool)}, "field 'labelled'; present frames only; frame 5"),
    ({"labels": np.full((10, SIZE, SIZE), 7, np.uint8)}, "field 'labels'; 0 or 255 in frames that are not; value 7"),
])  # fmt: skip
def test_records_that_contradict_themselves(root, change, words):
    clip = AVSBenchSemanticSource(root, split="val", image_size=SIZE)[0]
    with pytest.raises(InputError) as caught:
        validate({**clip, **change}, num_classes=CLASSES)
    assert_tells(caught.value, words)


def test_augmentation_takes_no_notice_of_padding(root):
    """Contrast is about the mean of the frames that are present: padding with black leaves them as they would be."""
    clip = AVSBenchSemanticSource(root, split="train", image_size=SIZE)[1]
    transform = augment.Augment(hflip=0.5, scale=(0.6, 1.5), color=0.6)
    short = {**clip, "frames": clip["frames"][:5], "labels": clip["labels"][:5]}
    short.pop("present")
    for seed in range(4):
        whole = validate(transform(clip, np.random.default_rng(seed)), num_classes=CLASSES)
        alone = transform(short, np.random.default_rng(seed))
        np.testing.assert_array_equal(whole["frames"][:5], alone["frames"])
        np.testing.assert_array_equal(whole["labels"][:5], alone["labels"])
        np.testing.assert_array_equal(whole["present"], clip["present"])


def test_batches_hold_presence(root):
    source = AVSBenchSemanticSource(root, split="train", image_size=SIZE)
    batch = next(train_batches(source, seed=0, batch_size=3, augment={"hflip": 0.5, "color": 0.2}))
    assert batch["present"].shape == batch["labelled"].shape == (3, 10) and batch["present"].dtype == bool
    counts = [FRAMES[source.parts[i]] for i in batch["index"]]
    np.testing.assert_array_equal(batch["present"].sum(1), counts)
    first, last = eval_batches(source, batch_size=2)
    np.testing.assert_array_equal(np.concatenate([first["present"], last["present"]]).sum(1), [5, 5, 10, 5])


class Part:
    """Clips of a source, the second one without a field, or the first."""

    def __init__(self, source, without):
        self.source, self.without = source, without

    def __len__(self):
        return 2

    def __getitem__(self, index):
        clip = dict(self.source[0])
        if index == self.without:
            clip.pop("present")
        return clip


@pytest.mark.parametrize("without", [0, 1])
def test_clips_with_and_without_presence_make_no_batch(root, without):
    source = Part(AVSBenchSemanticSource(root, split="val", image_size=SIZE), without)
    with pytest.raises(InputError, match=r"field 'present'.*no such field"):
        next(eval_batches(source, batch_size=2))


# ------------------------------------------------------------------------------------------------ figures

GUESS = 8  # what the toy method calls everything that is bright


def toy(zero_padding=True):
    """Two pixels right of what is bright is class 8, where there is sound and the frame is present."""

    def predict(variables, batch):
        bright = jnp.roll(batch["frames"].astype(jnp.float32).mean(-1) > 120, 2, axis=-1)
        loud = batch["audio"].mean((-1, -2)) > -4.6  # silence: log 0.01
        labels = bright * loud[..., None, None] * GUESS
        present = batch["present"][..., None, None]  # fails where evaluation does not hand it on
        labels = jnp.where(present, labels, 0 if zero_padding else 3).astype(jnp.int32)
        scores = jax.nn.one_hot(labels, CLASSES)
        return Prediction(scores, scores, labels)

    return Method("toy", {}, CLASSES, "vggish", lambda *_: VARIABLES, None, predict, lambda p: p)


@pytest.fixture(scope="module")
def truthful(tmp_path_factory):
    """A tree in which the squares on the left are of the toy method's class."""
    root = write_avss_tree(tmp_path_factory.mktemp("figures"), clips={"test": ("v1s", "v1m", "v2")})
    for path in sorted(root.glob("v*/*/labels_rgb/*.png")):
        _, classes = picture((24, 40), path.parts[-3], int(path.stem))
        classes[:, :20][classes[:, :20] > 0] = GUESS
        save(path, np.array([colour(k) for k in range(CLASSES)], np.uint8)[classes])
    return root


def protocol(method, source, frames):
    """mIoU and F frame by frame and class by class, as plainly as they are defined, over `frames(clip)`."""
    ious, fs = [[] for _ in range(CLASSES)], [[] for _ in range(CLASSES)]
    for i in range(len(source)):
        clip = source[i]
        batch = {k: v[None] for k, v in clip.items() if k != "id"}
        labels = np.asarray(method.predict(VARIABLES, batch).labels)[0]
        for t in frames(clip):
            for k in range(CLASSES):
                pred, true = labels[t] == k, clip["labels"][t] == k
                if (pred | true).any():
                    inter = (pred & true).sum()
                    ious[k].append(inter / (pred | true).sum())
                    precision, recall = inter / max(pred.sum(), 1), inter / max(true.sum(), 1)
                    fs[k].append(1.3 * precision * recall / (0.3 * precision + recall) if inter else 0.0)
    return [np.mean([np.mean(values) if values else 0.0 for values in per_class]) for per_class in (ious, fs)]


@pytest.mark.parametrize("zero_padding", [True, False])
def test_figures_follow_the_public_protocol(truthful, zero_padding):
    """All ten frames of every clip count, with whatever is predicted in padding."""
    source = AVSBenchSemanticSource(truthful, split="test", image_size=(24, 40))
    method = toy(zero_padding)
    report = evaluate_rows(method, VARIABLES, source, bootstrap=20)
    figures = report.figures
    miou, f = protocol(method, source, lambda clip: range(10))
    assert figures["miou"] == pytest.approx(miou, abs=1e-9) and figures["fscore"] == pytest.approx(f, abs=1e-9)
    assert (
        figures["j_silence"] < figures["miou"] < 0.1
        and np.isfinite([figures[f"j_{s}"] for s in ("swap", "silence", "noise")]).all()
    )
    assert report.settings["padding_frames"] == 10 and report.settings["frames"] == 20
    assert "10 more frames only fill up short clips" in report.table()
    assert [row["frames"] for row in report.rows] == [5, 5, 10] and len(report.classes) == CLASSES
    # of nothing else: every other figure is that of the frames alone
    ignoring = AVSBenchSemanticSource(truthful, split="test", image_size=(24, 40), absent="ignore")
    alone = evaluate_rows(method, VARIABLES, ignoring, bootstrap=20)
    dependent = {"miou", "fscore", "audio_gain", "j_swap", "j_silence", "j_noise"}
    for name in figures.keys() - dependent:
        np.testing.assert_array_equal(figures[name], alone.figures[name], err_msg=name)
    miou, f = protocol(method, ignoring, lambda clip: np.flatnonzero(clip["present"]))
    assert alone.figures["miou"] == pytest.approx(miou, abs=1e-9) != figures["miou"]
    assert alone.figures["fscore"] == pytest.approx(f, abs=1e-9)
    assert alone.settings["padding_frames"] == 0 and "fill up" not in alone.table()
    assert [row["pixels"] for row in report.classes] == [row["pixels"] for row in alone.classes]


def test_batches_change_no_figure(truthful):
    source = AVSBenchSemanticSource(truthful, split="test", image_size=SIZE)
    one, two = (evaluate(toy(), VARIABLES, source, batch_size=n, exact=n == 1) for n in (1, 2))
    assert one.keys() == two.keys() and {"miou", "fscore", "f1", "audio_gain"} <= one.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], two[name], err_msg=name)


class AllPresent(ToySource):
    def __getitem__(self, index):
        return {**super().__getitem__(index), "present": np.ones(5, bool)}


@pytest.mark.parametrize("classes", [2, 4])
def test_without_the_field_every_frame_is_present(classes):
    from toy import toy_method

    method = toy_method(1 if classes == 2 else classes)
    plain, told = (evaluate(method, VARIABLES, kind(5, classes=classes)) for kind in (ToySource, AllPresent))
    for name in plain:
        np.testing.assert_array_equal(plain[name], told[name], err_msg=name)


def test_predicting_a_clip_leaves_its_padding_out(truthful, tmp_path):
    source = AVSBenchSemanticSource(truthful, split="test", image_size=(24, 40))
    for i, count in enumerate((5, 5, 10)):
        found = predict_media(toy(False), VARIABLES, source.ids[i], tmp_path / str(i), source=source, overlay=False,
                              **{k: getattr(source, k) for k in ("image_size", "num_frames", "front_end")})  # fmt: skip
        assert found["masks"] == count and json.loads(found["report"].read_text())["input_frames"] == count


def test_pictures_show_the_frames_that_are_present(truthful, tmp_path):
    source = AVSBenchSemanticSource(truthful, split="test", image_size=(24, 40))
    views = pictures.predicted_views(toy(), VARIABLES, source, [0, 2])
    assert [len(view.frames) for view in views] == [len(view.truth) for view in views] == [5, 10]
    for view in views:
        for heard in view.heard:
            assert len(heard.labels) == len(heard.audio) == len(view.frames)
    report = evaluate_rows(toy(), VARIABLES, source, bootstrap=0)
    own = pictures._score(views[0].heard[0].labels, views[0].truth, CLASSES)
    assert own == f"mIoU\n{report.rows[0]['miou_classes']:.2f}"
    named = [text for text, _ in pictures._legend(views[0].truth, source.class_names)]
    assert named == [f"\u25a0 thing {k}" for k in (GUESS, classes_in("test_0")[1])]
    path = pictures.clip_picture(tmp_path / "clips.png", views, title="AVSS")
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB"))
    for k in (GUESS, classes_in("test_2")[1]):  # in the colour of its class
        assert (pixels == pictures.COLOURS[k - 1]).all(-1).any()
