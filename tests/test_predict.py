"""Prediction on videos, folders and clips: when each mask is for, what the model saw and heard, what is written."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import soundfile
from avsbench_tree import write_tree
from media_files import decode, level, tone, write_video
from PIL import Image
from prediction_toy import SIZE, Toy, report
from pycocotools import mask as coco

from avs_jax import config as configs
from avs_jax.data.audio import vggish_log_mel
from avs_jax.data.media import Frame, SoundWindow
from avs_jax.data.sources.avsbench import AVSBenchSource
from avs_jax.data.sources.synthetic import SyntheticSource
from avs_jax.errors import InputError
from avs_jax.predict import predict_run
from avs_jax.prediction import clips as clipping
from avs_jax.prediction import output

SHARED = Path(os.environ.get("AVS_SHARED", Path(__file__).parents[2] / "shared"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("predict")


@pytest.fixture(scope="module")
def clip(folder):
    """7.3 s at 10 fps, 64x48, stereo; the left half is bright, the right dark, the brightness marks the frame."""
    frames = [np.full((48, 64, 3), 40, np.uint8) for _ in range(73)]
    for i, frame in enumerate(frames):
        frame[:, :32] = 150 + i
    return write_video(folder / "clip.mp4", frames=frames, sound=tone(7.3, 44100, 2))


@pytest.fixture(scope="module")
def predicted(folder, clip):
    toy = Toy()
    result = toy.run(clip, folder / "out", batch_size=2)
    return toy, result, report(folder / "out")


def test_report_times_and_masks(folder, predicted):
    _, result, written = predicted
    assert result["masks"] == written["num_masks"] == len(written["frames"]) == 7
    assert result["report"] == folder / "out" / "predictions.json"
    assert {p.name for p in (folder / "out").iterdir()} == {"masks", "overlay.mp4", "predictions.json"}
    times = [f["time"] for f in written["frames"]]
    np.testing.assert_allclose(times, np.arange(7) + 15 / 16, atol=1e-6)
    # AVSBench's rule: frame n of second s is int(s * fps + 15/16 * fps)
    assert [f["frame"] for f in written["frames"]] == [int(s * 10 + 15 / 16 * 10) for s in range(7)]
    np.testing.assert_allclose([f["frame_time"] for f in written["frames"]], [s + 0.9 for s in range(7)], atol=1e-6)
    assert (written["width"], written["height"], written["fps"], written["rate"]) == (64, 48, 10.0, 1)
    assert written["duration"] == pytest.approx(7.3) and written["kind"] == "video" and written["notes"] == []
    assert written["classes"] == ["background", "sounding"]


def test_masks_and_run_lengths_agree(folder, predicted):
    for frame in predicted[2]["frames"]:
        with Image.open(folder / "out" / frame["mask"]) as image:
            assert image.format == "PNG" and image.mode == "L" and image.size == (64, 48)
            mask = np.asarray(image)
        assert set(np.unique(mask)) == {0, 255}
        np.testing.assert_array_equal(coco.decode(frame["rle"]), mask // 255)
        assert frame["rle"]["counts"].isascii()
        assert mask[:, :30].all() and not mask[:, 34:].any()
        assert frame["area"] == pytest.approx((mask > 0).mean())
        assert frame["score"]["max"] > 0.5 and 0.3 < frame["score"]["mean"] < 0.6
        assert frame["score"]["mean_in_mask"] > 0.5


def test_one_compilation_and_fixed_shapes(predicted):
    toy = predicted[0]
    assert toy.traces == 1
    (batch,) = toy.batches  # two clips: 5 and 2 frames
    assert batch["frames"].shape == (2, 5, *SIZE, 3) and batch["frames"].dtype == np.uint8
    assert batch["audio"].shape == (2, 5, 96, 64) and batch["valid"].all()
    bright = batch["frames"][..., 0, 4, 0].ravel()
    np.testing.assert_allclose(bright, [159, 169, 179, 189, 199, 209, 219, 219, 219, 219], atol=2)  # padded by the last


def test_the_sound_of_a_clip_is_the_data_sets(folder, clip, predicted):
    _, sound, rate, _ = decode(clip)
    audio = predicted[0].batches[0]["audio"]
    want = vggish_log_mel(sound[: 5 * rate], rate, 5, resampler="soxr_hq")  # as a stream can be
    assert abs(audio[0, :4] - want[:4]).max() < 1e-3
    assert abs(audio[0, 4] - want[4]).max() < 0.05  # the resampler sees the sound after 5 s
    assert abs(audio[1, :2] - vggish_log_mel(sound[5 * rate :], rate, 2)).max() < 0.05
    np.testing.assert_allclose(audio[1, 3:], np.log(0.01), atol=1e-5)  # after the end: silence


def test_overlay_keeps_sound_and_duration(folder, clip):
    frames, sound, rate, duration = decode(folder / "out" / "overlay.mp4")
    frames_in, sound_in, rate_in, duration_in = decode(clip)
    np.testing.assert_allclose([t for t, _ in frames], [t for t, _ in frames_in], atol=1e-4)
    assert duration == pytest.approx(duration_in, abs=0.05) and rate == rate_in
    np.testing.assert_array_equal(sound, sound_in)
    first = frames[0][1]  # grey and dark where silent, tinted where it sounds
    assert np.ptp(first[20, 50]) < 12 and first[20, 50].max() < 70
    assert np.ptp(first[20, 10].astype(int)) > 30


def test_every_second_frame_is_predicted_from_its_own_clip(folder, clip):
    toy = Toy()
    toy.run(clip, folder / "rate5", rate=5, overlay=False)
    frames = report(folder / "rate5")["frames"]
    np.testing.assert_allclose([f["time"] for f in frames], np.arange(36) / 5 + 0.1375, atol=1e-6)
    assert [f["frame"] for f in frames] == [int(t * 10) for t in np.arange(36) / 5 + 0.1375]
    assert toy.traces == 1 and not (folder / "rate5" / "overlay.mp4").exists()
    seen = np.concatenate([b["frames"][b["valid"]][..., 4, 4, 0] for b in toy.batches])
    np.testing.assert_allclose(np.diff(seen[:5].astype(int), axis=1), 10, atol=3)  # one second apart


def test_rate_all_gives_every_frame_in_order(folder, clip):
    Toy().run(clip, folder / "all", rate="all", overlay=False)
    written = report(folder / "all")
    assert [f["frame"] for f in written["frames"]] == list(range(73))
    np.testing.assert_allclose([f["time"] for f in written["frames"]], np.arange(73) / 10, atol=1e-6)
    assert [f["mask"] for f in written["frames"]] == [f"masks/{i:06d}.png" for i in range(73)]
    means = [f["score"]["max"] * 255 for f in written["frames"]]
    np.testing.assert_allclose(means, 150 + np.arange(73), atol=4)  # each mask belongs to its frame


def _frames(times):
    class Flat(Frame):
        def rgb(self):
            return np.full((4, 4, 3), self.index % 256, np.uint8)

    return [Flat(i, t, None) for i, t in enumerate(times)]


def _group(times, rate, fps, duration):
    picks = list(clipping.pick_frames(iter(_frames(times)), rate, fps, duration, (4, 4)))
    assert len(picks) == clipping.expected_picks(rate, len(times), duration)
    spacing = 1 / fps if rate == "all" else 1 / rate
    clips = list(clipping.group(picks, 5, min(spacing / 2 + clipping.EPS, 0.45)))
    kept = sorted(p.order for c in clips for p in c.picks if p is not None)
    assert kept == list(range(len(picks)))  # each exactly once
    assert [c.start for c in clips] == sorted(c.start for c in clips)
    return picks, clips


@pytest.mark.parametrize("fps", [1, 8, 23.976, 25, 29.97, 60])
@pytest.mark.parametrize("rate", [1, 2, 5, 16, "all"])
def test_clips_at_constant_frame_rates(fps, rate):
    times = np.arange(round(12 * fps)) / fps
    picks, clips = _group(times, rate, fps, len(times) / fps)
    if rate != "all":
        for pick in picks:
            assert pick.frame == int((pick.time + clipping.EPS) * fps)
    for c in clips:
        assert -15 / 16 <= c.start and len(c.images) <= 5
        moments = np.array([p.moment for p in c.picks if p is not None])
        np.testing.assert_allclose(np.diff(moments), 1, atol=0.51 / min(fps, 16))
    # no more clips than phases need
    phases = round(fps) if rate == "all" else rate
    assert len(clips) <= phases * 3 + 2


def test_data_set_moments_at_one_frame_a_second():
    """A folder of AVSBench frames is cut as the data set cuts it, at rate 1 and for every frame."""
    for rate in (1, "all"):
        _, clips = _group(np.arange(10.0), rate, 1.0, 10.0)
        assert [c.start for c in clips] == [0.0, 5.0]
        assert [[i[0, 0, 0] for i in c.images] for c in clips] == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]


def test_a_held_frame_fills_the_seconds_without_one():
    times = [0.0, 0.04, 0.08, 3.5, 3.54, 9.0]  # frames are held for seconds
    _, clips = _group(times, "all", 25, 9.04)
    for c in clips:
        for second, image in enumerate(c.images[1:], 1):
            shown = max(i for i, t in enumerate(times) if t <= c.start + 15 / 16 + second + 0.03)
            assert image[0, 0, 0] == shown


def test_a_video_shorter_than_its_first_moment_gives_one_mask(folder):
    path = write_video(folder / "short.mp4", seconds=0.4, sound=tone(0.4, 16000), rate=16000)
    assert Toy().run(path, folder / "short")["masks"] == 1
    assert report(folder / "short")["frames"][0]["frame"] == 3


def test_odd_size_25_fps_and_resampled_rate(folder):
    path = write_video(folder / "odd.mp4", size=(49, 65), fps=25, seconds=2, sound=tone(2, 48000), rate=48000)
    Toy().run(path, folder / "odd")
    written = report(folder / "odd")
    assert [f["frame"] for f in written["frames"]] == [23, 48]
    assert written["frames"][0]["rle"]["size"] == [49, 65]
    with Image.open(folder / "odd" / "masks" / "000001.png") as image:
        assert image.size == (65, 49)
    assert decode(folder / "odd" / "overlay.mp4")[0][0][1].shape == (50, 66, 3)


def test_rotated_video_is_predicted_as_shown(folder):
    image = np.zeros((48, 64, 3), np.uint8)
    image[:24] = 255  # the top as stored, the left as shown
    path = write_video(folder / "turned.mp4", frames=[image] * 10, rotation=90, sound=tone(1, 16000), rate=16000)
    Toy().run(path, folder / "turned")
    with Image.open(folder / "turned" / "masks" / "000000.png") as mask:
        assert mask.size == (48, 64)
        assert np.asarray(mask)[:, :22].all() and not np.asarray(mask)[:, 26:].any()
    frames = decode(folder / "turned" / "overlay.mp4")[0]
    assert frames[0][1].shape == (64, 48, 3)


@pytest.mark.parametrize("seconds,field,words", [(1.2, "silence_after", "ends"), (4.5, "unused", "goes on")])
def test_sound_of_another_length_is_stated(folder, seconds, field, words):
    name = f"sound{seconds}"
    path = write_video(folder / f"{name}.mp4", seconds=3, sound=tone(seconds, 16000), rate=16000)
    result = Toy().run(path, folder / name)
    written = report(folder / name)
    assert len(written["frames"]) == 3 and written["sound"][field] == pytest.approx(abs(3 - seconds), abs=0.15)
    assert result["notes"] == written["notes"] and words in written["notes"][0]


@pytest.fixture(scope="module")
def frames_folder(folder):
    """Twelve frames whose names sort naturally but not alphabetically, and a wav."""
    path = folder / "frames"
    path.mkdir()
    for i in range(12):
        Image.new("RGB", (20, 16), (level(i),) * 3).save(path / f"scene_{i + 1}.png")
    soundfile.write(path / "sound.wav", tone(12, 16000), 16000)
    return path


def test_folder_at_one_frame_a_second(folder, frames_folder):
    toy = Toy()
    toy.run(frames_folder, folder / "from_folder")
    written = report(folder / "from_folder")
    assert [f["frame"] for f in written["frames"]] == list(range(12))
    assert written["kind"] == "folder" and written["fps"] == 1 and (written["width"], written["height"]) == (20, 16)
    seen = np.concatenate([b["frames"][..., 0, 0, 0].ravel() for b in toy.batches])[:12]
    np.testing.assert_array_equal(seen, [level(i) for i in range(12)])
    want = vggish_log_mel(soundfile.read(frames_folder / "sound.wav")[0][:80000], 16000, 5)
    np.testing.assert_allclose(toy.batches[0]["audio"][0], want, atol=1e-5)
    frames, sound, rate, duration = decode(folder / "from_folder" / "overlay.mp4")
    assert (
        len(frames) == 12 and duration == pytest.approx(12, abs=0.2) and len(sound) / rate == pytest.approx(12, abs=0.2)
    )


def test_folder_at_another_rate_with_sound_elsewhere(folder, frames_folder):
    sound = folder / "elsewhere.flac"
    soundfile.write(sound, tone(3, 22050, 2), 22050)
    Toy().run(frames_folder, folder / "fps4", fps=4, audio=sound)
    written = report(folder / "fps4")
    assert [f["frame"] for f in written["frames"]] == [3, 7, 11] and written["duration"] == 3
    assert written["sound"]["channels"] == 2


def test_clip_of_a_data_set_gives_the_methods_own_masks(folder):
    source, toy = SyntheticSource("test", length=3, image_size=32), Toy()
    result = toy.run(source.ids[1], folder / "id", source=source)
    written, record = report(folder / "id"), source[1]
    assert result["masks"] == 5 and written["input"] == source.ids[1] and written["kind"] == "clip"
    np.testing.assert_array_equal(toy.batches[0]["frames"][0], record["frames"])
    np.testing.assert_array_equal(toy.batches[0]["audio"][0], record["audio"])
    bright = record["frames"].astype(np.float32).mean(-1) / 255 > 0.5
    for frame, want in zip(written["frames"], bright, strict=True):
        np.testing.assert_array_equal(coco.decode(frame["rle"]), want)
    frames, sound, rate, _ = decode(folder / "id" / "overlay.mp4")
    assert len(frames) == 5 and rate == 16000 and len(sound) / rate == pytest.approx(5, abs=0.2)


@pytest.mark.parametrize("sound", ["wav", "log_mel"])
def test_clip_of_avsbench_has_sound_where_the_wav_is(folder, sound):
    source = AVSBenchSource(write_tree(folder / f"tree_{sound}", sound=sound), "s4", "test", image_size=32)
    Toy().run(source.ids[0], folder / f"avsbench_{sound}", source=source)
    written, heard = report(folder / f"avsbench_{sound}"), decode(folder / f"avsbench_{sound}" / "overlay.mp4")[1]
    if sound == "wav":
        assert written["sound"]["channels"] == 2 and np.abs(heard).max() == pytest.approx(0.3, abs=0.05)
    else:
        assert written["sound"] is None and heard is None and "silent" in written["notes"][0]


def test_classes_are_written_with_a_palette(folder):
    frames = [np.full((48, 64, 3), 10, np.uint8)] * 10
    for frame in frames[:1]:
        frame[:, 20:40], frame[:, 40:] = 128, 250
    path = write_video(folder / "classes.mp4", frames=frames, sound=tone(1, 16000), rate=16000)
    Toy(classes=3).run(path, folder / "classes", class_names=["background", "dog", "cat"])
    (frame,) = report(folder / "classes")["frames"]
    with Image.open(folder / "classes" / frame["mask"]) as image:
        assert image.mode == "P" and image.getpalette()[3:9] == [128, 0, 0, 0, 128, 0]
        labels = np.asarray(image)
    assert set(np.unique(labels)) == {0, 1, 2}
    assert [(o["label"], o["class"]) for o in frame["objects"]] == [(1, "dog"), (2, "cat")]
    for found in frame["objects"]:
        np.testing.assert_array_equal(coco.decode(found["rle"]), labels == found["label"])
        assert 0.3 < found["score"] <= 1


def test_segment_skips_only_classes_that_never_win():
    scores = np.array(jax.nn.softmax(3 * jax.random.normal(jax.random.key(0), (8, 8, 6)), -1))
    scores[..., 5] *= 1e-3
    labels, best = output.segment(scores, (31, 17))
    every = np.stack([output.resize_score(scores[..., k], (31, 17)) for k in range(6)], -1)
    np.testing.assert_array_equal(labels, every.argmax(-1))
    np.testing.assert_array_equal(best, every.max(-1))


def test_hours_of_sound_are_never_held():
    """Ten minutes of frames at 5 masks a second: the sound and the clips in memory stay within a few seconds."""

    def frames():
        yield from _frames(np.arange(0, 600, 0.2))

    window = SoundWindow((np.zeros(16000, np.float32) for _ in range(600)), clipping.LEAD)
    picks = clipping.pick_frames(frames(), 5, 5.0, 600.0, (4, 4))
    clips = clipping.hear(clipping.group(picks, 5, 0.1), window, lambda wave, *_: wave[:5], 5)
    assert sum(p is not None for c in clips for p in c.picks) == 3000
    assert window.total == 600 * 16000 and window.most_held <= 7 * 16000


def test_a_foreign_folder_is_not_written_into(folder, clip):
    foreign = folder / "foreign"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("precious")
    with pytest.raises(InputError, match=r"thesis\.txt.*--overwrite"):
        Toy().run(clip, foreign)
    Toy().run(clip, foreign, overwrite=True, overlay=False)
    assert (foreign / "thesis.txt").read_text() == "precious" and report(foreign)["num_masks"] == 7


@pytest.mark.parametrize("error", [KeyboardInterrupt, InputError("x", expected="y", found="z")])
def test_a_prediction_cut_short_leaves_the_earlier_one(folder, clip, predicted, error, monkeypatch):
    before = (folder / "out" / "predictions.json").read_bytes()

    def stop(self, *_):
        if len(self.times) == 3:
            raise error
        return add(self, *_)

    add = output.Recorder.add
    monkeypatch.setattr(output.Recorder, "add", stop)
    for target in (folder / "out", folder / "cut"):
        with pytest.raises(type(error) if isinstance(error, Exception) else error):
            Toy().run(clip, target)
    assert (folder / "out" / "predictions.json").read_bytes() == before
    assert not (folder / "out" / ".partial").exists() and not (folder / "cut").exists()


def test_an_earlier_prediction_is_replaced_whole(folder, clip):
    Toy().run(clip, folder / "again")
    Toy().run(write_video(folder / "b.mp4", sound=tone(2, 16000), rate=16000), folder / "again", overlay=False)
    assert sorted(p.name for p in (folder / "again").rglob("*") if p.is_file()) == [
        "000000.png", "000001.png", "predictions.json"]  # fmt: skip


def test_scores_that_are_not_finite_are_refused(folder, clip):
    with pytest.raises(InputError, match=r"clip at 0\.00 s.*finite"):
        Toy().run(clip, folder / "nan", gain=np.nan)
    assert not (folder / "nan").exists()


def _empty(path):
    path.mkdir()


def _without_sound(path):
    path.mkdir()
    Image.new("RGB", (8, 8)).save(path / "1.png")


def _two_sounds(path):
    _without_sound(path)
    for name in ("a.wav", "b.wav"):
        soundfile.write(path / name, tone(1, 16000), 16000)


def _two_sizes(path):
    _without_sound(path)
    Image.new("RGB", (9, 8)).save(path / "2.png")
    soundfile.write(path / "a.wav", tone(1, 16000), 16000)


def _broken_image(path):
    _without_sound(path)
    (path / "1.png").write_bytes((path / "1.png").read_bytes()[:40])
    soundfile.write(path / "a.wav", tone(1, 16000), 16000)


def _broken_sound(path):
    _without_sound(path)
    (path / "a.wav").write_text("not a sound")


BAD = {
    "missing": (lambda path: None, {}, "no such file"),
    "text.mp4": (lambda path: path.write_text("text"), {}, "text"),
    "mute.mp4": (write_video, {}, "an audio track"),
    "empty": (_empty, {}, "images"),
    "without_sound": (_without_sound, {}, "one sound file"),
    "two_sounds": (_two_sounds, {}, r"a\.wav, b\.wav.*--audio"),
    "two_sizes": (_two_sizes, {}, r"2\.png.*8x8.*9x8"),
    "broken_image": (_broken_image, {}, r"1\.png.*image"),
    "broken_sound": (_broken_sound, {}, r"a\.wav.*text"),
    "no_audio_file": (_without_sound, {"audio": "nowhere.wav"}, r"nowhere\.wav.*no such file"),
    "fps": (_without_sound, {"fps": 0.0}, "--fps"),
    "video_fps.mp4": (lambda path: write_video(path, sound=tone(1, 16000), rate=16000), {"fps": 3.0}, "--fps"),
    "rate.mp4": (write_video, {"rate": 2.5}, "--rate"),
    "rate0.mp4": (write_video, {"rate": 0}, "--rate"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_inputs(tmp_path, name):
    write, options, words = BAD[name]
    write(tmp_path / name)
    with pytest.raises(InputError, match=words) as error:
        Toy().run(tmp_path / name, tmp_path / "out", **options)
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


def test_output_that_is_a_file(tmp_path, clip):
    (tmp_path / "out").write_text("a file")
    with pytest.raises(InputError, match="found a file"):
        Toy().run(clip, tmp_path / "out")


@pytest.fixture
def workdir(tmp_path, monkeypatch):
    """A run's folder whose checkpoint is a toy."""
    config = configs.defaults()
    config.data.update(source="synthetic", image_size=32)
    config.data.test.length = 3
    configs.save(config, tmp_path / "config.json")
    toy = Toy()
    loaded = (toy.method, {"params": {"gain": np.float32(1)}})
    monkeypatch.setattr("avs_jax.training.checkpoint.load_checkpoint", lambda workdir, which: loaded)
    return tmp_path


