"""Makes data sets on disk from raw material.

    python -m avs_jax.prepare avsbench --root=/data/avsbench_data --setting=s4
    python -m avs_jax.prepare vpo --coco=/data/coco --vggsound=/data/vggsound --setting=ss
    python -m avs_jax.prepare pack --output=/fast/s4 --data.source=avsbench --data.root=/data/avsbench --data.setting=s4

`python -m avs_jax.prepare <what> --help` tells the options of each.
"""

import importlib
import sys
from collections.abc import Sequence

from avs_jax import cli
from avs_jax.errors import InputError, nearest

# What can be prepared -> (the module whose `main(argv)` does it, what it does).
COMMANDS = {
    "avsbench": ("avs_jax.data.prepare.avsbench", "raw videos -> pictures, wavs and log-mels in AVSBench's tree"),
    "vpo": ("avs_jax.data.prepare.vpo", "COCO's pictures and VGGSound's sounds -> VPO-SS, VPO-MS or VPO-MSMI"),
    "pack": ("avs_jax.data.prepare.pack", "any data set -> ArrayRecord shards, which are read many times as fast"),
}


def usage() -> str:
    width = max(map(len, COMMANDS))
    return __doc__ + "\n" + "\n".join(f"  {name:{width}}  {text}" for name, (_, text) in COMMANDS.items())


def main(argv: Sequence[str] | None = None) -> int:
    """The command; its exit status: 0, 1 if something could not be prepared, 2 on bad input, 130 interrupted."""
    argv = sys.argv[1:] if argv is None else list(argv)
    if argv in (["--help"], ["-h"]):
        print(usage())
        return 0
    try:
        return cli.status_of(lambda: _command(argv))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _command(argv):
    if not argv or argv[0] not in COMMANDS:
        raise InputError("command line", expected=f"what to prepare: {', '.join(COMMANDS)}",
                         found=repr(argv[0]) if argv else "nothing",
                         hint=nearest(argv[0], COMMANDS) if argv else "See --help.")  # fmt: skip
    return importlib.import_module(COMMANDS[argv[0]][0]).main(argv[1:])


if __name__ == "__main__":
    sys.exit(main())
