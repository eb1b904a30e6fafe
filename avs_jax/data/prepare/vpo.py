"""COCO's pictures and VGGSound's sounds -> VPO-SS, VPO-MS or VPO-MSMI (Chen et al., 2023) in the public layout.

    python -m avs_jax.prepare vpo --coco=/data/coco --vggsound=/data/vggsound --setting=ss --output=/data/audio_visual

Reads annotations/instances_{train,val}*.json, captions_{train,val}*.json and the pictures in COCO's folder, and
vggsound.csv and <YouTube id>_<start>.wav (flac, ogg) anywhere in VGGSound's. Writes VPO/VPO-<SETTING>/ (data/, mask/,
the table, a manifest with hashes, report.json, contact_sheet.png) and vggsound_bench/VGGSound/audios/ below --output.

The authors published their choice, not the program that made it. The rules of the paper's section 3.1 are kept:
pictures with several classes first, no class with several instances (but in MSMI), every picture once, sounds of the
same class and split, at most five sounding objects. Where the paper gives no rule, ours is: the class with the fewest
masks takes the next picture; sounds are used again only after all of their class; in MS each object of a picture with
more than two loses its sound with probability --silence; a picture's only person is male, female or baby where its
captions agree.

The same inputs, options and seed give the same bytes, whatever the number of workers. An interrupted run goes on when
the same command is given again. Exits with 0 when it is built, 2 on bad input, 130 when interrupted.
"""

import argparse
import os
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path

from avs_jax import cli
from avs_jax.data.prepare import vpo_report
from avs_jax.data.prepare.vpo_build import COUNTS, REPORT, SETTINGS, SHEET, SPLITS, Options, build, folder_of
from avs_jax.data.prepare.vpo_classes import classes
from avs_jax.data.prepare.vpo_coco import read_json
from avs_jax.data.prepare.vpo_write import LINKS
from avs_jax.errors import InputError, nearest
from avs_jax.paths import local_path


def parse(argv: Sequence[str]) -> Options:
    """The command line after its name.

    Raises:
      InputError: it is wrong.
    """
    head, _, more = (__doc__ or "").partition("\n\n")
    layout = argparse.RawDescriptionHelpFormatter
    parser = cli.Parser("python -m avs_jax.prepare vpo", description=head, epilog=more, formatter_class=layout)
    add = parser.add_argument
    add("--coco", required=True, type=_path, help="COCO's folder")
    add("--vggsound", required=True, type=_path, help="VGGSound's folder: its table and its clips")
    add("--setting", required=True, choices=SETTINGS, help="msmi is added to the ms in the same --output")
    add("--seed", type=_whole, default=0)
    add("--output", type=_path, default=Path("audio_visual"), help="root of the data (default: audio_visual)")
    add("--captions", default="", help="COCO's caption files, with commas (default: those beside the instances)")
    add("--table", type=_path, help="VGGSound's table (default: vggsound.csv in its folder)")
    add("--fold-person", action="store_true", help="one class person in place of male, female and baby: 19 classes")
    add("--counts", default="", help="pictures at most: N, all, or train=N,test=N (default: the paper's)")
    add("--quota", default="", help="masks of a class at most: N, train=N,test=N, or a JSON file {split: {class: N}}")
    add("--silence", type=_share, default=0.5, help="probability that an object among more than two loses its sound")
    add("--min-area", type=_share, default=0.001, help="least share of the picture that an object covers")
    add("--agreement", type=_share, default=0.5, help="least share of a picture's captions that name its person")
    add("--min-seconds", type=_seconds, default=0.5, help="shorter sounds are refused")
    add("--link", choices=LINKS, default="copy", help="how pictures and wavs are put there")
    add("--workers", type=_whole, default=os.cpu_count() or 1, help="processes; 0 works in this one")
    args = vars(parser.parse_args(argv))
    names = [entry.name for entry in classes(args["fold_person"])]
    args["captions"] = tuple(_path(part) for part in args["captions"].split(",") if part.strip())
    counts = COUNTS[args["setting"]] if not args["counts"] else _by_split("--counts", args["counts"])
    quota = read_quota(args["quota"], names)
    return Options(**(args | {"counts": counts, "quota": quota}))


def _path(text: str) -> Path:
    try:
        return local_path(text.strip(), "a path").absolute()
    except InputError as error:  # argparse tells of other ValueErrors in words of its own
        raise argparse.ArgumentTypeError(str(error)) from None


def _whole(text: str) -> int:
    if int(text) < 0:
        raise ValueError
    return int(text)


def _share(text: str) -> float:
    if not 0 <= float(text) <= 1:
        raise ValueError
    return float(text)


def _seconds(text: str) -> float:
    if not 0 <= float(text) < float("inf"):
        raise ValueError
    return float(text)


# argparse's messages name the types
_whole.__name__, _share.__name__, _path.__name__ = "whole number", "number from 0 to 1", "path"
_seconds.__name__ = "number of seconds"


def _by_split(option: str, text: str) -> dict[str, int | None]:
    """N, "all" or "train=N,test=N" -> split -> number, None for all. A split that is not named gets all."""

    def number(part):
        if part == "all":
            return None
        if part.isascii() and part.isdigit():
            return int(part)
        raise InputError(option, expected="N, all, or train=N,test=N", found=repr(text))

    if "=" not in text:
        return dict.fromkeys(SPLITS, number(text.strip()))
    found = {}
    for part in text.split(","):
        split, _, value = (piece.strip() for piece in part.partition("="))
        if split not in SPLITS or split in found:
            raise InputError(option, expected="train=N,test=N", found=repr(part), hint=nearest(split, SPLITS))
        found[split] = number(value)
    return found


def read_quota(text: str, names: Sequence[str]) -> Mapping[str, Mapping[str, int]]:
    """The option --quota as split -> class name -> most masks.

    Raises:
      InputError: neither numbers nor a JSON file of them, or an unknown split or class.
    """
    if not text:
        return {}
    if not text.endswith(".json"):
        limits = _by_split("--quota", text)
        return {split: dict.fromkeys(names, most) for split, most in limits.items() if most is not None}
    found, expected = read_json(_path(text), "quotas {split: {class: N}}"), "{split: {class: N}}"
    if not isinstance(found, dict):
        raise InputError(text, expected=expected, found=type(found).__name__)
    for split, quota in found.items():
        if split not in SPLITS or not isinstance(quota, dict):
            raise InputError(text, expected=expected, found=f"{split!r}: {quota!r:.40}", hint=nearest(split, SPLITS))
        for name, most in quota.items():
            if name not in names:
                raise InputError(text, expected="names of classes", found=repr(name), hint=nearest(name, names))
            if isinstance(most, bool) or not isinstance(most, int) or most < 0:
                raise InputError(text, expected=f"a number of masks for '{name}'", found=repr(most))
    return found


def main(argv: Sequence[str]) -> int:
    """The command after its name; returns the exit status."""
    options = parse(argv)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # told to end, it ends as by Ctrl-C
    report = build(options, progress=True)
    print(vpo_report.text(report))
    folder = folder_of(options.output, options.setting)
    print(f"{folder}: see {REPORT} and {SHEET}")
    return 0
