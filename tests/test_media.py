"""Video and sound in and out, against files written and read with PyAV alone."""

import av
import numpy as np
import pytest
import soundfile
import soxr
from media_files import decode, level, tone, write_sound, write_video
from PIL import Image

from avs_jax.data import media
from avs_jax.data.video_writer import VideoWriter
from avs_jax.errors import InputError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("media")


@pytest.fixture(scope="module")
def clip(folder):
    """7.3 s, 64x48, 10 fps, 44.1 kHz stereo."""
    return write_video(folder / "clip.mp4", seconds=7.3, sound=tone(7.3, 44100, 2))


def test_probe(clip):
    info = media.probe(clip, need_sound=True)
    assert (info.width, info.height, info.rotation, info.fps, info.num_frames) == (64, 48, 0, 10.0, 73)
    assert info.duration == pytest.approx(7.3, abs=1e-6) and info.origin == 0
    assert (info.sound.sample_rate, info.sound.channels, info.sound.codec) == (44100, 2, "aac")
    assert info.sound.start == pytest.approx(0, abs=0.03) and info.sound.end == pytest.approx(7.3, abs=0.05)


def test_frames_and_their_times(clip):
    frames = list(media.read_frames(clip))
    assert [f.index for f in frames] == list(range(73))
    np.testing.assert_allclose([f.time for f in frames], np.arange(73) / 10, atol=1e-6)
    for i in (0, 1, 40, 72):
        assert abs(frames[i].rgb().astype(int) - level(i)).max() <= 3


def test_frames_by_number(clip):
    picked = list(media.read_frames_at(clip, [0, 9, 9, 19, 500, 600]))
    assert [round(float(p.mean())) for p in picked] == pytest.approx([level(i) for i in (0, 9, 9, 19, 72, 72)], abs=3)


def test_variable_frame_rate(folder):
    times = [0, 0.04, 0.5, 0.52, 2.0, 2.5]
    path = write_video(folder / "vfr.mp4", times=times, fps=25)
    np.testing.assert_allclose([f.time for f in media.read_frames(path)], times, atol=1e-4)
    assert media.probe(path).num_frames == 6


@pytest.mark.parametrize("suffix,codec", [("mov", "aac"), ("mkv", "flac"), ("ts", "aac"), ("flv", "aac")])
def test_containers(folder, suffix, codec):
    path = write_video(folder / f"in.{suffix}", seconds=3, sound=tone(3, 44100), codec=codec)
    info = media.probe(path, need_sound=True)
    assert info.duration == pytest.approx(3, abs=0.11) and info.sound.end == pytest.approx(3, abs=0.15)
    frames = list(media.read_frames(path))
    assert len(frames) == info.num_frames == 30
    np.testing.assert_allclose([f.time for f in frames], np.arange(30) / 10, atol=2e-3)
    wave = np.concatenate(list(media.read_audio_stream(path, origin=info.origin)))
    assert len(wave) / 16000 == pytest.approx(3, abs=0.15)
    with VideoWriter(folder / f"{suffix}.mp4", (48, 64), 10, sound=path, sound_origin=info.origin) as writer:
        for frame in frames:
            writer.write(frame.rgb(), frame.time)
    _, sound, rate, duration = decode(folder / f"{suffix}.mp4")
    assert duration == pytest.approx(3, abs=0.15)
    written = soxr.resample(sound.mean(axis=1), rate, 16000)
    lags = {lag: np.corrcoef(written[4000:40000], wave[4000 + lag : 40000 + lag])[0, 1] for lag in range(-17, 18)}
    assert max(lags.values()) > 0.99  # in step with the frames, within the millisecond some containers round to


def test_a_wrong_declared_rate_is_not_believed(folder):
    path = write_video(folder / "ticks.avi", seconds=3)  # AVI declares the clock's ticks, here 600 a second
    with av.open(str(path)) as file:
        assert file.streams.video[0].average_rate == 600
    assert media.probe(path).fps == pytest.approx(10, rel=0.1)


@pytest.mark.parametrize("rotation", [90, 180, 270])
def test_rotation_shows_frames_upright(folder, rotation):
    image = np.zeros((48, 64, 3), np.uint8)
    image[:16, :16] = 255  # top left as stored
    path = write_video(folder / f"turned{rotation}.mp4", frames=[image] * 3, rotation=rotation)
    info, frame = media.probe(path), next(media.read_frames(path)).rgb()
    assert frame.shape == (info.height, info.width, 3) == ((48, 64, 3) if rotation == 180 else (64, 48, 3))
    corner = {90: np.s_[-10:, :10], 180: np.s_[-10:, -10:], 270: np.s_[:10, -10:]}[rotation]  # counter-clockwise
    assert frame[corner].min() > 240 and frame.astype(float).mean() < 40


def test_odd_size(folder):
    path = write_video(folder / "odd.mp4", size=(49, 65), seconds=0.3)
    assert (media.probe(path).width, media.probe(path).height) == (65, 49)
    assert next(media.read_frames(path)).rgb().shape == (49, 65, 3)


