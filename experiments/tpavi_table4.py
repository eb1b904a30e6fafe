"""Table 4: with and without TPAVI, and the sound merely added (A(+)V), mIoU.

python -m experiments.tpavi_table4 --root=/data/avsbench
python -m experiments.tpavi_table4 --dataset=synthetic --scale=tiny
"""

import sys

from experiments import command
from experiments.tables import Cell, Setup, Table
from experiments.tpavi import BACKBONES, PAPER, SETTINGS, notes, tpavi

FIGURES = {  # S4 ResNet50, S4 PVT-v2, MS3 ResNet50, MS3 PVT-v2
    "without TPAVI": ("none", (70.12, 77.76, 43.56, 48.21)),
    "with A(+)V": ("add", (70.54, 77.65, 45.69, 51.55)),
    "with TPAVI": ("va", (72.79, 78.74, 46.64, 53.06)),
}


def table(setup: Setup) -> Table:
    columns = {f"{s} {b}": (SETTINGS[s], BACKBONES[b]) for s in SETTINGS for b in BACKBONES}
    rows = {
        label: [Cell(paper, tpavi(*column, fusion=fusion)) for paper, column in
                zip(figures, columns.values(), strict=True)]
        for label, (fusion, figures) in FIGURES.items()
    }  # fmt: skip
    note = ("No row is trained with the mapping loss: the paper's MS3 figures with TPAVI are those of table "
            "6's first row, not of table 3.")  # fmt: skip
    return Table(
        "tpavi_table4",
        f"Table 4: with and without TPAVI ({PAPER})",
        "method",
        tuple(columns),
        rows,
        notes(setup, note),
        baseline="without TPAVI",
    )


if __name__ == "__main__":
    sys.exit(command.main(table, __doc__))
