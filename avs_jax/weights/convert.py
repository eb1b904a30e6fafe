"""Public (PyTorch) state dicts to our variables and back, exactly, with no torch installed.

A model lists its public keys as a `models.torch_keys.Table`; this file moves the numbers by it. Everything is checked:
by default every parameter must be covered and every key used.
"""

import difflib
import os
from collections.abc import Mapping, Sequence

import jax
import numpy as np

from avs_jax.errors import InputError
from avs_jax.methods import Method
from avs_jax.models.initialise import initialise
from avs_jax.models.torch_keys import Rule, Table

StateDict = Mapping[str, np.ndarray]
_SHOWN = 8  # names of each kind in a report


def load_torch(model, weights, partial: bool = False) -> dict:
    """Variables of `model` from public weights.

    Args:
      model: a `Method`, or an encoder from `create_encoder`.
      weights: {public key: array}, the path of a file, or a list of those that together cover the model (TPAVI's own
        file and VGGish's). ImageNet files of the encoder are understood too. A "module." before every key is dropped.
      partial: leave what no file covers at its initial value (key 0). Keys that the model does not have are errors
        either way, but for classifier heads (`fc.*`).
    Returns:
      {"params": ..., "batch_stats": ..., "unused": {key: array}} as NumPy arrays; "unused", if there is any, holds what
      the public file stores and never computes with, so that `to_torch` can give it back.
    Raises:
      InputError: missing, unexpected, doubly given or wrongly shaped keys, all listed.
    """
    table = table_of(model)
    files = weights if isinstance(weights, list | tuple) else [weights]
    state_dict = _merge([_read(file) for file in files], table)
    variables = jax.eval_shape(lambda: _initial(model))
    _check(state_dict, table, variables, partial)
    covered = {rule.key for rule in table.rules if rule.key in state_dict}
    live = [rule for rule in table.rules if rule.collection != "unused"]
    if all(rule.key in covered for rule in live):
        variables = jax.tree.map(lambda x: None, variables)
    else:
        variables = jax.tree.map(np.asarray, jax.jit(lambda: _initial(model))())
    for rule in table.rules:
        if rule.key in covered:
            _put(variables, rule, to_ours(state_dict[rule.key], rule.layout))
    return variables


def to_torch(model, variables) -> dict[str, np.ndarray]:
    """The public state dict of `variables`: the exact inverse of `load_torch`.

    All public keys come in the public order, also those the model never computes with: their loaded values if
    `variables` has them, else those of the branch they are a copy of, else zeros.

    Raises:
      InputError: variables that are not this model's.
    """
    table, out = table_of(model), {}
    unused = variables.get("unused", {})
    for rule in table.rules:
        if rule.collection != "unused":
            out[rule.key] = to_public(np.asarray(_get(variables, rule)), rule.layout)
        elif rule.key in unused:
            out[rule.key] = to_public(np.asarray(unused[rule.key]), rule.layout)
        elif rule.layout == "count":
            out[rule.key] = np.zeros((), np.int64)
        else:
            out[rule.key] = out[rule.like].copy() if rule.like else np.zeros(rule.shape, np.float32)
    return out


def table_of(model) -> Table:
    """The table of a `Method` or an encoder."""
    table = model.torch_keys if isinstance(model, Method) else getattr(model, "torch_table", lambda: None)()
    if not isinstance(table, Table):
        raise InputError("model", expected="a method or an encoder with public weights", found=repr(model))
    return table


def to_ours(array: np.ndarray, layout: str) -> np.ndarray:
    """One public array in our layout (see `Rule.layout`): a contiguous float32 copy, or an int64 count."""
    if layout == "count":
        return np.asarray(array, np.int64).reshape(())
    array = np.asarray(array)
    if layout == "conv":
        array = array.transpose(2, 3, 1, 0)
    elif layout == "linear":
        array = array.T
    elif layout == "pointwise":
        array = array.reshape(array.shape[:2]).T
    return np.array(array, np.float32, order="C")


def to_public(array: np.ndarray, layout: str) -> np.ndarray:
    """The inverse of `to_ours`."""
    if layout == "count":
        return np.asarray(array, np.int64).reshape(())
    if layout == "conv":
        array = array.transpose(3, 2, 0, 1)
    elif layout == "linear":
        array = array.T
    elif layout == "pointwise":
        array = array.T[:, :, None, None, None]
    return np.array(array, order="C")


