"""Writes tiny AVSBench-semantic trees, laid out as the real one, for tests."""

import json
from pathlib import Path

import numpy as np
import soundfile
from avsbench_tree import RATE, save

CLASSES = 71
CLIPS = {"train": ("v1s", "v1m", "v2"), "val": ("v1s", "v2"), "test": ("v1s", "v1m", "v2")}
FRAMES = {"v1s": 5, "v1m": 5, "v2": 10}


def colour(k: int) -> tuple[int, int, int]:
    """The colour of class k, bit by bit."""
    rgb, place = [0, 0, 0], 128
    while k:
        for channel in range(3):
            rgb[channel] += place * (k >> channel & 1)
        k, place = k >> 3, place // 2
    return tuple(rgb)


def write_avss_tree(root: Path, size: tuple[int, int] = (24, 40), clips: dict | None = None) -> Path:
    """Writes a tree to `root` and returns it.

    Args:
      size: (height, width) of the images.
      clips: split -> the label of each of its clips, whose uid is `<split>_<number>`.
    A clip has two bright squares, of two classes that `classes_in` tells, and a tone.
    """
    rows = ["vid,uid,s_min,s_sec,a_obj,split,label"]
    for split, labels in (clips or CLIPS).items():
        for i, label in enumerate(labels):
            uid = f"{split}_{i}"
            rows.append(f'x{i},{uid},0,{i},"one, two",{split},{label}')
            for k in range(FRAMES[label]):
                frame, classes = picture(size, uid, k)
                save(root / label / uid / "frames" / f"{k}.jpg", frame)
                if k < (1 if (split, label) == ("train", "v1s") else FRAMES[label]):
                    colours = np.array([colour(c) for c in range(CLASSES)], np.uint8)
                    save(root / label / uid / "labels_rgb" / f"{k}.png", colours[classes])
            wave = 0.3 * np.sin(2 * np.pi * (200 + 50 * len(rows)) * np.arange(FRAMES[label] * RATE) / RATE)
            soundfile.write(root / label / uid / "audio.wav", np.stack([wave, wave], 1), RATE)
    (root / "metadata.csv").write_text("\n".join(rows) + "\n")
    names = {"background": 0, **{f"thing {k}": k for k in range(1, CLASSES)}}
    (root / "label2idx.json").write_text(json.dumps(names))
    return root


def classes_in(uid: str) -> tuple[int, int]:
    return 1 + sum(map(ord, uid)) % 35, 36 + sum(map(ord, uid)) * 7 % 35


def picture(size: tuple[int, int], uid: str, k: int) -> tuple[np.ndarray, np.ndarray]:
    """A dark frame with a bright square on either side, and (H, W) the class of each pixel."""
    classes = np.zeros(size, np.int64)
    height, width = size
    first, second = classes_in(uid)
    top = height // 8 + k * height // 20
    classes[top : top + height // 3, width // 8 : width * 3 // 8] = first
    classes[top : top + height // 4, width * 5 // 8 : width * 7 // 8] = second
    frame = np.where(classes[..., None] > 0, 220, 30) + np.zeros(3)
    return frame.astype(np.uint8), classes
