"""State dicts from files: .pth, .pth.tar, .pt, .bin (any torch version) and .safetensors, with no torch installed."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from avs_jax import torch_files
from avs_jax.errors import InputError
from avs_jax.paths import is_remote, local_copy, to_path

# Under which training scripts save the parameters beside the optimiser, the epoch and the like.
WRAPPERS = ("state_dict", "model", "model_state_dict", "model_state", "net", "network", "module")

log = logging.getLogger(__name__)


class Contents(NamedTuple):
    """What is in a file.

    tensors: key -> array in PyTorch's layout and the stored dtype (bfloat16 through ml_dtypes), in the file's order.
      Arrays are read-only, and tensors that share a storage (tied weights) share memory.
    container: "safetensors", "zip" (torch since 1.6), "legacy" (torch before), "pickle".
    ignored: names of what lies beside the tensors: optimiser, epoch, arguments.
    """

    tensors: dict[str, np.ndarray]
    container: str
    ignored: tuple[str, ...] = ()


def read_file(path: str | Path) -> Contents:
    """Reads the parameters and buffers of a PyTorch checkpoint.

    The file's kind is told from its first bytes, not its name. A wrapping dict ("state_dict", "model", ...) is taken
    off, and so is the "module." that data-parallel training puts before every key.

    Raises:
      InputError: the file is missing, damaged or cut short, holds no tensors, or asks for anything but data.
    """
    path = to_path(path)
    if is_remote(path):
        with local_copy(path) as copy:
            return read_file(copy)
    if _is_safetensors(path):
        tensors, container, ignored = _read_safetensors(path), "safetensors", []
    else:
        found, ignored = _unwrap(torch_files.load(path), path)
        tensors = {key: tensor.numpy(f"{path}, tensor '{key}'") for key, tensor in found.items()}
        container = torch_files.container(path)
    return Contents(without_module(tensors), container, tuple(ignored))


def read_state_dict(path: str | Path) -> dict[str, np.ndarray]:
    """The tensors of `read_file`; what else a checkpoint holds is named in the log."""
    contents = read_file(path)
    if contents.ignored:
        log.info("%s: ignored %s", path, ", ".join(contents.ignored))
    return contents.tensors


def without_module(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """The same under keys without "module.", if all have it."""
    prefix = "module." if all(key.startswith("module.") for key in tensors) else ""
    return {key.removeprefix(prefix): value for key, value in tensors.items()}


def _unwrap(found: Any, path: Path) -> tuple[dict[str, torch_files.Tensor], list[str]]:
    """The dict of tensors within what a file holds, and the names of everything passed over."""
    ignored: list[str] = []
    while isinstance(found, dict):
        tensors = {k: v for k, v in found.items() if isinstance(k, str) and isinstance(v, torch_files.Tensor)}
        wrapper = next((k for k in WRAPPERS if isinstance(found.get(k), dict)), None)
        if tensors or wrapper is None:
            ignored += [str(k) for k in found if k not in tensors]
            if tensors:
                return tensors, ignored
            break
        ignored += [str(k) for k in found if k != wrapper]
        found = found[wrapper]
    what = (
        f"a dict of {', '.join(map(str, list(found)[:8])) or 'nothing'}"
        if isinstance(found, dict)
        else (f"a {type(found).__name__.lower()}")
    )
    raise InputError(
        path,
        expected="a state dict: names and their tensors",
        found=what,
        hint="Save model.state_dict() with torch.save.",
    )


def _is_safetensors(path: Path) -> bool:
    """The format begins with the header's length in 8 bytes and the header's opening brace."""
    try:
        with open(path, "rb") as file:
            head = file.read(9)
    except OSError:
        return False  # torch_files.load names what is wrong
    return head[8:9] == b"{" or (path.suffix == ".safetensors" and head[:1] != b"P")


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}
    except (SafetensorError, OSError, TypeError, ValueError, AttributeError) as error:
        raise InputError(path, expected="an undamaged safetensors file", found=str(error)) from None
    if not tensors:
        raise InputError(path, expected="a state dict: names and their tensors", found="no tensors")
    return tensors
