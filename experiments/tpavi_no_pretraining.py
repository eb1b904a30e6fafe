"""The ablations of TPAVI's text: without its four 1x1x1 convolutions, and without a pretrained encoder; S4, mIoU.

    python -m experiments.tpavi_no_pretraining --root=/data/avsbench
    python -m experiments.tpavi_no_pretraining --dataset=synthetic --scale=tiny

The embedded data set has no pretrained encoder. There "pretrained" means: the whole network, trained on MS3 first.
"""

import sys

from experiments import command
from experiments.tables import Cell, Setup, Table
from experiments.tpavi import PAPER, notes, published, tpavi

FIGURES = {"TPAVI": 72.79, "without the four 1x1x1 convolutions": 59.21, "without a pretrained encoder": 44.05}


def table(setup: Setup) -> Table:
    def run(fusion="va", pretrained=True):
        if setup.dataset == "avsbench" and setup.scale == "full":
            return tpavi("s4", "resnet50", fusion=fusion, pretrained="public" if pretrained else "audio")
        start = published("ms3", "resnet50") if fusion == "va" else tpavi("ms3", "resnet50", fusion=fusion, avm="av")
        return tpavi("s4", "resnet50", fusion=fusion, start=start if pretrained else None)

    if setup.dataset == "avsbench" and setup.scale == "full":
        note = (
            "The paper does not say whether VGGish is pretrained in the last row; here it is, as it is never trained."
        )
    else:
        note = (
            "No pretrained files exist for this scale and data set: the first two rows start from a run on MS3 with "
            "the same network, the last from random weights. The paper's start from ImageNet's weights."
        )
    runs = run(), run(fusion="no_projection"), run(pretrained=False)
    rows = {label: [Cell(paper, one)] for (label, paper), one in zip(FIGURES.items(), runs, strict=True)}
    title = f"In the text: without the 1x1x1 convolutions, and without pretraining ({PAPER})"
    return Table("tpavi_no_pretraining", title, "method", ("S4 ResNet50",), rows, notes(setup, note), baseline="TPAVI")


if __name__ == "__main__":
    sys.exit(command.main(table, __doc__))
