"""One row for each way a data set or weights file can be wrong: break a valid one, expect one telling error."""

import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
from avsbench_tree import save, write_tree
from PIL import Image
from safetensors.numpy import save_file
from torch_writer import T, legacy_bytes, pickle_bytes, zip_bytes

from avs_jax import config as configs
from avs_jax.data.sources import create_source
from avs_jax.data.sources.avsbench import AVSBenchSource
from avs_jax.errors import InputError
from avs_jax.weights.files import read_state_dict

SIZE = 32
S4, MS3 = "Single-source", "Multi-sources"
S4_TABLE, MS3_TABLE = f"{S4}/s4_meta_data.csv", f"{MS3}/ms3_meta_data.csv"
# The clip that the rows below break: the second of the validation split (in training: the first).
S4_ID, MS3_ID = "valclip_1_10000", "valclip_1"
S4_FRAMES = f"{S4}/s4_data/visual_frames/val/playing_violin/{S4_ID}"
S4_MASKS = f"{S4}/s4_data/gt_masks/val/playing_violin/{S4_ID}"
S4_WAV = f"{S4}/s4_data/audio_wav/val/playing_violin/{S4_ID}.wav"
S4_TRAIN_MASKS = f"{S4}/s4_data/gt_masks/train/dog_barking/trainclip_0_10000"
MS3_FRAMES = f"{MS3}/ms3_data/visual_frames/{MS3_ID}"
MS3_MASKS = f"{MS3}/ms3_data/gt_masks/val/{MS3_ID}"
MS3_PICKLE = f"{MS3}/ms3_data/audio_log_mel/val/{MS3_ID}.pkl"


@pytest.fixture(scope="module")
def trees(tmp_path_factory):
    root = tmp_path_factory.mktemp("valid")
    clips = {"train": 1, "val": 2, "test": 1}
    write_tree(root, "s4", SIZE, "wav", clips)
    return write_tree(root, "ms3", SIZE, "log_mel", clips)


# --- ways to break a file: each returns a function of its path ---


def delete(path: Path):
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def cut(share: float):
    return lambda path: path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])


def put(data: bytes):
    return lambda path: path.write_bytes(data)


def text(old: str, new: str):
    def change(path):
        before = path.read_text()
        assert old in before
        path.write_text(before.replace(old, new))

    return change


def pixels(shape: tuple, dtype=np.uint8):
    return lambda path: save(path, np.zeros(shape, dtype))


def wave(samples: np.ndarray, subtype: str = "FLOAT"):
    return lambda path: soundfile.write(path, samples, 16000, subtype=subtype)


def tensor(values: np.ndarray):
    return put(pickle_bytes(T(values)))


def rename(old: str, new: str):
    return lambda folder: (folder / old).rename(folder / new)


def to_folder(path: Path):
    path.unlink()
    path.mkdir()


def flip_colours(path: Path):
    Image.open(path).convert("RGB").save(path, "JPEG")


class Evil:
    def __reduce__(self):
        return os.system, ("touch executed",)


LOG_MEL = np.zeros((5, 1, 96, 64), np.float32)
HOLED = LOG_MEL.copy()
HOLED[2, 0, 7, 7] = np.nan
NAN_WAVE = np.zeros(16000, np.float32)
NAN_WAVE[5] = np.nan

