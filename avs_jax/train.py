"""Trains a method: python -m avs_jax.train --config=configs/tpavi.py:setting=ms3 --workdir=runs/ms3

Running the same command again resumes. Ctrl-C and SIGTERM save first and leave with status 130 and 143; a second
Ctrl-C leaves at once. Add --config.<field>=<value> to change the recipe, --distributed on a cluster or a TPU pod.
"""

import contextlib
import os
import sys
from typing import Any, NamedTuple


class Result(NamedTuple):
    """What `train` returns.

    state: the last TrainState. figures: of the last evaluation in this run or its checkpoint, or None.
    stopped_by: number of the signal that ended the run early, 0 at its end.
    """

    state: Any
    figures: dict | None
    stopped_by: int = 0


def train(config, workdir) -> Result:
    """Trains until the config's last step, from where the workdir's checkpoints end.

    Args:
      config: see `avs_jax.config.defaults`.
      workdir: a folder, also on gs:// or s3://; gets config.json, checkpoints/, metrics.jsonl, timing.jsonl and
        tensorboard/.
    Raises:
      InputError: a bad config or data set, or a workdir that another run began.
      TrainingError: loss or gradient was not finite, or the disk is full.
    """
    from avs_jax.training.clock import Clock

    clock = Clock()
    import jax

    from avs_jax.data import pipeline
    from avs_jax.paths import to_path
    from avs_jax.training import build, embeddings, optimizer, sharding, tagging
    from avs_jax.training.ahead import CompiledAhead, batch_shapes
    from avs_jax.training.bucket import open_checkpoints
    from avs_jax.training.interrupt import Interrupt
    from avs_jax.training.logging import Log
    from avs_jax.training.loop import Loop, Schedule
    from avs_jax.training.state import TrainState
    from avs_jax.training.step import make_train_step
    from avs_jax.training.validation import validate
    from avs_jax.training.workdir import prepare, writable

    # ---- What to train, on what, where
    clock.enter("data")
    workdir = to_path(workdir).resolve()
    method = build.build_method(config)
    validate(config, method)
    source = build.build_source(config, "train")
    build.check_classes(method, source)
    layout = sharding.layout(config.batch_size, **config.mesh)
    tagging.check(method, source, config.tagging.steps)
    total = build.total_steps(config, len(source))
    order = dict(seed=config.seed, batch_size=config.batch_size, augment=config.augment.to_dict(),
                 pairing=build.pairing(config, method, source))  # fmt: skip
    identity = {"config": build.identity(config), "data": pipeline.identity(source, **order)}

    # ---- Shapes before arrays
    clock.enter("initialise")
    key = jax.random.key(config.seed)
    example = build.example_batch(source)
    shapes = jax.eval_shape(method.init, key, example)
    labels = method.param_groups(shapes["params"])
    tx = optimizer.make_optimizer(config.optimizer, labels, total)
    trainable = optimizer.trainable(config.optimizer, labels)
    embed = embeddings.embedder(config, method, trainable, example)

    def make_state(variables):
        return TrainState.create(variables, tx, ema=config.optimizer.ema > 0)

    abstract = layout.state(jax.eval_shape(make_state, shapes))

    # ---- Initialisation: resume, else public weights, which are read before anything is written
    def initialise():
        return build.load_pretrained(config, method, method.init(key, example))

    with writable(workdir):
        begun = (workdir / "checkpoints").is_dir()
    variables = None if begun else initialise()
    prepare(workdir)
    checkpoints = open_checkpoints(workdir, keep=config.checkpoint.keep, best=config.eval.best)
    restored = checkpoints.restore(abstract, identity)
    build.save_config(config, workdir)
    step = make_train_step(
        layout.gathered(method), tx, trainable=trainable, seed=config.seed, ema=config.optimizer.ema,
        accumulate=build.parts(config), learning_rate=optimizer.learning_rate(config.optimizer, total),
    )  # fmt: skip
    step = sharding.jit_step(step, layout, abstract)
    if not restored or restored[1]["step"] < total:
        step = CompiledAhead(step, abstract, batch_shapes(method, source, embed, shapes["params"], layout.data, order))
    if restored:
        state, figures, audio = restored[0], restored[1]["figures"], None
    else:
        variables = variables or initialise()
        with clock.part("embeddings"):
            variables, audio = _taught(config, method, source, variables)
        state = jax.jit(make_state, out_shardings=sharding.shardings(abstract))(variables)
        figures = None
    start = int(state.step)
    build.announce(config, method, source, state, start=start, total=total)

    def clips(step):
        return pipeline.train_indices(len(source), seed=config.seed, step=step, batch_size=config.batch_size)

    with Interrupt() as interrupt, contextlib.closing(checkpoints):
        # ---- A frozen audio encoder runs once per clip, not once per step
        clock.enter("embeddings")
        if embed:
            heard = embeddings.clips_of(clips, range(start, total), len(source), config.batch_size)
            source = embed(state.params, source, heard, audio=audio, stop=lambda: interrupt.signal)
        del audio
        if interrupt.signal:
            return Result(state, figures, interrupt.signal)
        source = build.cached(config, source)

        # ---- Batches, evaluation, loop
        log = Log(
            workdir, step=start, evaluated=figures is not None, total=total, batch_size=config.batch_size, clock=clock,
            tensorboard=config.log.tensorboard, active=jax.process_index() == 0,
        )  # fmt: skip
        batches = pipeline.train_batches(
            source, **order, start_step=start, process_index=jax.process_index(), process_count=jax.process_count(),
            workers=config.loader.workers, threads=config.loader.threads, prefetch=config.loader.prefetch,
        )  # fmt: skip
        batches = pipeline.to_device(batches, layout.data, copying=lambda: clock.part("host to device"))
        with contextlib.closing(log), contextlib.closing(batches):
            loop = Loop(
                step, Schedule.of(config, total), checkpoints=checkpoints, log=log,
                evaluate=build.evaluator(config, method, embed, interrupt), clock=clock, interrupt=interrupt,
                identity=identity, ids=lambda step: [source.ids[i] for i in clips(step)],
            )  # fmt: skip
            state, figures = loop.run(state, batches, figures=figures)
            with clock.part("checkpoint"):
                checkpoints.wait()
            log.breakdown(int(state.step))
    if config.eval.report and not interrupt.signal:
        from avs_jax.evaluate import evaluate_run

        evaluate_run(workdir, checkpoint="latest", split=config.eval.report, progress=False)
    return Result(state, figures, interrupt.signal)


