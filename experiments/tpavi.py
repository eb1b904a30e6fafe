"""Runs of TPAVI that several of its tables share (Zhou et al., Audio-visual segmentation, ECCV 2022)."""

from experiments.tables import Run, Setup

RECIPE = "configs/tpavi.py"
PAPER = "Zhou et al., ECCV 2022"
BACKBONES = {"ResNet50": "resnet50", "PVT-v2": "pvt_v2_b5"}
SETTINGS = {"S4": "s4", "MS3": "ms3"}


def tpavi(setting: str, backbone: str, *, fusion: str = "va", stages: str = "1234", avm: str = "none",
          pretrained: str = "public", start: Run | None = None) -> Run:  # fmt: skip
    """A run of `configs/tpavi.py`.

    Args:
      setting, backbone, fusion, stages, pretrained: its arguments.
      avm: the mapping loss, "none" unless named: "auto" would hide that two tables mean the same run.
      start: the run it starts from.
    """
    arguments = {"setting": setting, "backbone": backbone, "fusion": fusion, "avm": avm}
    name = f"tpavi-{setting}-{backbone}-{fusion}"
    if stages != "1234":
        arguments["stages"], name = stages, f"{name}-stages{stages}"
    if avm != "none":
        name += f"-avm_{avm}"
    if pretrained != "public":
        arguments["pretrained"], name = pretrained, f"{name}-pretrained_{pretrained}"
    return Run(name + (f"-from_{start.arguments['setting']}" if start else ""), RECIPE, arguments, start)


def published(setting: str, backbone: str, **options) -> Run:
    """The system of table 3: cross-entropy alone for S4, with the mapping loss for MS3."""
    return tpavi(setting, backbone, avm="av" if setting == "ms3" else "none", **options)


def notes(setup: Setup, *more: str) -> tuple[str, ...]:
    """A table's notes, with what the tiny scale puts in the place of what the rows and columns are called."""
    if setup.scale == "full":
        return more
    stand_ins = "ResNet50 stands for a narrow ResNet-10 and PVT-v2 for a narrow PVT-v2-b0, without public weights"
    return (*more, f"At the tiny scale {stand_ins}, and a soft Dice loss is added to the cross-entropy.")
