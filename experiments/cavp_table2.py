"""Table 2 of CAVP: with and without sound on four segmentation networks, beside TPAVI; FDR, mIoU and F1.

python -m experiments.cavp_table2 --root=/data
python -m experiments.cavp_table2 --dataset=synthetic --scale=tiny
"""

import sys

from experiments import command
from experiments.cavp import DISK, PAPER, TPAVI_NOTE, architectures, blocks, cavp, cells, columns, notes, tpavi
from experiments.tables import Setup, Table

TPAVI = {"SS": (30.64, 42.44, 55.22), "MS": (30.82, 44.08, 58.14)}
FIGURES = {  # architecture -> without sound, CAVP
    "R50 DeepLabV3+": (
        {"SS": (26.11, 50.10, 64.12), "MS": (21.56, 50.37, 64.28)},
        {"SS": (20.41, 61.21, 73.29), "MS": (18.64, 59.58, 72.46)},
    ),
    "R101 DeepLabV3+": (
        {"SS": (22.86, 54.17, 66.42), "MS": (17.73, 59.07, 71.75)},
        {"SS": (19.47, 66.26, 77.34), "MS": (15.72, 62.91, 75.41)},
    ),
    "HRNetV2": (
        {"SS": (33.14, 54.30, 65.29), "MS": (21.37, 61.45, 74.20)},
        {"SS": (21.64, 64.42, 75.27), "MS": (20.86, 64.18, 76.49)},
    ),
    "HRNetV2 OCR": (
        {"SS": (23.52, 58.03, 68.35), "MS": (17.60, 64.54, 76.54)},
        {"SS": (18.49, 66.38, 77.45), "MS": (16.58, 65.62, 77.29)},
    ),
}


def table(setup: Setup) -> Table:
    rows = {"R50 TPAVI": cells(setup, TPAVI, lambda setting: tpavi(setup, setting))}
    baseline = {}
    for architecture in architectures(setup):
        names = f"{architecture}, without sound", f"{architecture}, CAVP"
        for name, method, papers in zip(names, ("no_sound", "cavp"), FIGURES[architecture], strict=True):
            rows[name] = cells(setup, papers, lambda setting, m=method, a=architecture: cavp(setup, setting, m, a))
        baseline[names[1]] = names[0]
    title = f"Table 2: with and without sound on VPO ({PAPER})"
    return Table("cavp_table2", title, "method", columns(setup, TPAVI), rows, notes(setup, TPAVI, TPAVI_NOTE),
                 baseline=baseline, blocks=blocks(setup, TPAVI))  # fmt: skip


if __name__ == "__main__":
    sys.exit(command.main(table, __doc__, disk=DISK))
