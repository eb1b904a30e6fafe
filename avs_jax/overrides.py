"""`--config.method.<option>` and `--config.data.<option>` on the command line, of options that a recipe does not name.

A recipe names the options that it changes. The others, at their defaults, are set from the command line all the same: a
method's are the keyword arguments of its `create`, a data set's those of its source.
"""

import ast
import collections.abc
import inspect
import types
import typing
from collections.abc import Sequence

from avs_jax.errors import InputError, nearest

SPLITS = ("train", "eval", "test")


def take(argv: Sequence[str], config) -> tuple[list[str], dict[str, str]]:
    """Splits a command line: (what a recipe's own fields and the program's flags are, {"method.<option>": text}).

    Args:
      argv: the command line.
      config: the recipe's, whose fields are not taken; None takes nothing.
    """
    rest, taken = [], {}
    if config is None:
        return list(argv), taken
    for item in argv:
        flag, equals, text = item.partition("=")
        path = flag.lstrip("-").split(".")
        ours = item.startswith("-") and equals and path[0] == "config" and _new_option(path[1:], config)
        if ours:
            taken[".".join(path[1:])] = text
        else:
            rest.append(item)
    return rest, taken


def _new_option(path, config) -> bool:
    if path[:1] == ["data"] and len(path) == 3 and path[1] in SPLITS:
        return path[1] in config.data and path[2] not in config.data[path[1]]
    return len(path) == 2 and path[0] in ("method", "data") and path[1] not in config[path[0]]


def apply(taken: dict[str, str], values) -> None:
    """Sets the options in `values.config`, each as its owner's signature says.

    Raises:
      InputError: an option that the config's method or data set does not have, or a value of another type.
    """
    for path, text in taken.items():
        config = values.config
        *sections, option = path.split(".")
        section, parameters = config, _owner(config, sections[0])
        for name in sections:
            section = section[name]
        if option not in parameters or option == "compute_dtype":
            known = option in parameters
            hint = "Set --config.precision." if known else nearest(option, [*section, *parameters])
            raise InputError(f"--config.{path}", expected=f"a field of section '{'.'.join(sections)}'",
                             found=repr(option), hint=hint)  # fmt: skip
        with section.unlocked():
            section[option] = _value(path, text, parameters[option])


def _owner(config, section) -> dict:
    """{option: annotation} of the config's method, or of its data set."""
    if section == "method":
        from avs_jax.methods import create_function

        return _annotations(create_function(config.method.name))
    from avs_jax.data.sources import source_class

    options = {k: v for k, v in config.data.items() if k != "source"}
    return _annotations(source_class(config.data.source, options))


def _annotations(function) -> dict:
    return {name: p.annotation for name, p in inspect.signature(function, eval_str=True).parameters.items()}


def _value(path, text, annotation):
    """`text` as one of the annotation's types, the narrowest that fits."""
    kinds = typing.get_args(annotation) if isinstance(annotation, types.UnionType) else (annotation,)
    try:
        value = ast.literal_eval({"true": "True", "false": "False", "none": "None"}.get(text.lower(), text))
    except (ValueError, SyntaxError):
        value = text
    for kind in kinds:
        kind = typing.get_origin(kind) or kind
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            return float(value)
        if kind is str and type(None) not in kinds:
            return text
        if kind in (inspect.Parameter.empty, typing.Any, value.__class__):
            return value
        if isinstance(kind, type) and issubclass(kind, collections.abc.Iterable) and kind is not str:
            if isinstance(value, tuple | list | dict) and isinstance(value, kind):
                return value
    if str in kinds and value is not None:
        return text
    expected = " or ".join("None" if k is type(None) else getattr(k, "__name__", str(k)) for k in kinds)
    raise InputError(f"--config.{path}", expected=f"a value of type {expected}", found=repr(text))
