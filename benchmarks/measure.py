"""What the benchmarks share: time and peak memory of one compiled function, each line in a process of its own; and for
those with many cases, the cases' figures, their table and their command line."""

import argparse
import contextlib
import ctypes
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

COLUMNS = ("case", "of", "s", "per s", "processor s", "peak MiB", "planned MiB", "compile s", "TFLOPs", "TFLOP/s")
STEPS = 1000  # of a schedule
ROOT = Path(__file__).resolve().parent.parent


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
    return reset_resident()


def reset_resident() -> int:
    """Forgets this process's peak resident size so far and returns the present size, in bytes."""
    with contextlib.suppress(OSError, AttributeError):  # what compiling has freed would pass for memory in hand
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def peak_resident() -> int:
    """The peak resident size since then, in bytes."""
    return _status("VmHWM")


def _peak() -> int:
    import jax

    if jax.default_backend() != "cpu":
        return jax.devices()[0].memory_stats()["peak_bytes_in_use"]
    return peak_resident()


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


# ---- Cases: what is measured, in a process of its own


class Problem(NamedTuple):
    """What is measured.

    run: (*inputs) -> results. inputs: pytrees of arrays. count: things worked on, for the rate.
    carries: the first result is the first input of the next run, whose buffers it takes.
    loop_flops: result -> what XLA's count leaves out, or None. flops: whether there are any worth counting.
    of: what the count is of, where the case cannot say.
    """

    run: Callable
    inputs: tuple
    count: int
    carries: bool = False
    loop_flops: Callable | None = None
    flops: bool = True
    of: str = ""


def figures(problem: Problem, repeats: int) -> dict:
    """The figures of a row, measured in this process."""
    import jax

    held = list(jax.device_put(problem.inputs))
    problem = problem._replace(inputs=())  # only what is held counts as given
    count = plain_flops(problem.run, *held) if problem.flops else None
    start = time.perf_counter()
    compiled = jax.jit(problem.run, donate_argnums=(0,) if problem.carries else ()).lower(*held).compile()
    compiling = time.perf_counter() - start
    if problem.flops:
        count = count or (compiled.cost_analysis() or {}).get("flops")

    def once():
        result = compiled(*held)
        if problem.carries:
            held[0] = result[0]
        return result

    start = time.process_time()
    found = timed(once, repeats)
    processor = (time.process_time() - start) / (repeats + 1)
    if count and problem.loop_flops:
        count += problem.loop_flops(once())
    plan = compiled.memory_analysis()
    device = jax.devices()[0]
    return {**found, "processor": processor, "compile": compiling, "flops": count, "count": problem.count,
            "of": problem.of, "planned": plan.temp_size_in_bytes / 2**20 if plan else None,
            "device": f"{device.device_kind} ({device.platform})"}  # fmt: skip


def recipe(text: str):
    """The config of "transavs.py:setting=ms3" among the project's recipes."""
    from avs_jax.cli import read_recipe

    return read_recipe(f"{ROOT / 'configs'}/{text}")


def training(method, variables, config):
    """(step, state): the training command's own, with the config's optimiser."""
    import jax

    from avs_jax.training import optimizer
    from avs_jax.training.state import TrainState
    from avs_jax.training.step import make_train_step

    labels, ema = method.param_groups(variables["params"]), config.ema
    tx, rate = optimizer.make_optimizer(config, labels, STEPS), optimizer.learning_rate(config, STEPS)
    step = make_train_step(method, tx, trainable=optimizer.trainable(config, labels), learning_rate=rate, seed=0,
                           ema=ema)  # fmt: skip
    return step, jax.jit(lambda v: TrainState.create(v, tx, ema=ema > 0))(variables)


# ---- Their table


def row(title: str, of: str, line: dict) -> str:
    """A row of the table."""
    seconds, tera = line["seconds"], line["flops"] / 1e12 if line["flops"] else None
    values = (seconds, line["count"] / seconds, line["processor"], line["mib"], line["planned"], line["compile"], tera,
              tera / seconds if tera else None)  # fmt: skip
    return f"| {title} | {line.get('of') or of} | " + " | ".join("" if v is None else _short(v) for v in values) + " |"


def _short(value: float) -> str:
    """Three digits; of 1000 and more all before the point."""
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def table(heading: str, cases: Iterable[tuple[str, str, dict]], run: Callable, args) -> int:
    """Prints the rows, each when it is known; returns how many cases failed.

    cases: (title, what a count is of, case). run: case -> figures.
    """
    failures, begun = 0, False
    for title, of, case in cases:
        try:
            line = run(case)
            text = row(title, of, line)
        except subprocess.CalledProcessError as e:
            line, failures = {"device": "unknown device"}, failures + 1
            text = f"| {title} | {of} | failed, status {e.returncode} |" + " |" * (len(COLUMNS) - 3)
        if not begun:
            reduced = ", reduced: figures of no network that anyone trains" if args.reduced else ""
            print(f"{heading}, {line['device']}, median of {args.repeats}{reduced}\n")
            print("| " + " | ".join(COLUMNS) + " |\n" + "|---" * len(COLUMNS) + "|")
            begun = True
        print(text, flush=True)
    return failures


def command(module: str, args, table: Callable, measure: Callable) -> int:
    """Measures and prints the one case that the arguments name, else the table of all; returns the exit status.

    table: (args, run) -> failures. measure: case -> figures, in this process.
    """
    if not args.case:
        return min(table(args, lambda case: in_own_process(module, case=json.dumps(case))), 1)
    import jax

    jax.config.update("jax_enable_compilation_cache", False)  # compiling is measured too
    print(json.dumps(measure(json.loads(args.case))))
    return 0


# ---- Their command line


def make_parser(module: str, description: str) -> argparse.ArgumentParser:
    """With the arguments that all such benchmarks have."""
    parser = argparse.ArgumentParser(f"python -m {module}", description=description,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--precision", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--options", type=_options, default="", help="of create, as name=value,name=value")
    parser.add_argument("--repeats", type=int)
    parser.add_argument("--reduced", action="store_true", help="tiny sizes, to try the program in seconds")
    parser.add_argument("--case", help="measure one case, as JSON, in this process")
    return parser


def parsed(parser: argparse.ArgumentParser, argv, full: dict[str, Any], reduced: dict[str, Any]):
    """The arguments; those not given as `full` or `reduced` has them."""
    args = parser.parse_args(argv)
    for name, value in (reduced if args.reduced else full).items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    return args


def numbers(text: str) -> list[int]:
    """ "1,2" -> [1, 2]."""
    return [int(x) for x in text.split(",")]


def some_of(valid: Iterable[str]) -> Callable[[str], str]:
    """The type of an argument that names some, with commas."""

    def check(text: str) -> str:
        for part in text.split(","):
            if part not in valid:
                raise argparse.ArgumentTypeError(f"'{part}': expected some of {','.join(valid)}")
        return text

    return check


def _options(text: str) -> dict:
    """Of "backbone=resnet101,output_stride=16"; numbers as such."""
    found = {}
    for part in filter(None, text.split(",")):
        name, sep, value = part.partition("=")
        if not sep:
            raise argparse.ArgumentTypeError(f"'{part}': expected name=value")
        try:
            found[name] = json.loads(value)
        except ValueError:
            found[name] = value
    return found
