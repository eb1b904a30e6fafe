"""What keeping the frozen audio encoder's outputs is worth: seconds a clip and a training step, as Markdown tables.

    python -m benchmarks.embeddings [--clips=240 --repeats=9 --threads=2 --recipes=quickstart,resnet50]

The first table embeds clips of the embedded data set with VGGish at its published size (72 M random weights) into an
empty cache, then reads them from it. The second times the whole training step of the quickstart's recipe (batches of
4, 64 pixels) and of TPAVI-ResNet-50 (one clip, 224 pixels) with the sound and with its embedding in the batch.
"""

import argparse
import tempfile
import time
from pathlib import Path


def cache_times(clips: int, threads: int) -> tuple[float, float]:
    """Seconds to embed the clips, and to find them in the cache again."""
    import jax

    import avs_jax
    from avs_jax.training.embeddings import Embedder

    method = avs_jax.create("tpavi", setting="ms3", backbone="resnet10", width=4)
    vggish = avs_jax.create_encoder("vggish")
    params = {"audio": jax.jit(vggish.init)(jax.random.key(0), vggish.example_input())["params"]}
    source = avs_jax.create_source("synthetic", length=clips)
    with tempfile.TemporaryDirectory() as folder:
        seconds = []
        for _ in range(3):
            start = time.perf_counter()
            Embedder(method, Path(folder), threads)(params, source)
            seconds.append(time.perf_counter() - start)
    return seconds[0], min(seconds[1:])


def step_times(recipe: str, repeats: int) -> tuple[float, float]:
    """Median seconds of a step that hears the sound, and of one that is given its embedding; they take turns."""
    import jax
    import numpy as np

    from avs_jax.data import pipeline
    from avs_jax.training import build, optimizer
    from avs_jax.training.state import TrainState
    from avs_jax.training.step import make_train_step

    config = _recipe(recipe)
    method, source = build.build_method(config), build.build_source(config, "train")
    variables = method.init(jax.random.key(0), build.example_batch(source))
    labels = method.param_groups(variables["params"])
    tx, trainable = (
        optimizer.make_optimizer(config.optimizer, labels, 1000),
        optimizer.trainable(config.optimizer, labels),
    )
    rate = optimizer.learning_rate(config.optimizer, 1000)
    step = make_train_step(method, tx, trainable=trainable, learning_rate=rate, seed=0, ema=config.optimizer.ema)
    step = jax.jit(step, donate_argnums=0)
    state = jax.jit(lambda v: TrainState.create(v, tx, ema=config.optimizer.ema > 0))(variables)
    heard = dict(
        next(iter(pipeline.train_batches(source, seed=0, batch_size=config.batch_size, threads=0, prefetch=0)))
    )
    embedded = {**heard, "audio_embedding": np.ones((*heard["labelled"].shape, 128), np.float32)}
    del embedded["audio"]
    seconds = {"heard": [], "embedded": []}
    for repeat in range(repeats + 1):
        for name, batch in (("heard", heard), ("embedded", embedded)):
            start = time.perf_counter()
            state, metrics = step(state, batch)
            jax.block_until_ready((state, metrics))
            if repeat:  # the first one compiles
                seconds[name].append(time.perf_counter() - start)
    return float(np.median(seconds["heard"])), float(np.median(seconds["embedded"]))


def _recipe(name: str):
    from avs_jax.cli import read_recipe

    root = Path(__file__).resolve().parent.parent / "configs"
    if name == "quickstart":
        config = read_recipe(str(root / "quickstart.py"))
        config.data.train.length = 16
        return config
    config = read_recipe(f"{root / 'tpavi.py'}:dataset=synthetic,setting=ms3,backbone={name}")
    config.data.train.length, config.batch_size = 2, 1
    return config


def main() -> None:
    parser = argparse.ArgumentParser("python -m benchmarks.embeddings")
    parser.add_argument("--clips", type=int, default=240)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--recipes", default="quickstart,resnet50")
    args = parser.parse_args()
    computed, found = cache_times(args.clips, args.threads)
    print("| VGGish, 72.1 M parameters | s | ms/clip |\n|---|---|---|")
    print(f"| {args.clips} clips computed, compiling included | {computed:.1f} | {1000 * computed / args.clips:.1f} |")
    print(f"| {args.clips} clips found in the cache | {found:.2f} | {1000 * found / args.clips:.2f} |\n", flush=True)
    print("| training step | hears the sound, s | is given its embedding, s | time saved |\n|---|---|---|---|")
    for recipe in filter(None, args.recipes.split(",")):
        heard, embedded = step_times(recipe, args.repeats)
        print(f"| {recipe} | {heard:.4f} | {embedded:.4f} | {1 - embedded / heard:.0%} |", flush=True)


if __name__ == "__main__":
    main()
