"""Which public (PyTorch) state-dict key is which of our variables: rules that models list beside themselves.

Only names and layouts here; `avs_jax.weights.convert` moves the numbers.
"""

import dataclasses
from collections.abc import Iterable, Mapping


@dataclasses.dataclass(frozen=True)
class Rule:
    """One public key.

    Attributes:
      key: the public name.
      collection: "params" or "batch_stats"; "unused" for what the public code stores and never computes with.
      path: of the variable in its collection; for "unused" the key itself.
      layout: how the public array turns into ours: "same"; "conv" OIHW -> HWIO; "linear" (out, in) -> (in, out);
        "pointwise" (out, in, 1, 1, 1) -> (in, out); "count" an int64 scalar.
      like: for "unused": the public key whose value is written when none was loaded.
      shape: for "unused": the public shape (zeros are written when neither a value nor `like` is there).
      optional: files may lack it, with all the other optional ones; it is then left at its initial value.
      part: for "unused": the part of a method it is stored with, "" for none.
    """

    key: str
    collection: str
    path: tuple[str, ...]
    layout: str = "same"
    like: str = ""
    shape: tuple[int, ...] = ()
    optional: bool = False
    part: str = ""


@dataclasses.dataclass(frozen=True)
class Published:
    """The files that are published of an encoder alone, in words and by example, for those who look for one.

    Attributes:
      kind: what it takes, e.g. "a deep-stem ResNet-50 of ImageNet".
      names: of such files, as `avs_jax.weights.public.locate` takes them.
    """

    kind: str
    names: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Part:
    """How a file that holds one part of a method alone names the keys of the method's table.

    Attributes:
      aliases: key in such a file -> the keys of the method it stands for.
      ignored: prefixes of keys in such a file that the method has no use for, or has in another shape.
      namings: as a `Table` has them.
      fresh: the method's keys that such a file cannot give; they are left at their initial values.
      published: where there are such files.
    """

    aliases: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    ignored: tuple[str, ...] = ()
    namings: Mapping[str, Mapping[str, str]] = dataclasses.field(default_factory=dict)
    fresh: tuple[str, ...] = ()
    published: Published | None = None


@dataclasses.dataclass(frozen=True)
class Table:
    """The rules of a model, in the public order.

    Attributes:
      rules: one per public key.
      aliases: another public name of a key -> the keys it stands for (ImageNet names of an encoder's weights).
      ignored: prefixes of keys that other files carry and this model has no use for (classifier heads).
      namings: other ways to name all keys, where a key may mean another thing than in `rules`: a key that only one such
        way has -> {key in that way: key in `rules`, or among `aliases` or `ignored`}. A file that has the first is read
        by the second.
      parts: of a method: its parts by the first name of their variables' paths, where files of two parts may have the
        same keys (both encoders are ResNets). A file is read as the one part that it fits best.
      fresh: of an encoder: prefixes of keys that published files have in another shape, to be learnt anew.
      published: of an encoder: what to look for.
    """

    rules: tuple[Rule, ...]
    aliases: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    ignored: tuple[str, ...] = ()
    namings: Mapping[str, Mapping[str, str]] = dataclasses.field(default_factory=dict)
    parts: Mapping[str, Part] = dataclasses.field(default_factory=dict)
    fresh: tuple[str, ...] = ()
    published: Published | None = None


def conv(key: str, path: tuple[str, ...], bias: bool = True, layout: str = "conv") -> list[Rule]:
    rules = [Rule(f"{key}.weight", "params", (*path, "kernel"), layout)]
    return rules + [Rule(f"{key}.bias", "params", (*path, "bias"))] if bias else rules


def linear(key: str, path: tuple[str, ...], bias: bool = True) -> list[Rule]:
    return conv(key, path, bias, "linear")


def pointwise(key: str, path: tuple[str, ...]) -> list[Rule]:
    return conv(key, path, True, "pointwise")


def layer_norm(key: str, path: tuple[str, ...]) -> list[Rule]:
    return [Rule(f"{key}.weight", "params", (*path, "scale")), Rule(f"{key}.bias", "params", (*path, "bias"))]


def batch_norm(key: str, path: tuple[str, ...]) -> list[Rule]:
    count = f"{key}.num_batches_tracked"
    return [
        *layer_norm(key, path),
        Rule(f"{key}.running_mean", "batch_stats", (*path, "mean")),
        Rule(f"{key}.running_var", "batch_stats", (*path, "var")),
        Rule(count, "unused", (count,), "count"),
    ]


def prefixed(rules: Iterable[Rule], key: str = "", path: tuple[str, ...] = ()) -> list[Rule]:
    """The rules of a part as its owner sees them: public prefix `key`, path prefix `path`."""
    out = []
    for r in rules:
        unused = r.collection == "unused"
        where = (key + r.key,) if unused else (*path, *r.path)
        part = path[0] if unused and path else r.part
        out.append(dataclasses.replace(r, key=key + r.key, path=where, like=key + r.like if r.like else "", part=part))
    return out


def part(table: Table, prefix: str) -> Part:
    """An encoder as a part of a method whose keys are the encoder's own behind `prefix`."""
    aliases = {rule.key: (rule.key,) for rule in table.rules} | dict(table.aliases)
    aliases = {name: tuple(prefix + k for k in keys if not k.startswith(table.fresh)) for name, keys in aliases.items()}
    return Part(
        aliases={name: keys for name, keys in aliases.items() if keys},
        ignored=table.ignored + table.fresh,
        namings=table.namings,
        fresh=tuple(prefix + rule.key for rule in table.rules if rule.key.startswith(table.fresh)),
        published=table.published,
    )
