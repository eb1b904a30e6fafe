"""What a run of the VPO builder took and what it left, as JSON and as a table."""

from collections import Counter
from collections.abc import Mapping, Sequence

from avs_jax.data.prepare.vpo_classes import classes
from avs_jax.data.prepare.vpo_rejections import Rejections


def make(options, inputs, chosen: Mapping[str, Sequence], rows: Sequence[dict], rejected: Rejections) -> dict:
    """The report as JSON holds it.

    Args:
      options, inputs: of `vpo_build`. chosen: its samples by split. rows: of the whole table, MSMI's base included.
    """
    entries = classes(options.fold_person)
    splits = {split: _split(split, chosen[split], rows, entries, inputs) for split in chosen}
    return {
        "setting": options.setting,
        "seed": options.seed,
        "images": sum(entry["images"] for entry in splits.values()),
        "masks": len(rows),
        "splits": splits,
        "warnings": _warnings(splits, entries, inputs),
        "rejected": rejected.record(),
    }


def _split(split: str, samples: Sequence, rows: Sequence[dict], entries, inputs) -> dict:
    own = [row for row in rows if row["split"] == split]
    by_class = Counter(row["cateName"] for row in own)
    per_image = Counter(Counter(row["img_Id"] for row in own).values())
    used = Counter(row["vgg_file"] for row in own)
    usable = Counter(class_id for picture in inputs.pictures[split] for class_id in picture.objects)
    return {
        "images": len({row["img_Id"] for row in own}),
        "masks": len(own),
        "new_images": len(samples),  # but for MSMI all
        "images_by_sounding_objects": {str(n): per_image[n] for n in sorted(per_image)},
        "images_with_several_classes_present": sum(sample.picture.present > 1 for sample in samples),
        "objects_that_lost_their_sound": sum(sample.silent for sample in samples),
        "sounds": len(used),
        "sounds_used_again": sum(n > 1 for n in used.values()),
        "masks_by_class": {entry.name: by_class[entry.name] for entry in entries},
        "usable_images_by_class": {entry.name: usable[entry.id] for entry in entries},
        "usable_sounds_by_class": {entry.name: len(inputs.sounds[split][entry.id]) for entry in entries},
    }


def _warnings(splits: Mapping[str, dict], entries, inputs) -> list[str]:
    found = []
    for split, entry in splits.items():
        for what, counts in (("picture", entry["usable_images_by_class"]), ("sound", entry["usable_sounds_by_class"])):
            lacking = [name for name, n in counts.items() if not n]
            if lacking:
                found.append(f"{split}: no usable {what} of {', '.join(lacking)}")
    return found


def text(report: dict) -> str:
    """The report for people."""
    splits = report["splits"]
    head = f"VPO-{report['setting'].upper()}: {report['images']} images, {report['masks']} masks and sounds"
    title = f"{'class':15}" + "".join(f"{split + ' masks':>14}{'of images':>11}{'sounds':>8}" for split in splits)
    lines = [head, title]
    for name in next(iter(splits.values()))["masks_by_class"]:
        counts = (
            f"{entry['masks_by_class'][name]:14}{entry['usable_images_by_class'][name]:11}"
            f"{entry['usable_sounds_by_class'][name]:8}"
            for entry in splits.values()
        )
        lines.append(f"{name:15}" + "".join(counts))
    for split, entry in splits.items():
        several = ", ".join(f"{n} with {k}" for k, n in entry["images_by_sounding_objects"].items())
        silent = entry["objects_that_lost_their_sound"]
        lines.append(
            f"{split}: {entry['images']} images by sounding objects: {several or 'none'}"
            + f"; {silent} objects lost their sound" * bool(silent)
            + f"; {entry['sounds']} sounds, {entry['sounds_used_again']} of them used again"
        )
    lines.append("not taken:" if report["rejected"] else "nothing was rejected")
    for reason, entry in report["rejected"].items():
        example = entry["examples"][0] if entry["examples"] else ""
        lines.append(f"  {entry['count']:6} x {reason} (such as {example})")
    return "\n".join([*lines, *(f"warning: {warning}" for warning in report["warnings"])])
