"""Runs of CAVP and of its rival TPAVI that several of its tables share (Chen et al., A closer look at audio-visual
semantic segmentation, 2023)."""

from collections.abc import Callable, Mapping, Sequence

from experiments.command import Disk
from experiments.tables import Cell, Run, Setup

RECIPE, TPAVI_RECIPE = "configs/cavp.py", "configs/tpavi.py"
PAPER = "Chen et al., 2023"
DISK = Disk("benchmark", "data", "the folder that holds VPO/, vggsound_bench/ and avsbench_data_single_plus/")
R50 = "R50 DeepLabV3+"
ARCHITECTURES = {
    R50: ("deeplab", "resnet50"),
    "R101 DeepLabV3+": ("deeplab", "resnet101"),
    "HRNetV2": ("hrnet", "hrnet_w48"),
    "HRNetV2 OCR": ("ocr", "hrnet_w48"),
}
BENCHMARKS = {"SS": "vpo_ss", "MS": "vpo_ms", "Single+": "single_plus"}
EMBEDDED = "vpo_ms"  # the setting whose sounds, any number at once, are the most like the embedded data set's
FIGURES = {"FDR ↓": "fdr", "mIoU ↑": "miou_all_classes", "F1 ↑": "f1"}
METHODS = {  # a run's name for it: fusion, weight of the pairing loss
    "no_sound": ("none", 0),
    "sum": ("sum", 0),
    "concat": ("concat", 0),
    "attention": ("attention", 0),
    "cavp": ("attention", 1),
}


def cavp(setup: Setup, setting: str, method: str = "cavp", architecture: str = R50, rate: float = 0.5) -> Run:
    """A run of `configs/cavp.py`. On the embedded data set all settings are one, and one run.

    Args:
      setting: its argument.
      method: a key of `METHODS`: CAVP, or what table 4 and the rows without sound leave of it.
      architecture: a key of `ARCHITECTURES`.
      rate: share of the mismatched pairs turned into matches.
    """
    kind, backbone = ARCHITECTURES[architecture]
    fusion, contrastive = METHODS[method]
    setting, name = _where(setup, setting)
    arguments = {"setting": setting, "architecture": kind, "backbone": backbone, "fusion": fusion,
                 "contrastive": contrastive, "rate": rate}  # fmt: skip
    name = f"cavp-{name}-{backbone if kind == 'deeplab' else kind}-{method}"
    return Run(name + (f"-rate{rate}" if rate != 0.5 else ""), RECIPE, arguments, checkpoint="latest")


def tpavi(setup: Setup, setting: str) -> Run:
    """A run of `configs/tpavi.py` on a benchmark of CAVP's: TPAVI with the ResNet-50."""
    setting, name = _where(setup, setting)
    arguments = {"setting": setting, "backbone": "resnet50"}
    return Run(f"tpavi-{name}-resnet50-stills", TPAVI_RECIPE, arguments, checkpoint="latest")


def _where(setup: Setup, setting: str) -> tuple[str, str]:
    """The recipe's setting, and what a run's name calls it."""
    return (EMBEDDED, "embedded") if setup.dataset == "synthetic" else (setting, setting)


def architectures(setup: Setup) -> list[str]:
    """Those that differ: the tiny scale knows one ResNet."""
    return [name for name in ARCHITECTURES if setup.scale == "full" or not name.startswith("R101")]


def columns(setup: Setup, benchmarks: Sequence[str]) -> tuple[str, ...]:
    """Three figures for each benchmark; on the embedded data set three in all."""
    if setup.dataset == "synthetic":
        return tuple(FIGURES)
    return tuple(f"{benchmark} {figure}" for benchmark in benchmarks for figure in FIGURES)


def blocks(setup: Setup, benchmarks: Sequence[str]) -> tuple[int, ...]:
    """For `Table.blocks`: a wide table has a part for each benchmark."""
    return (len(FIGURES),) * (1 if setup.dataset == "synthetic" else len(benchmarks))


def cells(setup: Setup, papers: Mapping[str, Sequence[float]], run: Callable[[str], Run]) -> list[Cell]:
    """A row.

    Args:
      papers: benchmark -> the paper's FDR, mIoU and F1. On the embedded data set those on VPO-MS, or else the only
        ones, stand beside ours.
      run: a recipe's setting -> the run that answers.
    """
    if setup.dataset == "synthetic":
        papers = {name: papers[name] for name in [_beside(papers)]}
    return [
        Cell(paper, run(BENCHMARKS[benchmark]), figure)
        for benchmark, three in papers.items()
        for paper, figure in zip(three, FIGURES.values(), strict=True)
    ]


def _beside(benchmarks) -> str:
    return "MS" if "MS" in benchmarks else next(iter(benchmarks))


def notes(setup: Setup, benchmarks: Sequence[str], *more: str) -> tuple[str, ...]:
    """A table's notes: what is evaluated, and what stands for what."""
    said = ["Evaluated is the latest checkpoint. The public code keeps the one that is best on the test set."]
    if setup.dataset == "synthetic":
        beside = {"SS": "VPO-SS", "MS": "VPO-MS", "Single+": "AVSBench-Single+"}[_beside(benchmarks)]
        said.append(
            "One data set stands in for all benchmarks: the stills of the embedded setting `semantic`, in which any "
            f"number of two or three objects sound. Beside ours stand the paper's figures on {beside}."
        )
    if setup.scale == "tiny":
        said.append(
            "At the tiny scale ResNets are a narrow ResNet-10 (there is no row of R101's, which would be the same) and "
            "HRNetV2 is a narrow one, all from random weights, trained by Adam on pictures of 64 x 64 pixels."
        )
    return (*said, *more)


TPAVI_NOTE = (
    "How TPAVI was trained for these rows is not published. Ours: its network, its Adam, the cross-entropy alone, "
    "squashed pictures (full scale: 224 x 224 pixels) with a second of sound, and CAVP's batch size and length."
)
