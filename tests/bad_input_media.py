"""Videos, pictures and sounds that cannot be predicted on."""

from pathlib import Path

import av
import numpy as np
import soundfile
from bad_input import Row, all_of, at, cut, image, locked, put
from media_files import tone, write_video

CLIP = "predict --workdir=run --output=out --input="
PICTURE = f"{CLIP}x.png --audio=s.wav"
NAN = np.full((8000, 1), np.nan, np.float32)


def video(**options):
    return lambda path: write_video(path, **{"size": (32, 48), **options})


def wave(samples, rate: int = 16000, **options):
    return lambda path: soundfile.write(path, samples, rate, **options)


def sound_only(path: Path):
    """An mp4 with a sound track alone."""
    with av.open(str(path), "w") as file:
        track = file.add_stream("aac", rate=16000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        file.mux(track.encode(frame))
        file.mux(track.encode())


def of_clip(change):
    """x.mp4, a copy of the clip that works, changed."""

    def make(here: Path):
        path = here / "x.mp4"
        path.write_bytes((here / "clip.mp4").read_bytes())
        change(path)

    return make


def overwritten(begin: float, end: float):
    def change(path: Path):
        data = bytearray(path.read_bytes())
        first, last = int(begin * len(data)), int(end * len(data))
        data[first:last] = bytes(last - first)
        path.write_bytes(bytes(data))

    return change


def frames(*sizes, sound: bool = True):
    """The folder `frames`, with pictures of these sizes and a sound."""

    def make(here: Path):
        (here / "frames").mkdir()
        for k, size in enumerate(sizes):
            image(size=size)(here / f"frames/{k}.png")
        if sound:
            wave(tone(1, 16000))(here / "frames/a.wav")

    return make


S = at("s.wav", wave(tone(1, 16000)))
X = at("x.png", image())
VIDEOS = {
    "missing": (CLIP + "nowhere.mp4", at("y", put("")), "nowhere.mp4; no such file"),
    "a URL": (CLIP + "http://example.com/a.mp4", at("y", put("")), "http://; a local path"),
    "empty": (CLIP + "x.mp4", at("x.mp4", put(b"")), "x.mp4; an empty file"),
    "text": (CLIP + "x.mp4", at("x.mp4", put("text")), "x.mp4; text"),
    "a web page": (CLIP + "x.mp4", at("x.mp4", put("<!DOCTYPE html><html>" * 50)), "x.mp4; text"),
    "zeros": (CLIP + "x.mp4", at("x.mp4", put(bytes(3000))), "x.mp4"),
    "cut in its header": (CLIP + "x.mp4", of_clip(cut(0.1)), "x.mp4"),
    "cut short": (CLIP + "x.mp4", of_clip(cut(0.95)), "x.mp4"),
    "its index overwritten": (CLIP + "x.mp4", of_clip(overwritten(0.6, 1)), "x.mp4"),
    "without sound": (CLIP + "x.mp4", at("x.mp4", video()), "x.mp4; an audio track; none; sound"),
    "without pictures": (CLIP + "x.mp4", at("x.mp4", sound_only), "x.mp4; a video stream; audio only"),
    "a sound file": (CLIP + "s.wav", S, "s.wav; a video stream"),
    "a picture by name a video": (CLIP + "x.mp4", all_of(X, lambda here: (here / "x.png").rename(here / "x.mp4")),
                                  "x.mp4"),
    "an empty folder by name a video": (CLIP + "x.mp4", lambda here: (here / "x.mp4").mkdir(), "x.mp4; images"),
    "not to be read": (CLIP + "x.mp4", of_clip(locked), "x.mp4; Permission denied"),
    "with a frame rate": (CLIP + "clip.mp4 --fps=3", at("y", put("")), "--fps; a folder of frames; --rate"),
    "with a sound that is missing": (CLIP + "clip.mp4 --audio=no.wav", at("y", put("")), "no.wav; no such file"),
    "with a sound that is text": (CLIP + "clip.mp4 --audio=recipe.py", at("y", put("")), "recipe.py; text"),
    "with a sound that is a folder": (CLIP + "clip.mp4 --audio=run", at("y", put("")), "run; a folder"),
    "with a sound that is a video without one": (CLIP + "clip.mp4 --audio=x.mp4", at("x.mp4", video()),
                                                 "x.mp4; an audio track"),
    "the id of no clip": (CLIP + "multi-test-00009", at("y", put("")), "Did you mean 'multi-test-0000"),
}  # fmt: skip
PICTURES = {
    "without a sound": (CLIP + "x.png", X, "--audio; a sound file; x.png"),
    "of two bytes": (PICTURE, all_of(S, at("x.png", put("no"))), "x.png; 2 bytes"),
    "empty": (PICTURE, all_of(S, at("x.png", put(""))), "x.png; an empty file"),
    "cut short": (PICTURE, all_of(S, X, at("x.png", cut(0.6))), "x.png"),
    "several masks a second": (f"{PICTURE} --rate=2", all_of(S, X), "--rate; x.png"),
    "with a frame rate": (f"{PICTURE} --fps=2", all_of(S, X), "--fps; a folder of frames"),
    "its sound empty": (PICTURE, all_of(X, at("s.wav", wave(np.zeros((0, 1))))), "s.wav; an empty audio track"),
    "its sound NaN": (PICTURE, all_of(X, at("s.wav", wave(NAN, subtype="FLOAT"))), "s.wav; finite; NaN"),
    "its sound of no bytes": (PICTURE, all_of(X, at("s.wav", put(""))), "s.wav; an empty file"),
    "its sound cut in its header": (PICTURE, all_of(X, S, at("s.wav", lambda p: p.write_bytes(p.read_bytes()[:20]))),
                                    "s.wav"),
    "its sound at 0 Hz": (PICTURE, all_of(X, S, at("s.wav", lambda p: p.write_bytes(
        p.read_bytes()[:24] + bytes(4) + p.read_bytes()[28:]))), "s.wav"),
    "its sound of no channels": (PICTURE, all_of(X, S, at("s.wav", lambda p: p.write_bytes(
        p.read_bytes()[:22] + bytes(2) + p.read_bytes()[24:]))), "s.wav"),
}  # fmt: skip
FOLDERS = {
    "empty": (lambda here: (here / "frames").mkdir(), "frames; images"),
    "without pictures": (frames(), "frames; images; 1 file"),
    "without sound": (frames((32, 32), sound=False), "frames; one sound file; none; --audio"),
    "two sounds": (all_of(frames((32, 32)), at("frames/b.wav", wave(tone(1, 16000)))), "a.wav, b.wav; --audio"),
    "two sizes": (frames((32, 32), (40, 32)), "1.png; 32x32; 40x32"),
    "a broken picture": (all_of(frames((32, 32)), at("frames/0.png", cut(0.5))), "0.png"),
    "a broken sound": (all_of(frames((32, 32)), at("frames/a.wav", put("no sound"))), "a.wav; text"),
}


def rows():
    for name, (line, make, told) in VIDEOS.items():
        yield Row(f"video: {name}", told, line, make)
    for name, (line, make, told) in PICTURES.items():
        yield Row(f"picture: {name}", told, line, make)
    for name, (make, told) in FOLDERS.items():
        yield Row(f"frames: {name}", told, f"{CLIP}frames", make)
    yield Row("frames: no frame rate", "--fps; positive; 0.0", f"{CLIP}frames --fps=0", frames((32, 32)))


ROWS = list(rows())
