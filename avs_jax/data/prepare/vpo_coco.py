"""COCO's annotations -> the pictures and objects that VPO may take."""

import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from avs_jax.data.images import MAX_PIXELS
from avs_jax.data.prepare import vpo_masks
from avs_jax.data.prepare.vpo_classes import BABY, FEMALE, MALE, PERSON, classes
from avs_jax.data.prepare.vpo_people import part_of_person
from avs_jax.data.prepare.vpo_rejections import Rejections
from avs_jax.data.sources.files import is_plain
from avs_jax.errors import InputError

COCO_SPLIT = {"train": "train", "test": "val"}  # VPO's splits are made of COCO's
_PARTS = (MALE, FEMALE, BABY)


class Instance(NamedTuple):
    """One object. id: COCO's of its annotation. area: pixels, as annotated. segmentation: see `vpo_masks.decode`."""

    id: int
    class_id: int
    area: float
    segmentation: object


class Picture(NamedTuple):
    """One picture with the objects that could sound.

    Attributes:
      present: how many of VPO's classes are in it, whether or not their objects can be used.
      objects: class id -> its instances; exactly one, but in MSMI.
    """

    id: int
    file_name: str
    size: tuple[int, int]
    present: int
    objects: dict[int, tuple[Instance, ...]]


@dataclasses.dataclass(frozen=True)
class Rules:
    """What an object must be like.

    Attributes:
      min_area: least share of the picture.
      several: allow several instances of a class (MSMI).
      fold_person: keep COCO's person whole, in place of male, female and baby.
      agreement: see `vpo_people.part_of_person`.
    """

    min_area: float = 0.001
    several: bool = False
    fold_person: bool = False
    agreement: float = 0.5


def find_json(root: Path, kind: str, split: str) -> Path | None:
    """The file `<kind>_<COCO's split>*.json` in `root` or `root/annotations`; None where there is none.

    Raises:
      InputError: several.
    """
    pattern = f"{kind}_{COCO_SPLIT[split]}*.json"
    for folder in (root / "annotations", root):
        found = sorted(folder.glob(pattern))
        if len(found) > 1:
            names = ", ".join(path.name for path in found)
            raise InputError(folder, expected=f"one {pattern}", found=names, hint="Move the others elsewhere.")
        if found:
            return found[0]
    return None


def image_folders(root: Path, split: str) -> tuple[Path, ...]:
    """Where pictures of a split may lie: COCO's own places first."""
    name = COCO_SPLIT[split]
    years = sorted(path.name for path in root.glob(f"{name}20*") if path.is_dir()) or [f"{name}2017"]
    within = sorted(path.name for path in (root / "images").glob(f"{name}20*")) or years
    places = [*(root / y for y in years), *(root / "images" / y for y in within)]
    return (*places, root / "images" / name, root / name, root / "images", root)


def read_json(path: Path, expected: str) -> object:
    """A JSON file.

    Raises:
      InputError: it is missing, not UTF-8 or no JSON.
    """
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        raise InputError(path, expected=expected, found="no such file") from None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(path, expected=expected, found=f"{error}"[:200]) from None


def _lists(path: Path, data: object, names: Sequence[str]) -> list[list]:
    """The lists of a COCO file, by name."""
    for name in names:
        if not isinstance(data, dict) or not isinstance(data.get(name), list):
            found = (
                f"keys {', '.join(map(str, list(data)[:8])) or 'none'}"
                if isinstance(data, dict)
                else type(data).__name__
            )
            raise InputError(path, expected=f"COCO's JSON with a list '{name}'", found=found)
    return [data[name] for name in names]


def read_captions(paths: Sequence[Path]) -> dict[int, list[str]]:
    """Image id -> its captions, sorted.

    Raises:
      InputError: a file is none of COCO's captions.
    """
    captions: dict[int, list[str]] = {}
    for path in paths:
        (rows,) = _lists(path, read_json(path, "COCO's captions"), ["annotations"])
        good = [row for row in rows if isinstance(row, dict) and isinstance(row.get("caption"), str)
                and _natural(row.get("image_id"))]  # fmt: skip
        if rows and not good:
            raise InputError(path, expected="annotations with a 'caption'", found=f"{rows[0]!r:.80}",
                             hint="captions_train2017.json, not instances_train2017.json, has them.")  # fmt: skip
        for row in good:
            captions.setdefault(row["image_id"], []).append(row["caption"])
    return {image: sorted(texts) for image, texts in captions.items()}


def read_pictures(path: Path, rules: Rules, captions: dict[int, list[str]], rejected: Rejections) -> list[Picture]:
    """The pictures of one annotation file with an object that could sound, in the order of their ids.

    Args:
      captions: of the pictures with persons; {} leaves all persons out, unless they are folded.
      rejected: what is not taken is counted here.
    Raises:
      InputError: the file is not COCO's instances, names categories otherwise, has a picture twice, or no sound entry.
    """
    lists = _lists(path, read_json(path, "COCO's instances"), ["images", "annotations", "categories"])
    _check_categories(path, lists[2])
    images = _images(path, lists[0], rejected)
    wanted = {entry.id for entry in classes(fold_person=True)}
    grouped = _grouped(path, lists[1], images, wanted, rejected)
    names = {entry.id: entry.name for entry in (*classes(True), *classes())}
    pictures = []
    for image_id in sorted(grouped):
        rows, (file_name, size) = grouped[image_id], images[image_id]
        if "malformed" in rows:
            rejected.add("picture with a malformed annotation", image_id)
            continue
        objects = {}
        for class_id, members in sorted(rows.items()):
            reason = _unusable(class_id, members, size, rules)
            if reason:
                rejected.add(reason, image_id, names[class_id])
                continue
            if class_id == PERSON and not rules.fold_person:
                part, reason = part_of_person(captions.get(image_id, ()), rules.agreement)
                if part is None:
                    rejected.add(reason, image_id, "person")
                    continue
                class_id = part
            instances = (Instance(row["id"], class_id, row["area"], row["segmentation"]) for row in members)
            objects[class_id] = tuple(instances)
        if objects:
            pictures.append(Picture(image_id, file_name, size, len(rows), objects))
    return pictures


