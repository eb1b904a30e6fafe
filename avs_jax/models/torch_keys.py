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
    """

    key: str
    collection: str
    path: tuple[str, ...]
    layout: str = "same"
    like: str = ""
    shape: tuple[int, ...] = ()
    optional: bool = False


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
    """

    rules: tuple[Rule, ...]
    aliases: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    ignored: tuple[str, ...] = ()
    namings: Mapping[str, Mapping[str, str]] = dataclasses.field(default_factory=dict)


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
        where = (key + r.key,) if r.collection == "unused" else (*path, *r.path)
        out.append(dataclasses.replace(r, key=key + r.key, path=where, like=key + r.like if r.like else ""))
    return out
