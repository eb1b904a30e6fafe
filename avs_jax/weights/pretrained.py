"""The config's `pretrained` section: which files a method starts from, and what each of them must hold."""

from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np

from avs_jax.data.pipeline import difference
from avs_jax.errors import InputError
from avs_jax.weights import matching
from avs_jax.weights.convert import fill, read, table_of
from avs_jax.weights.public import locate

SECTION = "config.pretrained"


def load_pretrained(method, variables, section) -> dict:
    """Variables with what the files of the section hold in place of their initial values.

    `method` names the checkpoint of a whole method (it must hold everything but the audio encoder), or the workdir of
    an earlier run; it wins over `encoder`, the image encoder's own file, and over `audio`, that of the audio encoder,
    which is read only where the method's file lacks it. A method without an audio encoder leaves `audio` unread.
    Layers that the encoders' own files have in another shape (CAVP's audio encoders: the last layer, a ResNet's first)
    stay at their initial values.

    Args:
      method: an `avs_jax.methods.Method`.
      variables: its initial variables; what no file covers stays.
      section: `encoder`, `audio`, `method`: "", a path, a file's name or a hub id (see `weights.public.locate`), and
        `folder`, where fetched files are put.
    Returns:
      A tree like `variables`, without what public files store beside the model's own variables.
    Raises:
      InputError: a file that is not there, with where to fetch it, or that does not fit, with a report.
    """

    def find(part):
        published = _published(method, part)
        return locate(section[part], field=f"{SECTION}.{part}", folder=section["folder"], published=published)

    wants_audio = bool(section["audio"]) and "audio" in variables["params"]
    if section["method"]:
        path = find("method")
        if (path / "config.json").is_file():
            return _from_run(variables, path)
        variables, has_audio = _load_method(method, variables, path)
        wants_audio = wants_audio and not has_audio
    elif section["encoder"]:
        variables = _load_part(method, variables, find("encoder"), "encoder")
    return _load_part(method, variables, find("audio"), "audio") if wants_audio else variables


def describe(section) -> str:
    """What a run starts from, in words."""
    if section["method"]:
        return str(section["method"])
    parts = [section[part] for part in ("encoder", "audio") if section[part]]
    return " and ".join(parts) or "random weights"


def _load_method(method, variables, path: Path) -> tuple[dict, bool]:
    """The variables, and whether the file has the audio encoder too."""
    where = f"{SECTION}.method, {path}"
    table = table_of(method)
    state_dict = matching.merge([read(path)], table, where)
    has_audio = any(matching.is_audio(rule) and rule.key in state_dict for rule in matching.live(table))
    match = matching.compare(state_dict, table, variables, lambda rule: has_audio or not matching.is_audio(rule))
    match.require(where, hint=_hint(match, method, "method", path))
    return _filled(variables, table, state_dict), has_audio


def _load_part(method, variables, path: Path, part: str) -> dict:
    """A file that must hold the part's variables, all of them and no others of the method."""
    where = f"{SECTION}.{part}, {path}"
    table, found = table_of(method), read(path)
    own = matching.part_of(found, table, part)  # not "": the part's own keys, not the method's
    fresh = set(table.parts[own].fresh) if own else set()
    state_dict = matching.merge([found], table, where, part)
    match = matching.compare(state_dict, table, variables, lambda r: r.path[0] == part and r.key not in fresh)
    expected = f"the public keys of the {'image' if part == 'encoder' else part} encoder, and no others"
    match.require(where, expected=expected, hint=_hint(match, method, part, path))
    return _filled(variables, table, state_dict)


def _published(method, part: str):
    """What is published of a method's part: a `torch_keys.Published`, or None, as for a method of one's own."""
    own = method.torch_keys.parts.get(part) if method.torch_keys else None
    return own.published if own else None


def _hint(match, method, part: str, path: Path) -> str:
    if match.prefix:
        return match.hint()
    if part != "method" and match.foreign and not match.missing:
        return f"It holds more than the {part} encoder: give a method's checkpoint as {SECTION}.method."
    choice = {k: method.options.get(k) for k in ("setting", "architecture", "backbone", "audio_encoder")}
    options = ", ".join(f"{k}={v}" for k, v in choice.items() if v is not None)
    published = _published(method, part)
    needed = f"Needed is {published.kind}, e.g. {published.names[0]}. " if published and published.names else ""
    return (f"{needed}The config has {method.name} with {options}; `python -m avs_jax.weights inspect {path}` says "
            "what the file fits.")  # fmt: skip


def _filled(variables, table, state_dict) -> dict:
    filled = fill(variables, table, state_dict)
    return {k: v for k, v in filled.items() if k in variables}  # what the public code stores and never runs stays out


def _from_run(variables, workdir: Path) -> dict:
    """The variables of an earlier run, which must have the tree and shapes of the method's own."""
    from avs_jax.training.checkpoint import load_checkpoint

    _, loaded = load_checkpoint(workdir)
    loaded = {k: v for k, v in loaded.items() if k in variables}
    shapes, found = (_shapes(tree) for tree in (variables, loaded))
    name = difference({"": shapes}, {"": found})
    if name:
        raise InputError(f"{SECTION}.method, {workdir}, array {name[0].strip('.')}", expected=str(name[1]),
                         found=str(name[2]), hint="That run trained another architecture.")  # fmt: skip
    return loaded


def _shapes(tree) -> Mapping:
    return jax.tree.map(lambda x: (np.shape(x), str(x.dtype)), tree)
