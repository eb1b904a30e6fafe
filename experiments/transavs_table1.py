"""Table 1 of TransAVS: beside TPAVI and methods of related tasks, M_J (mIoU) and M_F (F-score), in percent.

python -m experiments.transavs_table1 --root=/data/avsbench
python -m experiments.transavs_table1 --dataset=synthetic --scale=tiny
"""

import sys

from experiments import command
from experiments.tables import Cell, Setup, Table
from experiments.transavs import BACKBONES, COLUMNS, PAPER, notes, published, transavs

OTHERS = {  # S4 mIoU and F, MS3 mIoU and F
    "LVS (sound source localisation)": (37.9, 51.0, 29.5, 31.0),
    "MSSL (sound source localisation)": (44.9, 66.3, 26.1, 36.3),
    "3DC (video object segmentation)": (57.1, 75.9, 36.9, 50.3),
    "SST (video object segmentation)": (66.3, 80.1, 42.6, 57.2),
    "iGAN (salient object detection)": (61.6, 77.8, 42.9, 54.4),
    "LGVT (salient object detection)": (74.9, 87.3, 40.7, 59.3),
}
TPAVI = {"ResNet50": ("resnet50", (72.8, 84.8, 47.9, 59.3)), "PVT-v2": ("pvt_v2_b5", (78.7, 87.9, 54.0, 64.5))}
TRANSAVS = {"ResNet101": (83.1, 90.6, 58.9, 72.9), "Swin-B": (89.4, 94.2, 63.5, 75.2)}
BASELINE = {"TransAVS, ResNet101": "TPAVI, ResNet50", "TransAVS, Swin-B": "TPAVI, PVT-v2"}
QUOTED = (
    "The paper quotes its rivals. Of F on MS3 it has 31.0 for LVS and 59.3 for TPAVI with the ResNet-50, where TPAVI's "
    "paper has 33.0 and 57.8."
)
RIVALS = "As the paper does, TransAVS's ResNet-101 is compared with TPAVI's ResNet-50, and Swin-B with the PVT-v2."


def table(setup: Setup) -> Table:
    def row(figures, run=lambda setting: None):
        columns = zip(figures, COLUMNS.values(), strict=True)
        return [Cell(paper, run(setting), figure) for paper, (setting, figure) in columns]

    rows = {name: row(figures) for name, figures in OTHERS.items()}
    for name, (backbone, figures) in TPAVI.items():
        rows[f"TPAVI, {name}"] = row(figures, lambda setting, b=backbone: published(setup, setting, b))
    for name, figures in TRANSAVS.items():
        rows[f"TransAVS, {name}"] = row(figures, lambda setting, b=BACKBONES[name]: transavs(setting, b))
    mapped = "TPAVI is trained on MS3 with its audio-visual mapping loss."
    return Table("transavs_table1", f"Table 1: TransAVS and others on AVSBench ({PAPER})", "method", tuple(COLUMNS),
                 rows, notes(setup, RIVALS, mapped, QUOTED), baseline=BASELINE, printed=1)  # fmt: skip


if __name__ == "__main__":
    sys.exit(command.main(table, __doc__))
