"""CAVP's training step, inference, contrastive loss and audio front end: time, memory and FLOPs, as a Markdown table.

    python -m benchmarks.cavp [--parts=step,inference,loss,front_end --sizes=224,512 --architectures=deeplab,hrnet,ocr
                               --batches=1,2,4 --inference-batches=1 --setting=vpo_ss --precision=float32
                               --options=backbone=resnet101,output_stride=16 --repeats=3 --reduced]

On a GPU the same command, for example `--precision=bfloat16 --batches=8,16,32 --inference-batches=1,16`.

step: forward, backward and the recipe's SGD (cross-entropy and pairing loss, every picture with its own and another
sound). inference: class scores from uint8 pixels and samples. loss: the pairing loss alone at the method's budget of
anchors. front_end: spectrograms of 16 sounds: forward, under the gradient of what follows (as in training, where nobody
asks for that of the samples), and with the gradient of the samples.

Every case runs in a process of its own and is printed when it is known; one that fails, for want of memory say, is
printed as such, and the others follow. "processor s" are seconds of all the host's cores together, which other work on
the machine disturbs less than the clock. "peak MiB" is what a run adds to what it is given (see `benchmarks.measure`),
"planned MiB" the temporary buffers in XLA's plan. FLOPs are XLA's count of the plain form, two a multiply-add.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from benchmarks import contrastive
from benchmarks.measure import in_own_process, plain_flops, timed

PARTS = ("step", "inference", "loss", "front_end")
COLUMNS = ("case", "of", "s", "per s", "processor s", "peak MiB", "planned MiB", "compile s", "TFLOPs", "TFLOP/s")
STEPS = 1000  # of the schedule
RATE = 16000  # Hz
FULL = {"sizes": "224,512", "architectures": "deeplab,hrnet,ocr", "batches": "1,2,4", "loss_batch": 16,
        "blocks": "0,128,512,2048", "sounds": 16, "repeats": 3}  # fmt: skip
REDUCED = {"sizes": "32", "architectures": "deeplab", "batches": "2", "loss_batch": 2, "blocks": "0,8", "sounds": 2,
           "repeats": 1}  # fmt: skip
TINY = {"width": 4, "channels": 8, "low": 4, "projector": 8, "audio_width": 4, "audio_hidden": 8, "num_classes": 3,
        "max_views": 8}  # fmt: skip
TINY_RESNETS = {"backbone": "resnet10", "audio_encoder": "resnet10"}


class Problem(NamedTuple):
    """What is measured.

    run: (*inputs) -> results. inputs: pytrees of arrays. count: things worked on, for the rate.
    carries: the first result is the first input of the next run, whose buffers it takes.
    loop_flops: result -> what XLA's count leaves out, or None.
    """

    run: Callable
    inputs: tuple
    count: int
    carries: bool = False
    loop_flops: Callable | None = None


# ---- What is measured, in the process of a case


def network_problem(case) -> Problem:
    """A training step or inference of `batch` pictures of size x size, each with one sound."""
    import jax

    import avs_jax

    method = avs_jax.create("cavp", **case["options"])
    variables = method.init(jax.random.key(0))
    batch = make_batch(method, case["batch"], case["size"], case["seconds"])
    if case["part"] == "inference":
        batch = {k: batch[k] for k in ("frames", "audio")}
        return Problem(lambda v, b: method.predict(v, b).scores, (variables, batch), case["batch"])
    step, state = training(method, variables)
    budget, channels = anchors_of(method)

    def loop_flops(result):
        anchors = result[1].get("anchors")
        return 0.0 if anchors is None else contrastive.loop_flops(float(anchors), budget, channels)

    return Problem(step, (state, batch), case["batch"], carries=True, loop_flops=loop_flops)


def make_batch(method, pictures: int, size: int, seconds: int) -> dict:
    """Random pictures and sounds, an object in every picture."""
    import numpy as np

    from avs_jax.methods.cavp import build_network

    r, classes = np.random.default_rng(0), build_network(method.options).classes
    sounds = (
        (pictures, 1, 2, seconds * RATE) if method.options["audio_channels"] == 2 else (pictures, 1, seconds * RATE)
    )
    return {
        "frames": r.integers(0, 256, (pictures, 1, size, size, 3), dtype=np.uint8),
        "audio": (r.normal(size=sounds) / 10).astype(np.float32),
        "audio_shuffled": (r.normal(size=sounds) / 10).astype(np.float32),
        "match": r.random((pictures, classes)) < 0.5,
        "labels": contrastive.objects(pictures, size, classes)[:, None],
        "labelled": np.ones((pictures, 1), bool),
    }


def training(method, variables):
    """(step, state): the training command's own, with the recipe's optimiser."""
    import jax

    from avs_jax.cli import read_recipe
    from avs_jax.training import optimizer
    from avs_jax.training.state import TrainState
    from avs_jax.training.step import make_train_step

    recipe = Path(__file__).resolve().parent.parent / "configs/cavp.py"
    c = read_recipe(f"{recipe}:setting={method.options['setting']}").optimizer
    labels = method.param_groups(variables["params"])
    tx, rate = optimizer.make_optimizer(c, labels, STEPS), optimizer.learning_rate(c, STEPS)
    step = make_train_step(method, tx, trainable=optimizer.trainable(c, labels), learning_rate=rate, seed=0)
    return step, jax.jit(lambda v: TrainState.create(v, tx))(variables)


def anchors_of(method) -> tuple[int, int]:
    """(anchors, channels) of the pairing loss at full budget."""
    from avs_jax.methods.cavp import build_network

    network = build_network(method.options)
    return method.options["max_views"] * (_slots(method, network) + 2), network.width


def _slots(method, network):
    return min(method.options["max_classes"] or network.classes, network.classes - 1)


def loss_problem(case) -> Problem:
    """The contrastive loss of the method's budget, the draw, or the whole pairing loss at stride 4."""
    import avs_jax
    from avs_jax.methods.cavp import build_network

    method = avs_jax.create("cavp", **case["options"])
    network, (budget, channels) = build_network(method.options), anchors_of(method)
    if case["form"] == "blocks":
        valid = case.get("valid", 1.0)
        run, inputs = contrastive.loss(budget, channels, network.classes, case["block"], valid)
        block = case["block"] or budget
        missed = contrastive.loop_flops(budget * valid, budget, channels, block)
        return Problem(run, inputs, budget, loop_flops=lambda _: missed)
    side = case["size"] // 4
    if case["form"] == "draw":
        views, slots = method.options["max_views"], _slots(method, network)
        return Problem(*contrastive.draw(case["batch"], side, network.classes, views, slots), case["batch"])
    choice = {k: method.options[k] for k in ("temperature", "max_views", "max_classes", "groups")}
    run, inputs = contrastive.pairing(case["batch"], side, channels, network.classes, **choice)

    def missed(result):
        return contrastive.loop_flops(float(result[0][1]["anchors"]), budget, channels)

    return Problem(run, inputs, case["batch"], loop_flops=missed)


