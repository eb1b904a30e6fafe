"""TransAVS's training step, inference, matching and losses: time, memory and FLOPs, as a Markdown table.

    python -m benchmarks.transavs [--parts=step,inference,matching,losses --backbones=resnet101,swin_b --clips=1,2
                                   --queries=300 --frames=5 --precision=float32 --remat=true --size=224 --setting=ms3
                                   --targets=1,8,20 --match-frames=40 --loss-targets=1 --loss-frames=8,40
                                   --options=attention=dot_product --repeats=3 --reduced]

On a GPU the same command, for example `--precision=bfloat16 --clips=1,8 --remat=true,false --options=attention=cudnn`.

step: forward, backward and the recipe's AdamW with the whole objective, losses after every decoder layer included;
"remat" recomputes layers and norms in the backward pass, as the recipe does. inference: every pixel's scores from uint8
pixels. Both take embedded sound, as training does, whose frozen encoder runs once per clip. matching: the assignment of
queries to targets alone, of random costs. losses: of random queries, focal and dice of all decoder layers, each matched
by itself, with their gradient; and AQDL + AQML with theirs, with two queries in five confident.

Rows and columns as in `benchmarks.cavp`: every case in a process of its own, "per s" in frames. FLOPs include what is
recomputed.
"""

import itertools
import sys

from benchmarks.contrastive import objects
from benchmarks.measure import Problem, command, figures, make_parser, numbers, parsed, recipe, some_of, table, training

PARTS = ("step", "inference", "matching", "losses")
FULL = {"backbones": "resnet101,swin_b", "clips": "1,2", "queries": "300", "frames": 5, "size": 224,
        "targets": "1,8,20", "match_frames": 40, "loss_targets": "1", "loss_frames": "8,40", "repeats": 3}  # fmt: skip
REDUCED = {"backbones": "resnet101", "clips": "1", "queries": "6", "frames": 2, "size": 32, "targets": "1,2",
           "match_frames": 3, "loss_targets": "2", "loss_frames": "2", "repeats": 1}  # fmt: skip
TINY = {"width": 4, "dim": 8, "heads": 2, "ffn": 8, "encoder_layers": 0, "decoder_layers": 1,
        "pixel_options": {"groups": 2}, "audio_width": 2, "audio_hidden": 8}  # fmt: skip
TINY_BACKBONES = {"resnet": {"backbone": "resnet10"}, "swin": {"depths": [1, 1, 1, 1]}, "pvt": {}}


# ---- What is measured, in the process of a case


def method_of(case):
    """(method, config): the recipe's, with the case's options."""
    import avs_jax

    config = recipe(case["recipe"])
    options = config.method.to_dict() | case["options"]
    return avs_jax.create(options.pop("name"), **options), config


def network_problem(case) -> Problem:
    """A training step or inference of clips of size x size pixels with embedded sound."""
    import jax

    from avs_jax.methods.transavs import train_first

    method, config = method_of(case)
    variables = method.init(jax.random.key(0))
    variables["params"].pop("audio")  # which never runs
    batch, frames = make_batch(method, case["clips"], case["frames"], case["size"]), case["clips"] * case["frames"]
    if case["part"] == "inference":
        batch = {k: batch[k] for k in ("frames", "audio_embedding")}
        return Problem(lambda v, b: method.predict(v, b).scores, (variables, batch), frames)
    step, state = training(method, variables, config.optimizer)
    looked_at = case["clips"] if train_first(method.options) else frames
    missed = set_loss_flops(method, looked_at, case["size"], targets_of(method))
    return Problem(step, (state, batch), frames, carries=True, loop_flops=lambda _: missed)


def make_batch(method, clips: int, frames: int, size: int) -> dict:
    """Random pictures, each with an object, and embeddings of sounds."""
    import numpy as np

    r, shape = np.random.default_rng(0), (clips, frames)
    labels = objects(clips * frames, size, max(method.num_classes, 2))
    return {
        "frames": r.integers(0, 256, (*shape, size, size, 3), dtype=np.uint8),
        "audio_embedding": np.maximum(r.normal(size=(*shape, 128)), 0).astype(np.float32),
        "labels": labels.reshape(*shape, size, size),
        "labelled": np.ones(shape, bool),
    }