def test_a_run_on_a_video_and_on_a_clip(workdir, clip):
    predict_run(workdir, clip, workdir / "video", overlay=False, progress=False)
    assert report(workdir / "video")["workdir"] == str(workdir)
    predict_run(workdir, "multi-test-00002", workdir / "clip", progress=False)
    assert report(workdir / "clip")["input"] == "multi-test-00002"
    predict_run(workdir, "multi-val-00002", workdir / "val", split="val", overlay=False, progress=False)
    assert report(workdir / "val")["num_masks"] == 5


def test_a_run_needs_its_data_set_only_for_clips(workdir, clip):
    config = configs.load(workdir / "config.json")
    config.data = {**config.data.to_dict(), "source": "avsbench", "root": "/nowhere"}
    config.data.test = {"split": "test"}
    configs.save(config, workdir / "config.json")
    predict_run(workdir, clip, workdir / "video", overlay=False, progress=False)
    assert report(workdir / "video")["num_masks"] == 7
    with pytest.raises(InputError, match="/nowhere"):
        predict_run(workdir, "some-clip", workdir / "out")


@pytest.mark.parametrize("name,split,words", [
    ("multi-test-00009", "test", "Did you mean 'multi-test-0000"),
    ("missing.mp4", "test", "no such file"),
    ("multi-test-00001", "tset", "Did you mean 'test'"),
])  # fmt: skip
def test_a_run_names_what_is_near(workdir, name, split, words):
    with pytest.raises(InputError, match=words):
        predict_run(workdir, name, workdir / "out", split=split)


def test_command_tells_of_bad_input_in_one_line(tmp_path):
    configs.save(configs.defaults(), tmp_path / "config.json")
    (tmp_path / "clip.mp4").write_text("no video")
    flags = [f"--workdir={tmp_path}", f"--input={tmp_path / 'clip.mp4'}", f"--output={tmp_path / 'out'}"]
    command = [sys.executable, "-m", "avs_jax.predict", *flags]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1 and "clip.mp4" in done.stderr


@pytest.mark.skipif(not (SHARED / "data/avsbench_demo").is_dir(), reason="no real videos here")
def test_real_video(folder):
    video = min((SHARED / "data/avsbench_demo").glob("*.mp4"), key=lambda p: p.stat().st_size)
    copy = shutil.copy(video, folder / "real.mp4")
    assert Toy().run(copy, folder / "real", image_size=224)["masks"] == 5
    frames, sound, _, duration = decode(folder / "real" / "overlay.mp4")
    before = decode(copy)
    assert len(frames) == len(before[0]) and duration == pytest.approx(before[3], abs=0.05)
    np.testing.assert_array_equal(sound, before[1])
