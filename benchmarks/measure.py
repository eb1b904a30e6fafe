"""What the benchmarks share: time and peak memory of one compiled function, each line in a process of its own."""

import json
import subprocess
import sys
import time
from pathlib import Path


def in_own_process(module: str, **options) -> dict:
    """Runs `python -m module --name=value ...`, whose last line of output is JSON, and returns that."""
    command = [sys.executable, "-m", module, *(f"--{k}={v}" for k, v in options.items())]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def timed(run, repeats: int) -> dict:
    """{"seconds": median of the repeats, "mib": peak memory above what was held before} of the compiled `run()`.

    On a CPU memory is the resident size, elsewhere the device's bytes in use.
    """
    import jax

    before = _reset_peak()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(run())
        seconds.append(time.perf_counter() - start)
    return {"seconds": sorted(seconds)[len(seconds) // 2], "mib": (_peak() - before) / 2**20}


def _reset_peak() -> int:
    """Forgets the peak resident size so far (compiling needs more than running) and returns the present size."""
    import jax

    if jax.default_backend() != "cpu":
        return jax.devices()[0].memory_stats()["bytes_in_use"]
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _peak() -> int:
    import jax

    if jax.default_backend() != "cpu":
        return jax.devices()[0].memory_stats()["peak_bytes_in_use"]
    return _status("VmHWM")


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))
