"""Evaluation: one streaming pass, exact and mergeable; the same figures for every batch size, order and process count.

On the device every frame is reduced to integers (areas, and one histogram of scores); on the host all figures follow
from them in float64, clip by clip in the order of the source.
"""

import contextlib
from collections.abc import Callable

import jax

from avs_jax.errors import InputError
from avs_jax.metrics.report import Report, report
from avs_jax.metrics.sounds import CONDITIONS, sounds
from avs_jax.metrics.streaming import collect
from avs_jax.metrics.tally import gather

__all__ = ["CONDITIONS", "Report", "evaluate", "evaluate_rows"]


def evaluate(method, variables, source, *, bootstrap: int = 0, **options) -> dict[str, float]:
    """The figures of a method on a data set.

    Args:
      method: an `avs_jax.methods.Method`.
      variables: {"params": ..., "batch_stats": ...}, numpy or jax arrays.
      source: an `avs_jax.data.sources.Source`.
      bootstrap: with more than 0, the key "intervals" is added: {figure: (low, high)}.
      options: as `evaluate_rows`.
    Returns:
      {figure: float}, NaN where the data set does not define it. Binary (K = 1) and semantic (K > 1):
        miou, fscore: J and F by the AVSBench protocol;
        audio_gain, j_swap, j_silence, j_noise: J with the true sound minus J with another clip's sound, and J with
          another clip's sound, silence and white noise (of the `conditions` asked for);
        j_nonempty, j_video, j_dataset: J over frames in which something sounds, the mean of the clips' means over
          these, and the data set's intersection over its union;
        f_05, f_best, f_best_threshold: F (beta squared 0.3) at 0.5 and at the best single threshold for the data set;
        precision, recall, fdr: of all pixels together;
        silent_false_positive_rate, silent_exactly_empty: in frames in which nothing sounds, the share of pixels marked
          and the share of frames left exactly empty.
      Semantic only: miou and fscore are means over classes; f1, f03, fdr, miou_classes and miou_all_classes come from
        one confusion matrix, background included. The rest is of "sounding or not", whatever the class.
      Frames that are not `present` count in the semantic miou and fscore (and j_swap and the like), as the public code
        does, unless their labels are 255 (`absent="ignore"` of AVSBench-semantic's source), and in no other figure.
    """
    found = evaluate_rows(method, variables, source, bootstrap=bootstrap, **options)
    return {**found.figures, **({"intervals": found.intervals} if bootstrap else {})}


def evaluate_rows(
    method,
    variables,
    source,
    *,
    batch_size: int = 4,
    max_clips: int = 0,
    conditions=CONDITIONS,
    clips_per_batch: int = 4,
    bootstrap: int = 1000,
    exact: bool = True,
    progress: bool = False,
    mesh=None,
    workers: int = 0,
    threads: int = 2,
    check: Callable[[], object] = lambda: None,
) -> Report:
    """As `evaluate`, with intervals, a row per clip, the class table and the curves. Every process must call it.

    Args:
      batch_size: clips loaded together, over all processes (rounded up to a multiple of them).
      max_clips: only the first ones; 0 = all.
      conditions: the sounds to hear: "true" always, "swap", "silence", "noise".
      clips_per_batch: the protocol's batch, over which J is averaged and for which F picks its threshold: 4, as in the
        public test scripts. It is not `batch_size`, which changes nothing.
      bootstrap: resamplings of the clips for the 95 % intervals; 0 leaves them out.
      exact: predict each clip alone, so that figures cannot depend on batches; False: batches at once (for a GPU).
      progress: show a progress bar (on the first process).
      mesh: its devices share the clips; None: one device.
      workers, threads: of the loader.
      check: called after every batch, in every process equally often; what it raises ends the evaluation.
    Raises:
      InputError: no clips, an unknown condition, labels that do not fit the method's classes.
    """
    from avs_jax.data.pipeline import eval_batches

    _check(method, source)
    for name, value, least in (("batch_size", batch_size, 1), ("clips_per_batch", clips_per_batch, 1),
                               ("max_clips", max_clips, 0), ("bootstrap", bootstrap, 0),
                               ("workers", workers, 0), ("threads", threads, 0)):  # fmt: skip
        if value < least:
            raise InputError(name, expected=f"at least {least}", found=str(value))
    processes, heard = jax.process_count(), sounds(source, conditions)
    batches = eval_batches(
        source,
        batch_size=-(-batch_size // processes) * processes,
        max_clips=max_clips,
        process_index=jax.process_index(),
        process_count=processes,
        workers=workers,
        threads=threads,
    )
    total = min(len(source), max_clips) if max_clips else len(source)
    with contextlib.closing(batches), _bar(progress, -(-total // processes)) as bar:

        def advance(clips):
            bar.update(clips)
            check()

        rows = collect(method, variables, batches, heard, exact=exact, mesh=mesh, advance=advance)
    settings = {"exact": exact, "max_clips": max_clips, "method": method.name}
    return report(gather(rows), source, heard, clips_per_batch=clips_per_batch, bootstrap=bootstrap, settings=settings)


def _check(method, source):
    if len(source) == 0:
        raise InputError("data source", expected="at least one clip", found="none")
    classes = len(source.class_names)
    if method.num_classes not in (1, classes):
        expected = f"{method.num_classes} classes, as the method '{method.name}' predicts"
        raise InputError("class_names", expected=expected, found=f"{classes} in the data set")


def _bar(show, clips):
    from tqdm import tqdm

    show = show and jax.process_index() == 0
    return tqdm(total=clips, unit="clip", desc="evaluate", disable=not show, leave=False, dynamic_ncols=True)