# name: (setting, file to break, how, words of the error). The file itself must be named too.
CONSTRUCTION = {
    "table missing": ("s4", S4_TABLE, delete, "Single-source/s4_meta_data.csv or s4_meta_data.csv in it"),
    "table empty": ("s4", S4_TABLE, put(b""), "columns name, start, category, split; an empty file"),
    "table is a header": ("ms3", MS3_TABLE, put(b"video_id,split\n"), "clips of split 'val'; no clips at all"),
    "table header missing": ("ms3", MS3_TABLE, text("video_id,split\n", ""), "columns video_id, split; trainclip_0"),
    "table of MS3 for S4": ("s4", S4_TABLE, put(b"video_id,split\na,val\n"), "columns name, start; video_id, split"),
    "columns swapped": ("ms3", MS3_TABLE, text("video_id,split", "split,video_id"), "in this order; They are swapped"),
    "column misspelt": ("s4", S4_TABLE, text("category", "categories"), "category, split; categories, split"),
    "values swapped": ("ms3", MS3_TABLE, text("valclip_1,val", "val,valclip_1"), "line 4; 'video_id' and 'split'"),
    "S4 values swapped": ("s4", S4_TABLE, text("1,playing_violin", "playing_violin,1"), "seconds; 'playing_violin'"),
    "split of another name": ("s4", S4_TABLE, text(",val", ",validation"), "train, val or test; 'validation'"),
    "split empty": ("ms3", MS3_TABLE, text(",val\n", ",test\n"), "clips of split 'val'; 1 of 'train', 3 of 'test'"),
    "id twice": ("ms3", MS3_TABLE, text("valclip_1,", "valclip_0,"), "line 4; once; 'valclip_0' again; in line 3"),
    "id missing": ("ms3", MS3_TABLE, text("valclip_1,", ","), "line 4; a plain name in column 'video_id'; ''"),
    "id climbs out": ("ms3", MS3_TABLE, text("valclip_1,", "../valclip_1,"), "a plain name; '../valclip_1'"),
    "id is dots": ("ms3", MS3_TABLE, text("valclip_1,", "..,"), "a plain name; '..'"),
    "id is absolute": ("s4", S4_TABLE, text("valclip_1_", "/etc/valclip_1_"), "a plain name; '/etc/valclip_1_10000'"),
    "category climbs out": ("s4", S4_TABLE, text("playing_violin", "..\\\\x"), "a plain name in column 'category'"),
    "value missing": ("s4", S4_TABLE, text("1,playing_violin,val", "1,playing_violin"), "4 values; found 3"),
    "value too many": ("ms3", MS3_TABLE, text("valclip_1,val", "valclip_1,val,3"), "line 4; 2 values; found 3"),
    "not UTF-8": ("ms3", MS3_TABLE, put(b"video_id,split\nclip\xff,val\n"), "line 2; UTF-8 text; byte 0xff"),
    "UTF-16": ("ms3", MS3_TABLE, put("video_id,split\na,val\n".encode("utf-16")), "UTF-8 text; byte 0xff"),
    "open quote": ("ms3", MS3_TABLE, put(b'video_id,split\n"a,val\n'), "comma-separated values; unexpected end"),
    "table is a spreadsheet": ("ms3", MS3_TABLE, put(b"PK\x03\x04\x14\x00\x06\x00"), "columns video_id, split; PK"),
    "folder missing": ("ms3", MS3, delete, "Multi-sources/ms3_meta_data.csv; Single-source/"),
}
ACCESS = {
    "S4 frames missing": ("s4", S4_FRAMES, delete, "a folder of 5 images; no such folder"),
    "S4 frame missing": ("s4", S4_FRAMES, rename(f"{S4_ID}_3.png", "x.jpg"), "5 images; 4 of them; _3.png missing"),
    "S4 frame too many": ("s4", f"{S4_FRAMES}/{S4_ID}_6.png", pixels((32, 32, 3)), "5 images; 6: ; _6.png too many"),
    "S4 mask missing": ("s4", S4_MASKS, rename(f"{S4_ID}_5.png", "x"), "5 images; 4 of them; _5.png missing"),
    "S4 training mask missing": ("s4", S4_TRAIN_MASKS, rename("trainclip_0_10000_1.png", "x"), "1 image,; 0 of them"),
    "MS3 frame without .mp4 in its name": ("ms3", MS3_FRAMES, rename(f"{MS3_ID}.mp4_1.png", f"{MS3_ID}_1.png"),
                                           f"5 images, {MS3_ID}.mp4_1.png to; 4 of them: {MS3_ID}.mp4_1.png missing"),
    "MS3 masks missing": ("ms3", MS3_MASKS, delete, "a folder of 5 images; no such folder"),
    "frame of another size": ("s4", f"{S4_FRAMES}/{S4_ID}_2.png", pixels((24, 32, 3)), "32 x 32 pixels; 24 x 32"),
    "mask of another size": ("ms3", f"{MS3_MASKS}/{MS3_ID}_4.png", pixels((64, 64)), "32 x 32 pixels; 64 x 64"),
    "frame cut short": ("s4", f"{S4_FRAMES}/{S4_ID}_1.png", cut(0.5), "a whole image; do not decode"),
    "frame cut in its header": ("s4", f"{S4_FRAMES}/{S4_ID}_1.png", put(b"\x89PNG\r\n\x1a\n\0\0"), "image; 10 bytes"),
    "mask cut short": ("ms3", f"{MS3_MASKS}/{MS3_ID}_1.png", cut(0.7), "a whole image; do not decode"),
    "frame empty": ("ms3", f"{MS3_FRAMES}/{MS3_ID}.mp4_2.png", put(b""), "a PNG or JPEG image; an empty file"),
    "frame is text": ("ms3", f"{MS3_FRAMES}/{MS3_ID}.mp4_2.png", put(b"hello"), "a PNG or JPEG image; 5 bytes"),
    "frame is a folder": ("ms3", f"{MS3_FRAMES}/{MS3_ID}.mp4_2.png", to_folder, "a PNG or JPEG image; a folder"),
    "frame of 16 bits": ("s4", f"{S4_FRAMES}/{S4_ID}_2.png", pixels((32, 32), np.uint16), "of mode; found mode"),
    "mask is a JPEG": ("ms3", f"{MS3_MASKS}/{MS3_ID}_4.png", flip_colours, "a PNG image; a JPEG"),
    "wav missing": ("s4", S4_WAV, delete, "a log-mel pickle, or the sound in; neither"),
    "wav of zero length": ("s4", S4_WAV, wave(np.zeros((0, 2), np.float32)), "at least one sample; zero samples"),
    "wav with NaN": ("s4", S4_WAV, wave(NAN_WAVE), "finite samples; 1 NaN"),
    "wav with infinity": ("s4", S4_WAV, wave(np.full((99, 2), np.inf, np.float32)), "finite samples; 198 NaN or inf"),
    "wav empty": ("s4", S4_WAV, put(b""), "a sound file; 0 bytes that do not decode"),
    "wav is text": ("s4", S4_WAV, put(b"not a sound at all"), "a sound file; 18 bytes that do not decode"),
    "pickle missing": ("ms3", MS3_PICKLE, delete, "a log-mel pickle, or the sound in; neither"),
    "pickle empty": ("ms3", MS3_PICKLE, put(b""), "a file of tensors; an empty file"),
    "pickle cut short": ("ms3", MS3_PICKLE, cut(0.9), "an undamaged pickle"),
    "pickle is text": ("ms3", MS3_PICKLE, put(b"[log mel]"), "a torch file or a pickle; begins with b'[log mel]'"),
    "pickle executes": ("ms3", MS3_PICKLE, put(pickle.dumps(Evil())), "posix.system; Nothing in it was executed"),
    "pickle of a list": ("ms3", MS3_PICKLE, put(pickle.dumps([1.0, 2.0])), "one tensor; a list"),
    "pickle of ten seconds": ("ms3", MS3_PICKLE, tensor(np.zeros((10, 1, 96, 64), np.float32)),
                              "shape (5, 1, 96, 64); float32 of shape (10, 1, 96, 64)"),
    "pickle of integers": ("ms3", MS3_PICKLE, tensor(LOG_MEL.astype(np.int32)), "a float tensor; int32"),
    "pickle with NaN": ("ms3", MS3_PICKLE, tensor(HOLED), "finite numbers; 1 NaN or infinite values"),
}  # fmt: skip


