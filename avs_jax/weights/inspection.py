"""What a file of weights holds, and which known model it fits."""

import dataclasses
import functools
import hashlib
import itertools
import json
import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import jax
import numpy as np

from avs_jax.errors import InputError
from avs_jax.methods import cavp, create, tpavi, transavs
from avs_jax.models.encoders import ENCODERS, create_encoder
from avs_jax.models.torch_keys import Rule
from avs_jax.weights import matching
from avs_jax.weights.convert import initial, table_of
from avs_jax.weights.files import Contents
from avs_jax.weights.public import promised_hash
from avs_jax.weights.recognition import TRANSAVS_KEYS, transavs_options

# Candidates whose shapes are compared, after all whose keys are: shapes take a second each. Five Swins share all keys.
_TRIED = 5
_TPAVI_KEYS = ("tpavi_b", "output_conv.", "path1.")
_SWINS = {full: name for name, full in transavs.SWINS.items()}


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A known model.

    Attributes:
      name: in words.
      flags: of this command, to ask for it.
      build: makes it.
    """

    name: str
    flags: str
    build: Callable

    @classmethod
    def of(cls, kind: str, name: str, words: str = "", **options) -> "Candidate":
        text = ",".join(f"{k}={_option_text(v)}" for k, v in options.items())
        quoted = shlex.quote(text) if "{" in text else text
        named, flags = (f" with {text}", f" --options {quoted}") if options else ("", "")
        build = {"encoder": create_encoder, "method": create}[kind]
        return cls(f"{kind} {name}{named}{words}", f"--{kind} {name}{flags}", functools.partial(build, name, **options))


def _option_text(value) -> str:
    return json.dumps(value, separators=(",", ":")) if isinstance(value, dict) else str(value).replace(" ", "")


def summary(path: Path, contents: Contents) -> str:
    """Size, format, parameters, and what is odd, one line each."""
    arrays = contents.tensors.values()
    types = sorted({str(a.dtype) for a in arrays})
    lines = [
        f"{path}: {path.stat().st_size / 1e6:.1f} MB, {_container(contents)}",
        f"{len(contents.tensors)} tensors, {sum(a.size for a in arrays):,} numbers ({', '.join(types)})",
    ]
    if contents.ignored:
        lines.append(f"beside them: {', '.join(contents.ignored)}")
    bad = [key for key, a in contents.tensors.items() if not np.isfinite(a).all()]
    if bad:
        lines.append(f"WARNING: {len(bad)} tensors hold infinities or NaN, the first is {bad[0]}")
    promised = promised_hash(path.name)
    if promised:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()[:8]
        same = found == promised
        note = "as its name says" if same else f"but its name says {promised}: not the published file, or damaged"
        lines.append(f"{'' if same else 'WARNING: '}its SHA-256 begins with {found}, {note}")
    return "\n".join(lines)


def _container(contents: Contents) -> str:
    words = {
        "zip": "torch file (zip)",
        "legacy": "torch file (legacy, before 1.6)",
        "pickle": "plain pickle of tensors",
    }
    return words.get(contents.container, contents.container)


def listing(tensors: Mapping[str, np.ndarray]) -> str:
    """Name, shape and type of every tensor, one line each."""
    rows = [(key, "x".join(map(str, a.shape)) or "scalar", str(a.dtype)) for key, a in tensors.items()]
    name, shape = (max(len(row[i]) for row in rows) for i in (0, 1))
    return "\n".join(f"  {key:<{name}}  {size:<{shape}}  {kind}" for key, size, kind in rows)


def match(model, state_dicts) -> matching.Match:
    """The state dicts together beside a model. A file without an audio encoder is not asked for one: it has its own."""
    table = table_of(model)
    state_dict = matching.merge(state_dicts, table)
    variables = jax.eval_shape(lambda: initial(model))
    return matching.compare(state_dict, table, variables, needed_by(state_dict, table))


def needed_by(state_dict, table) -> Callable[[Rule], bool]:
    """Which of a table's rules a state dict can be asked for: all, or all but the audio encoder's if it has none."""
    rules = matching.live(table)
    if all(matching.is_audio(rule) for rule in rules) or any(
        matching.is_audio(rule) and rule.key in state_dict for rule in rules
    ):
        return lambda rule: True
    return lambda rule: not matching.is_audio(rule)


def candidates(keys: Mapping[str, np.ndarray]) -> Iterator[Candidate]:
    """The known models that a state dict may be of."""
    for name in ENCODERS:
        if not name.endswith("resnet10"):  # ours alone: no public file
            yield Candidate.of("encoder", name, _takers(name))
    if "conv1.0.weight" in keys or "conv3.weight" in keys:
        for name in ("resnet50", "resnet101"):
            yield Candidate.of("encoder", name, stem="deep")
    if "norm0.weight" in keys or "backbone.norm0.weight" in keys:
        for name in ENCODERS:
            if name.startswith("swin_"):
                yield Candidate.of("encoder", name, _takers(name), output_norms=True)
    shapes = {key: np.shape(array) for key, array in keys.items()}
    if any(key.startswith("segment.") for key in keys):
        yield _cavp(shapes)
    if set(TRANSAVS_KEYS) <= set(keys):
        options, others = transavs_options(shapes)
        yield Candidate.of("method", "transavs", _or_settings(others), **options)
    if any(key.startswith(_TPAVI_KEYS) for key in keys):
        yield from _tpavi(keys)


def _takers(encoder: str) -> str:
    """Which methods take an encoder's own file."""
    methods = [m for m, names in (("tpavi", tpavi.BACKBONES), ("transavs", transavs.BACKBONES)) if encoder in names]
    backbone = _SWINS.get(encoder, encoder)
    return f" (the image encoder of {' or '.join(methods)} with backbone={backbone})" if methods else ""


