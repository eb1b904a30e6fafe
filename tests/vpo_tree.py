"""Writes tiny COCO and VGGSound folders for tests, with all that real ones have in them."""

import json
from pathlib import Path

import numpy as np
import soundfile
from PIL import Image
from pycocotools import mask as coco_mask

from avs_jax.data.prepare.vpo_classes import classes

RATE = 16000
CATEGORIES = {entry.id: entry.name for entry in classes(fold_person=True)} | {62: "chair"}
LABELS = {entry.name: entry.sounds[0] for entry in classes()}
CAPTIONS = {"male": "A man near a wall.", "female": "A woman near a wall.", "baby": "A baby girl near a wall."}


def annotation(number: int, image: int, category: int, box, size, kind: str = "polygon", crowd: int = 0) -> dict:
    """A COCO annotation of a box (left, top, right, bottom), written as a polygon, run lengths or compressed ones."""
    left, top, right, bottom = box
    height, width = size
    mask = np.zeros(size, np.uint8)
    mask[top:bottom, left:right] = 1
    if kind == "polygon":
        shape = [[left, top, right, top, right, bottom, left, bottom]]
        mask = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(shape, height, width)))
    elif kind == "compressed":
        shape = {"size": [height, width], "counts": coco_mask.encode(np.asfortranarray(mask))["counts"].decode()}
    else:
        flat = mask.T.ravel()
        edges = np.flatnonzero(np.diff(flat)) + 1
        counts = np.diff([0, *edges, flat.size]).tolist()
        shape = {"size": [height, width], "counts": counts if flat[0] == 0 else [0, *counts]}
    return {"id": number, "image_id": image, "category_id": category, "iscrowd": crowd, "area": float(mask.sum()),
            "bbox": [left, top, right - left, bottom - top], "segmentation": shape}  # fmt: skip


def draw_coco(seed: int, images: int = 16, first: int = 1):
    """One split's instances, captions and pictures: up to six objects of 1 to 5 categories in each, now and then
    several of one, a crowd, a grey picture; persons have captions."""
    rng = np.random.default_rng(seed)
    chosen = [5, 3, 18, 17, 1, 16]  # airplane and car together are what a naive relabelling mixes up
    data = {"images": [], "annotations": [], "categories": [{"id": k, "name": v} for k, v in CATEGORIES.items()]}
    captions, pictures = [], {}
    for image in range(first, first + images):
        size = (int(rng.integers(40, 64)), int(rng.integers(48, 80)))
        name = f"{image:012d}.jpg"
        grey = rng.random() < 0.2
        pictures[name] = rng.integers(0, 255, size if grey else (*size, 3)).astype(np.uint8)
        data["images"].append({"id": image, "file_name": name, "height": size[0], "width": size[1]})
        for category in rng.choice([*chosen, 62], rng.integers(1, 6), replace=False):
            for _ in range(1 if rng.random() < 0.8 else 2):
                left, top = int(rng.integers(0, size[1] - 12)), int(rng.integers(0, size[0] - 12))
                box = (left, top, left + int(rng.integers(4, 12)), top + int(rng.integers(4, 12)))
                kind = rng.choice(["polygon", "runs", "compressed"])
                crowd = int(kind != "polygon" and rng.random() < 0.1)
                number = first * 100 + len(data["annotations"])
                data["annotations"].append(annotation(number, image, int(category), box, size, kind, crowd))
        text = CAPTIONS[rng.choice(list(CAPTIONS))]
        captions += [{"id": 5 * image + k, "image_id": image, "caption": text} for k in range(5)]
    return data, {"annotations": captions}, pictures


def write_coco(root: Path, seed: int = 0, images: int = 16, shuffle: int | None = None) -> Path:
    """Writes COCO's tree; shuffle: seed of another order of everything in the files."""
    for k, split in enumerate(("train", "val")):
        data, captions, pictures = draw_coco(2 * seed + k, images if split == "train" else images // 2, 1 + 1000 * k)
        if shuffle is not None:
            rng = np.random.default_rng(shuffle)
            for rows in (data["images"], data["annotations"], captions["annotations"]):
                rng.shuffle(rows)
        write_split(root, split, data, captions, pictures)
    return root


def write_split(root: Path, split: str, data: dict, captions: dict, pictures: dict) -> None:
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    (root / f"{split}2017").mkdir(exist_ok=True)
    (root / "annotations" / f"instances_{split}2017.json").write_text(json.dumps(data))
    (root / "annotations" / f"captions_{split}2017.json").write_text(json.dumps(captions))
    for name, pixels in pictures.items():
        Image.fromarray(pixels).save(root / f"{split}2017" / name, quality=90)


def write_vggsound(root: Path, per_class: int = 3, names=("airplane", "car", "dog", "cat", "male", "female", "baby",
                                                         "elephant"), folder: str = "audio") -> Path:  # fmt: skip
    """Writes VGGSound's table and short tones, some as flac and ogg; class `bird` has no sounds."""
    (root / folder).mkdir(parents=True, exist_ok=True)
    lines = []
    for k, name in enumerate(names):
        for split in ("train", "test"):
            for i in range(per_class):
                stem = f"{name[:4]}-{split}{i}"
                tone = 0.2 * np.sin(2 * np.pi * (200 + 40 * k + i) * np.arange(RATE * (1 + i)) / RATE)
                suffix = ("wav", "flac", "ogg")[i % 3]
                soundfile.write(root / folder / f"{stem}_{i:06d}.{suffix}", tone, RATE)
                lines.append(f'{stem},{i},"{LABELS[name]}",{split}')
    lines.append("nobody,30,playing violin,train")
    (root / "vggsound.csv").write_text("\n".join(lines) + "\n")
    return root


def contents(root: Path) -> dict[str, bytes]:
    """Relative path -> content of every file."""
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def write_single_plus(root: Path, others: Path) -> Path:
    """Writes AVSBench-Single+ with frames of several sizes, and the sounds that AVS-M replaces its own with."""
    rng = np.random.default_rng(0)
    names = ("cat_meowing", "dog_barking", "typing_on_computer_keyboard")
    numbers = {"cat_meowing": 4, "dog_barking": 7, "typing_on_computer_keyboard": 23}
    lines = ["index,name,category,split,vgg_file"]
    for folder in ("frames", "labels", "salient_labels", "audios"):
        (root / folder).mkdir(parents=True)
    others.mkdir(parents=True)
    for split, count in (("train", 4), ("val", 2), ("test", 3)):
        for i in range(count):
            name, category = f"{split}-clip_{i}", names[i % 3]
            size = (30 + 4 * i, 50 - 2 * i)
            labels = np.zeros(size, np.uint8)
            labels[5:15, 6 + i : 20] = 1
            Image.fromarray(rng.integers(0, 255, (*size, 3)).astype(np.uint8)).save(root / f"frames/{name}.png")
            Image.fromarray(labels * numbers[category]).save(root / f"labels/{name}.png")
            Image.fromarray(labels * 255).save(root / f"salient_labels/{name}.png")
            tone = np.sin(2 * np.pi * (300 + 10 * i) * np.arange(RATE) / RATE)
            soundfile.write(root / f"audios/{name}.wav", 0.2 * tone, RATE)
            soundfile.write(others / f"other{split}{i}.wav", 0.4 * tone[::-1], RATE)
            lines.append(f'{i},{name},"{category},background",{split},other{split}{i}')
    (root / "single_plus.csv").write_text("\n".join(lines) + "\n")
    return root