def front_end_problem(case) -> Problem:
    """Spectrograms of `batch` sounds of `seconds`."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from avs_jax.models.spectrogram import MEL_BINS, mel_spectrogram

    waveform = (np.random.default_rng(0).normal(size=(case["batch"], case["seconds"] * RATE)) / 10).astype(np.float32)

    def follows(weights, waveform):  # a layer of parameters
        return jnp.square(mel_spectrogram(waveform) * weights).mean()

    weights = np.ones(MEL_BINS, np.float32)
    run, inputs = {
        "forward": (mel_spectrogram, (waveform,)),
        "training": (jax.value_and_grad(follows), (weights, waveform)),
        "gradient": (jax.value_and_grad(follows, 1), (weights, waveform)),
    }[case["form"]]
    return Problem(run, inputs, case["batch"])


PROBLEMS = {"step": network_problem, "inference": network_problem, "loss": loss_problem, "front_end": front_end_problem}


def measure(case: dict) -> dict:
    """The figures of one case, in this process."""
    import jax

    problem = PROBLEMS[case["part"]](case)
    held = list(jax.device_put(problem.inputs))
    problem = problem._replace(inputs=())  # only what is held counts as given
    count = plain_flops(problem.run, *held)
    start = time.perf_counter()
    compiled = jax.jit(problem.run, donate_argnums=(0,) if problem.carries else ()).lower(*held).compile()
    compiling = time.perf_counter() - start
    count = count or (compiled.cost_analysis() or {}).get("flops")

    def once():
        result = compiled(*held)
        if problem.carries:
            held[0] = result[0]
        return result

    start = time.process_time()
    found = timed(once, case["repeats"])
    processor = (time.process_time() - start) / (case["repeats"] + 1)
    if count and problem.loop_flops:
        count += problem.loop_flops(once())
    plan = compiled.memory_analysis()
    device = jax.devices()[0]
    return {**found, "processor": processor, "compile": compiling, "flops": count, "count": problem.count,
            "planned": plan.temp_size_in_bytes / 2**20 if plan else None,
            "device": f"{device.device_kind} ({device.platform})"}  # fmt: skip


# ---- The cases and their table


def cases(args):
    """(title, what a count is of, case) for everything that the arguments ask for."""
    sizes, batches, inference = (_numbers(x) for x in (args.sizes, args.batches, args.inference_batches))
    seconds = 1 if args.reduced or not args.setting.startswith("vpo") else 3  # VPO's sounds, AVSBench's seconds
    for part in args.parts.split(","):
        shared = {"part": part, "repeats": args.repeats}
        if part in ("step", "inference"):
            for architecture in args.architectures.split(","):
                options = method_options(args, architecture)
                for size in sizes:
                    for n in batches if part == "step" else inference:
                        what = {"size": size, "batch": n, "seconds": seconds, "options": options}
                        yield f"{architecture}, {part}, {size} px", f"{n} pictures", shared | what
        elif part == "loss":
            for title, of, what in loss_cases(args, sizes):
                yield title, of, shared | what | {"options": method_options(args, "deeplab")}
        else:
            forms = {"forward": "forward", "training": "in training", "gradient": "with the samples' gradient"}
            for s in (1,) if args.reduced else (3, 1):
                for form, title in forms.items():
                    what = {"form": form, "seconds": s, "batch": args.sounds}
                    yield f"spectrograms, {title}", f"{args.sounds} sounds of {s} s", shared | what


def loss_cases(args, sizes):
    """The same for the contrastive loss."""
    blocks = _numbers(args.blocks)
    for block in blocks:
        title = f"in blocks of {block}" if block else "all at once"
        yield f"contrastive loss and gradient, {title}", "full budget", {"form": "blocks", "block": block}
    block = contrastive.BLOCK if contrastive.BLOCK in blocks else blocks[-1]
    title = f"contrastive loss and gradient, in blocks of {block}, a third valid"
    yield title, "full budget", {"form": "blocks", "block": block, "valid": 1 / 3}
    for size in sizes:
        at = {"size": size, "batch": args.loss_batch}
        yield f"anchors drawn, {size} px", f"{args.loss_batch} pictures", {"form": "draw", **at}
        yield f"pairing loss and gradient, {size} px", f"{args.loss_batch} pictures", {"form": "pairing", **at}


def method_options(args, architecture: str) -> dict:
    """Options of `avs_jax.create`: the command line's over the reduced ones."""
    options = {"setting": args.setting, "architecture": architecture, "compute_dtype": args.precision}
    if args.reduced:
        residual = architecture == "deeplab"
        options |= TINY | {k: v for k, v in TINY_RESNETS.items() if residual or k != "backbone"}
    return options | json.loads(args.options)


