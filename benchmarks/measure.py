"""What the benchmarks share: time and peak memory of one compiled function, each line in a process of its own."""

import contextlib
import ctypes
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
    """{"seconds": median of the repeats, "mib": peak memory of the first run above what was held before} of the
    compiled `run()`; the first run, which allocates, is not timed.

    On a CPU memory is the resident size, elsewhere the device's bytes in use.
    """
    import jax

    before = _reset_peak()
    jax.block_until_ready(run())
    peak = _peak() - before
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(run())
        seconds.append(time.perf_counter() - start)
    return {"seconds": sorted(seconds)[len(seconds) // 2], "mib": peak / 2**20}


def plain_flops(run, *inputs) -> float | None:
    """XLA's count for the form without the loops that CPUs run, whose bodies it would count once; the same for every
    device: the host counts it, since an accelerator's own count knows no library calls. None where jax was started
    without the host's platform."""
    import jax

    from avs_jax.models import fast_conv

    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), inputs)
    chosen = fast_conv._on_cpu
    fast_conv._on_cpu = lambda: False
    try:
        with jax.default_device(jax.devices("cpu")[0]):
            return jax.jit(lambda *x: run(*x)).lower(*shapes).cost_analysis()["flops"]
    except (RuntimeError, TypeError, KeyError):
        return None
    finally:
        fast_conv._on_cpu = chosen
        jax.clear_caches()


def _reset_peak() -> int:
    """Forgets the peak resident size so far (compiling needs more than running) and returns the present size."""
    import jax

    if jax.default_backend() != "cpu":
        return jax.devices()[0].memory_stats()["bytes_in_use"]
    with contextlib.suppress(OSError, AttributeError):  # what compiling has freed would pass for memory in hand
        ctypes.CDLL("libc.so.6").malloc_trim(0)
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
