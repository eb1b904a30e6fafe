"""The objects that a method sees one by one, in prediction: arrays, report, pictures, and who is refused."""

import dataclasses
import itertools
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import soundfile
from media_files import decode, tone, write_video
from PIL import Image
from prediction_toy import SIZE, Toy, report
from pycocotools import mask as coco

import avs_jax
from avs_jax import config as configs
from avs_jax.data.sources.synthetic import SyntheticSource
from avs_jax.drawing.instances import Paint, Tag, columns_of
from avs_jax.errors import InputError
from avs_jax.models import query_masks
from avs_jax.pictures import COLOURS
from avs_jax.predict import predict_media, predict_run
from avs_jax.prediction import instances as view
from avs_jax.prediction import output

FILES = {"predictions.json", "masks", "overlay.mp4", "instances.npz", "instances.mp4", "instances_sheet.png"}
QUERIES = 5  # upright stripes; the last is no object, and the one before it never where the picture is dark


class Objects(Toy):
    """A toy with queries: each a stripe of the picture, as probable as its number says, its mask as the picture's
    brightness."""

    def __init__(self, classes=1):
        super().__init__(classes)
        self.method = dataclasses.replace(self.method, instances=self.instances)

    def instances(self, variables, batch, count=10, confidence=0.0):
        frames = batch["frames"].reshape(-1, *batch["frames"].shape[2:])
        bright = jnp.clip(frames.astype(jnp.float32).mean(-1) / 255, 0.01, 0.99)[:, None]
        stripe = jnp.arange(SIZE[1]) * QUERIES // SIZE[1] == jnp.arange(QUERIES)[:, None, None]
        masks = jnp.where(stripe, jnp.log(bright / (1 - bright)), -20.0)
        n, kinds = jnp.arange(QUERIES), max(self.classes - 1, 1)
        sure = jnp.where(n == QUERIES - 1, -3.0, 1.0 + n)  # against "no object", which is last
        sure = jnp.where((n == QUERIES - 2) & (bright.max((2, 3)) < 0.5), -3.0, sure)
        logits = jnp.where(jnp.arange(kinds + 1) == (n % kinds)[:, None], sure[..., None], -9.0).at[..., -1].set(0.0)
        found = query_masks.instances(logits, masks, SIZE, count=count, confidence=confidence)
        return jax.tree.map(lambda x: x.reshape(*batch["frames"].shape[:2], *x.shape[1:]), found)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("instances")


@pytest.fixture(scope="module")
def clip(folder):
    """7.3 s at 10 fps: grey that grows brighter from frame to frame, past one half on the way."""
    frames = [np.full((48, 64, 3), 100 + i, np.uint8) for i in range(73)]
    return write_video(folder / "clip.mp4", frames=frames, sound=tone(7.3, 44100, 2))


@pytest.fixture(scope="module")
def predicted(folder, clip):
    toy = Objects(classes=3)
    names = ["background", "dog", "cat"]
    result = toy.run(clip, folder / "out", batch_size=2, instances=3, class_names=names)
    with np.load(result["instances"]) as arrays:
        return toy, dict(arrays), report(folder / "out")


def compare(arrays, found, frames):
    """The file against `Method.instances` of the same frames."""
    for name, want in found._asdict().items():
        want = np.asarray(want).reshape(-1, *want.shape[2:])[:frames]
        if name == "masks":
            assert arrays[name].dtype == np.uint8
            assert abs(arrays[name] / 255 - want).max() <= 0.5 / 255 + 1e-5
        else:
            assert arrays[name].dtype == want.dtype
            np.testing.assert_allclose(arrays[name], want, rtol=1e-5)


def test_arrays_are_what_the_method_says(folder, predicted):
    toy, arrays, written = predicted
    assert {path.name for path in (folder / "out").iterdir()} == FILES
    assert arrays["masks"].shape == (7, 3, *SIZE) and toy.traces == 1
    (batch,) = toy.batches
    compare(arrays, toy.instances(None, batch, count=3), 7)
    assert arrays["kept"].all() and set(arrays["queries"][0]) == {0, 1, 2} and set(arrays["queries"][6]) == {1, 2, 3}
    np.testing.assert_allclose(arrays["times"], [f["time"] for f in written["frames"]])
    assert arrays["frames"].tolist() == [f["frame"] for f in written["frames"]]
    assert arrays["size"].tolist() == [48, 64] and arrays["class_names"].tolist() == written["classes"]
    assert written["instances"] == {"arrays": "instances.npz", "most": 3, "confidence": 0.0}


def test_report_names_every_object(predicted):
    _, arrays, written = predicted
    for t, frame in enumerate(written["frames"]):
        assert [o["query"] for o in frame["instances"]] == arrays["queries"][t].tolist()
        assert [o["probability"] for o in frame["instances"]] == pytest.approx(arrays["probabilities"][t])
        for q, found in enumerate(frame["instances"]):
            assert found["class"] == ["background", "dog", "cat"][found["label"]] and found["label"] == q_class(found)
            mask = output.resize_score(arrays["masks"][t, q] / np.float32(255), (48, 64)) > 0.5
            np.testing.assert_array_equal(coco.decode(found["rle"]), mask)
            assert found["area"] == pytest.approx(mask.mean())


