"""VPO from COCO and VGGSound: what there is -> what is taken -> files, tables, report and manifest."""

import contextlib
import csv
import dataclasses
import hashlib
import io
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from avs_jax.data.prepare import runner, vpo_coco, vpo_report, vpo_sheet, vpo_sounds, vpo_write
from avs_jax.data.prepare.vpo_classes import classes
from avs_jax.data.prepare.vpo_coco import Picture, Rules
from avs_jax.data.prepare.vpo_journal import MANIFEST, Journal, is_complete
from avs_jax.data.prepare.vpo_rejections import Rejections
from avs_jax.data.prepare.vpo_select import Choice, Sample, deal, select
from avs_jax.data.prepare.vpo_write import PictureJob, SoundJob, Written
from avs_jax.data.sources.files import digest
from avs_jax.errors import InputError

VERSION = 1  # of the rules: raise it when the same inputs give another data set
SPLITS = ("train", "test")
SETTINGS = ("ss", "ms", "msmi")
COUNTS = {"ss": {"train": 11312, "test": 890}, "ms": {"train": 8380, "test": 1437}, "msmi": {}}  # paper; MSMI has none
SOUNDS = Path("vggsound_bench/VGGSound/audios")
COLUMNS = ("img_Id", "ann_Ids", "cateName", "cateId", "vgg_file", "split", "audio_pos")
REPORT, SHEET = "report.json", "contact_sheet.png"


@dataclasses.dataclass(frozen=True)
class Options:
    """What to build, from what.

    Attributes:
      coco: COCO's folder; vggsound: VGGSound's, with its table (or `table`) and its clips anywhere below.
      output: the root that public code calls its data folder; gets VPO/VPO-<SETTING>/ and the sounds.
      setting: "ss", "ms" or "msmi"; MSMI adds to the MS that the same root holds.
      captions: COCO's caption files; () takes those found beside the instances.
      counts: split -> pictures at most; None or absent: all.
      quota: split -> class name -> masks at most.
      silence: see `vpo_select.Choice`. min_area, agreement, fold_person: see `vpo_coco.Rules`.
      min_seconds: shorter sounds are refused.
      link: "copy", "hard" or "symbolic": how pictures and wavs are put there.
      workers: processes; 0 works in this one.
    """

    coco: Path
    vggsound: Path
    output: Path
    setting: str
    seed: int = 0
    captions: tuple[Path, ...] = ()
    table: Path | None = None
    fold_person: bool = False
    counts: Mapping[str, int | None] = dataclasses.field(default_factory=dict)
    quota: Mapping[str, Mapping[str, int]] = dataclasses.field(default_factory=dict)
    silence: float = 0.5
    min_area: float = 0.001
    agreement: float = 0.5
    min_seconds: float = 0.5
    link: str = "copy"
    workers: int = 0

    def rules(self) -> dict:
        """What decides the result beside the inputs, as JSON."""
        names = ("seed", "fold_person", "silence", "min_area", "agreement", "min_seconds")
        numbers = {name: getattr(self, name) for name in names}
        quota = {split: dict(sorted(self.quota.get(split, {}).items())) for split in SPLITS}
        return numbers | {"counts": {split: self.counts.get(split) for split in SPLITS}, "quota": quota}


def folder_of(output: Path, setting: str) -> Path:
    return output / "VPO" / f"VPO-{setting.upper()}"


def table_of(output: Path, setting: str) -> Path:
    return folder_of(output, setting) / f"vpo_{setting}_data_stereo.csv"


@dataclasses.dataclass
class Inputs:
    """All that is read before the first file is written.

    pictures, sounds: the candidates by split. rejected: what is none. base: rows of VPO-MS, for MSMI.
    identity: content hashes of the inputs.
    """

    pictures: dict[str, list[Picture]]
    sounds: dict[str, dict[int, list[vpo_sounds.Sound]]]
    rejected: Rejections
    base: list[dict]
    identity: dict


