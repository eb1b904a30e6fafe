"""Table A1: TPAVI at which stages, mIoU.

python -m experiments.tpavi_table_a1 --root=/data/avsbench
python -m experiments.tpavi_table_a1 --dataset=synthetic --scale=tiny
"""

import sys

from experiments import command
from experiments.tables import Cell, Setup, Table
from experiments.tpavi import BACKBONES, PAPER, SETTINGS, notes, published

FIGURES = {  # S4 ResNet50, S4 PVT-v2, MS3 ResNet50, MS3 PVT-v2
    "1": (68.55, 78.30, 41.62, 46.16),
    "2": (69.56, 78.58, 42.37, 48.79),
    "3": (71.30, 78.02, 43.02, 47.35),
    "4": (69.99, 77.70, 42.29, 49.01),
    "34": (71.29, 78.19, 44.84, 49.79),
    "234": (71.98, 78.47, 45.98, 50.53),
    "1234": (72.79, 78.74, 47.88, 54.00),
}


def table(setup: Setup) -> Table:
    columns = {f"{s} {b}": (SETTINGS[s], BACKBONES[b]) for s in SETTINGS for b in BACKBONES}
    rows = {
        ", ".join(stages): [Cell(paper, published(*column, stages=stages)) for paper, column in
                            zip(figures, columns.values(), strict=True)]
        for stages, figures in FIGURES.items()
    }  # fmt: skip
    note = "MS3 is trained with the audio-visual mapping loss, at the stages that have TPAVI."
    return Table(
        "tpavi_table_a1",
        f"Table A1: stages with TPAVI ({PAPER})",
        "stages",
        tuple(columns),
        rows,
        notes(setup, note),
        baseline="1, 2, 3, 4",
    )


if __name__ == "__main__":
    sys.exit(command.main(table, __doc__))
