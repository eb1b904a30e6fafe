"""Learning-rate schedules, and optimisers as PyTorch defines them, with a rate and a rule per parameter group.

A method labels every parameter "<group>" or "<group>/no_decay". Both share the group's learning rate; the second kind,
norms and biases as a rule, is left out of the weight decay.
"""

import numbers
import types
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from avs_jax.errors import InputError, check_options, nearest

FROZEN = "frozen"  # the group that is never trained
NO_DECAY = "no_decay"
OPTIMIZERS = ("adam", "adamw", "sgd")
SCHEDULES = ("constant", "cosine", "poly")
_POSITIVE = ("above 0", lambda x: 0 < x < float("inf"))
_NOT_NEGATIVE = ("of at least 0", lambda x: 0 <= x < float("inf"))
_DECAY = ("in [0, 1)", lambda x: 0 <= x < 1)
RANGES = {
    "lr": _POSITIVE, "b1": _DECAY, "b2": _DECAY, "eps": _POSITIVE, "momentum": _DECAY, "weight_decay": _NOT_NEGATIVE,
    "clip_norm": _NOT_NEGATIVE, "final_scale": _NOT_NEGATIVE, "poly_power": _POSITIVE, "ema": _DECAY,
    "floor": _NOT_NEGATIVE, "lag": _NOT_NEGATIVE,
}  # fmt: skip
OF_ALL = ("lr", "clip_norm", "ema", "groups")  # what no group has for itself


def learning_rate(config, total_steps: int) -> Callable:
    """step (0-based) -> rate: a linear warm-up over `warmup_steps`, then the schedule down to lr * final_scale.

    Args:
      config: the `optimizer` section. "poly" is (1 - t) ** poly_power of the remaining steps' fraction t. The rate is
        at least `floor`, and `lag` steps late: public code that sets it after a step has a lag of 1.
    Raises:
      InputError: an unknown schedule, or a warm-up longer than the run.
    """
    if config.schedule not in SCHEDULES:
        raise InputError("optimizer.schedule", expected="the name of a schedule", found=repr(config.schedule),
                         hint=nearest(config.schedule, SCHEDULES))  # fmt: skip
    if not 0 <= config.warmup_steps < max(total_steps, 1):
        raise InputError("optimizer.warmup_steps", expected=f"0 <= warmup_steps < steps ({total_steps})",
                         found=str(config.warmup_steps),
                         hint="For a run this short add --config.optimizer.warmup_steps=0.")  # fmt: skip
    base, warmup, final = config.lr, config.warmup_steps, config.final_scale
    kind, power = config.schedule, config.poly_power

    def rate(step):
        step = jnp.maximum(jnp.asarray(step, jnp.float32) - config.lag, 0)
        t = jnp.clip((step - warmup) / (total_steps - warmup), 0, 1)
        left = jnp.clip((total_steps - step) / (total_steps - warmup), 0, 1)  # not 1 - t: that is rounding at the end
        scale = {
            "constant": lambda: 1.0,
            "cosine": lambda: final + (1 - final) * 0.5 * (1 + jnp.cos(jnp.pi * t)),
            "poly": lambda: final + (1 - final) * left**power,
        }[kind]()
        return jnp.maximum(jnp.float32(base) * scale * jnp.minimum(1.0, (step + 1) / max(warmup, 1)), config.floor)

    return rate