def read_inputs(options: Options) -> Inputs:
    """Raises: InputError: COCO, VGGSound or, for MSMI, VPO-MS is not there or not what it should be."""
    for name, folder in (("--coco", options.coco), ("--vggsound", options.vggsound)):
        if not folder.is_dir():
            found = f"{folder}, which is {'a file' if folder.exists() else 'not there'}"
            raise InputError(name, expected="a folder", found=found)
    rejected, identity = Rejections(), {}
    rules = Rules(options.min_area, options.setting == "msmi", options.fold_person, options.agreement)
    found = {split: vpo_coco.find_json(options.coco, "instances", split) for split in SPLITS}
    for split, path in found.items():
        if path is None:
            pattern = f"annotations/instances_{vpo_coco.COCO_SPLIT[split]}*.json"
            names = ", ".join(sorted(entry.name for entry in options.coco.iterdir())[:8]) or "an empty folder"
            raise InputError(options.coco, expected=pattern, found=names)
        identity[f"instances, {split}"] = _identity(path)
    automatic = [path for split in SPLITS if (path := vpo_coco.find_json(options.coco, "captions", split))]
    paths = [] if options.fold_person else options.captions or automatic
    for number, path in enumerate(paths):
        identity[f"captions, {number}"] = _identity(path)
    captions = vpo_coco.read_captions(paths)
    pictures = {split: vpo_coco.read_pictures(path, rules, captions, rejected) for split, path in found.items()}
    twice = {p.id for p in pictures["train"]} & {p.id for p in pictures["test"]}
    if twice:
        raise InputError(found["test"], expected="no picture of the training file", found=f"id {min(twice)}")
    table = options.table or vpo_sounds.find_table(options.vggsound)
    identity["table of sounds"] = _identity(table)
    clips = vpo_sounds.find_clips(options.vggsound, rejected)
    identity["sounds"] = {"files": len(clips), "names": digest(f"{stem}{path.suffix}" for stem, path in clips.items())}
    rows = vpo_sounds.read_table(table, rejected)
    sounds = vpo_sounds.sounds_by_class(rows, clips, classes(options.fold_person), rejected)
    if not any(found for split in SPLITS for found in sounds[split].values()):
        raise InputError(options.vggsound, expected=f"files <YouTube id>_<start>.wav, .flac or .ogg of {table.name}",
                         found=f"none of a class of VPO's among {len(clips)} sounds and {len(rows)} lines")  # fmt: skip
    base = _base(options, identity) if options.setting == "msmi" else []
    kept = {int(row["img_Id"]) for row in base}
    pictures = {split: [p for p in candidates if p.id not in kept] for split, candidates in pictures.items()}
    return Inputs(pictures, sounds, rejected, base, identity)


def _identity(path: Path) -> dict:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(path, expected="a readable file", found=str(error)) from None
    return {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}


def _base(options: Options, identity: dict) -> list[dict]:
    """The rows of the VPO-MS beside which MSMI is built."""
    path = table_of(options.output, "ms")
    if not (path.is_file() and (path.parent / MANIFEST).is_file()):
        raise InputError(path, expected="VPO-MS, which VPO-MSMI is added to", found="no such data set",
                         hint="Run the same command with --setting=ms first.")  # fmt: skip
    identity["VPO-MS"] = _identity(path)
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    if rows and tuple(rows[0]) != COLUMNS:
        raise InputError(path, expected=f"columns {', '.join(COLUMNS)}", found=", ".join(rows[0]))
    ids = {str(entry.id) for entry in classes(options.fold_person)}
    other = next((row["cateName"] for row in rows if row["cateId"] not in ids), None)
    if other:
        raise InputError(path, expected="the classes of this data set", found=f"class '{other}'",
                         hint="Was one of them built with --fold-person?")  # fmt: skip
    return rows


# --- choosing and writing, until what is chosen is sound ---


@dataclasses.dataclass
class Faults:
    """What turned out to be bad when it was opened: pictures, objects (annotation ids) and sounds (stems)."""

    pictures: set[int] = dataclasses.field(default_factory=set)
    objects: set[int] = dataclasses.field(default_factory=set)
    sounds: set[str] = dataclasses.field(default_factory=set)

    def count(self) -> int:
        return len(self.pictures) + len(self.objects) + len(self.sounds)


def choose(options: Options, inputs: Inputs, faults: Faults, rejected: Rejections) -> dict[str, list[Sample]]:
    """The samples of both splits, with sounds. rejected: what the choice leaves out is added."""
    entries = classes(options.fold_person)
    names, ids = {entry.id: entry.name for entry in entries}, {entry.name: entry.id for entry in entries}
    chosen = {}
    for split in SPLITS:
        pictures = [_sound_objects(p, faults) for p in inputs.pictures[split] if p.id not in faults.pictures]
        sounds = {k: [s for s in found if s.stem not in faults.sounds] for k, found in inputs.sounds[split].items()}
        quota = {ids[name]: most for name, most in options.quota.get(split, {}).items()}
        choice = Choice(options.setting, split, options.seed, options.counts.get(split), quota, options.silence)
        chosen[split] = deal(select(pictures, sounds, choice, rejected, names), sounds, options.seed, split)
    return chosen


