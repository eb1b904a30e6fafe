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

import sys

from benchmarks import contrastive
from benchmarks.measure import Problem, command, figures, make_parser, numbers, parsed, recipe, some_of, table, training

PARTS = ("step", "inference", "loss", "front_end")
RATE = 16000  # Hz
FULL = {"sizes": "224,512", "architectures": "deeplab,hrnet,ocr", "batches": "1,2,4", "loss_batch": 16,
        "blocks": "0,128,512,2048", "sounds": 16, "repeats": 3}  # fmt: skip
REDUCED = {"sizes": "32", "architectures": "deeplab", "batches": "2", "loss_batch": 2, "blocks": "0,8", "sounds": 2,
           "repeats": 1}  # fmt: skip
TINY = {"width": 4, "channels": 8, "low": 4, "projector": 8, "audio_width": 4, "audio_hidden": 8, "num_classes": 3,
        "max_views": 8}  # fmt: skip
TINY_RESNETS = {"backbone": "resnet10", "audio_encoder": "resnet10"}


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
    setting = method.options["setting"]
    step, state = training(method, variables, recipe(f"cavp.py:setting={setting}").optimizer)
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
        return Problem(run, inputs, budget, loop_flops=lambda _: missed, of=f"{budget} anchors")
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
    return figures(PROBLEMS[case["part"]](case), case["repeats"])


# ---- The cases


def cases(args):
    """(title, what a count is of, case) for everything that the arguments ask for."""
    sizes, batches, inference = (numbers(x) for x in (args.sizes, args.batches, args.inference_batches))
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
    blocks = numbers(args.blocks)
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
    return options | args.options


def print_table(args, run) -> int:
    """Prints a row for every case; returns how many failed."""
    return table(f"CAVP, {args.setting}, {args.precision}", cases(args), run, args)


def main(argv=None) -> int:
    return command("benchmarks.cavp", parse(argv), print_table, measure)


def parse(argv=None):
    parser = make_parser("benchmarks.cavp", __doc__)
    parser.add_argument("--parts", type=some_of(PARTS), default=",".join(PARTS))
    parser.add_argument("--sizes", help="sides of the pictures")
    parser.add_argument("--architectures", type=some_of(FULL["architectures"].split(",")))
    parser.add_argument("--batches", help="pictures in a training step")
    parser.add_argument("--inference-batches", default="1", help="pictures in an inference")
    parser.add_argument("--setting", default="vpo_ss")
    parser.add_argument("--loss-batch", type=int, help="pictures from which anchors are drawn")
    parser.add_argument("--blocks", help="anchors at a time; 0: all")
    parser.add_argument("--sounds", type=int)
    return parsed(parser, argv, FULL, REDUCED)


if __name__ == "__main__":
    sys.exit(main())
