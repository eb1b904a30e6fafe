"""TPAVI-ResNet-50's training step and inference beside plain PyTorch's, on the same cores, as a Markdown table.

    python -m benchmarks.side_by_side [--passes=train,inference --clips=1 --size=224 --repeats=5 --cores=0
                                       --forms=jax,quadratic,quadratic_last,linear,linear_last --torch-python=python]

Needs PyTorch (extra `bench`), in this interpreter or in the one that --torch-python names. Float32, the MS3 step (uint8
pixels and embedded sound, BCE + 0.5 L_AVM-AV, Adam), as `benchmarks.tpavi` has it; the networks compute the same
(tests/test_benchmarks_torch_tpavi.py). "quadratic" is PyTorch with the fusion as written, THW x THW; "linear" with it
over T audio tokens, as here; "_last" with channels last in memory.

Each form has a process of its own, and these take turns, a step each, so that what disturbs the machine disturbs them
alike; medians, after a first step that is not timed. "processor s" are seconds of all cores together. "peak MiB" is
how far a step raises the resident size, parameters and moments in hand. Ratios are ours to the other's: below 1 is
faster or smaller.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

from benchmarks.measure import ROOT, peak_resident, reset_resident

FORMS = {  # title of a row
    "jax": "avs_jax",
    "quadratic": "PyTorch, N x N",
    "quadratic_last": "PyTorch, N x N, channels last",
    "linear": "PyTorch, linear",
    "linear_last": "PyTorch, linear, channels last",
}
PASSES = ("train", "inference")


# ---- In the process of a form


def serve(case: dict) -> None:
    """Runs a step for every line of input and answers with its figures, a line of JSON; the first line says "ready"."""
    once = (jax_step if case["form"] == "jax" else torch_step)(case)
    before = reset_resident()
    once()
    mib = (peak_resident() - before) / 2**20
    print(json.dumps({"mib": mib}), flush=True)
    for _ in sys.stdin:
        clock, processor = time.perf_counter(), time.process_time()
        once()
        line = {"seconds": time.perf_counter() - clock, "processor": time.process_time() - processor}
        print(json.dumps(line), flush=True)


def jax_step(case):
    """() -> None: a step, compiled already."""
    import jax

    from benchmarks import tpavi

    method, variables, batch = tpavi.problem("resnet50", case["clips"], case["size"], "float32")
    runs, state = tpavi.functions(method, variables)
    training = case["pass"] == "train"
    compiled = jax.jit(runs[case["pass"]], donate_argnums=(0,) if training else ()).lower(state, batch).compile()
    held = [jax.device_put(state)]

    def once():
        result = jax.block_until_ready(compiled(held[0], batch))
        if training:
            held[0] = result[0]

    return once


def torch_step(case):
    """() -> None: a step; a first one has made the optimiser's moments."""
    import numpy as np
    import torch

    from benchmarks import torch_tpavi

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.manual_seed(0)
    fusion, _, last = case["form"].partition("_")
    network = torch_tpavi.Network(fusion)
    for i in range(1, 5):
        torch.nn.init.ones_(getattr(network, f"tpavi_b{i}").W_z[1].weight)
    if last:
        torch_tpavi.with_channels_last(network)
    r, shape, size = np.random.default_rng(0), (case["clips"], 5), case["size"]
    batch = {
        "frames": torch.from_numpy(r.integers(0, 256, (*shape, size, size, 3), dtype=np.uint8)),
        "audio_embedding": torch.from_numpy(np.maximum(r.normal(size=(*shape, 128)), 0).astype(np.float32)),
        "labels": torch.from_numpy(r.integers(0, 2, (*shape, size, size), dtype=np.uint8)),
    }
    if case["pass"] == "inference":
        network.eval()
        return lambda: torch_tpavi.scores(network, batch, bool(last))
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-4)
    once = lambda: torch_tpavi.training_step(network, optimiser, batch, bool(last))  # noqa: E731
    once()
    optimiser.zero_grad(set_to_none=True)  # gradients are not held between our steps either
    return once


# ---- In the command's process


def compare(args, name: str) -> dict[str, dict]:
    """{form: figures} of one pass, the forms' processes taking turns."""
    processes, figures = {}, {}
    try:
        for form in args.forms:
            processes[form] = _start(args, name, form)
            first = _answer(form, processes[form])  # one after the other: nothing else runs while memory is measured
            figures[form] = {"mib": [first["mib"]], "seconds": [], "processor": []}
        for _ in range(args.repeats):
            for form, process in processes.items():
                process.stdin.write("step\n")
                process.stdin.flush()
                for key, value in _answer(form, process).items():
                    figures[form][key].append(value)
    finally:
        for process in processes.values():
            process.stdin.close()  # the end of its input is that of its loop
            process.wait()
            process.stdout.close()
    return {form: {k: statistics.median(v) for k, v in found.items()} for form, found in figures.items()}


def _start(args, name, form):
    case = json.dumps({"form": form, "pass": name, "clips": args.clips, "size": args.size})
    python = sys.executable if form == "jax" else args.torch_python
    command = [python, "-m", "benchmarks.side_by_side", f"--case={case}"]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)


def _answer(form, process) -> dict:
    line = process.stdout.readline()
    if not line:
        sys.exit(f"{FORMS[form]} ended with status {process.wait()}; PyTorch comes with the extra 'bench'.")
    return json.loads(line)


def rows(name: str, found: dict[str, dict]):
    """The table's rows of one pass."""
    ours = found.get("jax")
    for form, line in found.items():
        cells = [FORMS[form], name, f"{line['seconds']:.2f}", f"{line['processor']:.2f}", f"{line['mib']:.0f}"]
        if ours and form != "jax":
            cells += [f"{ours[k] / line[k]:.2f}" for k in ("seconds", "processor", "mib")]
        else:
            cells += [""] * 3
        yield "| " + " | ".join(cells) + " |"


def main(argv=None) -> None:
    args = parse(argv)
    if args.cores:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.cores])  # the forms' processes inherit it
    if args.case:
        serve(json.loads(args.case))
        return
    cores = len(os.sched_getaffinity(0))
    print(f"{args.clips} x 5 frames, {args.size} x {args.size}, float32, {cores} cores, median of {args.repeats}\n")
    print("| form | pass | s | processor s | peak MiB | ours / its s | ours / its processor s | ours / its MiB |")
    print("|---" * 8 + "|")
    for name in args.passes:
        print("\n".join(rows(name, compare(args, name))), flush=True)


def parse(argv=None):
    parser = argparse.ArgumentParser("python -m benchmarks.side_by_side", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--passes", type=_some_of(PASSES), default=list(PASSES))
    parser.add_argument("--forms", type=_some_of(FORMS), default=list(FORMS))
    parser.add_argument("--clips", type=int, default=1)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--cores", type=int, default=0, help="how many to use; 0 = all that this process may")
    parser.add_argument("--torch-python", default=sys.executable, help="the interpreter with PyTorch")
    parser.add_argument("--case", help="run steps of one case, given as JSON, on demand")
    return parser.parse_args(argv)


def _some_of(valid):
    def check(text: str) -> list[str]:
        parts = text.split(",")
        if not set(parts) <= set(valid):
            raise argparse.ArgumentTypeError(f"'{text}': expected some of {','.join(valid)}")
        return parts

    return check


if __name__ == "__main__":
    main()
