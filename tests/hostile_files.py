"""Files that were found to do harm, or that are known to: each with the kind of reader and words of the refusal."""

import io
import json
import pickle
import struct
import zipfile
import zlib
from pathlib import Path

import fuzzing_seeds
import numpy as np
import soundfile
import torch_writer as tw
from fuzzing_media import _chunk
from media_files import tone, write_video
from PIL import Image
from torch_writer import T

SIDES = struct.Struct(">II")


def _call(function: bytes, *args: bytes) -> bytes:
    """Opcodes of a call."""
    return b"c" + function + b"\n(" + b"".join(args) + b"tR"


def _tensor(shape: bytes, strides: bytes) -> bytes:
    """A pickle of a tensor of 10 numbers that says it has this shape."""
    storage = pickle.dumps(tw.legacy_bytes(T(np.arange(10, dtype=np.float32)).storage), 2)[2:-1]
    storage = _call(b"torch.storage\n_load_from_bytes", storage)
    return (
        b"\x80\x02"
        + _call(b"torch._utils\n_rebuild_tensor_v2", storage, b"K\x00", shape, strides, b"\x89", b"}")
        + b"."
    )


def _numbers(*values: int) -> bytes:
    return pickle.dumps(tuple(values), 2)[2:-1].replace(b"q\x00", b"")


LAUGHS = b"]" + b"2\x86" * 60  # a tuple of two of a tuple of two ...: 2**60 elements to whoever prints it
DEEP = b")" + b"\x85" * 100000
STORAGE = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\n"


def _archive(raw: bytes, **patch) -> bytes:
    """A torch archive with this pickle. patch: offset in the central directory's entries -> bytes."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as file:
        file.writestr("a/data.pkl", raw)
        file.writestr("a/data/0", bytes(40))
    data = bytearray(stream.getvalue())
    for field, value in patch.items():
        at = data.find(b"PK\x01\x02") + int(field[1:])
        data[at : at + len(value)] = value
    return bytes(data)


def _flagged(flags: bytes) -> bytes:
    """A torch archive whose numbers have these flags in the central directory: encrypted, or a patch."""
    data = bytearray(tw.zip_bytes({"a": T(np.ones(3, np.float32))}))
    at = data.rfind(b"archive/data/0") - 46
    data[at + 8 : at + 10] = flags
    return bytes(data)


def _bomb() -> bytes:
    """16 MB of zeros, compressed."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a/data.pkl", bytes(1 << 24))
    return stream.getvalue()


def _png(width: int, height: int, *more: tuple[bytes, bytes]) -> bytes:
    head = SIDES.pack(width, height) + b"\x08\x02\0\0\0"
    chunks = [(b"IHDR", head), *more, (b"IDAT", zlib.compress(bytes(3000))), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(*c) for c in chunks)


def _idat() -> bytes:
    """A picture whose pixels are there, in a chunk that says it has 4 GiB."""
    data = fuzzing_seeds.pngs()["0.png"]
    at = data.index(b"IDAT")
    return data[: at - 4] + struct.pack(">I", (1 << 32) - 1) + data[at:]


def _jpeg(width: int, height: int) -> bytes:
    data = fuzzing_seeds.jpegs()["a.jpg"]
    at = data.index(b"\xff\xc0") + 5
    return data[:at] + struct.pack(">HH", height, width) + data[at + 4 :]


def _narrow() -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (1, 60000)).save(stream, "PNG")
    return stream.getvalue()


def _wav(channels: int = 2, rate: int = 16000, frames: int = 4000) -> bytes:
    body = bytes(2 * frames * channels)
    head = struct.pack(
        "<4sIHHIIHH", b"fmt ", 16, 1, channels, rate, rate * channels * 2 & 0xFFFFFFFF, channels * 2 & 0xFFFF, 16
    )
    return b"RIFF" + struct.pack("<I", len(body) + 36) + b"WAVE" + head + b"data" + struct.pack("<I", 1 << 31) + body


def _flac() -> bytes:
    """Silence: 40 million samples in a few kilobytes."""
    stream = io.BytesIO()
    with soundfile.SoundFile(stream, "w", 192000, 8, "PCM_16", format="FLAC") as file:
        for _ in range(5):
            file.write(np.zeros((1 << 20, 8), np.int16))
    return stream.getvalue()


def _film(**options):
    """A video with sound, written where the row's file is to be."""
    return lambda path: write_video(path, size=(32, 48), seconds=0.5, sound=tone(0.5, 16000), rate=16000, **options)


