"""Table 3: TPAVI beside methods of related tasks, mIoU and F-score.

python -m experiments.tpavi_table3 --root=/data/avsbench
python -m experiments.tpavi_table3 --dataset=synthetic --scale=tiny
"""

import sys

from experiments import command
from experiments.tables import Cell, Setup, Table
from experiments.tpavi import BACKBONES, PAPER, notes, published

OTHERS = {  # mIoU of S4 and MS3, F of S4 and MS3
    "LVS (sound source localisation)": (37.94, 29.45, 0.510, 0.330),
    "MSSL (sound source localisation)": (44.89, 26.13, 0.663, 0.363),
    "3DC (video object segmentation)": (57.10, 36.92, 0.759, 0.503),
    "SST (video object segmentation)": (66.29, 42.57, 0.801, 0.572),
    "iGAN (salient object detection)": (61.59, 42.89, 0.778, 0.544),
    "LGVT (salient object detection)": (74.94, 40.71, 0.873, 0.593),
}
TPAVI = {"ResNet50": (72.79, 47.88, 0.848, 0.578), "PVT-v2": (78.74, 54.00, 0.879, 0.645)}
CELLS = (("s4", "miou"), ("ms3", "miou"), ("s4", "fscore"), ("ms3", "fscore"))


def table(setup: Setup) -> Table:
    rows = {
        name: [Cell(paper, figure=figure) for paper, (_, figure) in zip(figures, CELLS, strict=True)]
        for name, figures in OTHERS.items()
    }
    for backbone, figures in TPAVI.items():
        rows[f"TPAVI, {backbone}"] = [
            Cell(paper, published(setting, BACKBONES[backbone]), figure)
            for paper, (setting, figure) in zip(figures, CELLS, strict=True)
        ]
    said = notes(setup, "MS3 is trained with the audio-visual mapping loss.")
    title = f"Table 3: comparison with methods of related tasks ({PAPER})"
    return Table("tpavi_table3", title, "method", ("S4 mIoU", "MS3 mIoU", "S4 F", "MS3 F"), rows, said)


if __name__ == "__main__":
    sys.exit(command.main(table, __doc__))
