"""Small valid files of every kind that the package reads; the mutators start from them."""

import argparse
import io
import json
from collections import Counter, OrderedDict
from fractions import Fraction
from pathlib import Path

import av
import avsbench_tree
import avss_tree
import ml_dtypes
import numpy as np
import soundfile
import torch_writer
import vpo_tree
from media_files import tone, write_sound, write_video
from PIL import Image
from safetensors.numpy import save
from torch_writer import T

from avs_jax import config as configs
from avs_jax.data import clip_bytes
from avs_jax.data.prepare import pack

GOLDEN = Path(__file__).parent / "golden"
_RNG = np.random.default_rng(0)


def pickles() -> dict[str, bytes]:
    """AVSBench's log-mels, by every protocol."""
    log_mel = _RNG.normal(size=(2, 1, 8, 4)).astype(np.float32)
    return {f"{k}.pkl": torch_writer.pickle_bytes(T(log_mel), protocol=k) for k in range(6)} | {
        "public.pkl": (GOLDEN / "vggish_logmel_sample.pkl").read_bytes()
    }


def _state() -> dict:
    base = T(np.arange(24, dtype=np.float32).reshape(4, 6))
    return OrderedDict(
        {
            "conv.weight": base,
            "conv.view": T(base.array[1:3, ::2], base),
            "norm.num_batches": T(np.int64(7)),
            "half": T(np.ones((3, 2), ml_dtypes.bfloat16)),
            "mask": T(np.array([True, False, True])),
            "position": T(np.arange(5, dtype=np.uint16)),
            "bias": T(np.zeros(4, np.float16), parameter=True),
        }
    )


def _checkpoint() -> dict:
    return {
        "epoch": 3,
        "best": np.float64(0.5),
        "args": argparse.Namespace(lr=0.1, names=["x"]),
        "seen": {1, 2},
        "state_dict": _state(),
        "milestones": Counter([5, 9]),
        "optimizer": {"state": {0: {"exp_avg": T(np.ones(2, np.float32))}}, "param_groups": [{"lr": 0.1}]},
    }


def archives() -> dict[str, bytes]:
    return {
        "a.pth": torch_writer.zip_bytes(_state()),
        "b.pth.tar": torch_writer.zip_bytes(_checkpoint(), root="c"),
        "c.pt": torch_writer.zip_bytes({"a": T(np.arange(6, dtype=np.int16))}, byteorder="big"),
        "d.pth": (GOLDEN / "torch" / "zip.pth").read_bytes(),
    }


def legacy() -> dict[str, bytes]:
    return {
        "a.pth": torch_writer.legacy_bytes(_state()),
        "b.pth": torch_writer.legacy_bytes(_checkpoint()),
        "c.pth": (GOLDEN / "torch" / "views_legacy.pth").read_bytes(),
        "d.pkl": torch_writer.pickle_bytes(dict(_state()), 2),
    }


def safetensors() -> dict[str, bytes]:
    arrays = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(3, ml_dtypes.bfloat16)}
    return {"a.safetensors": save(arrays), "b.bin": save({"x": np.arange(4)}, {"format": "pt"})}


def _image(mode: str, kind: str = "PNG", **options) -> bytes:
    pixels = _RNG.integers(0, 255, (24, 32, 3)).astype(np.uint8)
    pixels[4:12] = (128, 0, 0)
    image = Image.fromarray(pixels)
    if mode == "I;16":
        image = Image.fromarray(pixels[..., 0].astype(np.uint16) * 256)
    elif mode == "P":
        image = image.quantize(8)
    else:
        image = image.convert(mode)
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def pngs() -> dict[str, bytes]:
    found = {f"{k}.png": _image(mode) for k, mode in enumerate(("RGB", "L", "P", "RGBA", "LA", "1", "I;16"))}
    return found | {"t.png": _image("P", transparency=1, optimize=True), "b.png": _image("P", bits=4)}


def jpegs() -> dict[str, bytes]:
    return {
        "a.jpg": _image("RGB", "JPEG"),
        "b.jpg": _image("L", "JPEG"),
        "c.jpg": _image("RGB", "JPEG", progressive=True),
        "d.jpg": _image("CMYK", "JPEG"),
        "e.jpg": _image("RGB", "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\0"),
    }


def sounds(*endings: tuple[str, str, str]) -> dict[str, bytes]:
    """name -> a tenth of a second of two channels. endings: suffix, libsndfile's format and subtype."""
    found = {}
    for suffix, kind, subtype in endings:
        stream = io.BytesIO()
        soundfile.write(stream, tone(0.15, 16000, 2), 16000, subtype, format=kind)
        found[f"{subtype}.{suffix}"] = stream.getvalue()
    return found


WAVS = (
    ("wav", "WAV", "PCM_16"),
    ("wav", "WAV", "PCM_24"),
    ("wav", "WAV", "FLOAT"),
    ("wav", "WAV", "PCM_U8"),
    ("wav", "WAVEX", "DOUBLE"),
    ("wav", "WAV", "MS_ADPCM"),
    ("wav", "WAV", "ULAW"),
)
FLACS = (("flac", "FLAC", "PCM_16"), ("flac", "FLAC", "PCM_24"))
OGGS = (("ogg", "OGG", "VORBIS"), ("opus", "OGG", "OPUS"))
MP3S = (("mp3", "MP3", "MPEG_LAYER_III"),)


