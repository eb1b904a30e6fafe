"""Prediction for methods of single frames: pictures, sizes, the seconds around a frame, stereo, names of classes."""

import numpy as np
import pytest
import soundfile
from media_files import level, tone, write_video
from PIL import Image
from prediction_toy import SIZE, Toy, report
from pycocotools import mask as coco

from avs_jax.data.audio import front_end as create_front_end
from avs_jax.data.audio import vggish_log_mel
from avs_jax.data.sources.synthetic import SyntheticSource
from avs_jax.errors import InputError
from avs_jax.pictures import COLOURS
from avs_jax.predict import _size_option
from avs_jax.prediction import output
from avs_jax.prediction.run import seen_by


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("predict")


@pytest.fixture(scope="module")
def clip(folder):
    return write_video(folder / "clip.mp4", size=(48, 64), seconds=7.3, sound=tone(7.3, 44100, 2))


@pytest.fixture(scope="module")
def frames_folder(folder):
    path = folder / "frames"
    path.mkdir()
    for i in range(12):
        Image.new("RGB", (20, 16), (level(i),) * 3).save(path / f"scene_{i + 1}.png")
    soundfile.write(path / "sound.wav", tone(12, 16000), 16000)
    return path


class Listener(Toy):
    """A toy of one-frame clips that hears raw samples."""

    def run(self, input, output, seconds=3.0, channels=1, **options):
        front_end = create_front_end("waveform", seconds=seconds, channels=channels)
        return super().run(input, output, num_frames=1, front_end=front_end, **options)

    def heard(self):
        return np.concatenate([batch["audio"][batch["valid"]] for batch in self.batches])


def ramp(seconds, rate=16000):
    """Samples that tell their own time: t / 100."""
    return np.arange(round(seconds * rate), dtype=np.float32) / rate / 100


def test_a_single_frame_hears_the_seconds_around_it(folder):
    path = folder / "around"
    path.mkdir()
    for i in range(6):
        Image.new("RGB", (20, 16), (level(i),) * 3).save(path / f"{i}.png")
    soundfile.write(path / "sound.wav", ramp(6), 16000, subtype="FLOAT")
    toy = Listener()
    toy.run(path, folder / "around_out", batch_size=2, overlay=False)
    heard = toy.heard()[:, 0]
    assert heard.shape == (6, 48000)
    # about the middle of each second, 0.5, 1.5, ...; moved to lie within the sound at both ends
    np.testing.assert_allclose(heard[:, 0] * 100, [0, 0, 1, 2, 3, 3], atol=2e-4)
    np.testing.assert_allclose(heard[:, -1] * 100, [3, 3, 4, 5, 6, 6], atol=2e-4)
    short = Listener()
    short.run(path, folder / "around_short", seconds=8.0, overlay=False)
    for wave in short.heard()[:, 0]:  # shorter than the window: repeated, as in the data set
        np.testing.assert_allclose(wave[:96000], ramp(6), atol=1e-6)
        np.testing.assert_allclose(wave[96000:], ramp(2), atol=1e-6)


def test_one_second_about_a_frame_is_its_own(folder, frames_folder):
    one, five = Listener(), Toy()
    one.run(frames_folder, folder / "one", seconds=1.0, rate="all", overlay=False)
    five.run(frames_folder, folder / "five", overlay=False, front_end=create_front_end("waveform", seconds=1.0))
    clips = np.concatenate([batch["audio"] for batch in five.batches]).reshape(-1, 16000)[:10]
    np.testing.assert_allclose(one.heard()[:10, 0], clips, atol=1e-6)


def test_left_and_right_stay_apart(folder):
    path = folder / "stereo"
    path.mkdir()
    for i in range(2):
        Image.new("RGB", (20, 16), (200,) * 3).save(path / f"{i}.png")
    soundfile.write(path / "sound.wav", np.stack([ramp(2), -ramp(2)], 1), 16000, subtype="FLOAT")
    toy, mono = Listener(), Listener()
    toy.run(path, folder / "stereo_out", seconds=1.0, channels=2, overlay=False)
    mono.run(path, folder / "mono_out", seconds=1.0, overlay=False)
    assert toy.heard().shape == (2, 1, 2, 16000)
    np.testing.assert_allclose(toy.heard()[1, 0, 0], ramp(2)[16000:], atol=1e-6)
    np.testing.assert_array_equal(toy.heard()[:, 0, 1], -toy.heard()[:, 0, 0])
    np.testing.assert_allclose(mono.heard(), 0, atol=1e-7)
    soundfile.write(path / "sound.wav", ramp(2), 16000, subtype="FLOAT")  # one channel is on both
    both = Listener()
    both.run(path, folder / "both_out", seconds=1.0, channels=2, overlay=False)
    np.testing.assert_array_equal(both.heard()[:, 0, 0], both.heard()[:, 0, 1])


@pytest.fixture(scope="module")
def picture(folder):
    """A picture of an odd size with a bright left half, and a sound of 7 s beside it."""
    path = folder / "picture"
    path.mkdir()
    image = np.full((33, 45, 3), 20, np.uint8)
    image[:, :20] = 230
    Image.fromarray(image).save(path / "photo.png")
    soundfile.write(path / "bark.wav", ramp(7), 16000, subtype="FLOAT")
    return path


