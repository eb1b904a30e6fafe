"""Raw videos to an AVSBench tree: as the public preprocessing would, whatever the videos, through every interruption.

golden/avsbench_public.npz was taken, on AVSBench's six demonstration videos, from what its preprocessing's libraries
give (imageio-ffmpeg 0.8 and OpenCV for the frames, moviepy 1.0.3 for the wav): every 56th pixel of the five frames,
every 450th of the first 72000 samples (beyond them moviepy's buffer slips by one sample at 44.1 kHz), and the number of
samples.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
from avsbench_tree import save
from media_files import level, tone, write_video

from avs_jax import check as checking
from avs_jax import prepare as command
from avs_jax.data import media
from avs_jax.data.audio import read_audio, vggish_log_mel
from avs_jax.data.prepare import avsbench
from avs_jax.data.prepare import avsbench_clip as clips
from avs_jax.data.prepare.opencv import resize_linear
from avs_jax.data.sources.avsbench import LAYOUTS, AVSBenchSource
from avs_jax.errors import InputError
from avs_jax.torch_files import read_torch_pickle

ROOT = Path(__file__).parents[1]
GOLDEN = Path(__file__).parent / "golden"
DEMO = Path(os.environ.get("AVS_SHARED", ROOT.parent / "shared")) / "data/avsbench_demo"
TABLES = {
    "s4": ["name,start,category,split", "a.b_1,0,dog_barking,train", "c_2,3.0,cat_meowing,val", "d,9,male_speech,test"],
    "ms3": ["video_id,split", "a.b,train", "c,train", "d,val", "e,test"],
}  # fmt: skip


def noise(height, width):
    return np.random.default_rng([height, width]).integers(0, 256, (height, width, 3), np.uint8)


# --- one clip ---


def job(folder: Path, video: Path, **changes) -> clips.Job:
    out = folder / "out"
    frames = tuple(out / f"v_{k}.png" for k in range(1, 6))
    options = {"id": "v", "split": "train", "category": "", "videos": (video,), "frames": frames,
               "wav": out / "wav/v.wav", "log_mel": out / "pkl/v.pkl"}  # fmt: skip
    return clips.Job(**{**options, **changes})


def brightness(task):
    from PIL import Image

    images = [np.asarray(Image.open(path)) for path in task.frames]
    assert all(image.shape == (224, 224, 3) and image.dtype == np.uint8 for image in images)
    return [float(image.mean()) for image in images]


@pytest.mark.parametrize("fps, rate, channels", [(10, 44100, 1), (25, 48000, 2)])
def test_a_clip(tmp_path, fps, rate, channels):
    write_video(tmp_path / "v.mp4", seconds=5, fps=fps, sound=tone(5, rate, channels), rate=rate)
    task = job(tmp_path, tmp_path / "v.mp4")
    assert clips.prepare_clip(task) == clips.Outcome("prepared")
    want = [level(number) for number in clips.frame_numbers(fps)]
    np.testing.assert_allclose(brightness(task), want, atol=2)
    info = soundfile.info(task.wav)
    assert (info.samplerate, info.channels, info.subtype, info.frames) == (16000, 2, "PCM_16", 80000)
    wave, _ = read_audio(task.wav)
    np.testing.assert_array_equal(read_torch_pickle(task.log_mel)[:, 0], vggish_log_mel(wave, 16000))
    assert np.corrcoef(wave[::5, 0], wave[::5, 1])[0, 1] > 0.99  # mono twice, or a channel and its half
    assert clips.prepare_clip(task) == clips.Outcome("there")


def test_frames_are_squashed_and_upright(tmp_path):
    picture = np.zeros((48, 96, 3), np.uint8)
    picture[:24, :48] = 200, 50, 50
    write_video(tmp_path / "v.mp4", size=(48, 96), frames=[picture] * 12, fps=2, sound=tone(6, 44100), rotation=90)
    task = job(tmp_path, tmp_path / "v.mp4")
    assert clips.prepare_clip(task).status == "prepared"
    from PIL import Image

    shown = next(media.read_frames_at(tmp_path / "v.mp4", [5]))
    assert shown.shape == (96, 48, 3)
    np.testing.assert_array_equal(np.asarray(Image.open(task.frames[2])), resize_linear(shown, (224, 224)))


SHORT = {
    "short": (dict(seconds=3, sound=3), [9, 19, 29, 29, 29], 3,
              ["30 frames (3.00 s): the last stands for 2 of 5", "sound for 3 of 5 seconds"]),
    "short sound": (dict(seconds=5, sound=2), [9, 19, 29, 39, 49], 2, ["sound for 2 of 5 seconds"]),
    "long": (dict(seconds=8, sound=8), [9, 19, 29, 39, 49], 8, ["sound for 8 seconds: the first 5"]),
}  # fmt: skip


@pytest.mark.parametrize("case", SHORT)
def test_clips_of_unusual_length(tmp_path, case):
    options, numbers, heard, notes = SHORT[case]
    write_video(tmp_path / "v.mp4", seconds=options["seconds"], sound=tone(options["sound"], 44100))
    task = job(tmp_path, tmp_path / "v.mp4")
    outcome = clips.prepare_clip(task)
    assert outcome.status == "prepared" and len(outcome.notes) == len(notes)
    assert all(want in found for want, found in zip(notes, outcome.notes, strict=True))
    np.testing.assert_allclose(brightness(task), [level(n) for n in numbers], atol=2)
    wave, _ = read_audio(task.wav)
    log_mel = read_torch_pickle(task.log_mel)
    np.testing.assert_array_equal(log_mel[:, 0], vggish_log_mel(wave, 16000, 5, "repeat"))
    assert all((log_mel[k] == log_mel[heard - 1]).all() for k in range(heard, 5))
    assert len(wave) == pytest.approx(16000 * options["sound"], abs=1100)  # AAC's frames are 1024 samples


def bad_videos(folder: Path) -> dict[str, tuple[str, str]]:
    """name -> (fault, part of the reason), each in `folder`/<name>.mp4."""
    write_video(folder / "mute.mp4", seconds=5)
    write_video(folder / "blink.mp4", seconds=0.5, sound=tone(5, 44100))
    write_video(folder / "click.mp4", seconds=5, sound=tone(0.5, 44100))
    write_video(folder / "whole.mp4", seconds=5, sound=tone(5, 44100))
    data = (folder / "whole.mp4").read_bytes()
    (folder / "cut.mp4").write_bytes(data[: len(data) // 2])
    (folder / "page.mp4").write_text("<html>Video unavailable</html>")
    (folder / "empty.mp4").touch()
    with soundfile.SoundFile(folder / "song.mp4", "w", 16000, 1, format="WAV") as file:
        file.write(np.zeros(80000))
    return {
        "mute": ("no sound", "an audio track"),
        "blink": ("too short", "5"),
        "click": ("too short", "of sound"),
        "cut": ("undecodable", "cut.mp4"),
        "page": ("undecodable", "text"),
        "empty": ("undecodable", "empty file"),
        "song": ("undecodable", "video stream"),
        "gone": ("missing", "gone.mp4"),
    }


def test_bad_videos_are_told_and_leave_nothing(tmp_path):
    for name, (fault, reason) in bad_videos(tmp_path).items():
        task = job(tmp_path, tmp_path / f"{name}.mp4")
        outcome = clips.prepare_clip(task)
        assert (outcome.status, outcome.fault) == ("bad", fault), (name, outcome)
        assert reason in outcome.reason and f"{name}.mp4" in outcome.reason, (name, outcome)
        assert not [path for path in tmp_path.rglob("out/**/*") if path.is_file()], name


def test_only_what_is_missing_or_broken_is_made(tmp_path):
    write_video(tmp_path / "v.mp4", seconds=5, sound=tone(5, 44100))
    task = job(tmp_path, tmp_path / "v.mp4")
    clips.prepare_clip(task)
    whole = {path: path.read_bytes() for path in task.files}
    old = 10**18
    for broken in (task.frames[1], task.wav, task.log_mel):
        for path in task.files:
            os.utime(path, ns=(old, old))
        broken.write_bytes(whole[broken][:-100])
        assert clips.prepare_clip(task).status == "prepared"
        assert {path: path.read_bytes() for path in task.files} == whole
        assert [path for path in task.files if path.stat().st_mtime_ns != old] == [broken]
    save(task.frames[0], noise(224, 224))  # the data set's own picture
    own = task.frames[0].read_bytes()
    task.frames[4].unlink()
    clips.prepare_clip(task)
    assert task.frames[0].read_bytes() == own
    clips.prepare_clip(job(tmp_path, tmp_path / "v.mp4", overwrite=True))
    assert {path: path.read_bytes() for path in task.files} == whole


def test_a_place_that_cannot_be_written(tmp_path):
    write_video(tmp_path / "v.mp4", seconds=5, sound=tone(5, 44100))
    (tmp_path / "out").touch()
    with pytest.raises(InputError, match=r"out/wav/v\.wav: expected a place to write to"):
        clips.prepare_clip(job(tmp_path, tmp_path / "v.mp4"))


# --- many clips ---


def write_table(root: Path, setting: str, lines=None) -> Path:
    folder = root / LAYOUTS[setting].folder
    folder.mkdir(parents=True, exist_ok=True)
    (folder / LAYOUTS[setting].table).write_text("\n".join(lines or TABLES[setting]) + "\n")
    return folder


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    """A video of a square that moves over a darker ground, and a tone."""
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    frames = np.full((10, 48, 64, 3), 60, np.uint8)
    for i, frame in enumerate(frames):
        frame[8 + 2 * i : 24 + 2 * i, 16:40] = 220
    return write_video(path, size=(48, 64), fps=2, frames=frames, sound=tone(5, 44100))


PLACED = [
    ("s4", "Single-source/s4_data/raw_videos/{split}/{category}/{id}.mp4", ()),
    ("s4", "Single-source/raw_videos/{category}/{id}.mkv", ()),
    ("s4", "elsewhere/{id}.mp4", ("--videos",)),
    ("ms3", "Multi-sources/ms3_data/raw_videos/{id}.mp4", ()),
    ("ms3", "raw_videos/{split}/{id}.mp4", ()),
]


@pytest.mark.parametrize("setting, place, flags", PLACED, ids=[place for _, place, _ in PLACED])
def test_command(tmp_path, film, capfd, setting, place, flags):
    folder = write_table(tmp_path, setting)
    for line in TABLES[setting][1:]:
        values = dict(zip(TABLES[setting][0].replace("name", "id").replace("video_id", "id").split(","),
                          line.split(","), strict=True))  # fmt: skip
        video = tmp_path / place.format(**values)
        video.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(film, video)
    argv = ["avsbench", f"--root={tmp_path}", f"--setting={setting}", "--workers=0"]
    argv += [f"{flag}={tmp_path / 'elsewhere'}" for flag in flags]
    count = len(TABLES[setting]) - 1
    assert command.main(argv) == 0
    out, err = capfd.readouterr()
    assert f"{count} of {count} clips prepared" in out and f"{count}/{count}" in err and "clip" in err
    report = json.loads((folder / f"prepare_{setting}.json").read_text())
    assert (report["prepared"], report["already_there"], report["bad"], report["notes"]) == (count, 0, {}, [])
    for split in ("train", "val", "test"):
        source = AVSBenchSource(tmp_path, setting, split)
        for i in range(len(source)):
            assert not [p for p in source.problems(i) if "gt_masks" not in p.where]
            assert source.sound_file(i) is not None
    assert command.main(argv) == 0
    assert f"0 of {count} clips prepared" in capfd.readouterr().out
    assert not list(tmp_path.rglob("*.part"))


def test_bad_clips_do_not_stop_the_others(tmp_path, capfd):
    (tmp_path / "raw").mkdir()
    bad = bad_videos(tmp_path / "raw")
    folder = write_table(tmp_path, "ms3", ["video_id,split", *(f"{name},train" for name in bad), "whole,val"])
    argv = ["avsbench", f"--root={tmp_path}", "--setting=ms3", f"--videos={tmp_path / 'raw'}", "--workers=2"]
    assert command.main([*argv, f"--report={tmp_path / 'r.json'}"]) == 1
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["bad"] == {"missing": 1, "undecodable": 4, "no sound": 1, "too short": 2} and report["prepared"] == 1
    assert {clip["id"]: clip["fault"] for clip in report["bad_clips"]} == {n: fault for n, (fault, _) in bad.items()}
    out = capfd.readouterr().out
    assert "1 of 9 clips prepared" in out and "8 bad" in out and "gone.mp4" in out
    assert [path.name for path in (folder / "ms3_data").rglob("*.wav")] == ["whole.wav"]


def test_another_tree_some_splits_and_a_limit(tmp_path, film):
    folder = write_table(tmp_path, "ms3", [*TABLES["ms3"], "d,train"])  # a clip in two splits
    for name in "acde":
        (tmp_path / "raw").mkdir(exist_ok=True)
        shutil.copy(film, tmp_path / "raw" / f"{name.replace('a', 'a.b')}.mp4")
    argv = ["avsbench", f"--root={tmp_path}", "--setting=ms3", f"--videos={tmp_path / 'raw'}", "--workers=0"]
    new = tmp_path / "new"
    assert command.main([*argv, f"--output={new}", "--split=train,val", "--limit=1"]) == 0
    copied = new / "Multi-sources"
    assert sorted(p.name for p in copied.rglob("*.wav")) == ["a.b.wav", "d.wav"]
    assert (copied / "ms3_data/visual_frames/a.b/a.b.mp4_5.png").is_file()
    assert (copied / "ms3_meta_data.csv").read_bytes() == (folder / "ms3_meta_data.csv").read_bytes()
    assert not (folder / "ms3_data").exists()
    assert command.main([*argv, f"--output={new}"]) == 0
    assert sorted(p.relative_to(copied / "ms3_data/audio_wav").as_posix() for p in copied.rglob("*.wav")) == [
        "test/e.wav", "train/a.b.wav", "train/c.wav", "train/d.wav", "val/d.wav"]  # fmt: skip
    notes = json.loads((copied / "prepare_ms3.json").read_text())["notes"]
    assert [(n["id"], n["split"]) for n in notes] == [("d", "train")] and "'val' (line 4)" in notes[0]["note"]
    write_table(tmp_path, "ms3")
    with pytest.raises(InputError, match="another"):
        avsbench.main([*argv[1:], f"--output={new}"])


BAD_INPUT = {
    "no command": ([], "found nothing. See --help."),
    "unknown command": (["avsbensh"], "Did you mean 'avsbench'"),
    "unknown option": (["avsbench", "--root=R", "--setting=ms3", "--worker=1"], "unrecognized arguments: --worker=1"),
    "no setting": (["avsbench", "--root=R"], "--setting"),
    "workers": (["avsbench", "--root=R", "--setting=ms3", "--workers=-1"], "whole number of at least 0"),
    "split": (["avsbench", "--root=R", "--setting=ms3", "--split=vall"], "Did you mean 'val'"),
    "empty split": (["avsbench", "--root=R", "--setting=ms3", "--split=test"], "clips of split 'test'; found 1 of"),
    "no root": (["avsbench", "--root=R/no", "--setting=ms3"], "R/no: expected the folder of AVSBench"),
    "no table": (["avsbench", "--root=R", "--setting=s4"], "s4_meta_data.csv"),
    "no videos": (["avsbench", "--root=R", "--setting=ms3"], "ms3_data/raw_videos or"),
    "other videos": (["avsbench", "--root=R", "--setting=ms3", "--videos=R/no"], "--videos: expected a folder"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_told_in_one_line(tmp_path, capsys, case):
    argv, message = BAD_INPUT[case]
    write_table(tmp_path, "ms3", ["video_id,split", "a,train"])
    assert command.main([arg.replace("=R", f"={tmp_path}") for arg in argv]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and message.replace("R/", f"{tmp_path}/") in error


@pytest.mark.parametrize("row", ["b,c,train", "../b,train", "b,trian", "a,train"])
def test_bad_rows_name_the_file_and_line(tmp_path, row):
    write_table(tmp_path, "ms3", ["video_id,split", "a,train", row])
    (tmp_path / "raw_videos").mkdir()
    with pytest.raises(InputError, match=r"ms3_meta_data\.csv, line 3"):
        avsbench.list_jobs(tmp_path, "ms3")


def test_help(capsys):
    assert command.main(["--help"]) == 0
    assert "avsbench" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        command.main(["avsbench", "--help"])
    out = capsys.readouterr().out
    assert "--workers" in out and "prepare_<setting>.json" in out


# --- processes ---


def start(root: Path, *flags) -> subprocess.Popen:
    argv = [sys.executable, "-m", "avs_jax.prepare", "avsbench", f"--root={root}", "--setting=ms3", *flags]
    return subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def until(condition, what, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.01)


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="lists processes in /proc")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_interrupted_and_started_again(tmp_path, film, how):
    """After a kill nothing is half there and no process is left; the same command goes on and ends alike."""
    names = [f"clip{i}" for i in range(40)]
    (tmp_path / "raw_videos").mkdir()
    for name in names:
        os.link(film, tmp_path / "raw_videos" / f"{name}.mp4")
    folder = write_table(tmp_path, "ms3", ["video_id,split", *(f"{name},train" for name in names)])
    _, jobs = avsbench.list_jobs(tmp_path, "ms3")
    process = start(tmp_path, "--workers=2")
    until(lambda: len(list(folder.rglob("*.wav"))) >= 3 or process.poll() is not None, "the first clips")
    pids = children(process.pid)
    process.send_signal(how)
    out, err = process.communicate(timeout=60)
    assert process.returncode == (-how if how == signal.SIGKILL else 130), err
    until(lambda: not any(map(alive, pids)), "the end of the workers")
    for task in jobs:
        assert all(clips.is_whole(path, task) for path in task.files if path.exists())
    done = sum(all(path.exists() for path in task.files) for task in jobs)
    assert 0 < done < len(names)
    if how != signal.SIGKILL:
        report = json.loads((folder / "prepare_ms3.json").read_text())
        assert "interrupted; the same command goes on" in out and "Traceback" not in err
        assert report["interrupted"] and report["prepared"] + report["not_reached"] == len(names)
    assert avsbench.main([f"--root={tmp_path}", "--setting=ms3", "--workers=0"]) == 0
    report = json.loads((folder / "prepare_ms3.json").read_text())
    assert report["already_there"] == done and report["prepared"] == len(names) - done
    assert not list(folder.rglob("*.part"))
    first = [path.read_bytes() for path in jobs[0].files]
    assert all([path.read_bytes() for path in task.files] == first for task in jobs)


def test_the_work_needs_no_jax(tmp_path, film):
    write_table(tmp_path, "ms3", ["video_id,split", "a,train"])
    (tmp_path / "raw_videos").mkdir()
    shutil.copy(film, tmp_path / "raw_videos/a.mp4")
    code = ("import sys; from avs_jax.prepare import main; status = main(sys.argv[1:]); "
            "sys.exit(status or ('jax' in sys.modules) + 2 * ('librosa' in sys.modules))")  # fmt: skip
    argv = [sys.executable, "-c", code, "avsbench", f"--root={tmp_path}", "--setting=ms3", "--workers=0"]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# --- the tree in use ---


def test_a_prepared_tree_is_sound_and_trains(tmp_path, film):
    from recipes.small import get_config

    from avs_jax.train import train

    names = [f"{split},{i}".replace(",", "") for split in ("train", "val", "test") for i in range(2)]
    (tmp_path / "raw_videos").mkdir()
    for name in names:
        shutil.copy(film, tmp_path / "raw_videos" / f"{name}.mp4")
    folder = write_table(tmp_path, "ms3", ["video_id,split", *(f"{name},{name[:-1]}" for name in names)])
    assert avsbench.main([f"--root={tmp_path}", "--setting=ms3", "--workers=0"]) == 0
    for split in ("train", "val", "test"):
        source = AVSBenchSource(tmp_path, "ms3", split)
        for name in source.ids:
            for k in range(1, 6):
                frame = read_png(folder / f"ms3_data/visual_frames/{name}/{name}.mp4_{k}.png")
                save(folder / f"ms3_data/gt_masks/{split}/{name}/{name}_{k}.png",
                     np.where(frame.mean(-1) > 140, np.uint8(255), np.uint8(0)))  # fmt: skip
        assert checking.check(source) == []
        assert 0.05 < source[0]["labels"].mean() < 0.5
    config = get_config("steps=3")
    config.data = {"source": "avsbench", "setting": "ms3", "root": str(tmp_path), "image_size": 56, "resize": True,
                   "train": {"split": "train"}, "eval": {"split": "val"}, "test": {"split": "test"}}  # fmt: skip
    config.eval.every_steps, config.checkpoint.every_steps, config.log.every_steps = 0, 3, 1
    result = train(config, tmp_path / "run")
    assert result.figures["miou"] > 0
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert max(row["step"] for row in rows) == 3


def read_png(path):
    from PIL import Image

    return np.asarray(Image.open(path))


@pytest.mark.skipif(not DEMO.is_dir(), reason=f"the demonstration videos are not in {DEMO}")
def test_real_videos_as_the_public_preprocessing(tmp_path):
    videos = sorted(DEMO.glob("*.mp4"))
    assert len(videos) == 6
    with np.load(GOLDEN / "avsbench_public.npz") as golden:
        for video in videos:
            task = job(tmp_path / video.stem, video)
            assert clips.prepare_clip(task) == clips.Outcome("prepared")
            frames = np.stack([read_png(path)[28::56, 28::56] for path in task.frames])
            # equal, with the FFmpeg of the pinned PyAV; another may decode to the neighbouring value
            np.testing.assert_allclose(frames.astype(int), golden[f"{video.stem}_frames"], atol=1)
            wave, _ = soundfile.read(task.wav, dtype="int16")
            assert len(wave) == golden[f"{video.stem}_samples"]
            np.testing.assert_allclose(wave[:72000:450].astype(int), golden[f"{video.stem}_wav"], atol=1)
