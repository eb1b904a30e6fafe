"""Learning-rate schedules, and optimisers as PyTorch defines them, with a rate per parameter group."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from avs_jax.errors import InputError, nearest

FROZEN = "frozen"  # the group that is never trained
OPTIMIZERS = ("adam", "adamw", "sgd")
SCHEDULES = ("constant", "cosine", "poly")
_POSITIVE = ("above 0", lambda x: 0 < x < float("inf"))
_NOT_NEGATIVE = ("of at least 0", lambda x: 0 <= x < float("inf"))
_DECAY = ("in [0, 1)", lambda x: 0 <= x < 1)
RANGES = {
    "lr": _POSITIVE, "b1": _DECAY, "b2": _DECAY, "eps": _POSITIVE, "momentum": _DECAY, "weight_decay": _NOT_NEGATIVE,
    "clip_norm": _NOT_NEGATIVE, "final_scale": _NOT_NEGATIVE, "poly_power": _POSITIVE, "ema": _DECAY,
}  # fmt: skip


def learning_rate(config, total_steps: int) -> Callable:
    """step (0-based) -> rate: a linear warm-up over `warmup_steps`, then the schedule down to lr * final_scale.

    Args:
      config: the `optimizer` section. "poly" is (1 - t) ** poly_power of the remaining steps' fraction t.
    Raises:
      InputError: an unknown schedule, or a warm-up longer than the run.
    """
    if config.schedule not in SCHEDULES:
        raise InputError("optimizer.schedule", expected="the name of a schedule", found=repr(config.schedule),
                         hint=nearest(config.schedule, SCHEDULES))  # fmt: skip
    if not 0 <= config.warmup_steps < max(total_steps, 1):
        raise InputError("optimizer.warmup_steps", expected=f"0 <= warmup_steps < steps ({total_steps})",
                         found=str(config.warmup_steps))  # fmt: skip
    base, warmup, final = config.lr, config.warmup_steps, config.final_scale
    kind, power = config.schedule, config.poly_power

    def rate(step):
        step = jnp.asarray(step, jnp.float32)
        t = jnp.clip((step - warmup) / (total_steps - warmup), 0, 1)
        scale = {
            "constant": lambda: 1.0,
            "cosine": lambda: final + (1 - final) * 0.5 * (1 + jnp.cos(jnp.pi * t)),
            "poly": lambda: final + (1 - final) * (1 - t) ** power,
        }[kind]()
        return jnp.float32(base) * scale * jnp.minimum(1.0, (step + 1) / max(warmup, 1))

    return rate


def multipliers(config, labels) -> dict[str, float]:
    """Learning-rate multiplier of every parameter group; 0 = frozen.

    Args:
      config: the `optimizer` section.
      labels: tree of group names, one per parameter (a method's `param_groups(params)`).
    Raises:
      InputError: `groups` names a group that the method does not have, or a negative multiplier.
    """
    names = set(jax.tree.leaves(labels))
    found = dict.fromkeys(names, 1.0)
    for name, value in dict(config.groups).items():
        if name not in names:
            raise InputError(f"optimizer.groups.{name}", expected="a parameter group of the method", found=repr(name),
                             hint=nearest(name, names))  # fmt: skip
        if not value >= 0:
            raise InputError(f"optimizer.groups.{name}", expected="a multiplier >= 0", found=repr(value))
        found[name] = float(value)
    if FROZEN in found:
        found[FROZEN] = 0.0
    if not any(found.values()):
        raise InputError("optimizer.groups", expected="a group to train", found="every group frozen")
    return found


def trainable(config, labels):
    """Tree of bool: which parameters move."""
    scale = multipliers(config, labels)
    return jax.tree.map(lambda label: scale[label] > 0, labels)


def make_optimizer(config, labels, total_steps: int) -> optax.GradientTransformation:
    """Global clipping over all parameters, then one optimiser per group (PyTorch: clip_grad_norm_, then param groups).

    Raises:
      InputError: an unknown optimiser, schedule or group, or a number out of its range.
    """
    for name, (text, fits) in RANGES.items():
        if not fits(config[name]):
            raise InputError(f"optimizer.{name}", expected=f"a number {text}", found=repr(config[name]))
    if config.name not in OPTIMIZERS:
        raise InputError("optimizer.name", expected="the name of an optimiser", found=repr(config.name),
                         hint=nearest(config.name, OPTIMIZERS))  # fmt: skip
    rate = learning_rate(config, total_steps)

    def group(multiplier):
        return _rule(config, lambda step: multiplier * rate(step)) if multiplier else optax.set_to_zero()

    groups = {name: group(multiplier) for name, multiplier in multipliers(config, labels).items()}
    clip = [optax.clip_by_global_norm(config.clip_norm)] if config.clip_norm else []
    return optax.chain(*clip, optax.partition(groups, labels))


def _rule(config, rate) -> optax.GradientTransformation:
    decay = [optax.add_decayed_weights(config.weight_decay)] if config.weight_decay else []
    if config.name == "adamw":  # decoupled: the decay is not divided by the second moment
        return optax.adamw(rate, config.b1, config.b2, config.eps, weight_decay=config.weight_decay)
    if config.name == "adam":  # torch.optim.Adam: the decay is an L2 term of the gradient
        adam = optax.scale_by_adam(config.b1, config.b2, config.eps)
        return optax.chain(*decay, adam, optax.scale_by_learning_rate(rate))
    return optax.chain(*decay, optax.sgd(rate, config.momentum or None))