def group_options(config, labels) -> dict[str, dict]:
    """Of every label: "scale", the learning-rate multiplier (0 = frozen), and what differs from the section itself.

    Args:
      config: the `optimizer` section. An entry of its `groups` is a multiplier, or {"scale": multiplier} and any option
        of the section but those in OF_ALL: {"name": "adam", "schedule": "constant", "weight_decay": 0.0}. The entry of
        a group is also that of its "/no_decay" part, but for the decay; that part may have an entry of its own.
      labels: tree of labels, one per parameter (a method's `param_groups(params)`).
    Raises:
      InputError: an entry for a group that the method does not have, or of unknown or impossible content.
    """
    names = sorted(set(jax.tree.leaves(labels)))  # every process must trace the same program, and find it in the cache
    bases = {name: name.removesuffix(f"/{NO_DECAY}") for name in names}
    entries = {name: _entry(config, name, value) for name, value in dict(config.groups).items()}
    for name in entries:
        if name not in {*names, *bases.values()}:
            raise InputError(f"optimizer.groups.{name}", expected="a parameter group of the method", found=repr(name),
                             hint=nearest(name, {*names, *bases.values()}))  # fmt: skip
    found = {}
    for name, base in bases.items():
        shared = entries.get(base, {})
        apart = {"weight_decay": 0.0, **entries.get(name, {})} if name != base else {}
        found[name] = {"scale": 1.0, **shared, **apart}
    if FROZEN in found:
        found[FROZEN]["scale"] = 0.0
    if not any(options["scale"] for options in found.values()):
        raise InputError("optimizer.groups", expected="a group to train", found="every group frozen")
    return found


def _entry(config, name, value) -> dict:
    where = f"optimizer.groups.{name}"
    if isinstance(value, numbers.Real):
        value = {"scale": value}
    if not hasattr(value, "items"):
        raise InputError(where, expected="a multiplier, or options of the group", found=repr(value))
    value = dict(value.items())
    check_options(where, "a parameter group", value, ["scale", *(k for k in config if k not in OF_ALL)])
    if not value.get("scale", 1.0) >= 0:
        raise InputError(where, expected="a multiplier >= 0", found=repr(value["scale"]))
    return {k: float(v) if k == "scale" else v for k, v in value.items()}


def trainable(config, labels):
    """Tree of bool: which parameters move."""
    found = group_options(config, labels)
    return jax.tree.map(lambda label: found[label]["scale"] > 0, labels)


def make_optimizer(config, labels, total_steps: int) -> optax.GradientTransformation:
    """Global clipping over all parameters, then one optimiser per group (PyTorch: clip_grad_norm_, then param groups).

    Raises:
      InputError: an unknown optimiser, schedule or group, or a number out of its range.
    """
    _check("optimizer", config)

    def group(label, options):
        scale = options.pop("scale")
        if not scale:
            return optax.set_to_zero()
        _check(f"optimizer.groups.{label}", options)
        own = types.SimpleNamespace(**{**config, **options})
        rate = learning_rate(own, total_steps)
        return _rule(own, lambda step: scale * rate(step))

    groups = {label: group(label, options) for label, options in group_options(config, labels).items()}
    clip = [optax.clip_by_global_norm(config.clip_norm)] if config.clip_norm else []
    return optax.chain(*clip, optax.partition(groups, labels))


def _check(where, options):
    for name, (text, fits) in RANGES.items():
        if name in options and not fits(options[name]):
            raise InputError(f"{where}.{name}", expected=f"a number {text}", found=repr(options[name]))
    for name, valid in (("name", OPTIMIZERS), ("schedule", SCHEDULES)):
        if name in options and options[name] not in valid:
            expected = "the name of an optimiser" if name == "name" else "the name of a schedule"
            raise InputError(f"{where}.{name}", expected=expected, found=repr(options[name]),
                             hint=nearest(options[name], valid))  # fmt: skip


def _rule(config, rate) -> optax.GradientTransformation:
    decay = [optax.add_decayed_weights(config.weight_decay)] if config.weight_decay else []
    if config.name == "adamw":  # decoupled: the decay is not divided by the second moment
        return optax.adamw(rate, config.b1, config.b2, config.eps, weight_decay=config.weight_decay)
    if config.name == "adam":  # torch.optim.Adam: the decay is an L2 term of the gradient
        adam = optax.scale_by_adam(config.b1, config.b2, config.eps)
        return optax.chain(*decay, adam, optax.scale_by_learning_rate(rate))
    return optax.chain(*decay, optax.sgd(rate, config.momentum or None))
