"""What of a public state dict fits a model, and a report of what does not."""

import dataclasses
import difflib
from collections.abc import Callable, Mapping, Sequence

import jax.numpy as jnp
import numpy as np

from avs_jax.errors import InputError
from avs_jax.models.torch_keys import Part, Rule, Table

SHOWN = 8  # names of each kind in an error
_COMPARED = 64  # names for which the nearest valid one is looked up: the search is slow


@dataclasses.dataclass(frozen=True)
class Match:
    """A state dict beside a model's table.

    Attributes:
      table: of the model.
      used: keys that become variables, or are kept aside as the public code keeps them.
      missing: keys of needed variables that are not there.
      foreign: used keys whose variables were not asked for.
      ignored: keys that the model is known to have no use for (classifier heads).
      unexpected: keys that the model does not have.
      wrong: (key, what it is, what it should be): shapes, or numbers that are not floating-point.
      near: unexpected key -> the nearest valid name, where there is one.
      prefix: what all unexpected keys begin with, where they would fit without it.
    """

    table: Table
    used: tuple[str, ...]
    missing: tuple[str, ...]
    foreign: tuple[str, ...]
    ignored: tuple[str, ...]
    unexpected: tuple[str, ...]
    wrong: tuple[tuple[str, str, str], ...]
    near: Mapping[str, str]
    prefix: str = ""

    @property
    def faults(self) -> int:
        return len(self.missing) + len(self.foreign) + len(self.unexpected) + len(self.wrong)

    def text(self, limit: int | None = SHOWN, *, partial: bool = False) -> str:
        """The faults, a paragraph for each kind with at most `limit` names; "" where there are none."""
        unexpected = [f"{k} (nearest: '{self.near[k]}')" if k in self.near else k for k in self.unexpected]
        wrong = [f"{key} {found} in place of {expected}" for key, found, expected in self.wrong]
        kinds = [
            ("missing", () if partial else self.missing),
            ("of another part", self.foreign),
            ("unexpected", unexpected),
            ("of another shape or type", wrong),
        ]
        return "\n".join(_paragraph(kind, names, limit) for kind, names in kinds if names)

    def hint(self, partial: bool = False) -> str:
        audio = {rule.key for rule in self.table.rules if is_audio(rule)}
        if self.prefix:
            return f"Every unexpected key begins with '{self.prefix}'; without it they would fit."
        if self.unexpected or self.foreign or self.wrong:
            hint = "Do the options (backbone, setting, width, stages) fit the file? " * bool(self.wrong)
            return hint + "`python -m avs_jax.weights inspect FILE` says which model it fits."
        if self.missing and audio.issuperset(self.missing):
            return f"The audio encoder has a file of its own ({audio_file(self.table)}): give both, or partial=True."
        return "Give every file in one list, or partial=True to leave the missing ones at their initial values."

    def require(self, where: object = "weights", *, partial: bool = False, expected: str = "", hint: str = "") -> None:
        """Raises the report where there are faults (`partial`: other than missing keys), or nothing fits at all.

        Raises:
          InputError: of several lines.
        """
        text = self.text(partial=partial)
        if not text and partial and not set(self.used) & {r.key for r in live(self.table)}:
            text = "no key of this model"
        if text:
            lines = text if "\n" not in text else f"\n{text}\n"
            expected = expected or f"the {len(self.table.rules)} public keys of this model"
            raise InputError(where, expected=expected, found=lines, hint=hint or self.hint(partial))


def is_audio(rule: Rule) -> bool:
    """Whether a rule is of a method's audio encoder, which has published files of its own."""
    return (rule.part or rule.path[0]) == "audio"


def audio_file(table: Table) -> str:
    """A published file of a method's audio encoder, by example."""
    part = table.parts.get("audio")
    return part.published.names[0] if part and part.published else "vggish-10086976.pth"


def is_ignored(key: str, table: Table) -> bool:
    """Whether a merged key is known to be of no use."""
    return key.startswith((*table.ignored, *(f"{name}: " for name in table.parts)))


def live(table: Table) -> list[Rule]:
    """The rules of what the model computes with."""
    return [rule for rule in table.rules if rule.collection != "unused"]


def part_of(state_dict: Mapping[str, np.ndarray], table: Table, part: str = "") -> str:
    """The part of a method that a file holds alone, by that part's own keys; "" where it has the method's keys.

    part: what it is known to be; "": told from the keys, of which the fewest may be missing or of no use.
    """
    if not table.parts or not {rule.key for rule in table.rules}.isdisjoint(state_dict):
        return ""

    def faults(name):
        own = table.parts[name]
        keys = {key for key, _ in _named(state_dict, own.namings)}
        unexpected = sum(key not in own.aliases and not key.startswith(own.ignored) for key in keys)
        return unexpected + sum(key not in keys for key in own.aliases)

    return part if part in table.parts else min(table.parts, key=faults)


def _named(state_dict, namings) -> list[tuple[str, np.ndarray]]:
    """The items under the keys that all other namings are read by."""
    naming = next((names for mark, names in namings.items() if mark in state_dict), {})
    return [(naming.get(key, key), value) for key, value in state_dict.items()]