@pytest.mark.parametrize("whole", [False, True], ids=["file", "folder"])
def test_a_picture_hears_the_middle_of_its_sound(folder, picture, whole):
    toy, out = Listener(), folder / f"picture_out{whole}"
    given = {} if whole else {"audio": picture / "bark.wav"}
    result = toy.run(picture if whole else picture / "photo.png", out, image_size=None, **given)
    written = report(out)
    assert result["masks"] == 1 and result["notes"] == [] and written["kind"] == "picture"
    assert written["duration"] == pytest.approx(7, abs=1e-3) and written["overlay"] == "overlay.png"
    (wave,) = toy.heard()[:, 0]
    np.testing.assert_allclose([wave[0] * 100, wave[-1] * 100], [2, 5], atol=2e-4)
    assert toy.batches[0]["frames"].shape == (1, 1, 33, 45, 3)  # as large as it is
    np.testing.assert_array_equal(coco.decode(written["frames"][0]["rle"])[0, :22], [1] * 20 + [0] * 2)
    with Image.open(out / "overlay.png") as overlay:
        pixels = np.asarray(overlay.convert("RGB"))
    assert pixels.shape == (33, 45, 3) and np.ptp(pixels[16, 40].astype(int)) < 12  # grey where nothing sounds
    assert sorted(p.name for p in out.iterdir()) == ["masks", "overlay.png", "predictions.json"]


def test_a_picture_for_a_method_of_clips(folder, picture):
    toy = Toy()
    toy.run(picture, folder / "picture_clip", overlay=False)
    (batch,) = toy.batches
    assert batch["frames"].shape == (1, 5, *SIZE, 3) and report(folder / "picture_clip")["num_masks"] == 1
    want = vggish_log_mel(ramp(7)[16000 : 6 * 16000], 16000, 5)  # the middle five seconds
    np.testing.assert_allclose(batch["audio"][0], want, atol=1e-5)


def test_a_prediction_of_a_video_takes_the_place_of_a_pictures(folder, picture, clip):
    out = folder / "replaced"
    Listener().run(picture, out)
    Listener().run(clip, out)
    assert sorted(p.name for p in out.iterdir()) == ["masks", "overlay.mp4", "predictions.json"]


@pytest.mark.parametrize("options, message", [({}, "--audio"), ({"audio": "bark.wav", "fps": 2.0}, "--fps"),
                                              ({"audio": "bark.wav", "rate": 2}, "--rate")])  # fmt: skip
def test_options_that_a_picture_does_not_take(folder, picture, options, message):
    options = {k: picture / v if k == "audio" else v for k, v in options.items()}
    with pytest.raises(InputError, match=message):
        Listener().run(picture / "photo.png", folder / "refused", **options)
    assert not (folder / "refused").exists()


def test_large_frames_go_alone(folder, clip, monkeypatch):
    monkeypatch.setattr("avs_jax.predict.MOST_PIXELS", 2 * 48 * 64)
    toy = Listener()
    toy.run(clip, folder / "large", image_size=None, batch_size=4, overlay=False)
    assert [batch["frames"].shape for batch in toy.batches] == [(2, 1, 48, 64, 3)] * 4


def test_names_of_classes_stand_on_the_overlay():
    names = ["background", "dog", "tennis racket"]
    labels = np.zeros((120, 200), np.uint8)
    assert output.sign(labels, names).size == 0 and output.sign(labels + 1, ()).size == 0
    labels[60:, :30], labels[60:, 100:] = 1, 2
    sign = output.sign(labels, names)
    assert sign.shape[0] == 2 * 9 and sign.shape[1] < 200
    first, second = (np.flatnonzero((sign == COLOURS[k]).all(-1).any(0)).min() for k in (1, 0))
    assert first < second  # the larger one first
    frame = np.full((120, 200, 3), 90, np.uint8)
    painted = output.Paint(labels, names).over(frame)
    np.testing.assert_array_equal(painted[: sign.shape[0], : sign.shape[1]], sign)
    np.testing.assert_array_equal(painted[60:], output.Paint(labels).over(frame)[60:])
    narrow = output.sign(labels[:, ::8], names)  # whatever the room, it fits
    assert narrow.shape[1] <= 25


def test_what_a_run_sees_without_its_data_set():
    vpo = {"root": "gone", "setting": "vpo_ms", "seconds": 2.0, "stereo": True}
    told = seen_by("vpo", vpo)
    assert told["image_size"] is None and told["num_frames"] == 1 and len(told["class_names"]) == 22
    assert told["front_end"] == create_front_end("waveform", seconds=2.0, channels=2)
    squashed = seen_by("vpo", {**vpo, "fit": "squash", "image_size": 64, "fold_person": True})
    assert squashed["image_size"] == 64 and len(squashed["class_names"]) == 20
    single = seen_by("single_plus", {"setting": "salient"})
    assert (single["image_size"], single["class_names"]) == (224, ("background", "sounding"))
    assert single["front_end"].seconds == 1.0 and seen_by("single_plus", {})["image_size"] is None
    avsbench = seen_by("avsbench", {"setting": "ms3"})
    assert (avsbench["image_size"], avsbench["num_frames"]) == (224, 5)
    assert avsbench["front_end"] == create_front_end("vggish")
    source = SyntheticSource("test", still=True, setting="semantic", front_end="waveform", seconds=0.5, length=2)
    there = seen_by("synthetic", {}, source)
    assert there["image_size"] == (64, 64) and there["num_frames"] == 1 and there["front_end"].seconds == 0.5


@pytest.mark.parametrize("texts, size", [([], {}), (["64"], (64, 64)), (["48", "80"], (48, 80))])
def test_image_size_flag(texts, size):
    assert _size_option(texts) == ({"image_size": size} if size else {})


@pytest.mark.parametrize("texts", [["abc"], ["0"], ["1", "2", "3"], ["-4"]])
def test_image_size_flag_refuses(texts):
    with pytest.raises(InputError, match="--image_size: expected a side"):
        _size_option(texts)