def _sound_objects(picture: Picture, faults: Faults) -> Picture:
    """The picture without the classes of which an object is bad."""
    if not faults.objects:
        return picture
    objects = {k: items for k, items in picture.objects.items() if not faults.objects & {item.id for item in items}}
    return picture._replace(objects=objects)


def jobs_of(options: Options, chosen: Mapping[str, Sequence[Sample]]) -> dict[str, PictureJob | SoundJob]:
    """The files of the chosen samples: key -> job. The key tells all that the files are made of."""
    folder, jobs = folder_of(options.output, options.setting), {}
    names = {entry.id: entry.name for entry in classes(options.fold_person)}
    for split, samples in chosen.items():
        folders = vpo_coco.image_folders(options.coco, split)
        for sample in samples:
            picture = sample.picture
            name, mask = f"{picture.id:012d}.jpg", f"{picture.id:012d}.png"
            if options.setting == "ss":
                (item,) = sample.objects
                below = names[item.class_id]
                name, mask = f"{below}/{name}", f"{below}/{picture.id:012d}_{item.id:012d}.png"
            places = tuple(place / picture.file_name for place in folders)
            objects = ",".join(f"{item.id}:{item.class_id}" for item in sample.objects)
            targets = (folder / "data" / name, folder / "mask" / mask)
            job = PictureJob(picture.id, places, picture.size, sample.objects, *targets, options.link)
            jobs[f"{mask} {objects}"] = job
            for sound in sample.sounds:
                target = options.output / SOUNDS / f"{sound.stem}.wav"
                jobs[sound.stem] = SoundJob(sound.stem, sound.path, target, options.min_seconds, options.link)
    return jobs


def write_all(options: Options, inputs: Inputs, journal: Journal, progress: bool):
    """Chooses and writes until nothing that is chosen is bad; each round leaves out what the last found to be.

    Returns:
      chosen samples by split, {key: Written} of their files, what was rejected.
    """
    faults, found = Faults(), Rejections()
    while True:
        rejected = Rejections()
        rejected.update(inputs.rejected)
        chosen = choose(options, inputs, faults, rejected)
        rejected.update(found)
        jobs = jobs_of(options, chosen)
        missing = {key: job for key, job in jobs.items() if key not in journal.done}
        if not missing:
            return chosen, {key: journal.done[key] for key in jobs}, rejected
        for key, written in _results(missing, options, progress):
            if written.fault:
                _note(jobs[key], written, faults, found)
            else:
                journal.add(key, written)


def _results(jobs: Mapping[str, PictureJob | SoundJob], options: Options, progress: bool):
    """(key, Written) of each job, as they finish."""
    from tqdm import tqdm

    keys, title = list(jobs), f"VPO-{options.setting.upper()}"
    bar = tqdm(total=len(keys), desc=title, unit="file", disable=not progress, file=sys.stderr)
    with bar, contextlib.closing(runner.run(vpo_write.write, list(jobs.values()), options.workers)) as results:
        for position, written in results:
            if written is runner.Crashed:
                written = Written({}, fault="the process that opened it died")
            yield keys[position], written
            bar.update()


def _note(job: PictureJob | SoundJob, written: Written, faults: Faults, rejected: Rejections) -> None:
    if isinstance(job, SoundJob):
        faults.sounds.add(job.stem)
        rejected.add(written.fault, job.stem, detail=written.detail)
        return
    faults.objects.update(written.objects)
    if not written.objects:
        faults.pictures.add(job.image)
    rejected.add(written.fault, job.image, detail=written.detail)


# --- the whole ---


