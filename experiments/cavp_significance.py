"""CAVP's section 5.2: does TPAVI hear? On AVSBench-Salient and on AVS-M, three runs each, and a one-sided z-test.

python -m experiments.cavp_significance --root=/data
python -m experiments.cavp_significance --dataset=synthetic --scale=tiny

AVS-M replaces the sound of every training clip by another one of its category. Where that makes no difference, the
method has learnt the category at best. Every table's command tests any two of its rows: --compare="A>B" --seeds=0,1,2.
"""

import sys

from experiments import command
from experiments.cavp import DISK, PAPER, TPAVI_NOTE, cavp, cells, columns, notes, tpavi
from experiments.cavp_table4 import FIGURES
from experiments.tables import Cell, Comparison, Setup, Table

SEEDS = (0, 1, 2)
TPAVI = {  # setting; mean and deviation of mIoU, of F
    "TPAVI on AVSBench-Salient": ("salient", ((72.01, 0.7), (83.36, 1.2))),
    "TPAVI on AVS-M": ("avs_m", ((72.07, 0.7), (83.70, 1.0))),
}


def table(setup: Setup) -> Table:
    if setup.dataset == "synthetic":
        return _embedded(setup)
    rows = {
        name: [Cell(mean, tpavi(setup, setting), figure, spread)
               for (mean, spread), figure in zip(figures, ("miou", "fscore_percent"), strict=True)]
        for name, (setting, figures) in TPAVI.items()
    }  # fmt: skip
    said = notes(setup, (), "Test clips are heard with their own sounds: only training clips have others.", TPAVI_NOTE)
    title = f"Section 5.2: TPAVI with its clips' own sounds and with others of their categories ({PAPER})"
    test = Comparison(*TPAVI, paper=(0.54, 0.64))
    return Table("cavp_significance", title, "training data", ("mIoU ↑", "F ↑"), rows, said, comparisons=(test,),
                 seeds=SEEDS)  # fmt: skip


def _embedded(setup: Setup) -> Table:
    """The same test of what the embedded data set has: CAVP and the attention alone."""
    names = "Attention + CAVP", "Attention"
    rows = {
        name: cells(setup, {"MS": FIGURES[name][-1]}, lambda setting, m=FIGURES[name][0]: cavp(setup, setting, m))
        for name in names
    }
    note = "The embedded data set has no AVS-M: the same test is made of the last two rows of table 4."
    return Table("cavp_significance", f"The z-test of section 5.2 on two rows of table 4 ({PAPER})", "method",
                 columns(setup, ["MS"]), rows, notes(setup, ["MS"], note), baseline="Attention",
                 comparisons=(Comparison(*names),), seeds=SEEDS)  # fmt: skip


if __name__ == "__main__":
    sys.exit(command.main(table, __doc__, disk=DISK))