def _beside(text: str):
    """A list of files to play, and beside it the video that it names."""

    def write(path: Path):
        _film()(path.with_name("secret.mp4"))
        path.write_text(text.format(folder=path.parent))

    return write


def _eps() -> bytes:
    return b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(x) run\nshowpage\n%%EOF\n"


def _table(kind: str, old: bytes, new: bytes):
    (data,) = fuzzing_seeds.tables()[kind].values()
    return lambda: data.replace(old, new)


def _coco(change):
    def make():
        tree = json.loads(fuzzing_seeds.coco()["instances.json"])
        change(tree)
        return json.dumps(tree).encode()

    return make


# name -> kind of reader, file, its bytes (or a function of no argument, or of a path), words of the refusal ("": read)
ROWS = {
    "argument copied": (
        "pickle",
        "x.pkl",
        b"\x80\x02X\x40\x42\x0f\x00" + b"x" * 1000000 + b"q\x00" + b"c_codecs\nencode\nh\x00h\x00\x86R" * 2000 + b".",
        "as large as the file",
    ),
    "dict copied": (
        "pickle",
        "x.pkl",
        b"\x80\x02}q\x00("
        + b"".join(b"M" + struct.pack("<H", k) + b"N" for k in range(60000))
        + b"u"
        + b"ccollections\nOrderedDict\nh\x00\x85R" * 5000
        + b".",
        "as large as the file",
    ),
    "file within repeated": (
        "pickle",
        "x.pkl",
        lambda: (
            b"\x80\x02"
            + pickle.dumps(tw.legacy_bytes(T(np.zeros(1 << 18)).storage), 2)[2:-1]
            + b"q\x00"
            + b"ctorch.storage\n_load_from_bytes\nh\x00\x85R" * 900
            + b"."
        ),
        "as large as the file",
    ),
    "laughs as a name": ("pickle", "x.pkl", b"\x80\x04" + LAUGHS + b"\x8c\x01x\x93.", "undamaged"),
    "laughs as sizes": ("pickle", "x.pkl", _tensor(LAUGHS, b"K\x01\x85"), "undamaged"),
    "laughs as a key": (
        "pickle",
        "x.pkl",
        b"\x80\x02" + _call(b"collections\nOrderedDict", b"]", LAUGHS, b"N\x86a") + b".",
        "a dict",
    ),
    "laughs as a storage": ("zip", "x.pth", _archive(b"\x80\x02(" + LAUGHS + b"K\x00K\x00K\x00K\x00tQ."), "undamaged"),
    "deep as a storage": ("zip", "x.pth", _archive(b"\x80\x02(" + DEEP + b"K\x00K\x00K\x00K\x00tQ."), "undamaged"),
    "deep as a count": (
        "zip",
        "x.pth",
        _archive(b"\x80\x02" + STORAGE + b"X\x01\x00\x00\x000X\x03\x00\x00\x00cpu" + DEEP + b"tQ."),
        "a tuple elements",
    ),
    "laughs as torch's protocol": (
        "legacy",
        "x.pth",
        b"".join(pickle.dumps(0x1950A86A20F9469CFC6C, 2) for _ in "x") + b"\x80\x02" + LAUGHS + b"." + b"\x80\x02}.",
        "protocol 1001",
    ),
    "sides beyond 64 bits": ("pickle", "x.pkl", _tensor(_numbers(10**5000), _numbers(1)), "no short list"),
    "no number of them": (
        "pickle",
        "x.pkl",
        _tensor(_numbers(0, 1 << 62, 1 << 62), _numbers(1, 1, 1)),
        "possible shape",
    ),
    "expanded": ("pickle", "x.pkl", _tensor(_numbers(1 << 40), _numbers(0)), "repeats its storage"),
    "archive with a password": ("zip", "x.pth", lambda: _flagged(b"\x01\x00"), "encrypted"),
    "archive with a patch": ("zip", "x.pth", lambda: _flagged(b"\x20\x00"), "patched"),
    "archive that unpacks": ("zip", "x.pth", _bomb, "stored uncompressed"),
    "member of 4 GiB": ("zip", "x.pth", _archive(b"\x80\x02}.", _20=b"\xfe\xff\xff\xff" * 2), "members that claim"),
    "safetensors of one long header": (
        "safetensors",
        "x.safetensors",
        ((1 << 62) + 1).to_bytes(8, "little") + b"{}",
        "undamaged safetensors",
    ),
    "safetensors that nests": (
        "safetensors",
        "x.safetensors",
        (200005).to_bytes(8, "little") + b'{"a":' + b"[" * 200000,
        "undamaged safetensors",
    ),
    "png of 4 billion squared": ("png", "x.png", _png((1 << 31) - 1, (1 << 31) - 1), "x.png"),
    "png of 30000 squared": ("png", "x.png", _png(30000, 30000), "x.png"),
    "png with 4 GiB of pixels": ("png", "x.png", _idat, ""),
    "png with a text that unpacks": (
        "png",
        "x.png",
        lambda: _png(32, 24, (b"zTXt", b"a\0\0" + zlib.compress(bytes(1 << 27)))),
        "x.png",
    ),
    "png one pixel wide": ("fitted", "x.png", _narrow, "to be cut to 64 x 64"),
    "jpeg of 65500 squared": ("jpeg", "x.jpg", _jpeg(65500, 65500), "x.jpg"),
    "PostScript called png": ("png", "x.png", _eps, "no such image"),
    "wav of 60000 channels": ("wav", "x.wav", _wav(channels=60000, frames=4), "x.wav"),
    "wav of 1000 channels": ("wav", "x.wav", _wav(channels=1000, frames=40), "at most 64 channels"),
    "wav of 1 Hz": ("wav", "x.wav", _wav(rate=1), "1000 to 768000 Hz"),
    "wav of 2 GHz": ("wav", "x.wav", _wav(rate=(1 << 31) - 1), "1000 to 768000 Hz"),
    "flac that unpacks": ("flac", "x.flac", _flac, "at most 33554432 samples"),
    "sound of another format": ("wav", "x.wav", b"FORM\0\0\0\x2eAIFF" + bytes(40), "it begins with b'FORM'"),
    "list of files, ffconcat": ("video", "x.mp4", _beside("ffconcat version 1.0\nfile secret.mp4\n"), "Playlists"),
    "list of files, m3u8": (
        "video",
        "x.mp4",
        _beside(
            "#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{folder}/secret.mp4\n#EXT-X-ENDLIST\n"
        ),
        "x.mp4",
    ),
    "list of files, m3u8 of addresses": (
        "video",
        "x.m3u8",
        _beside("#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nhttp://127.0.0.1:9/x.ts\n#EXT-X-ENDLIST\n"),
        "x.m3u8",
    ),
    "session to receive": (
        "video",
        "x.mp4",
        _beside("v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nm=video 9 RTP/AVP 96\n"),
        "x.mp4",
    ),
    "sound that begins in a month": ("probe", "x.mkv", _film(sound_at=2.6e6), "within an hour"),
    "frames years apart": ("probe", "x.mkv", _film(times=[0.0, 0.1, 3e8]), "at most an hour apart"),
    "number of 5000 digits": ("vpo", "x.csv", _table("vpo", b"1.0,", b"1" * 5000 + b","), "whole number"),
    "name too long for a file": ("s4", "x.csv", _table("s4", b"a_0", b"a" * 300), "plain name"),
    "name that leads elsewhere": ("ms3", "x.csv", _table("ms3", b"\na,", b"\n../../x,"), "plain name"),
    "field of a megabyte": ("s4", "x.csv", _table("s4", b"name,", b"n" * 100000 + b","), "in this order"),
    "config that nests": ("run", "config.json", b'{"a":' * 100000 + b"}" * 100000, "recursion"),
    "config that is a list": ("run", "config.json", b"[1]", "a list"),
    "classes that nest": ("classes", "label2idx.json", b"[" * 100000, "recursion"),
    "category of a list": (
        "instances",
        "instances.json",
        _coco(lambda t: [c.update(id=[1]) for c in t["categories"]]),
        "categories",
    ),
    "caption of a list": ("coco", "captions.json", b'{"annotations":[{"image_id":[1],"caption":"x"}]}', "a 'caption'"),
    "sides of a picture": (
        "instances",
        "instances.json",
        _coco(lambda t: [i.update(height=16000, width=16000) for i in t["images"]]),
        "pictures with id",
    ),
}


def write_all(folder: Path) -> None:
    """Writes the files and rows.json, the list of (name, kind, path below `folder`) for the child."""
    listed = []
    for number, (name, (kind, file, data, _)) in enumerate(ROWS.items()):
        path = folder / str(number) / file
        path.parent.mkdir()
        if callable(data):
            data = data(path) if data.__code__.co_argcount else data()
        if isinstance(data, bytes):
            path.write_bytes(data)
        listed.append((name, kind, f"{number}/{file}"))
    (folder / "rows.json").write_text(json.dumps(listed))