def test_sound_stream_is_the_whole_resampled(clip):
    _, sound, rate, _ = decode(clip)
    blocks = list(media.read_audio_stream(clip))
    whole = soxr.resample(sound.mean(axis=1), rate, 16000)
    np.testing.assert_allclose(np.concatenate(blocks)[: len(whole)], whole, atol=1e-6)
    assert max(len(b) for b in blocks) <= 16000 + 1
    assert all(b.dtype == np.float32 for b in blocks)


@pytest.mark.parametrize("dtype,subtype", [("int16", "PCM_16"), ("float32", "FLOAT"), ("uint8", "PCM_U8")])
def test_sound_sample_types(folder, dtype, subtype):
    path, wave = folder / f"{dtype}.wav", tone(0.5, 16000)
    soundfile.write(path, wave, 16000, subtype=subtype)
    read = np.concatenate(list(media.read_audio_stream(path)))
    np.testing.assert_allclose(read, wave[:, 0], atol={"int16": 1e-4, "float32": 1e-7, "uint8": 1e-2}[dtype])


def test_late_sound_is_preceded_by_silence(folder):
    path = write_video(folder / "late.mkv", sound=tone(1.0, 16000) + 0.3, rate=16000, sound_at=0.75, codec="pcm_s16le")
    assert media.probe(path).sound.start == pytest.approx(0.75, abs=0.01)
    wave = np.concatenate(list(media.read_audio_stream(path)))
    assert (wave[:11900] == 0).all() and wave[12100:].min() > -0.3 and len(wave) == pytest.approx(28000, abs=200)
    assert wave[12100:14000].mean() == pytest.approx(0.3, abs=0.02)


def test_early_sound_is_cut(folder):
    path = write_video(folder / "early.mkv", sound=tone(2.0, 16000), rate=16000, codec="pcm_s16le")
    whole = np.concatenate(list(media.read_audio_stream(path)))
    cut = np.concatenate(list(media.read_audio_stream(path, origin=0.7)))
    np.testing.assert_allclose(cut[:8000], whole[11200:19200], atol=1e-6)


def blocks(total, size=1600):
    for begin in range(0, total, size):
        yield np.arange(begin, min(begin + size, total), dtype=np.float32)


def test_window_slides_mirrors_and_ends_in_silence():
    window = media.SoundWindow(blocks(100_000), lead=15000)
    np.testing.assert_array_equal(window.read(-300, 500), np.abs(np.arange(-300, 200)))
    np.testing.assert_array_equal(window.read(1000, 80_000), np.arange(1000, 81_000))
    np.testing.assert_array_equal(window.read(99_000, 2000), np.r_[np.arange(99_000, 100_000), np.zeros(1000)])
    np.testing.assert_array_equal(window.read(150_000, 10), np.zeros(10))
    with pytest.raises(ValueError, match="no longer held"):
        window.read(500, 10)


def test_window_of_a_short_sound():
    window = media.SoundWindow(blocks(100), lead=15000)
    np.testing.assert_array_equal(window.read(0, 300), np.r_[np.arange(100), np.zeros(200)])
    assert window.total == 100


def test_window_memory_does_not_grow():
    window = media.SoundWindow(blocks(20 * 60 * 16000), lead=15000)  # 20 minutes
    for second in range(0, 20 * 60, 5):
        assert window.read(second * 16000, 80_000)[0] == second * 16000
    assert window.most_held <= 80_000 + 1600
    assert window.total == 20 * 60 * 16000


def test_sampling_is_plain_bilinear():
    import jax

    image = np.random.default_rng(0).integers(0, 256, (31, 47, 3), dtype=np.uint8)
    for size in ((16, 20), (64, 50), (31, 20)):
        want = jax.image.resize(image.astype(np.float32), (*size, 3), "bilinear", antialias=False)
        assert abs(media.sample_bilinear(image, size) - np.asarray(want)).max() <= 0.51


