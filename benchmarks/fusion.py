"""TPAVI's fusion at stage 1, linear against quadratic: time and peak memory, as a Markdown table.

    python -m benchmarks.fusion [--size=56 --frames=5 --channels=256 --clips=1 --repeats=5]

Both compute the same block on the same numbers: "quadratic" writes down the (T h w) x (T h w) matrix of the paper's
equation 1, "linear" is `avs_jax.models.fusion.tpavi`. Every line runs in a process of its own, so that its peak memory
is its own: on a CPU the growth of the peak resident size over the resident size before the first run, elsewhere the
device's peak bytes in use.
"""

import argparse
import json
import os

from benchmarks.measure import in_own_process, timed

FORMS = ("quadratic", "linear")
PASSES = ("forward", "forward and backward")


def quadratic_tpavi(variables, visual, audio):
    """The block in evaluation as the paper writes it; (B, T, h, w, C), (B, T, D) -> (B, T, h, w, C)."""
    import jax.numpy as jnp

    from avs_jax.models.layers import BN_EPS, LN_EPS

    p, stats = variables["params"], variables["batch_stats"]["bn"]
    b, t, h, w, c = visual.shape

    def affine(name, x):
        return x @ p[name]["kernel"] + p[name]["bias"]

    pixels = visual.reshape(b, t * h * w, c)
    sound = jnp.broadcast_to(affine("align", audio)[:, :, None, None], visual.shape).reshape(pixels.shape)
    similarity = affine("theta", pixels) @ affine("phi", sound).swapaxes(1, 2) / (t * h * w)
    y = affine("out", similarity @ affine("g", pixels))
    y = (y - stats["mean"]) / jnp.sqrt(stats["var"] + BN_EPS) * p["bn"]["scale"] + p["bn"]["bias"]
    z = y + pixels
    z = z - z.mean(-1, keepdims=True)
    z = z / jnp.sqrt(jnp.square(z).mean(-1, keepdims=True) + LN_EPS) * p["norm"]["scale"] + p["norm"]["bias"]
    return z.reshape(visual.shape)


def problem(args):
    """(variables, visual, audio): a block that lets the sound in, and random inputs."""
    import jax
    import jax.numpy as jnp

    from avs_jax.models.fusion.tpavi import TPAVI
    from avs_jax.models.initialise import initialise

    keys = jax.random.split(jax.random.key(0), 3)
    visual = jax.random.normal(keys[0], (args.clips, args.frames, args.size, args.size, args.channels))
    audio = jax.nn.relu(jax.random.normal(keys[1], (args.clips, args.frames, 128)))
    variables = initialise(TPAVI(), keys[2], jnp.zeros((1, 1, 1, 1, args.channels)), jnp.zeros((1, 1, 128)))
    variables["params"]["bn"]["scale"] += 1
    return variables, visual, audio


def function(form: str, passes: str):
    """(variables, visual, audio) -> the block's output, or the gradients of its sum of squares."""
    import jax

    from avs_jax.models.fusion.tpavi import TPAVI

    block = quadratic_tpavi if form == "quadratic" else lambda *args: TPAVI().apply(*args)[0]
    if passes == "forward":
        return block

    def loss(params, visual, audio, stats):
        return (block({"params": params, "batch_stats": stats}, visual, audio) ** 2).sum()

    def gradients(variables, visual, audio):
        return jax.value_and_grad(loss, (0, 1, 2))(variables["params"], visual, audio, variables["batch_stats"])

    return gradients


def measure(args) -> dict:
    """{"seconds": median of the repeats, "mib": peak memory} of one line."""
    import jax

    inputs = jax.block_until_ready(problem(args))
    compiled = jax.jit(function(args.form, args.passes)).lower(*inputs).compile()
    return timed(lambda: compiled(*inputs), args.repeats)


def main(args) -> None:
    if args.form:
        print(json.dumps(measure(args)))
        return
    pixels = args.frames * args.size**2
    print(f"{args.clips} clip of {args.frames} frames, {args.size} x {args.size} x {args.channels}, N = {pixels:,}; "
          f"float32, {os.cpu_count()} cores, median of {args.repeats}\n")  # fmt: skip
    print("| form | pass | seconds | peak MiB |\n|---|---|---|---|")
    for form in FORMS:
        for passes in PASSES:
            options = {"form": form, "passes": passes, "repeats": args.repeats, "clips": args.clips,
                       "frames": args.frames, "size": args.size, "channels": args.channels}  # fmt: skip
            line = in_own_process("benchmarks.fusion", **options)
            print(f"| {form} | {passes} | {line['seconds']:.4f} | {line['mib']:.0f} |", flush=True)


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("size", 56), ("frames", 5), ("channels", 256), ("clips", 1), ("repeats", 5)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--form", choices=FORMS, help="measure one line in this process")
    parser.add_argument("--passes", choices=PASSES, default="forward")
    return parser.parse_args()


if __name__ == "__main__":
    main(parse())
