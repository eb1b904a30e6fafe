"""Table 4 of CAVP: ways of fusing sound and picture, and the pairing loss (ResNet-50 with DeepLabV3+).

python -m experiments.cavp_table4 --root=/data
python -m experiments.cavp_table4 --dataset=synthetic --scale=tiny
"""

import sys

from experiments import command
from experiments.cavp import BENCHMARKS, DISK, PAPER, blocks, cavp, cells, columns, notes
from experiments.tables import Setup, Table

ORDER = ("Single+", "SS", "MS")
FIGURES = {
    "Sum": ("sum", (14.81, 69.61, 81.47), (25.84, 56.46, 69.25), (28.00, 57.42, 70.05)),
    "Concat": ("concat", (15.25, 69.05, 81.13), (23.62, 52.66, 64.93), (21.17, 57.50, 70.49)),
    "Attention": ("attention", (14.50, 70.33, 82.06), (21.71, 58.87, 71.41), (19.68, 57.84, 71.07)),
    "Attention + CAVP": ("cavp", (12.71, 74.17, 84.86), (20.41, 61.21, 73.29), (18.64, 59.58, 72.46)),
}
FUSIONS = (
    "The paper does not say how the sum and the concatenation are made, and no code of them is public. Ours: the audio "
    "vector at every pixel, added to the projected features, or beside them and through a linear layer; then a layer "
    "norm. The first three rows are trained with the cross-entropy alone."
)


def table(setup: Setup) -> Table:
    rows = {
        name: cells(setup, dict(zip(ORDER, figures, strict=True)), lambda setting, m=method: cavp(setup, setting, m))
        for name, (method, *figures) in FIGURES.items()
    }
    title = f"Table 4: fusion, and contrastive pairing ({PAPER})"
    return Table("cavp_table4", title, "fusion", columns(setup, ORDER), rows, notes(setup, BENCHMARKS, FUSIONS),
                 baseline="Attention", blocks=blocks(setup, ORDER))  # fmt: skip


if __name__ == "__main__":
    sys.exit(command.main(table, __doc__, disk=DISK))
