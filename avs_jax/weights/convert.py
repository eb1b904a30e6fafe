"""Public (PyTorch) state dicts to our variables and back, exactly, with no torch installed.

A model lists its public keys as a `models.torch_keys.Table`; this file moves the numbers by it. Everything is checked:
by default every parameter must be covered and every key used.
"""

import os
from collections.abc import Mapping

import jax
import numpy as np

from avs_jax.errors import InputError
from avs_jax.methods import Method
from avs_jax.models.initialise import initialise
from avs_jax.models.torch_keys import Rule, Table
from avs_jax.paths import RemotePath
from avs_jax.weights import matching
from avs_jax.weights.files import read_state_dict, without_module

StateDict = Mapping[str, np.ndarray]


def load_torch(model, weights, partial: bool = False) -> dict:
    """Variables of `model` from public weights.

    Args:
      model: a `Method`, or an encoder from `create_encoder`.
      weights: {public key: array}, the path of a file, or a list of those that together cover the model (TPAVI's own
        file and VGGish's). The encoders' own files are understood too, each as the encoder that its keys fit best; they
        leave a method's other parts missing. A "module." before every key is dropped. Floating-point numbers of any
        width become float32.
      partial: leave what no file covers at its initial value (key 0). Keys that the model does not have are errors
        either way, but for classifier heads (`fc.*`).
    Returns:
      {"params": ..., "batch_stats": ..., "unused": {key: array}} as NumPy arrays; "unused", if there is any, holds what
      the public file stores and never computes with, so that `to_torch` can give it back.
    Raises:
      InputError: missing, unexpected, doubly given or wrongly shaped keys, in a report of several lines.
    """
    table = table_of(model)
    files = weights if isinstance(weights, list | tuple) else [weights]
    state_dict = matching.merge([read(file) for file in files], table)
    variables = jax.eval_shape(lambda: initial(model))
    match = matching.compare(state_dict, table, variables)
    match.require(partial=partial)
    if any(rule.key not in state_dict for rule in matching.live(table)):
        variables = jax.tree.map(np.asarray, jax.jit(lambda: initial(model))())
    return fill(variables, table, state_dict)


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
            out[rule.key] = to_public(np.asarray(matching.get(variables, rule)), rule.layout)
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
        found = f"'{model.name}'" if isinstance(model, Method) else type(model).__name__
        raise InputError("model", expected="a method or an encoder with public weights", found=found)
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


def initial(model):
    """The variables that what no file covers is left at."""
    rng = jax.random.key(0)
    return model.init(rng) if isinstance(model, Method) else initialise(model, rng, model.example_input())


def read(weights) -> dict[str, np.ndarray]:
    """The state dict of one file, or the given one, without the "module." that data-parallel training puts first."""
    if isinstance(weights, str | os.PathLike | RemotePath):
        return read_state_dict(weights)
    if not isinstance(weights, Mapping):
        raise InputError("weights", expected="a {key: array} mapping, a path, or a list of them",
                         found=type(weights).__name__)  # fmt: skip
    return {key: np.asarray(value) for key, value in without_module(weights).items()}


def fill(variables, table: Table, state_dict: StateDict) -> dict:
    """A copy of the variables' tree in which every key of the state dict has replaced what it stands for.

    Raises:
      InputError: numbers that are not finite.
    """
    filled = jax.tree.map(lambda x: x, variables)  # new dicts, the same arrays
    for rule in table.rules:
        if rule.key in state_dict:
            value = to_ours(state_dict[rule.key], rule.layout)
            if not np.isfinite(value).all():
                bad = np.size(value) - int(np.isfinite(value).sum())
                raise InputError(f"weights, '{rule.key}'", expected="finite numbers", found=f"{bad} NaN or infinite",
                                 hint="The training that wrote them has diverged.")  # fmt: skip
            _put(filled, rule, value)
    return filled


def _put(variables, rule: Rule, value) -> None:
    node = variables.setdefault(rule.collection, {})
    for name in rule.path[:-1]:
        node = node[name]
    node[rule.path[-1]] = value
