"""What sound is worth to TransAVS and to TPAVI, each beside itself without any: mIoU, and what of it is lost with
another clip's sound. A table of ours, for the embedded data set's setting `multi`; AVSBench's MS3 will do, too.

python -m experiments.transavs_embedded --dataset=synthetic --scale=tiny
python -m experiments.transavs_embedded --root=/data/avsbench
"""

import sys

from experiments import command
from experiments.tables import Cell, Run, Setup, Table
from experiments.tpavi import tpavi
from experiments.transavs import beside, notes, transavs

COLUMNS = {"mIoU": "miou", "audio gain": "audio_gain"}
SILENT = ", without sound"
BASELINE = {"TransAVS": "TPAVI", f"TransAVS{SILENT}": "TransAVS", f"TPAVI{SILENT}": "TPAVI"}
CONTROLS = (
    "Without sound: TransAVS has learned queries in the place of the sound's, the same for every frame; TPAVI has no "
    "fusion. Neither has an encoder of sounds."
)
MAPPING = "TPAVI is trained without its audio-visual mapping loss."


def table(setup: Setup) -> Table:
    runs = {
        f"TPAVI{SILENT}": beside(setup, tpavi("ms3", "resnet50", fusion="none")),
        f"TransAVS{SILENT}": transavs("ms3", query_init="learned"),
        "TPAVI": beside(setup, tpavi("ms3", "resnet50")),
        "TransAVS": transavs("ms3"),
    }
    rows = {name: _row(run) for name, run in runs.items()}
    where = "the embedded setting `multi`" if setup.dataset == "synthetic" else "AVSBench's MS3"
    return Table("transavs_embedded", f"TransAVS and TPAVI, with and without sound, on {where}", "method",
                 tuple(COLUMNS), rows, notes(setup, CONTROLS, MAPPING), baseline=BASELINE)  # fmt: skip


def _row(run: Run) -> list[Cell]:
    return [Cell(None, run, figure) for figure in COLUMNS.values()]


if __name__ == "__main__":
    sys.exit(command.main(table, __doc__))