def videos(folder: Path) -> dict[str, bytes]:
    """mp4, mkv, mov and webm of H.264 with AAC, MPEG-4 in avi with MP3, VP9 with Opus, and MPEG-TS."""
    sound, options = tone(0.5, 16000), {"size": (32, 48), "seconds": 0.5, "rate": 16000}
    for name in ("a.mp4", "b.mkv", "c.mov", "d.ts"):
        write_video(folder / name, sound=sound, **options)
    write_video(folder / "e.mp4", rotation=90, **options)
    for name, codec, track in (("f.avi", "mpeg4", "mp3"), ("g.webm", "libvpx-vp9", "libopus")):
        rate = 48000 if track == "libopus" else 16000
        with av.open(str(folder / name), "w") as file:
            video = file.add_stream(codec, rate=10)
            video.width, video.height, video.pix_fmt = 48, 32, "yuv420p"
            audio = file.add_stream(track, rate=rate, layout="mono")
            for k in range(5):
                picture = av.VideoFrame.from_ndarray(np.full((32, 48, 3), 40 * k, np.uint8), format="rgb24")
                picture.pts, picture.time_base = k, Fraction(1, 10)
                file.mux(video.encode(picture))
            file.mux(video.encode())
            write_sound(file, audio, tone(0.5, rate), rate)
    with av.open(str(folder / "h.m4a"), "w", format="mp4") as file:
        write_sound(file, file.add_stream("aac", rate=16000, layout="stereo"), tone(0.5, 16000, 2), 16000)
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def tables() -> dict[str, dict[str, bytes]]:
    """kind -> {name: bytes}, for every table the package reads."""
    vpo = ["img_Id,ann_Ids,cateName,cateId,vgg_file,split,audio_pos,multi_instance"]
    for k in range(4):
        vpo.append(
            f"{k + 1}.0,{k + 9},{('airplane', 'car')[k % 2]},{(5, 3)[k % 2]},snd_{k:06d},"
            f"{('train', 'test')[k // 2]},0.5,{k % 2}"
        )
    single = [
        "index,name,category,split,vgg_file",
        '0,a,"cat_meowing,background",train,x',
        '1,b,"dog_barking,background",test,y',
    ]
    s4 = ["name,start,category,split", "a_0,0,dog_barking,train", "b_1,1.5,dog_barking,train", "c,2,cat,test"]
    ms3 = ["video_id,split", "a,train", "b,val", "c,test"]
    avss = ["vid,uid,s_min,s_sec,a_obj,split,label", 'x,a,0,0,"one, two",train,v1s', "y,b,0,1,one,train,v2"]
    sound = ['abcdefghijk,30,"playing violin",train', "bbcdefghijk,1,dog barking,test"]
    made = {"vpo": vpo, "single": single, "s4": s4, "ms3": ms3, "avss": avss, "vggsound": sound}
    return {kind: {f"{kind}.csv": ("\n".join(lines) + "\n").encode()} for kind, lines in made.items()}


def classes() -> dict[str, bytes]:
    names = {"background": 0, **{f"thing {k}": k for k in range(1, 8)}}
    return {"label2idx.json": json.dumps(names).encode()}


def coco() -> dict[str, bytes]:
    data, captions, _ = vpo_tree.draw_coco(3, images=3)
    return {"instances.json": json.dumps(data).encode(), "captions.json": json.dumps(captions).encode()}


def run_files() -> dict[str, bytes]:
    config = configs.defaults().to_dict()
    config["method"] = {"name": "tpavi", "backbone": "resnet50", "stages": [1, 2]}
    config["data"] |= {"source": "synthetic", "image_size": 32}
    return {"config.json": json.dumps(config, indent=2).encode()}


def records() -> dict[str, bytes]:
    """Of a packed data set, by every codec."""
    frames, labels = _RNG.integers(0, 255, (1, 6, 7, 3)).astype(np.uint8), np.zeros((1, 60, 70), np.uint8)
    labels[:, 9:] = 1
    fields = {"frames": frames, "labels": labels, "labelled": np.ones(1, bool), "size": np.array([6, 7], np.int32)}
    return {
        "seen.record": clip_bytes.encode("a", fields, across=("frames",)),
        "heard.record": clip_bytes.encode("b", {"audio": np.ones((1, 8, 4), np.float32)}),
    }


def trees(root: Path) -> None:
    """Tiny data sets, whole."""
    avsbench_tree.write_tree(root / "s4", "s4", 16, "both", {"train": 1, "val": 1, "test": 1})
    avss_tree.write_avss_tree(root / "avss", clips={"train": ("v1s",), "val": ("v2",), "test": ("v2",)})
    vpo_tree.write_single_plus(root / "single", root / "single" / "others")
    for plan in pack.make_plans(root / "packed", "avsbench", [{"root": root / "s4", "image_size": 16}]):
        pack.pack(plan, 0)
    for path in sorted(root.rglob("*.*")):  # what the clips for training do not need
        parts = path.relative_to(root).parts
        if path.is_file() and {"val", "test", "v2", "others"} & {*parts, path.name.split("-")[0]}:
            path.unlink()


def write_all(root: Path) -> Path:
    """Writes `root`/<kind>/<file> for every kind."""
    made = {
        "pickle": pickles(),
        "zip": archives(),
        "legacy": legacy(),
        "safetensors": safetensors(),
        "png": pngs(),
        "jpeg": jpegs(),
        "wav": sounds(*WAVS),
        "flac": sounds(*FLACS),
        "ogg": sounds(*OGGS),
        "mp3": sounds(*MP3S),
        **tables(),
        "classes": classes(),
        "coco": coco(),
        "run": run_files(),
        "record": records(),
    }
    (root / "films").mkdir(parents=True)
    trees(root / "clips")
    made["video"] = videos(root / "films")
    for kind, entries in made.items():
        (root / kind).mkdir(exist_ok=True)
        for name, data in entries.items():
            (root / kind / name).write_bytes(data)
    return root