def _taught(config, method, source, variables):
    """The variables with their audio encoder taught to name sounds where the config says so; and every clip's `audio`
    where that has loaded it, else None."""
    from avs_jax.training import tagging

    if not config.tagging.steps:
        return variables, None
    audio = tagging.load_audio(source)
    return tagging.teach(method, variables, source, audio, seed=config.seed, **config.tagging), audio


def main() -> int:
    """The command: flags to `train`, its result to the exit status."""
    from absl import flags

    from avs_jax import distributed
    from avs_jax.errors import InputError

    values = flags.FLAGS
    for name in ("config", "workdir"):
        if not getattr(values, name):
            raise InputError(f"--{name}", expected="to be given", found="nothing", hint=__doc__.splitlines()[0])
    with distributed.joined(distributed.requested(values)):
        return _run(values)


def _run(values) -> int:
    from ml_collections import config_flags

    from avs_jax import cli

    cli.enable_compile_cache()
    config = values.config
    changed = config_flags.get_override_values(values["config"])
    if "steps" in changed and "epochs" not in changed:  # the length given on the command line is the one meant
        config.epochs = 0.0
    if "epochs" in changed and "steps" not in changed:
        config.steps = 0
    result = train(config, values.workdir)
    if not result.stopped_by:
        return 0
    print(f"stopped at step {int(result.state.step)}; the same command goes on from there", file=sys.stderr)
    return 128 + result.stopped_by


if __name__ == "__main__":  # data processes import this module again: nothing above may touch flags or devices
    from absl import flags

    from avs_jax import cli, distributed

    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    cli.config_flag()
    flags.DEFINE_string("workdir", None, "Folder of the run; the same one resumes.")
    define = {bool: flags.DEFINE_bool, int: flags.DEFINE_integer, str: flags.DEFINE_string}
    distributed.add_arguments(lambda name, kind, text: define[kind](name, None, text))
    cli.run(main)