def q_class(found):
    return found["query"] % 2 + 1


def test_frames_that_come_out_of_order_lie_in_theirs(folder, clip):
    toy = Objects()
    result = toy.run(clip, folder / "rate5", rate=5, instances=9, overlay=False)
    written = report(folder / "rate5")
    with np.load(result["instances"]) as arrays:
        assert (
            arrays["masks"].shape == (36, QUERIES, *SIZE) and len(arrays["class_names"]) == 0
        )  # no more than there are
        np.testing.assert_allclose(arrays["times"], [f["time"] for f in written["frames"]])
        assert arrays["frames"].tolist() == [f["frame"] for f in written["frames"]]
        bright = arrays["masks"].max((1, 2, 3))
        np.testing.assert_allclose(bright, 100 + arrays["frames"], atol=4)  # each belongs to its frame
        np.testing.assert_array_equal(arrays["kept"].sum(1), np.where(bright >= 128, 4, 3))
    assert not (folder / "rate5" / "instances.mp4").exists() and (folder / "rate5" / "instances_sheet.png").exists()


def test_only_confident_objects_are_kept(folder, clip):
    result = Objects().run(clip, folder / "sure", instances=4, confidence=0.9, overlay=False)
    with np.load(result["instances"]) as arrays:
        kept, p = arrays["kept"], arrays["probabilities"]
        assert (p[kept] > 0.9).all() and set(arrays["queries"][kept]) == {2, 3}
        assert not p[~kept].any() and not arrays["masks"][~kept].any() and not arrays["classes"][~kept].any()
    for frame, n in zip(report(folder / "sure")["frames"], kept.sum(1), strict=True):
        assert len(frame["instances"]) == n


def test_video_keeps_time_and_sound_and_is_legible(folder, clip, predicted):
    frames, sound, _, _ = decode(folder / "out" / "instances.mp4")
    frames_in, sound_in, _, _ = decode(clip)
    np.testing.assert_allclose([t for t, _ in frames], [t for t, _ in frames_in], atol=1e-4)
    np.testing.assert_array_equal(sound, sound_in)
    assert frames[0][1].shape == (288, 384, 3)
    with Image.open(folder / "out" / "instances_sheet.png") as sheet:
        assert sheet.width > 400 and sheet.height > 7 * 50


def test_a_query_has_one_colour_and_no_other_has_it(folder):
    Image.new("RGB", (640, 320), (180,) * 3).save(folder / "photo.png")
    soundfile.write(folder / "photo.wav", tone(3, 16000), 16000)
    options = {"audio": folder / "photo.wav", "image_size": SIZE, "instances": 4}
    Objects().run(folder / "photo.png", folder / "still", **options)
    stills = {name.replace(".mp4", ".png") for name in FILES}
    assert {p.name for p in (folder / "still").iterdir()} == stills
    with Image.open(folder / "still" / "instances.png") as image:
        drawn = np.asarray(image)
    assert drawn.shape == (320, 640, 3)
    for rank, query in enumerate([3, 2, 1, 0]):  # the most probable has the first colour
        stripe = drawn[200:300, query * 128 + 6 : query * 128 + 122]
        np.testing.assert_allclose(stripe[:, 50:60].mean((0, 1)), 180 * 0.625 + COLOURS[rank] * 0.375, atol=2)
        assert (drawn[200] == COLOURS[rank]).all(-1).any()  # its outline
    assert np.ptp(drawn[200, 600]) == 0  # grey where no query is


def test_colours_follow_queries_over_time(folder):
    def frame(queries, probabilities):
        kept = np.array(probabilities) > 0
        return {"queries": np.int32(queries), "probabilities": np.float32(probabilities), "kept": kept}

    with view.Store(folder) as store:
        store.write(1, frame([300, 7], [0.9, 0.8]))
        store.write(0, frame([7, 4], [0.9, 0.0]))
        colours = view.query_colours(store)
    assert set(colours) == {7, 300}  # 4 was never an object
    np.testing.assert_array_equal(colours[7], COLOURS[0])
    np.testing.assert_array_equal(colours[300], COLOURS[1])


def test_paint_puts_the_most_probable_on_top():
    masks = [np.zeros((60, 80), bool) for _ in range(3)]
    masks[0][20:50, 10:50], masks[1][20:50, 30:70] = True, True
    tags = [Tag(n, 0.9 - n / 10, "", COLOURS[n]) for n in range(3)]
    drawn = Paint(masks, tags, (60, 80)).over(np.full((60, 80, 3), 100, np.uint8))
    np.testing.assert_array_equal(drawn[40, 49], COLOURS[0])  # its edge, inside the other
    np.testing.assert_array_equal(drawn[40, 69], COLOURS[1])
    assert not (drawn == COLOURS[2]).all(-1).any()  # an empty mask is not there
    alone = 100 * 0.625 + COLOURS[1] * 0.375
    np.testing.assert_allclose(drawn[40, 60], alone, atol=1.5)
    np.testing.assert_allclose(drawn[40, 40], alone * 0.625 + COLOURS[0] * 0.375, atol=2)