def _public_shape(shape, layout):
    """Our shape -> the public one."""
    if layout == "conv":
        return (shape[3], shape[2], shape[0], shape[1])
    if layout == "linear":
        return (shape[1], shape[0])
    if layout == "pointwise":
        return (shape[1], shape[0], 1, 1, 1)
    return tuple(shape)


def _initial(model):
    rng = jax.random.key(0)
    return model.init(rng) if isinstance(model, Method) else initialise(model, rng, model.example_input())


def _read(weights) -> StateDict:
    if isinstance(weights, Mapping):
        state_dict = weights
    elif isinstance(weights, str | os.PathLike):
        from avs_jax.weights.files import read_state_dict

        state_dict = read_state_dict(weights)
    else:
        raise InputError("weights", expected="a {key: array} mapping, a path, or a list of them",
                         found=type(weights).__name__)  # fmt: skip
    if state_dict and all(key.startswith("module.") for key in state_dict):
        state_dict = {key.removeprefix("module."): value for key, value in state_dict.items()}
    return state_dict


def _merge(state_dicts: Sequence[StateDict], table: Table) -> dict[str, np.ndarray]:
    """All files under the table's own keys."""
    merged, twice = {}, []
    known = {rule.key for rule in table.rules}
    for state_dict in state_dicts:
        for key, value in state_dict.items():
            for name in (key,) if key in known else table.aliases.get(key, (key,)):
                if name in merged:
                    twice.append(name)
                merged[name] = value
    if twice:
        raise InputError("weights", expected="every key once", found=f"given twice: {_some(twice)}",
                         hint="Do two of the files hold the same part?")  # fmt: skip
    return merged


def _check(state_dict, table: Table, variables, partial: bool) -> None:
    rules = {rule.key: rule for rule in table.rules}
    missing = [r.key for r in table.rules if r.collection != "unused" and r.key not in state_dict]
    unexpected = [k for k in state_dict if k not in rules and not k.startswith(table.ignored)]
    wrong = []
    for key, rule in rules.items():
        if key in state_dict:
            expected = _expected_shape(rule, rules, variables)
            found = tuple(np.shape(state_dict[key]))
            if found != expected:
                wrong.append(f"{key} {found} in place of {expected}")
    problems = []
    if missing and not partial:
        problems.append(f"{len(missing)} missing: {_some(missing)}")
    if unexpected:
        problems.append(f"{len(unexpected)} unexpected: {_some(unexpected)}")
    if wrong:
        problems.append(f"{len(wrong)} of another shape: {_some(wrong)}")
    if partial and not problems and len(missing) == sum(r.collection != "unused" for r in table.rules):
        problems.append("no key of this model")
    if problems:
        raise InputError("weights", expected=f"the {len(rules)} public keys of this model",
                         found="; ".join(problems), hint=_hint(missing, unexpected, partial, rules))  # fmt: skip


def _hint(missing, unexpected, partial, rules):
    if unexpected:
        close = difflib.get_close_matches(unexpected[0], rules, n=1, cutoff=0.8)
        return f"Is '{unexpected[0]}' meant to be '{close[0]}'?" if close else ""
    if missing and not partial:
        return "Give every file in one list, or partial=True to leave the missing ones at their initial values."
    return "Do the options (backbone, width, stages) fit the file?"


def _expected_shape(rule: Rule, rules, variables):
    while rule.collection == "unused" and rule.like:
        rule = rules[rule.like]
    if rule.collection == "unused":
        return rule.shape
    return _public_shape(_get(variables, rule).shape, rule.layout)


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_SHOWN])
    return shown if len(names) <= _SHOWN else f"{shown}, ... ({len(names) - _SHOWN} more)"


def _get(variables, rule: Rule):
    node = variables.get(rule.collection, {})
    for name in rule.path:
        if name not in node:
            raise InputError(f"variables for '{rule.key}'", expected="/".join((rule.collection, *rule.path)),
                             found="no such entry", hint="Were they made with other options?")  # fmt: skip
        node = node[name]
    return node


def _put(variables, rule: Rule, value) -> None:
    node = variables.setdefault(rule.collection, {})
    for name in rule.path[:-1]:
        node = node[name]
    node[rule.path[-1]] = value
