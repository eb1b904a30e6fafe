"""CAVP's contrastive loss at full budget, its draw of anchors, and its audio front end: time and memory.

    python -m benchmarks.contrastive [--budget=9216 --channels=304 --blocks=128,512,2048 --batch=16 --size=512
                                      --repeats=5]

The loss and its gradient in blocks of anchors against the plain form, which holds every similarity; the draw from a
batch of 16 at 512 x 512 (128 x 128 pixels each); spectrograms of 32 sounds of 3 s. Every line runs in a process of its
own; processor seconds are those of all cores together.
"""

import argparse
import functools
import json
import os
import time

from benchmarks.measure import in_own_process, timed


def loss(args):
    """(function, inputs): the value and gradient of the loss of `budget` anchors of 16 classes and the background."""
    import jax
    import numpy as np

    from avs_jax.losses.contrastive import contrastive_loss

    r = np.random.default_rng(0)
    features = r.normal(size=(args.budget, args.channels)).astype(np.float32)
    labels = np.arange(args.budget) * 18 // args.budget % 17
    valid = np.arange(args.budget) < args.budget * args.valid
    f = functools.partial(contrastive_loss, block=args.block) if args.block else plain_loss
    return jax.value_and_grad(f), (features, labels, valid)


def plain_loss(features, labels, valid, temperature=0.1):
    """The same, as it is written down: M x M similarities, differentiated."""
    import jax
    import jax.numpy as jnp

    from avs_jax.losses.avm import unit

    z = unit(features)
    s = jnp.matmul(z, z.T, precision="highest") / temperature
    same, both = labels[:, None] == labels, valid[:, None] & valid
    positive, negative = same & both & ~jnp.eye(len(z), dtype=bool), ~same & both
    rest = jax.nn.logsumexp(jnp.where(negative, s, -1e30), -1, keepdims=True)
    total = jnp.where(positive, jax.nn.softplus(rest - s), 0).sum(-1) / jnp.maximum(positive.sum(-1), 1)
    return total.sum() / jnp.maximum(valid.sum(), 1)


def draw(args):
    """(function, inputs): anchors of a batch, at stride 4."""
    import jax
    import numpy as np

    from avs_jax.losses.contrastive import draw_anchors

    side, r = args.size // 4, np.random.default_rng(0)
    labels = np.zeros((args.batch, side, side), np.uint8)
    for i, image in enumerate(labels):  # an object of a quarter of each image
        y, x = r.integers(0, side // 2, 2)
        image[y : y + side // 2, x : x + side // 2] = 1 + i % 16
    f = functools.partial(draw_anchors, num_classes=22, max_views=512, slots=16)
    return f, (labels, labels, jax.random.key(0))


def front_end(args):
    """(function, inputs): spectrograms of 32 sounds."""
    import numpy as np

    from avs_jax.models.spectrogram import mel_spectrogram

    waveform = np.random.default_rng(0).normal(size=(32, 48000)).astype(np.float32) / 10
    return mel_spectrogram, (waveform,)


def measure(args) -> dict:
    import jax

    f, inputs = {"loss": loss, "draw": draw, "front_end": front_end}[args.part](args)
    if args.part == "draw":
        f = functools.partial(lambda g, y, h, key: g(y, h, key=key), f)
    inputs = jax.device_put(inputs)
    compiled = jax.jit(f).lower(*inputs).compile()
    jax.block_until_ready(compiled(*inputs))
    start = time.process_time()
    found = timed(lambda: compiled(*inputs), args.repeats)
    processor = (time.process_time() - start) / args.repeats
    return {**found, "processor": processor, "temporary": compiled.memory_analysis().temp_size_in_bytes / 2**20}


def main(args) -> None:
    if args.part:
        print(json.dumps(measure(args)))
        return
    print(f"float32, {os.cpu_count()} cores, median of {args.repeats}\n")
    print("| part | ms | processor ms | temporary MiB |")
    print("|---|---|---|---|")
    shared = {"budget": args.budget, "channels": args.channels, "batch": args.batch, "size": args.size,
              "repeats": args.repeats}  # fmt: skip
    title = f"loss and gradient, {args.budget} anchors x {args.channels},"
    lines = [(f"{title} all at once", {"part": "loss", "block": 0})]
    lines += [(f"{title} blocks of {b}", {"part": "loss", "block": b}) for b in args.blocks.split(",")]
    lines += [(f"{title} blocks of 512, a third of them valid", {"part": "loss", "block": 512, "valid": 1 / 3})]
    lines += [(f"anchors drawn from {args.batch} x {args.size} x {args.size}", {"part": "draw"})]
    lines += [("spectrograms, 32 x 3 s", {"part": "front_end"})]
    for title, options in lines:
        line = in_own_process("benchmarks.contrastive", **shared, **options)
        print(f"| {title} | {line['seconds'] * 1e3:.0f} | {line['processor'] * 1e3:.0f} "
              f"| {line['temporary']:.0f} |", flush=True)  # fmt: skip


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", type=int, default=9216)
    parser.add_argument("--channels", type=int, default=304)
    parser.add_argument("--blocks", default="128,512,2048")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--part", choices=("loss", "draw", "front_end"), help="measure one line in this process")
    parser.add_argument("--block", type=int, default=512)
    parser.add_argument("--valid", type=float, default=1.0, help="share of the anchors")
    return parser.parse_args()


if __name__ == "__main__":
    main(parse())