def test_a_query_stays_in_its_column():
    assert columns_of([[3, 8], [8], [8, 3], [5, 3]], 3) == [[0, 1], [1], [1, 0], [2, 0]]
    rows = columns_of([[1, 2], [3, 4], [1, 3]], 2)  # more queries than columns: nobody is left out
    assert all(sorted(row) == [0, 1] for row in rows)


def test_the_store_holds_one_frame(tmp_path):
    r = np.random.default_rng(0)
    tracemalloc.start()
    with view.Store(tmp_path) as store:
        for order in itertools.chain(range(0, 1500, 2), range(1, 1500, 2)):
            store.write(order, {"masks": np.full((4, 64, 64), order % 251, np.uint8), "times": np.float64(order)})
        store.save(tmp_path / "a.npz", names=np.array(["a", "bc"]))
        peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 6 * 2**20  # of the 23 MiB of masks
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]
    with np.load(tmp_path / "a.npz") as arrays:
        assert arrays["masks"].shape == (1500, 4, 64, 64) and arrays["names"].tolist() == ["a", "bc"]
        np.testing.assert_array_equal(arrays["times"], np.arange(1500))
        for order in r.integers(0, 1500, 9):
            assert (arrays["masks"][order] == order % 251).all()


def test_a_view_cut_short_leaves_the_earlier_prediction(folder, clip, predicted, monkeypatch):
    before = {p.name: p.stat().st_mtime_ns for p in (folder / "out").iterdir()}

    def stop(self, order):
        raise KeyboardInterrupt

    monkeypatch.setattr(view.Artist, "paint", stop)
    for target in (folder / "out", folder / "cut"):
        with pytest.raises(KeyboardInterrupt):
            Objects().run(clip, target, instances=2)
    assert {p.name: p.stat().st_mtime_ns for p in (folder / "out").iterdir()} == before
    assert not (folder / "cut").exists()


def test_a_prediction_without_objects_takes_the_earlier_ones_away(folder, clip):
    Objects().run(clip, folder / "again", instances=1, overlay=False)
    Objects().run(clip, folder / "again", overlay=False)
    assert {p.name for p in (folder / "again").iterdir()} == {"predictions.json", "masks"}
    written = report(folder / "again")
    assert "instances" not in written and "instances" not in written["frames"][0]


@pytest.mark.parametrize("options,words", [
    ({"instances": -1}, "--instances.*whole number"),
    ({"instances": 2, "confidence": 1.0}, r"--confidence.*\[0, 1\)"),
    ({"instances": 2, "confidence": np.nan}, r"--confidence.*\[0, 1\)"),
    ({"confidence": 0.5}, "--confidence.*--instances"),
])  # fmt: skip
def test_bad_options(folder, options, words):
    with pytest.raises(InputError, match=words):
        Objects().run(folder / "nowhere.mp4", folder / "bad", **options)
    assert not (folder / "bad").exists()


def test_a_method_of_pixels_is_refused_before_anything_is_read(folder):
    with pytest.raises(InputError, match=r"--instances.*\(transavs\).*'toy'"):
        Toy().run(folder / "nowhere.mp4", folder / "bad", instances=2)
    config = configs.defaults()
    config.method.name = "tpavi"
    (folder / "run").mkdir()
    configs.save(config, folder / "run" / "config.json")  # which has no checkpoint, and no such video is there
    with pytest.raises(InputError, match=r"--instances.*\(transavs\).*'tpavi'"):
        predict_run(folder / "run", folder / "nowhere.mp4", folder / "bad", instances=2)
    assert not (folder / "bad").exists()


def test_transavs_on_a_clip(folder):
    method = avs_jax.create("transavs", backbone="resnet10", width=4, num_queries=6, dim=16, heads=4, ffn=8,
                            encoder_layers=1, decoder_layers=2, audio_width=2, audio_hidden=8,
                            pixel_options={"groups": 4})  # fmt: skip

    def find(path, x):  # fresh heads find no objects
        head = "class_head" in jax.tree_util.keystr(path)
        if not head:
            return x
        return 0.1 * jax.random.normal(jax.random.key(1), x.shape) if x.ndim == 2 else jnp.zeros_like(x).at[0].set(2.0)

    variables = jax.tree_util.tree_map_with_path(find, method.init(jax.random.key(0)))
    source = SyntheticSource("test", length=2, image_size=32)
    result = predict_media(method, variables, source.ids[1], folder / "real", source=source, image_size=32,
                           instances=4, progress=False)  # fmt: skip
    record = source[1]
    batch = {k: record[k][None] for k in ("frames", "audio")}
    with np.load(result["instances"]) as arrays:
        found = method.instances(variables, batch, count=4)
        assert found.kept.any()
        compare(arrays, found, 5)
    assert {p.name for p in (folder / "real").iterdir()} == FILES
