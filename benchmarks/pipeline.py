"""Clips a second that the input pipeline makes, with 0, 1 and 2 data processes, as a Markdown table.

    python -m benchmarks.pipeline [--root=avsbench_data --setting=ms3] [--image_size=224] [--seconds=10]

Without --root the embedded data set is measured, which draws its frames and sounds on the fly; with it, AVSBench
on disk. Augmentation is on, as in training; nothing is copied to a device.
"""

import itertools
import os
import time

AUGMENT = {"hflip": 0.5, "scale": (0.8, 1.2), "color": 0.2}


def measure(source, *, workers: int, threads: int, augment, batch_size: int, seconds: float) -> tuple[float, float]:
    """(clips a second once warm, seconds until the first batch)."""
    from avs_jax.data.pipeline import train_batches

    start = time.perf_counter()
    batches = train_batches(source, seed=0, batch_size=batch_size, augment=augment, workers=workers, threads=threads)
    try:
        next(batches)
        first = time.perf_counter() - start
        for _ in itertools.islice(batches, 8):  # what prefetching had ready does not count
            pass
        start, count = time.perf_counter(), 0
        while time.perf_counter() - start < seconds:
            next(batches)
            count += batch_size
        return count / (time.perf_counter() - start), first
    finally:
        batches.close()


def main(_) -> None:
    from absl import flags

    from avs_jax.data.sources import create_source

    values = flags.FLAGS
    if values.root:
        source = create_source("avsbench", root=values.root, setting=values.setting, image_size=values.image_size)
    else:
        source = create_source("synthetic", image_size=values.image_size)
    name = "AVSBench " + values.setting if values.root else "synthetic"
    print(f"{name}, {values.image_size} px, batches of {values.batch_size}, {os.cpu_count()} cores\n")
    print("| processes | threads each | clips/s | clips/s, augmented | first batch, s |\n|---|---|---|---|---|")
    for workers, threads in ((0, 0), (0, 2), (1, 1), (2, 1)):
        options = dict(workers=workers, threads=threads, batch_size=values.batch_size, seconds=values.seconds)
        plain, first = measure(source, augment=None, **options)
        augmented, _ = measure(source, augment=AUGMENT, **options)
        print(f"| {workers} | {threads} | {plain:.1f} | {augmented:.1f} | {first:.1f} |", flush=True)


if __name__ == "__main__":
    from absl import app, flags

    flags.DEFINE_string("root", None, "Folder of AVSBench; none: the synthetic data set.")
    flags.DEFINE_string("setting", "ms3", "s4 or ms3.")
    flags.DEFINE_integer("image_size", 224, "Side of the frames.")
    flags.DEFINE_integer("batch_size", 4, "Clips.")
    flags.DEFINE_float("seconds", 10.0, "Of each measurement.")
    app.run(main)