def broken(trees: Path, tmp_path: Path, name: str, how) -> Path:
    root = tmp_path / "avsbench_data"
    shutil.copytree(trees, root)
    how(root / name)
    return root


def assert_tells(error: InputError, where: str, words: str):
    assert where in str(error), f"{error} does not name {where}"
    for word in words.split("; "):
        assert word in str(error), f"'{word}' is not in: {error}"
    assert error.expected and error.found and "\n" not in str(error)


@pytest.mark.parametrize("name", CONSTRUCTION)
def test_bad_tables(trees, tmp_path, name):
    setting, file, how, words = CONSTRUCTION[name]
    root = broken(trees, tmp_path, file, how)
    with pytest.raises(InputError) as caught:
        AVSBenchSource(root, setting, "val", SIZE)
    assert_tells(caught.value, str(root) if how is delete else str(root / file), words)


@pytest.mark.parametrize("name", ACCESS)
def test_bad_clips(trees, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    setting, file, how, words = ACCESS[name]
    root = broken(trees, tmp_path, file, how)
    split = "train" if "/train/" in file else "val"
    source = AVSBenchSource(root, setting, split, SIZE)
    bad = len(source) - 1
    with pytest.raises(InputError) as caught:
        source[bad]
    assert_tells(caught.value, str(root / file).removesuffix(f"/{S4_ID}_6.png"), words)
    problems = source.problems(bad)  # the check finds the same, and nothing else
    assert [str(problem) for problem in problems] == [str(caught.value)]
    if split == "val":
        assert source.problems(0) == [] and source[0]["id"] == source.ids[0]
    assert not (tmp_path / "executed").exists()


ONE = {"a": T(np.arange(64, dtype=np.float32))}
WEIGHTS = {
    "pth missing": ("x.pth", None, "a file of tensors; no such file"),
    "pth empty": ("x.pth", b"", "a file of tensors; an empty file"),
    "pth cut short": ("x.pth", zip_bytes(ONE)[:-99], "an undamaged torch archive"),
    "legacy pth cut short": ("x.pth", legacy_bytes(ONE)[:-1], "256 bytes for a storage of 64 float32; 255 bytes"),
    "pth executes": ("x.pth.tar", zip_bytes({"a": Evil()}), "posix.system; Nothing in it was executed"),
    "pth without tensors": ("x.pth", zip_bytes({"epoch": 1}), "a state dict; a dict of epoch"),
    "pth is a web page": ("x.pth", b"<html>404</html>", "a torch file; a web page"),
    "pth is a Git LFS pointer": ("x.pth", b"version https://git-lfs.github.com/spec/v1", "a Git LFS pointer"),
    "safetensors missing": ("x.safetensors", None, "a file of tensors; no such file"),
    "safetensors empty": ("x.safetensors", b"", "an undamaged safetensors file"),
    "safetensors cut short": ("x.safetensors", "cut", "an undamaged safetensors file; incomplete metadata"),
    "safetensors claims too much": ("x.safetensors", (1 << 60).to_bytes(8, "little") + b"{}", "undamaged safetensors"),
    "safetensors is text": ("x.safetensors", b"hello world, this is text", "an undamaged safetensors file"),
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_bad_weights(tmp_path, name):
    file, data, words = WEIGHTS[name]
    path = tmp_path / file
    if data == "cut":
        save_file({"a": np.ones(9, np.float32)}, path)
        data = path.read_bytes()[:-2]
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(InputError) as caught:
        read_state_dict(path)
    assert_tells(caught.value, str(path), words)


OPTIONS = {
    "unknown source": ({"source": "avsbensh"}, "data.source", "'avsbensh'; Did you mean 'avsbench'?"),
    "unknown option": ({"rot": "/x"}, "data.rot", "Did you mean 'root'?"),
    "unknown setting": ({"setting": "s5"}, "data.setting", "one of s4, ms3; 's5'; Did you mean 's4'?"),
    "unknown split": ({"split": "valid"}, "data.split", "train, val, test; 'valid'; Did you mean 'val'?"),
    "unknown sound": ({"sound": "mp3"}, "data.sound", "auto, log_mel, wav; 'mp3'"),
    "root not given": ({"root": ""}, "data.root", "the folder of AVSBench; nothing; Set data.root"),
    "unknown front end": ({"front_end": "vgish"}, "data.front_end", "'vgish'; Did you mean 'vggish'?"),
    "unknown resampler": ({"resampler": "kaiser"}, "data.resampler", "Did you mean 'kaiser_best'?"),
    "image size of zero": ({"image_size": 0}, "data.image_size", "a side in pixels; 0"),
    "image size of text": ({"image_size": "224"}, "data.image_size", "a side in pixels; '224'"),
    "image size of three": ({"image_size": (3, 32, 32)}, "data.image_size", "(height, width); (3, 32, 32)"),
    "root missing": ({"root": "nowhere/at/all"}, "nowhere/at/all", "the folder of AVSBench; no such folder; data.root"),
    "root is a file": ({"root": __file__}, __file__, "the folder of AVSBench; a file"),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_bad_options(trees, name):
    changed, where, words = OPTIONS[name]
    config = configs.defaults()
    config.data.update({"source": "avsbench", "root": str(trees), "image_size": SIZE})
    options = {**configs.split_options(config, "eval"), **changed}
    with pytest.raises(InputError) as caught:
        create_source(options.pop("source", "avsbench"), **options)
    assert_tells(caught.value, where, words)