def _or_settings(others: Sequence[str]) -> str:
    return f" (or setting={' or '.join(others)}: the same network)" if others else ""


def _tpavi(keys) -> Iterator[Candidate]:
    stages = sorted({int(key[7]) - 1 for key in keys if re.match(r"tpavi_b[1-4]\.", key)})
    parts = {key.split(".")[1] for key in keys if key.startswith("tpavi_b")}
    options = {}
    if not stages:
        options["fusion"] = "none"
    elif "theta" not in parts:
        options["fusion"] = "no_projection" if "norm_layer" in parts else "add"
    if stages and stages != [0, 1, 2, 3]:
        options["tpavi_stages"] = stages
    backbones = [name for name in tpavi.BACKBONES if name != "resnet10"]
    for setting, backbone in itertools.product(("ms3", "avss"), backbones):
        words = _or_settings(["s4"] if setting == "ms3" else [])
        yield Candidate.of("method", "tpavi", words, setting=setting, backbone=backbone, **options)


def _cavp(shapes: Mapping[str, tuple[int, ...]]) -> Candidate:
    """The one CAVP that a checkpoint may be of: keys and shapes tell all that makes a difference to them."""
    options = {}
    if "segment.upsample.weight" in shapes:
        options["architecture"], last = "ocr", "segment.upsample.weight"
    else:
        options["architecture"] = "deeplab" if any(k.startswith("segment.aspp.") for k in shapes) else "hrnet"
        last = "segment.upsample.classifier.weight"
    if options["architecture"] == "deeplab":
        options["backbone"] = "resnet101" if "backbone.backbone.layer3.6.conv1.weight" in shapes else "resnet50"
    vggish = any(k.startswith(f"{cavp.AUDIO_PREFIX}features.") for k in shapes)
    classes, audio = shapes.get(last, (22,))[0], "vggish" if vggish else "resnet18"
    hears = any(k.startswith("cross_att.") for k in shapes)
    fitting = [name for name, setting in cavp.SETTINGS.items() if setting.classes == classes]
    same = [name for name in fitting if not hears or cavp.SETTINGS[name].audio_encoder == audio]
    setting = (same or fitting or ["vpo_ss"])[0]
    if not fitting:
        options["num_classes"] = classes
    if not hears:
        options["fusion"] = "none"
    elif not any(k.startswith("cross_att.blocks.") for k in shapes):
        options["fusion"] = "concat" if "cross_att.visual.weight" in shapes else "sum"
    if hears and cavp.SETTINGS[setting].audio_encoder != audio:
        options["audio_encoder"] = audio
    if shapes.get(f"{cavp.AUDIO_PREFIX}conv1.weight", (0, 1))[1:2] == (2,):
        options["audio_channels"] = 2
    return Candidate.of("method", "cavp", _or_settings(same[1:]), setting=setting, **options)


def best_fit(state_dict: Mapping[str, np.ndarray]) -> tuple[Candidate, matching.Match] | None:
    """The known model with the fewest faults, and its match; None where half of its keys or more are of no use."""
    ranked = []
    for candidate in candidates(state_dict):
        try:
            table = table_of(candidate.build())
            merged = matching.merge([state_dict], table)
        except InputError:  # sizes that no model has, or two namings of the same model in one file
            continue
        needed = needed_by(merged, table)
        keys = {rule.key for rule in table.rules}
        missing = sum(needed(rule) and rule.key not in merged for rule in matching.live(table))
        unexpected = sum(key not in keys and not matching.is_ignored(key, table) for key in merged)
        if unexpected * 2 < len(merged):
            ranked.append((missing + unexpected, candidate))
    best = None
    for _, candidate in sorted(ranked, key=lambda pair: pair[0])[:_TRIED]:
        fit = match(candidate.build(), [state_dict])
        if best is None or fit.faults < best[1].faults:
            best = candidate, fit
        if not fit.faults:
            break
    return best


def fit_text(state_dict: Mapping[str, np.ndarray]) -> str:
    """In one or two lines: which known model a state dict fits, or comes nearest to."""
    found = best_fit(state_dict)
    if found is None:
        return "fits: no known model"
    candidate, fit = found
    if not fit.faults:
        lines = [f"fits: {candidate.name}"]
        if not all(rule.key in fit.used for rule in matching.live(fit.table)):
            file = matching.audio_file(fit.table)
            lines.append(f"      but for its audio encoder, which has a file of its own, e.g. {file}")
        if fit.ignored:
            lines.append(f"      ignored: {', '.join(fit.ignored[:6])}{', ...' if len(fit.ignored) > 6 else ''}")
        return "\n".join(lines)
    kinds = (("missing", fit.missing), ("unexpected", fit.unexpected), ("misshapen", fit.wrong))
    faults = ", ".join(f"{len(names)} {kind}" for kind, names in kinds if names)
    return f"fits: no known model; nearest is {candidate.name}: {faults}\n      ({candidate.flags} tells all)"
