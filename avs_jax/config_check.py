"""Is a config one? Its fields, their types, and numbers that mean nothing, told before anything is built from it."""

import numbers
from collections.abc import Mapping

from avs_jax import config as configs
from avs_jax.data.pairing import RULES
from avs_jax.errors import InputError, nearest

SPLITS = {"train": "train", "eval": "eval", "val": "eval", "test": "test"}  # as users say -> the config's section
FREE = ("method", "data", "optimizer.groups")  # sections with the fields of those they describe
LEAST = {  # of whole numbers
    "seed": 0, "steps": 0, "batch_size": 1, "accumulate": 1,
    "loader.workers": 0, "loader.threads": 0, "loader.prefetch": 0,
    "optimizer.warmup_steps": 0, "optimizer.lag": 0, "tagging.steps": 0, "tagging.batch_size": 1,
    "eval.every_steps": 0, "eval.first_step": 0, "eval.batch_size": 1, "eval.max_clips": 0,
    "checkpoint.every_steps": 0, "checkpoint.keep": 1, "log.every_steps": 0, "mesh.fsdp": 1, "mesh.min_size": 1,
}  # fmt: skip
KINDS = {  # of a default -> (what its values are, in words, and their types)
    bool: ("true or false", bool), int: ("a whole number", numbers.Integral), float: ("a number", numbers.Real),
    str: ("text", str), tuple: ("several numbers", (tuple, list)),
}  # fmt: skip


def check(config) -> None:
    """As `check_structure`, and refuses numbers that mean nothing.

    The optimiser's numbers, and the options of the method, the augmentation and the data set, are checked by their
    owners.

    Raises:
      InputError: as `check_structure`, or a field out of its range.
    """
    check_structure(config)
    _check_ranges(_flat(config.to_dict()))


def check_structure(config) -> None:
    """Compares a config's fields and their types with the defaults'.

    Raises:
      InputError: a field is too many (naming the nearest), missing or of another type.
    """
    found = config.to_dict()
    _compare(found, configs.defaults().to_dict(), "")
    _check_names(found)


def completed(found: Mapping) -> dict:
    """What a run of an earlier version wrote, with the defaults of the fields that have come since.

    Raises:
      InputError: it is no config: it names no method or data set, or one of its fields is of another type.
    """
    whole = _merged(found, configs.defaults().to_dict(), "")
    _check_names(whole)
    _check_ranges(_flat(whole))
    return whole


def _merged(found: Mapping, defaults: Mapping, prefix: str) -> dict:
    whole = dict(found)
    for name, default in defaults.items():
        path = prefix + name
        if path in ("method", "data"):
            whole.setdefault(name, None)
        elif name not in whole:
            whole[name] = default
        _check_type(path, whole[name], default)
        if isinstance(default, Mapping) and path not in FREE:
            whole[name] = _merged(whole[name], default, f"{path}.")
    return whole


def _compare(found: Mapping, defaults: Mapping, prefix: str) -> None:
    where = f"section '{prefix[:-1]}'" if prefix else "the config"
    for name in found:
        if name not in defaults:
            raise InputError(f"config.{prefix}{name}", expected=f"a field of {where}", found=repr(name),
                             hint=nearest(name, defaults))  # fmt: skip
    for name, default in defaults.items():
        path = prefix + name
        if name not in found:
            raise InputError(f"config.{path}", expected="a field that every config has", found="nothing",
                             hint="Start from avs_jax.config.defaults().")  # fmt: skip
        _check_type(path, found[name], default)
        if isinstance(default, Mapping) and path not in FREE:
            _compare(found[name], default, f"{path}.")


def _check_type(path: str, value, default) -> None:
    if isinstance(default, Mapping):
        if not isinstance(value, Mapping):
            found = "nothing" if value is None else repr(value)
            raise InputError(f"config.{path}", expected="a section with fields of its own", found=found)
        return
    words, kind = KINDS[type(default)]
    several = isinstance(value, tuple | list)
    fits = isinstance(value, kind) and isinstance(value, bool) == isinstance(default, bool)
    if several and (fits or path == "augment.crop"):  # a crop is a side, or height and width
        fits = all(isinstance(v, numbers.Real) and not isinstance(v, bool) for v in value)
    if not fits:
        raise InputError(f"config.{path}", expected=words, found=repr(value))


def _check_names(found: Mapping) -> None:
    for section, name in (("method", "name"), ("data", "source")):
        value = found[section].get(name)
        if not isinstance(value, str):
            raise InputError(f"config.{section}.{name}", expected="a name",
                             found="nothing" if value is None else repr(value))  # fmt: skip
    for split in ("train", "eval", "test"):
        value = found["data"].get(split)
        if not isinstance(value, Mapping):
            raise InputError(f"config.data.{split}", expected="a section: options of that split's data",
                             found="nothing" if value is None else repr(value))  # fmt: skip


def _check_ranges(values: Mapping) -> None:
    for name, least in LEAST.items():
        if values[name] < least:
            raise InputError(name, expected=f"a whole number of at least {least}", found=repr(values[name]))
    if not 0 <= values["epochs"] < float("inf"):
        raise InputError("epochs", expected="a number of at least 0", found=repr(values["epochs"]))
    if not 0 < values["tagging.lr"] < float("inf"):
        raise InputError("tagging.lr", expected="a number above 0", found=repr(values["tagging.lr"]))
    if not 0 <= values["pairing.rate"] <= 1:
        raise InputError("pairing.rate", expected="a share in [0, 1]", found=repr(values["pairing.rate"]))
    for name, valid in (("pairing.rule", RULES), ("eval.report", ("", *SPLITS))):
        if values[name] not in valid:
            expected = "a split, or nothing" if name == "eval.report" else " or ".join(valid)
            raise InputError(name, expected=expected, found=repr(values[name]),
                             hint=nearest(values[name], filter(None, valid)))  # fmt: skip


def _flat(section: Mapping, prefix: str = "") -> dict:
    found = {}
    for name, value in section.items():
        found |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return found