def targets_of(method) -> int:
    """Targets of a frame."""
    from avs_jax.methods.transavs import SETTINGS

    return method.options["max_targets"] or SETTINGS[method.options["setting"]].targets


def set_loss_flops(method, frames: int, size: int, targets: int) -> float:
    """What XLA's count leaves out of `deep_supervised_loss`: it counts the loops over the layers once.

    A layer makes every query's mask and its products with the targets, for the costs; for the losses the masks of the
    matched ones, again in the backward pass, and two products of their gradient; these masks are enlarged to the
    frame's size, again and with a gradient too.
    """
    o = method.options
    n, d, side = o["num_queries"], o["dim"], -(-size // 4)
    others = o["decoder_layers"] if o["aux_loss"] else 0
    enlarging = size * side * (side + size) if o["compare_at"] == "full" else 0
    return others * 2 * frames * (side**2 * (n * (d + targets) + 4 * targets * d) + 3 * targets * enlarging)


def matching_problem(case) -> Problem:
    """The assignment of random costs, all targets valid."""
    import numpy as np

    from avs_jax.losses.matching import assign

    frames, n, m = case["frames"], case["queries"], case["targets"]
    costs = np.random.default_rng(0).normal(size=(frames, n, m)).astype(np.float32)
    return Problem(assign, (costs, np.ones((frames, m), bool)), frames, flops=False)  # a search multiplies little


def losses_problem(case) -> Problem:
    """A loss of random queries, at stride 4, with its gradient with respect to all that the network makes."""
    import jax
    import numpy as np

    from avs_jax.losses.query_set import QueryLoss, deep_supervised_loss, self_supervised_loss, weighted_total

    method, config = method_of(case)
    o, options, frames, size = method.options, QueryLoss(), case["frames"], case["size"]
    n, d, side, keys = o["num_queries"], o["dim"], -(-size // 4), iter(jax.random.split(jax.random.key(0), 9))
    targets = make_targets(frames, size, case["targets"])
    classes, layers = case["targets"] + 1, (o["decoder_layers"] + 1,) if case["form"] == "set" else ()

    def draw(*shape, dtype=o["compute_dtype"]):
        return jax.random.normal(next(keys), shape, dtype)

    logits = draw(*layers, frames, n, classes, dtype="float32")
    embeddings, features = draw(*layers, frames, n, d), draw(frames, side, side, d) / np.sqrt(d)
    if case["form"] == "set":

        def loss(logits, embeddings, features, targets):
            return weighted_total(deep_supervised_loss(logits, embeddings, features, targets, options)[0], options)

        missed = set_loss_flops(method, frames, size, case["targets"])
        run = jax.value_and_grad(loss, (0, 1, 2))
        return Problem(run, (logits, embeddings, features, targets), frames, loop_flops=lambda _: missed)

    def apart(queries, projection, embeddings, features, logits, targets):
        terms = self_supervised_loss(logits, queries, embeddings, features, projection, options.deltas(0, config.steps),
                                     targets, options)  # fmt: skip
        return weighted_total(terms, options), terms["n2"]

    queries, projection = draw(frames, n, d, dtype="float32"), draw(d, d, dtype="float32") / np.sqrt(d)
    run = jax.value_and_grad(apart, (0, 1, 2, 3), has_aux=True)
    return Problem(run, (queries, projection, embeddings, features, logits, targets), frames)


def make_targets(frames: int, size: int, count: int):
    """Frames with `count` targets each, of as many classes, side by side beside a background."""
    import jax
    import numpy as np

    from avs_jax.losses.query_targets import targets_from_labels

    bands = np.arange(size) * (count + 1) // size
    labels = np.broadcast_to(bands, (frames, size, size)).astype(np.uint8)
    return jax.jit(targets_from_labels, static_argnums=(2, 3))(labels, np.ones(frames, bool), count + 1, count)


PROBLEMS = {"step": network_problem, "inference": network_problem, "matching": matching_problem,
            "losses": losses_problem}  # fmt: skip


def measure(case: dict) -> dict:
    """The figures of one case, in this process."""
    return figures(PROBLEMS[case["part"]](case), case["repeats"])


# ---- The cases


def cases(args):
    """(title, what a count is of, case) for everything that the arguments ask for."""
    for part in args.parts.split(","):
        shared = {"part": part, "repeats": args.repeats, "size": args.size}
        for n in numbers(args.queries):
            if part == "matching":
                for m in numbers(args.targets):
                    what = {"queries": n, "frames": args.match_frames, "targets": m}
                    yield f"assignment, {n} queries, {_targets(m)}", f"{args.match_frames} frames", shared | what
            elif part == "losses":
                for title, of, what in loss_cases(args, n):
                    yield title, of, shared | what | network(args, "resnet101", n)
            else:
                remats = args.remat.split(",") if part == "step" else ["false"]
                for backbone, remat, clips in itertools.product(args.backbones.split(","), remats, numbers(args.clips)):
                    what = {"clips": clips, "frames": args.frames, **network(args, backbone, n, remat)}
                    title = f"{backbone}, {part}, {n} queries" + ", remat" * (remat == "true")
                    yield title, f"{clips * args.frames} frames", shared | what


def loss_cases(args, queries: int):
    """The same for the losses."""
    for frames in numbers(args.loss_frames):
        for m in numbers(args.loss_targets):
            title = f"focal + dice of all layers, matching and gradient, {queries} queries, {_targets(m)}"
            yield title, f"{frames} frames", {"form": "set", "frames": frames, "targets": m}
        title = f"AQDL + AQML and gradient, {queries} queries"
        yield title, f"{frames} frames", {"form": "apart", "frames": frames, "targets": 1}


def _targets(count: int) -> str:
    return f"{count} target" + "s" * (count > 1)


def network(args, backbone: str, queries: int, remat: str = "false") -> dict:
    """The recipe, and options of `avs_jax.create` that replace its own: the command line's over the reduced ones."""
    kind = next((kind for kind in TINY_BACKBONES if backbone.startswith(kind)), "pvt")
    options = TINY | TINY_BACKBONES[kind] if args.reduced else {}
    options |= {"compute_dtype": args.precision, "remat": remat == "true"} | args.options
    return {"recipe": f"transavs.py:setting={args.setting},backbone={backbone},queries={queries}", "options": options}


def print_table(args, run) -> int:
    """Prints a row for every case; returns how many failed."""
    return table(f"TransAVS, {args.setting}, {args.size} px, {args.precision}", cases(args), run, args)


def main(argv=None) -> int:
    return command("benchmarks.transavs", parse(argv), print_table, measure)


def parse(argv=None):
    parser = make_parser("benchmarks.transavs", __doc__)
    parser.add_argument("--parts", type=some_of(PARTS), default=",".join(PARTS))
    parser.add_argument("--backbones", help="resnet50, resnet101, swin_t, swin_b, pvt_v2_b5, ...")
    parser.add_argument("--clips", help="in a step or inference")
    parser.add_argument("--queries", help="of a frame")
    parser.add_argument("--frames", type=int, help="of a clip")
    parser.add_argument(
        "--remat", type=some_of(("true", "false")), default="true", help="of the step; both: true,false"
    )
    parser.add_argument("--size", type=int, help="side of the frames")
    parser.add_argument("--setting", default="ms3")
    parser.add_argument("--targets", help="of a frame, in matching")
    parser.add_argument("--match-frames", type=int, help="frames in matching")
    parser.add_argument("--loss-targets", help="of a frame, in the losses")
    parser.add_argument("--loss-frames", help="frames in the losses")
    return parsed(parser, argv, FULL, REDUCED)


if __name__ == "__main__":
    sys.exit(main())
