"""TPAVI's whole training step and inference: time, peak memory and FLOPs, as a Markdown table.

    python -m benchmarks.tpavi [--backbones=resnet50,pvt_v2_b5 --clips=1,2,3,4 --size=224 --precision=float32
                                --passes=train,inference --peak-tflops=0]

The MS3 step (BCE + 0.5 L_AVM-AV, Adam, batch statistics, stochastic depth in PVT-v2) and inference of clips of 5 frames
from uint8 pixels and embedded sound. Every line runs in a process of its own. FLOPs are XLA's count of the plain form
(two a multiply-add, fusion in its linear form); with `--peak-tflops`, the device's, their share of it is given.
"""

import argparse
import json
import os

from benchmarks.measure import in_own_process, plain_flops, timed

FRAMES = 5


def problem(backbone: str, clips: int, size: int, precision: str, **options):
    """(method, variables, batch) with random numbers; blocks let the sound in."""
    import jax
    import numpy as np

    import avs_jax

    method = avs_jax.create("tpavi", setting="ms3", backbone=backbone, compute_dtype=precision, **options)
    variables = method.init(jax.random.key(0))
    variables["params"].pop("audio")  # the sound is embedded: the frozen encoder never runs
    for i in range(1, 5):
        variables["params"][f"tpavi{i}"]["bn"]["scale"] += 1
    r = np.random.default_rng(0)
    shape = (clips, FRAMES)
    batch = {
        "frames": r.integers(0, 256, (*shape, size, size, 3), dtype=np.uint8),
        "audio_embedding": np.maximum(r.normal(size=(*shape, 128)), 0).astype(np.float32),
        "labels": r.integers(0, 2, (*shape, size, size), dtype=np.uint8),
        "labelled": np.ones(shape, bool),
    }
    return method, variables, jax.device_put(batch)


def functions(method, variables):
    """{"train": (state, batch) -> (state, loss), "inference": (state, batch) -> scores}, and the state."""
    import jax
    import optax

    tx = optax.adam(1e-4)

    def train(state, batch):
        params, stats, opt_state, key = state
        key, rng = jax.random.split(key)
        grad = jax.value_and_grad(method.loss, has_aux=True)
        (loss, (model_state, _)), grads = grad(params, {"batch_stats": stats}, batch, rng, 0)
        updates, opt_state = tx.update(grads, opt_state)
        return (optax.apply_updates(params, updates), model_state["batch_stats"], opt_state, key), loss

    def inference(state, batch):
        return method.predict({"params": state[0], "batch_stats": state[1]}, batch).scores

    params, stats = variables["params"], variables["batch_stats"]
    return {"train": train, "inference": inference}, (params, stats, tx.init(params), jax.random.key(1))


def measure(args) -> dict:
    import jax

    method, variables, batch = problem(args.backbone, args.clip_count, args.size, args.precision)
    runs, state = functions(method, variables)
    run = runs[args.one_pass]
    count = plain_flops(run, state, batch)
    training = args.one_pass == "train"
    compiled = jax.jit(run, donate_argnums=(0,) if training else ()).lower(state, batch).compile()
    held = [jax.device_put(state)]
    del state, variables

    def once():
        if not training:
            return compiled(held[0], batch)
        held[0], loss = compiled(held[0], batch)
        return loss

    return {**timed(once, args.repeats), "flops": count}


def main(args) -> None:
    if args.backbone:
        print(json.dumps(measure(args)))
        return
    print(f"5 frames a clip, {args.size} x {args.size}, {args.precision}, {os.cpu_count()} cores, "
          f"median of {args.repeats}\n")  # fmt: skip
    share = args.peak_tflops > 0
    print("| backbone | clips | pass | seconds | frames/s | peak MiB | TFLOPs | TFLOP/s |" + " share of peak |" * share)
    print("|---" * (8 + share) + "|")
    for backbone in args.backbones.split(","):
        for clips in args.clips.split(","):
            for name in args.passes.split(","):
                line = in_own_process("benchmarks.tpavi", **{
                    "backbone": backbone, "clip-count": clips, "one-pass": name, "size": args.size,
                    "precision": args.precision, "repeats": args.repeats,
                })  # fmt: skip
                tera, seconds = line["flops"] / 1e12, line["seconds"]
                text = f"| {backbone} | {clips} | {name} | {seconds:.3f} | {int(clips) * FRAMES / seconds:.1f} "
                text += f"| {line['mib']:.0f} | {tera:.2f} | {tera / seconds:.3f} |"
                print(text + (f" {tera / seconds / args.peak_tflops:.1%} |" if share else ""), flush=True)


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbones", default="resnet50,pvt_v2_b5")
    parser.add_argument("--clips", default="1,2,3,4")
    parser.add_argument("--passes", default="train,inference")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--precision", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--peak-tflops", type=float, default=0, help="of the device in this precision")
    parser.add_argument("--backbone", help="measure one line in this process")
    parser.add_argument("--clip-count", type=int, default=1)
    parser.add_argument("--one-pass", default="train", choices=("train", "inference"))
    return parser.parse_args()


if __name__ == "__main__":
    main(parse())