def build(options: Options, progress: bool = False) -> dict:
    """Builds a setting of VPO and returns its report (see `vpo_report`).

    The result is a function of the inputs' content, the options and the seed: whatever the number of workers, the order
    of files on disk and of entries in them, or interruptions, every file comes out byte for byte the same.

    Raises:
      InputError: bad inputs, an output that holds something else, or nothing to build.
    """
    inputs = read_inputs(options)
    folder = folder_of(options.output, options.setting)
    identity = {"format": VERSION, "setting": options.setting, "options": options.rules(), "inputs": inputs.identity}
    fingerprint = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    if is_complete(folder, options.output, fingerprint):
        return vpo_coco.read_json(folder / REPORT, "the report of a data set")
    with contextlib.closing(Journal(folder, options.output, fingerprint)) as journal:
        chosen, written, rejected = write_all(options, inputs, journal, progress)
    if not any(chosen.values()) and not inputs.base:
        reasons = ", ".join(f"{entry['count']} x {reason}" for reason, entry in list(rejected.record().items())[:5])
        _remove_others(options, journal, {})
        journal.remove()
        raise InputError(options.coco, expected="at least one picture that can be used", found=reasons or "none")
    rows = rows_of(options, chosen, written, inputs.base)
    report = vpo_report.make(options, inputs, chosen, rows, rejected)
    outputs = {
        name: {k: file[k] for k in ("sha256", "bytes")} for w in written.values() for name, file in w.files.items()
    }
    _remove_others(options, journal, outputs)

    def add(path: Path, content: str | bytes):
        outputs[path.relative_to(options.output).as_posix()] = vpo_write.write_file(path, content)

    add(table_of(options.output, options.setting), _csv(rows))
    add(folder / REPORT, json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    add(folder / SHEET, vpo_sheet.draw(_shown(options, chosen), options.fold_person))
    manifest = {"fingerprint": fingerprint, **identity, "outputs": dict(sorted(outputs.items()))}
    vpo_write.write_file(folder / MANIFEST, json.dumps(manifest, indent=1, ensure_ascii=False) + "\n")
    journal.remove()
    return report


def _shown(options: Options, chosen: Mapping[str, Sequence[Sample]]) -> list[vpo_sheet.Entry]:
    """Pictures for the contact sheet."""
    found = []
    for split, samples in chosen.items():
        jobs = [job for job in jobs_of(options, {split: samples}).values() if isinstance(job, PictureJob)]
        found += [(job, split, sample.sounds) for job, sample in zip(jobs, samples, strict=True)]
    return vpo_sheet.entries(options, found)


def rows_of(options: Options, chosen, written: Mapping[str, Written], base: Sequence[dict]) -> list[dict]:
    """The lines of the public table: one per mask and sound, the pictures of a split in the order of their ids (SS: of
    their classes first). MSMI's pictures of VPO-MS are told by `multi_instance` 0."""
    entries = classes(options.fold_person)
    names, order = {entry.id: entry.name for entry in entries}, {e.id: place for place, e in enumerate(entries)}
    rows = [row | {"multi_instance": "0"} for row in base]
    positions = {}
    for key, job in jobs_of(options, chosen).items():
        if isinstance(job, PictureJob):
            positions[job.image] = dict(zip((item.id for item in job.objects), written[key].positions, strict=True))
    for split, samples in chosen.items():
        for sample in samples:
            for item, sound in zip(sample.objects, sample.sounds, strict=True):
                name, position = names[item.class_id], f"{positions[sample.picture.id][item.id]:.6f}"
                values = (sample.picture.id, item.id, name, item.class_id, sound.stem, split, position)
                row = dict(zip(COLUMNS, map(str, values), strict=True))
                rows.append(row | ({"multi_instance": "1"} if options.setting == "msmi" else {}))

    def place(row):
        label = order[int(row["cateId"])]
        first = label if options.setting == "ss" else 0
        return SPLITS.index(row["split"]), first, int(row["img_Id"]), label, int(row["ann_Ids"])

    return sorted(rows, key=place)


def _csv(rows: Sequence[dict]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _remove_others(options: Options, journal: Journal, outputs: Mapping[str, dict]) -> None:
    """Removes the files that earlier rounds wrote and the last one does not want, and halves that a kill left."""
    wanted = set(outputs)
    for setting in SETTINGS:
        manifest = folder_of(options.output, setting) / MANIFEST
        if setting != options.setting and manifest.is_file():
            wanted |= set(vpo_coco.read_json(manifest, "the manifest of a data set").get("outputs", {}))
    for name, entry in journal.files():
        if name not in wanted and not entry.get("kept"):
            (options.output / name).unlink(missing_ok=True)
    folder = folder_of(options.output, options.setting)
    for place in (folder / "data", folder / "mask", options.output / SOUNDS):
        for half in place.rglob(".*.part"):
            half.unlink(missing_ok=True)
    for place in sorted(folder.rglob("*/"), reverse=True):
        if place.is_dir() and not any(place.iterdir()):
            place.rmdir()
