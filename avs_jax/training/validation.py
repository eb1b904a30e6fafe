"""What would stop a run after hours, found before it begins: its config, and the data to evaluate on."""

from avs_jax import config as configs
from avs_jax import config_check
from avs_jax.data import augment
from avs_jax.data.sources import create_source
from avs_jax.errors import InputError, nearest
from avs_jax.metrics.figures import descriptions


def validate(config, method) -> None:
    """Refuses what would stop a run later on. It reads no clip and computes nothing.

    Args:
      config: of the run, see `avs_jax.config.defaults`.
      method: the one it names.
    Raises:
      InputError: a field that does not exist, is missing, of another type or out of its range; data to evaluate on
        that are missing or not for the method.
    """
    from avs_jax.training.build import check_canvases, parts

    config_check.check(config)
    parts(config)
    augment.make(config.augment.to_dict())
    check_canvases(config, method)
    _check_data(config, method)
    _check_figure(config.eval.best, method)


def _check_figure(name: str, method) -> None:
    figures = [*descriptions(method.num_classes > 1), "f_best_threshold"]
    if name not in figures:
        raise InputError("eval.best", expected="a figure of the evaluation", found=repr(name),
                         hint=nearest(name, figures))  # fmt: skip


def _check_data(config, method) -> None:
    """Opens what the run will evaluate on; of data for later only the options are looked at, not whether they exist."""
    from avs_jax.training.build import check_classes

    needed = {"eval", config_check.SPLITS.get(config.eval.report)}
    for split in ("eval", "test"):
        try:
            source = create_source(config.data.source, **configs.split_options(config, split))
        except InputError as error:
            if split in needed or error.where.startswith("data."):
                hint = f"It is what data.{split} names. {error.hint}".strip()
                raise InputError(error.where, expected=error.expected, found=error.found, hint=hint) from None
            continue
        if split in needed:
            check_classes(method, source)
