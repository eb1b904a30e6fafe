"""Table 3 of CAVP: beside TPAVI on AVSBench-Salient and AVSBench-Single+ (ResNet-50), and the number of parameters.

python -m experiments.cavp_table3 --root=/data
python -m experiments.cavp_table3 --dataset=synthetic --scale=tiny
"""

import sys

from experiments import command
from experiments.cavp import DISK, PAPER, TPAVI_NOTE, cavp, cells, columns, notes, tpavi
from experiments.tables import Cell, Setup, Table

SALIENT = {"Salient mIoU ↑": "miou", "Salient F ↑": "fscore_percent"}
METHODS = {  # the run; on Salient mIoU and F; on Single+ FDR, mIoU and F1; millions of parameters
    "TPAVI": (tpavi, (72.79, 84.80), (18.54, 66.98, 79.61), 163.55),
    "CAVP": (cavp, (83.06, 90.39), (12.71, 74.17, 84.86), 119.78),
}
PARAMETERS = (
    "Parameters are those of the networks of the Single+ columns, TPAVI's frozen VGGish among them, norms' statistics "
    "not. The paper's counts take in what the public codes hold and never use: 23 M of TPAVI's and 5 M of CAVP's."
)
NO_SALIENT = "AVSBench-Salient, whose masks are binary, has no column here."
PROTOCOL = (
    "On AVSBench-Salient mIoU and F (beta squared 0.3, the best threshold for every four clips) are those of TPAVI's "
    "public code: means over frames."
)


def table(setup: Setup) -> Table:
    embedded, rows = setup.dataset == "synthetic", {}
    for name, (run, salient, single, parameters) in METHODS.items():
        rows[name] = cells(setup, {"Single+": single}, lambda setting, run=run: run(setup, setting))
        rows[name].append(Cell(parameters, run(setup, "single_plus"), "parameters"))
        if not embedded:
            binary = zip(salient, SALIENT.values(), strict=True)
            rows[name] = [Cell(paper, run(setup, "salient"), figure) for paper, figure in binary] + rows[name]
    semantic = (*columns(setup, ["Single+"]), "parameters")
    more = [TPAVI_NOTE, PARAMETERS, NO_SALIENT if embedded else PROTOCOL]
    title = f"Table 3: TPAVI and CAVP on AVSBench-Salient and AVSBench-Single+ ({PAPER})"
    return Table("cavp_table3", title, "method", semantic if embedded else (*SALIENT, *semantic), rows,
                 notes(setup, ["Single+"], *more), baseline="TPAVI", blocks=() if embedded else (2, 3, 1))  # fmt: skip


if __name__ == "__main__":
    sys.exit(command.main(table, __doc__, disk=DISK))
