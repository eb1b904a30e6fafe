"""Table 6: the audio-visual mapping losses on MS3, mIoU and F-score.

python -m experiments.tpavi_table6 --root=/data/avsbench
python -m experiments.tpavi_table6 --dataset=synthetic --scale=tiny
"""

import sys

from experiments import command
from experiments.tables import Cell, Setup, Table
from experiments.tpavi import BACKBONES, PAPER, notes, tpavi

FIGURES = {  # mIoU ResNet50, mIoU PVT-v2, F ResNet50, F PVT-v2
    "BCE": ("none", (46.64, 53.06, 0.558, 0.626)),
    "BCE + AVM-VV": ("vv", (46.71, 53.77, 0.577, 0.644)),
    "BCE + AVM-AV": ("av", (47.88, 54.00, 0.578, 0.645)),
}


def table(setup: Setup) -> Table:
    columns = {f"{name} {b}": (figure, BACKBONES[b]) for name, figure in (("mIoU", "miou"), ("F", "fscore"))
               for b in BACKBONES}  # fmt: skip
    rows = {
        label: [Cell(paper, tpavi("ms3", backbone, avm=avm), figure) for paper, (figure, backbone) in
                zip(figures, columns.values(), strict=True)]
        for label, (avm, figures) in FIGURES.items()
    }  # fmt: skip
    return Table("tpavi_table6", f"Table 6: audio-visual mapping losses on MS3 ({PAPER})", "objective",
                 tuple(columns), rows, notes(setup), baseline="BCE")  # fmt: skip


if __name__ == "__main__":
    sys.exit(command.main(table, __doc__))
