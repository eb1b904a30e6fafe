"""A picture of pictures: some samples of each class with their masks, to be looked at before anything is trained."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from avs_jax.data.images import palette
from avs_jax.data.prepare.vpo_classes import classes, label_table

THUMB = (128, 96)  # width, height
COLUMNS = 6
_LABEL, _TEXT, _GAP = 120, 14, 4


class Entry(NamedTuple):
    """One sample on the sheet. picture, mask: paths; caption: what it is heard with."""

    class_name: str
    picture: Path
    mask: Path
    caption: str


def entries(options, jobs) -> list[Entry]:
    """Up to COLUMNS samples of each class, in the classes' order; `jobs`: (job, sounds) of every picture."""
    names = {entry.id: entry.name for entry in classes(options.fold_person)}
    found: dict[str, list[Entry]] = {name: [] for name in names.values()}
    for job, split, sounds in jobs:
        caption = f"{split}: " + " + ".join(sorted({sound.label for sound in sounds}))
        for class_id in sorted({item.class_id for item in job.objects}):
            row = found[names[class_id]]
            if len(row) < COLUMNS:
                row.append(Entry(names[class_id], job.picture, job.mask, caption))
    return [entry for row in found.values() for entry in row]


def draw(samples: Sequence[Entry], fold_person: bool) -> bytes:
    """The sheet as PNG: a row for each class, its masks in the classes' colours over the pictures."""
    from PIL import Image, ImageDraw, ImageFont

    rows = list(dict.fromkeys(entry.class_name for entry in samples))
    cell = (THUMB[0] + _GAP, THUMB[1] + _TEXT + _GAP)
    size = (_LABEL + COLUMNS * cell[0] + _GAP, max(1, len(rows)) * cell[1] + _GAP)
    sheet = Image.new("RGB", size, (255, 255, 255))
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default()
    for y, name in enumerate(rows):
        top = _GAP + y * cell[1]
        pen.text((_GAP, top + THUMB[1] // 2), name, (0, 0, 0), font)
        for x, entry in enumerate(entry for entry in samples if entry.class_name == name):
            left = _LABEL + x * cell[0]
            sheet.paste(_thumb(entry, fold_person), (left, top))
            text = entry.caption
            while pen.textlength(text, font) > THUMB[0]:
                text = text[:-1]
            pen.text((left, top + THUMB[1]), text, (0, 0, 0), font)
    buffer = io.BytesIO()
    sheet.save(buffer, format="PNG")
    return buffer.getvalue()


def _thumb(entry: Entry, fold_person: bool):
    from PIL import Image

    with Image.open(entry.picture) as image:
        small = np.asarray(image.convert("RGB").resize(THUMB), np.float32)
    with Image.open(entry.mask) as image:
        labels = label_table(fold_person)[0][np.asarray(image.resize(THUMB, Image.Resampling.NEAREST))]
    colours = palette(len(classes(fold_person)) + 1)[labels].astype(np.float32)
    mixed = np.where(labels[..., None] > 0, 0.45 * small + 0.55 * colours, small)
    return Image.fromarray(mixed.astype(np.uint8))