def merge(
    state_dicts: Sequence[Mapping[str, np.ndarray]], table: Table, where: object = "weights", part: str = ""
) -> dict:
    """All state dicts as one, under the table's own keys.

    A key of a part's own file that is of no use is named after its part ("encoder: fc.weight").

    Args:
      part: what the files are known to hold, see `part_of`.
    Raises:
      InputError: a key that is given twice.
    """
    merged, twice = {}, []
    known = {rule.key for rule in table.rules}
    for state_dict in state_dicts:
        held = part_of(state_dict, table, part)
        reading = table.parts[held] if held else Part(table.aliases, namings=table.namings)
        for key, value in _named(state_dict, reading.namings):
            names = (key,) if key in known else reading.aliases.get(key, (key,))
            if names == (key,) and key not in known and key.startswith(reading.ignored):
                names = (f"{held}: {key}",)
            for name in names:
                if name in merged:
                    twice.append(name)
                merged[name] = value
    if twice:
        raise InputError(where, expected="every key once", found=_paragraph("given twice", twice, SHOWN, count=False),
                         hint="Do two of the files hold the same part?")  # fmt: skip
    return merged


def compare(state_dict, table: Table, variables, needed: Callable[[Rule], bool] = lambda rule: True) -> Match:
    """Compares keys, shapes and kinds of numbers.

    Args:
      state_dict: as `merge` makes it.
      variables: of the model; shapes do (`jax.eval_shape`).
      needed: which of the model's own variables are asked for.
    """
    rules = {rule.key: rule for rule in table.rules}
    used = tuple(k for k in state_dict if k in rules)
    whole = any(r.optional and r.key in state_dict for r in table.rules)  # optional keys come together or not at all
    missing = tuple(r.key for r in live(table) if needed(r) and r.key not in state_dict and (whole or not r.optional))
    foreign = tuple(k for k in used if rules[k].collection != "unused" and not needed(rules[k]))
    others = [k for k in state_dict if k not in rules]
    ignored = tuple(k for k in others if is_ignored(k, table))
    unexpected = tuple(k for k in others if not is_ignored(k, table))
    wrong = []
    for key in used:
        value, shape = np.asarray(state_dict[key]), expected_shape(rules[key], rules, variables)
        if value.shape != shape:
            wrong.append((key, str(value.shape), str(shape)))
        elif rules[key].layout != "count" and not jnp.issubdtype(value.dtype, jnp.floating):
            wrong.append((key, str(value.dtype), "floating-point numbers"))
    shapes = {k: tuple(np.shape(state_dict[k])) for k in unexpected[:_COMPARED]}
    near = _nearest(shapes, missing, rules, variables)
    aliases = (table.aliases, *(part.aliases for part in table.parts.values()))
    prefix = _common_prefix(unexpected, set(rules).union(*aliases))
    return Match(table, used, missing, foreign, ignored, unexpected, tuple(wrong), near, prefix)


def expected_shape(rule: Rule, rules: Mapping[str, Rule], variables) -> tuple[int, ...]:
    """The public shape of a key."""
    while rule.collection == "unused" and rule.like:
        rule = rules[rule.like]
    if rule.collection == "unused":
        return rule.shape
    shape = tuple(get(variables, rule).shape)
    if rule.layout == "conv":
        return (shape[3], shape[2], shape[0], shape[1])
    if rule.layout == "linear":
        return (shape[1], shape[0])
    if rule.layout == "pointwise":
        return (shape[1], shape[0], 1, 1, 1)
    return shape


def get(variables, rule: Rule):
    """The variable of a rule.

    Raises:
      InputError: there is none; the variables are another model's.
    """
    node = variables.get(rule.collection, {})
    for name in rule.path:
        if name not in node:
            raise InputError(f"variables for '{rule.key}'", expected="/".join((rule.collection, *rule.path)),
                             found="no such entry", hint="Were they made with other options?")  # fmt: skip
        node = node[name]
    return node


def _paragraph(kind, names, limit, count=True):
    head = f"{len(names)} {kind}:" if count else f"{kind}:"
    if len(names) == 1:
        return f"{head} {names[0]}"
    shown = names if limit is None else names[:limit]
    more = [] if len(shown) == len(names) else [f"... ({len(names) - len(shown)} more)"]
    return "\n    ".join([f"  {head}" if count else head, *shown, *more])


def _nearest(shapes, missing, rules, variables) -> dict[str, str]:
    """Unexpected key -> the likeliest valid one: a misspelt name, else the nearest of its shape; the missing first."""
    near, valid = {}, missing or tuple(rules)
    by_shape: dict = {}
    for key in valid:
        by_shape.setdefault(expected_shape(rules[key], rules, variables), []).append(key)
    for key, shape in shapes.items():
        close = difflib.get_close_matches(key, valid, n=1, cutoff=0.9)
        close = close or difflib.get_close_matches(key, by_shape.get(shape, valid), n=1, cutoff=0.6)
        if close:
            near[key] = close[0]
    return near


def _common_prefix(names, valid) -> str:
    """The shortest dotted prefix of all names without which at least nine in ten are valid, or ""."""
    parts = names[0].split(".") if len(names) > 1 else []
    for n in range(1, len(parts)):
        prefix = ".".join(parts[:n]) + "."
        if not all(name.startswith(prefix) for name in names):
            return ""
        if sum(name.removeprefix(prefix) in valid for name in names) >= 0.9 * len(names):
            return prefix
    return ""