def row(title: str, of: str, line: dict) -> str:
    """A row of the table."""
    seconds, tera = line["seconds"], line["flops"] / 1e12 if line["flops"] else None
    of = f"{line['count']} anchors" if of == "full budget" else of
    values = (seconds, line["count"] / seconds, line["processor"], line["mib"], line["planned"], line["compile"], tera,
              tera / seconds if tera else None)  # fmt: skip
    return f"| {title} | {of} | " + " | ".join("" if v is None else _short(v) for v in values) + " |"


def _short(value: float) -> str:
    """Three digits; of 1000 and more all before the point."""
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def table(args, run: Callable) -> int:
    """Prints the rows, each when it is known; returns how many cases failed.

    run: case -> figures.
    """
    failures, begun = 0, False
    for title, of, case in cases(args):
        try:
            line = run(case)
            text = row(title, of, line)
        except subprocess.CalledProcessError as e:
            line, failures = {"device": "unknown device"}, failures + 1
            text = f"| {title} | {of} | failed, status {e.returncode} |" + " |" * (len(COLUMNS) - 3)
        if not begun:
            reduced = ", reduced: figures of no network that anyone trains" if args.reduced else ""
            print(f"CAVP, {args.setting}, {args.precision}, {line['device']}, median of {args.repeats}{reduced}\n")
            print("| " + " | ".join(COLUMNS) + " |\n" + "|---" * len(COLUMNS) + "|")
            begun = True
        print(text, flush=True)
    return failures


