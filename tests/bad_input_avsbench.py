"""Ways in which AVSBench's S4 and MS3 trees, their tables, pictures, sounds and options can be bad."""

import os
import pickle
from pathlib import Path

import numpy as np
import soundfile
from avsbench_tree import save, write_tree
from bad_input import Row, as_problems, at, cut, delete, folder, put, text
from PIL import Image
from torch_writer import T, pickle_bytes

from avs_jax import config as configs
from avs_jax.data.sources import create_source
from avs_jax.data.sources.avsbench import AVSBenchSource

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


def write(root: Path) -> None:
    """The world of these rows: both settings."""
    clips = {"train": 1, "val": 2, "test": 1}
    write_tree(root, "s4", SIZE, "wav", clips)
    write_tree(root, "ms3", SIZE, "log_mel", clips)


def pixels(shape: tuple, dtype=np.uint8):
    return lambda path: save(path, np.zeros(shape, dtype))


def wave(samples: np.ndarray, subtype: str = "FLOAT"):
    return lambda path: soundfile.write(path, samples, 16000, subtype=subtype)


def tensor(values: np.ndarray):
    return put(pickle_bytes(T(values)))


def rename(old: str, new: str):
    return lambda path: (path / old).rename(path / new)


def convert(mode: str, kind: str = "PNG"):
    return lambda path: Image.open(path).convert(mode).save(path, kind)


class Evil:
    def __reduce__(self):
        return os.system, ("touch executed",)


TOO_MANY = f"/{S4_ID}_6.png"  # told of its folder
LOG_MEL = np.zeros((5, 1, 96, 64), np.float32)
HOLED = LOG_MEL.copy()
HOLED[2, 0, 7, 7] = np.nan
NAN_WAVE = np.zeros(16000, np.float32)
NAN_WAVE[5] = np.nan

# name: (setting, file to break, how, words of the error)
TABLES = {
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
CLIPS = {
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
    "frame is a folder": ("ms3", f"{MS3_FRAMES}/{MS3_ID}.mp4_2.png", folder, "a PNG or JPEG image; a folder"),
    "frame of 16 bits": ("s4", f"{S4_FRAMES}/{S4_ID}_2.png", pixels((32, 32), np.uint16), "of mode; found mode"),
    "mask is a JPEG": ("ms3", f"{MS3_MASKS}/{MS3_ID}_4.png", convert("RGB", "JPEG"), "a PNG image; a JPEG"),
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


def construct(setting: str):
    return lambda here: AVSBenchSource(here, setting, "val", SIZE)


def read(setting: str, file: str):
    """The last clip of the split, which is the broken one; the one before it is whole."""

    def attempt(here: Path):
        split = "train" if "/train/" in file else "val"
        source = AVSBenchSource(here, setting, split, SIZE)
        if split == "val":
            assert source.problems(0) == [] and source[0]["id"] == source.ids[0]
        as_problems(source, len(source) - 1)

    return attempt


def create(changed: dict):
    def attempt(here: Path):
        config = configs.defaults()
        config.data.update({"source": "avsbench", "root": str(here), "image_size": SIZE})
        options = {**configs.split_options(config, "eval"), **changed}
        create_source(options.pop("source", "avsbench"), **options)

    return attempt


def rows():
    for name, (setting, file, how, words) in TABLES.items():
        where = "" if how is delete else file
        yield Row(f"S4 and MS3: {name}", f"{where}; {words}", construct(setting), at(file, how), "avsbench")
    for name, (setting, file, how, words) in CLIPS.items():
        told = f"{file.removesuffix(TOO_MANY)}; {words}"
        yield Row(f"S4 and MS3: {name}", told, read(setting, file), at(file, how), "avsbench")
    for name, (changed, where, words) in OPTIONS.items():
        yield Row(f"AVSBench's options: {name}", f"{where}; {words}", create(changed), world="avsbench")


ROWS = list(rows())