def _check_categories(path: Path, rows: list) -> None:
    """Category numbers are what masks store, so they must mean what they mean in COCO."""
    names = {row.get("id"): row.get("name") for row in rows if isinstance(row, dict) and _natural(row.get("id"))}
    for entry in classes(fold_person=True):
        if names.get(entry.id, entry.name) != entry.name:
            found = f"{names[entry.id]!r:.40}"
            raise InputError(path, expected=f"category {entry.id} to be COCO's '{entry.name}'", found=found)
    if not {entry.id for entry in classes(fold_person=True)} & set(names):
        raise InputError(path, expected="COCO's categories", found=f"none of VPO's among {len(names)}")


def _images(path: Path, rows: list, rejected: Rejections) -> dict[int, tuple[str, tuple[int, int]]]:
    """Image id -> (file name, (height, width))."""
    images = {}
    for position, row in enumerate(rows):
        if not _is_image(row):
            rejected.add("malformed entry of a picture", f"{path.name}, images[{position}]", detail=f"{row!r:.80}")
            continue
        if row["id"] in images:
            raise InputError(path, expected="every picture once", found=f"id {row['id']} twice")
        images[row["id"]] = (row["file_name"], (row["height"], row["width"]))
    if not images:
        first = f"{rows[0]!r:.80}" if rows else "no pictures"
        raise InputError(path, expected="pictures with id, file_name, height and width", found=first)
    return images


def _is_image(row: object) -> bool:
    if not isinstance(row, dict) or not _natural(row.get("id")) or not isinstance(row.get("file_name"), str):
        return False
    sides = (row.get("height"), row.get("width"))
    if not all(_natural(n) and 0 < n <= vpo_masks.MAX_SIDE for n in sides) or sides[0] * sides[1] > MAX_PIXELS:
        return False
    return is_plain(row["file_name"]) and row["id"] < 10**12


def _natural(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _grouped(path: Path, rows: list, images: dict, wanted: set[int], rejected: Rejections) -> dict[int, dict]:
    """Image id -> category -> its annotations, in the order of their ids; key "malformed" where one names no class."""
    grouped: dict[int, dict] = {}
    seen: set[int] = set()
    for position, row in enumerate(rows):
        where = f"{path.name}, annotations[{position}]"
        if not isinstance(row, dict) or not _natural(row.get("image_id")):
            rejected.add("malformed annotation", where, detail=f"{row!r:.80}")
            continue
        if row["image_id"] not in images:
            rejected.add("annotation of a picture that is not listed", where, detail=f"image_id {row['image_id']}")
            continue
        category = row.get("category_id")
        if not _natural(category):
            rejected.add("malformed annotation", where, detail=f"category_id {category!r:.40}")
            grouped.setdefault(row["image_id"], {})["malformed"] = True
            continue
        if category not in wanted:
            continue
        if _natural(row.get("id")):
            if row["id"] in seen:
                raise InputError(path, expected="every annotation once", found=f"id {row['id']} twice")
            seen.add(row["id"])
        grouped.setdefault(row["image_id"], {}).setdefault(category, []).append(row)
    for found in grouped.values():
        for members in found.values():
            if isinstance(members, list):
                members.sort(
                    key=lambda row: (not _natural(row.get("id")), row.get("id") if _natural(row.get("id")) else 0)
                )
    return grouped


def _unusable(class_id: int, rows: list[dict], size: tuple[int, int], rules: Rules) -> str:
    """Why the objects of a class in a picture cannot be used; "" where they can."""
    if not all(_is_annotation(row) for row in rows):
        return "malformed annotation"
    if any(row["iscrowd"] for row in rows):
        return "crowd of the class"
    if len(rows) > 1 and (not rules.several or (class_id == PERSON and not rules.fold_person)):
        return "several instances of the class"
    if any(row["area"] < rules.min_area * size[0] * size[1] for row in rows):
        return "object too small"
    return ""


def _is_annotation(row: dict) -> bool:
    area, segmentation = row.get("area"), row.get("segmentation")
    return (
        _natural(row.get("id"))
        and row["id"] < 10**15
        and row.get("iscrowd") in (0, 1)
        and isinstance(area, (int, float))
        and abs(area) < 1e12
        and isinstance(segmentation, (list, dict))
        and bool(segmentation)
    )


def objects_of(picture: Picture) -> Iterator[Instance]:
    """Every object of a picture, by class id and annotation id."""
    for class_id in sorted(picture.objects):
        yield from picture.objects[class_id]
