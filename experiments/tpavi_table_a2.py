"""Table A2: MS3 from scratch and from a network trained on S4, mIoU.

python -m experiments.tpavi_table_a2 --root=/data/avsbench
python -m experiments.tpavi_table_a2 --dataset=synthetic --scale=tiny
"""

import sys

from experiments import command
from experiments.tables import Cell, Setup, Table
from experiments.tpavi import BACKBONES, PAPER, notes, published, tpavi

FIGURES = {  # from scratch: ResNet50, PVT-v2; from S4: ResNet50, PVT-v2
    "without TPAVI": (43.56, 48.21, 45.50, 50.59),
    "with TPAVI": (47.88, 54.00, 54.33, 57.34),
}


def table(setup: Setup) -> Table:
    columns = {f"{name} {b}": (from_s4, BACKBONES[b]) for name, from_s4 in (("from scratch", False), ("from S4", True))
               for b in BACKBONES}  # fmt: skip
    rows = {}
    for label, figures in FIGURES.items():
        cells = []
        for paper, (from_s4, backbone) in zip(figures, columns.values(), strict=True):
            if label == "with TPAVI":
                start = published("s4", backbone) if from_s4 else None
                cells.append(Cell(paper, published("ms3", backbone, start=start)))
            else:
                start = tpavi("s4", backbone, fusion="none") if from_s4 else None
                cells.append(Cell(paper, tpavi("ms3", backbone, fusion="none", start=start)))
        rows[label] = cells
    said = (
        "\"From scratch\" is the paper's word: the encoders start from ImageNet's weights.",
        "With TPAVI, MS3 is trained with the audio-visual mapping loss; without it there is no sound to map.",
    )
    return Table(
        "tpavi_table_a2",
        f"Table A2: MS3 from S4 ({PAPER})",
        "method",
        tuple(columns),
        rows,
        notes(setup, *said),
        baseline="without TPAVI",
    )


if __name__ == "__main__":
    sys.exit(command.main(table, __doc__))