def test_squash_repeats_the_data_sets_steps():
    image = np.random.default_rng(1).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    stored = media.sample_bilinear(image, (224, 224))
    np.testing.assert_array_equal(media.squash(image, (224, 224)), stored)
    small = np.asarray(Image.fromarray(stored).resize((64, 96), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(media.squash(image, (96, 64)), small)
    np.testing.assert_array_equal(media.squash(image, (300, 400)), image)
    assert media.squash(image[:50, :60], (64, 64)).shape == (64, 64, 3)


def test_writer_keeps_times_size_and_copies_the_sound(folder, clip):
    times = [0, 0.1, 0.35, 0.4, 1.0]
    with VideoWriter(folder / "copy.mp4", (49, 65), 10, sound=clip) as writer:
        for i, time in enumerate(times):
            writer.write(np.full((49, 65, 3), level(i), np.uint8), time)
    frames, sound, rate, duration = decode(folder / "copy.mp4")
    np.testing.assert_allclose([t for t, _ in frames], times, atol=1e-4)
    assert frames[0][1].shape == (50, 66, 3)  # even, as 4:2:0 video must be
    for i, (_, image) in enumerate(frames):
        assert abs(image.astype(int) - level(i)).max() <= 4
    np.testing.assert_array_equal(sound, decode(clip)[1])  # copied, not encoded again
    assert rate == 44100 and duration == pytest.approx(7.3, abs=0.05)


def test_writer_keeps_colours(folder):
    with VideoWriter(folder / "colour.mp4", (48, 64), 10) as writer:
        writer.write(np.broadcast_to(np.uint8([200, 60, 30]), (48, 64, 3)))
    ((_, image),), sound, _, _ = decode(folder / "colour.mp4")
    assert sound is None and abs(image.astype(int) - [200, 60, 30]).max() <= 4


@pytest.mark.parametrize("rate,channels", [(16000, 1), (44100, 2), (11000, 1), (48000, 6)])
def test_writer_encodes_arrays(folder, rate, channels):
    path, wave = folder / f"array{rate}.mp4", tone(1.5, rate, channels)
    with VideoWriter(path, (48, 64), 10, sound=(wave, rate)) as writer:
        for _ in range(15):
            writer.write(np.zeros((48, 64, 3), np.uint8))
    frames, sound, out_rate, duration = decode(path)
    assert len(frames) == 15 and duration == pytest.approx(1.5, abs=0.1)
    assert len(sound) / out_rate == pytest.approx(1.5, abs=0.1)
    assert np.abs(sound).mean() == pytest.approx(np.abs(wave.mean(1) if channels > 2 else wave).mean(), rel=0.1)


@pytest.mark.parametrize("codec", ["pcm_s16le", "aac"])
def test_writer_shifts_the_sound_to_its_origin(folder, codec):
    path = folder / f"shifted_{codec}.mkv"
    beep = np.zeros((32000, 1), np.float32)
    beep[16000:16800] = 0.8  # at 1 s
    write_video(path, sound=beep, rate=16000, codec=codec)
    with VideoWriter(folder / "shifted.mp4", (48, 64), 10, sound=path, sound_origin=0.5) as writer:
        writer.write(np.zeros((48, 64, 3), np.uint8))
    _, sound, rate, _ = decode(folder / "shifted.mp4")
    assert np.argmax(np.abs(sound[:, 0]) > 0.3) / rate == pytest.approx(0.5, abs=0.01)


def _text(path):
    path.write_text("no video\n" * 50)


def _cut(share, **options):
    def write(path):
        write_video(path, seconds=3, sound=tone(3, 16000), rate=16000, options=options)
        path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])

    return write


def _song(path, cover):
    with av.open(str(path), "w", format="mp3" if cover else None) as file:
        track = file.add_stream("mp3" if cover else "aac", rate=44100, layout="mono")
        if cover:
            picture = file.add_stream("mjpeg", rate=1)
            picture.width, picture.height, picture.pix_fmt = 32, 32, "yuvj420p"
            picture.disposition = av.stream.Disposition.attached_pic
        if cover:
            image = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")
            file.mux(picture.encode(image))
            file.mux(picture.encode())
        write_sound(file, track, tone(1, 44100), 44100)


BAD = {
    "missing.mp4": (lambda path: None, "no such file"),
    "folder.mp4": (lambda path: path.mkdir(), "a folder"),
    "text.mp4": (_text, "text"),
    "empty.mp4": (lambda path: path.touch(), "an empty file"),
    "noise.mp4": (lambda path: path.write_bytes(np.random.default_rng(0).bytes(5000)), "broken"),
    "no_index.mp4": (_cut(0.5), "broken|truncated"),
    "half.mp4": (_cut(0.6, movflags="+faststart"), "whole"),
    "nearly.mp4": (_cut(0.97, movflags="+faststart"), "whole"),
    "silent.mp4": (write_video, "found none"),
    "picture.png": (lambda path: Image.new("RGB", (32, 32)).save(path), "another format"),
    "song.m4a": (lambda path: _song(path, cover=False), "audio only"),
    "cover.mp3": (lambda path: _song(path, cover=True), "only"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files(tmp_path, name):
    write, found = BAD[name]
    write(tmp_path / name)
    with pytest.raises(InputError, match=found) as error:
        media.probe(tmp_path / name, need_sound=True)
    assert name in str(error.value) and "\n" not in str(error.value)


def test_damage_inside_is_told_while_reading(clip, folder):
    data = bytearray(clip.read_bytes())
    data[2000 : len(data) // 2] = bytes(len(data) // 2 - 2000)
    (folder / "damaged.mp4").write_bytes(data)
    with pytest.raises(InputError, match=r"damaged\.mp4"):
        media.probe(folder / "damaged.mp4")
        list(media.read_frames(folder / "damaged.mp4"))
