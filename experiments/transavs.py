"""Runs of TransAVS and of its rival TPAVI that several tables share ("TransAVS: End-to-end audio-visual segmentation
with transformer", arXiv 2305.07223)."""

import dataclasses

from experiments import tpavi
from experiments.tables import Run, Setup, config_of

RECIPE = "configs/transavs.py"
PAPER = "arXiv 2305.07223"
BACKBONES = {"ResNet101": "resnet101", "Swin-B": "swin_b"}
QUERIES, WEIGHT = 300, 2.0  # published
COLUMNS = {  # M_J and M_F of the paper
    "S4 mIoU": ("s4", "miou"),
    "S4 F": ("s4", "fscore_percent"),
    "MS3 mIoU": ("ms3", "miou"),
    "MS3 F": ("ms3", "fscore_percent"),
}
SAME = ("steps", "batch_size", "data.image_size", "data.train.length", "tagging.steps", "tagging.batch_size")


def transavs(
    setting: str,
    backbone: str = "resnet101",
    *,
    queries: int = QUERIES,
    delta1: str = "rising",
    delta2: str = "rising",
    aqdl: float = WEIGHT,
    aqml: float = WEIGHT,
    query_init: str = "frame",
) -> Run:
    """A run of `configs/transavs.py`.

    Args:
      setting, backbone, queries, delta1, delta2, aqdl, aqml, query_init: its arguments.
    """
    arguments = {"setting": setting, "backbone": backbone, "queries": queries, "delta1": delta1, "delta2": delta2,
                 "aqdl": aqdl, "aqml": aqml, "query_init": query_init}  # fmt: skip
    name = f"transavs-{setting}-{backbone}"
    name += f"-queries{queries}" if queries != QUERIES else ""
    name += "".join(f"-{threshold}_fixed" for threshold in ("delta1", "delta2") if arguments[threshold] == "fixed")
    name += "".join(f"-no_{loss}" for loss in ("aqdl", "aqml") if not arguments[loss])
    return Run(name + (f"-{query_init}" if query_init != "frame" else ""), RECIPE, arguments)


def beside(setup: Setup, rival: Run) -> Run:
    """The run of TPAVI's that stands beside TransAVS's.

    At full scale its own recipe's. The tiny recipes differ in more than the method: there one with TransAVS's clips,
    pictures and steps, which on the embedded data set hears through the same encoder.
    """
    if setup.scale == "full":
        return rival
    ours = config_of(transavs(rival.arguments["setting"]), setup, 0)
    theirs = config_of(rival, setup, 0)
    changes = {field: _value(ours, field) for field in SAME}
    if not theirs.tagging.steps:  # nothing hears, or nobody can name the sounds
        changes = {field: value for field, value in changes.items() if not field.startswith("tagging.")}
    found = {field: value for field, value in changes.items() if value is not None}
    return dataclasses.replace(rival, name=f"{rival.name}-beside_transavs", changes=found)


def _value(config, field: str):
    for name in field.split("."):
        config = config.get(name) if config is not None else None
    return config


def published(setup: Setup, setting: str, backbone: str) -> Run:
    """TPAVI as its table 3 has it, see `beside`."""
    return beside(setup, tpavi.published(setting, backbone))


def notes(setup: Setup, *more: str, rival: bool = True) -> tuple[str, ...]:
    """A table's notes: what is evaluated, and what the tiny scale puts in the place of what rows are called.

    rival: TPAVI has a row.
    """
    said = ["Evaluated is the checkpoint that is best on the validation split."]
    if setup.scale == "tiny":
        c = config_of(transavs("ms3"), setup, 0)
        side = c.data.image_size
        sizes = [config_of(transavs("ms3", queries=n), setup, 0).method.num_queries for n in (100, 300, 500)]
        said.append(
            "At the tiny scale ResNets are a narrow ResNet-10 and Swin-B is a narrow Swin of two blocks a stage, from "
            f"random weights, on pictures of {side} x {side} pixels; {c.method.encoder_layers} encoder and "
            f"{c.method.decoder_layers} decoder layers stand for 6 and 9, and {sizes[0]}, {sizes[1]} and {sizes[2]} "
            "queries for 100, 300 and 500."
        )
        if rival:
            said.append(
                "TPAVI's rows are its tiny recipe with TransAVS's clips, pictures and steps and, on the embedded data "
                "set, its audio encoder: not the runs of TPAVI's own tables, which are smaller and shorter."
            )
    return (*said, *more)