def main(argv=None) -> int:
    args = parse(argv)
    if not args.case:
        return min(table(args, lambda case: in_own_process("benchmarks.cavp", case=json.dumps(case))), 1)
    import jax

    jax.config.update("jax_enable_compilation_cache", False)  # compiling is measured too
    print(json.dumps(measure(json.loads(args.case))))
    return 0


def _numbers(text: str) -> list[int]:
    return [int(x) for x in text.split(",")]


def _options(text: str) -> str:
    """ "backbone=resnet101,output_stride=16" -> JSON; numbers as such."""
    found = {}
    for part in filter(None, text.split(",")):
        name, sep, value = part.partition("=")
        if not sep:
            raise argparse.ArgumentTypeError(f"'{part}': expected name=value")
        try:
            found[name] = json.loads(value)
        except ValueError:
            found[name] = value
    return json.dumps(found)


def _some_of(valid):
    def check(text: str) -> str:
        for part in text.split(","):
            if part not in valid:
                raise argparse.ArgumentTypeError(f"'{part}': expected some of {','.join(valid)}")
        return text

    return check


def parse(argv=None):
    parser = argparse.ArgumentParser("python -m benchmarks.cavp", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--parts", type=_some_of(PARTS), default=",".join(PARTS))
    parser.add_argument("--sizes", help="sides of the pictures")
    parser.add_argument("--architectures", type=_some_of(FULL["architectures"].split(",")))
    parser.add_argument("--batches", help="pictures in a training step")
    parser.add_argument("--inference-batches", default="1", help="pictures in an inference")
    parser.add_argument("--setting", default="vpo_ss")
    parser.add_argument("--precision", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--options", type=_options, default="", help="of create, as name=value,name=value")
    parser.add_argument("--loss-batch", type=int, help="pictures from which anchors are drawn")
    parser.add_argument("--blocks", help="anchors at a time; 0: all")
    parser.add_argument("--sounds", type=int)
    parser.add_argument("--repeats", type=int)
    parser.add_argument("--reduced", action="store_true", help="tiny sizes, to try the program in seconds")
    parser.add_argument("--case", help="measure one case, as JSON, in this process")
    args = parser.parse_args(argv)
    for name, value in (REDUCED if args.reduced else FULL).items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    return args


if __name__ == "__main__":
    sys.exit(main())
