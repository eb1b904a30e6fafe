"""The trainer's tests run this: a small method on embedded clips."""

import sys
from pathlib import Path

from avs_jax import config, methods

sys.path.insert(0, str(Path(__file__).parent))
methods.METHODS["small"] = "small_method"


def get_config(arg=None):
    a = config.parse_arg(arg, steps=12)
    c = config.defaults()
    c.steps = a.steps
    c.batch_size = 2
    c.method.update(name="small", nan_after=0, width=6)
    c.data.update(source="synthetic", image_size=32)
    c.data.train.length = 5
    c.data.eval.length = 2
    c.augment.update(hflip=0.5, scale=(0.8, 1.2), color=0.2)
    c.optimizer.update(lr=0.03, schedule="cosine", warmup_steps=2, clip_norm=1.0, weight_decay=0.01, ema=0.5)
    c.optimizer.groups.update(encoder=0.5, head=1.0)
    c.eval.every_steps = 6
    c.checkpoint.every_steps = 4
    c.log.every_steps = 3
    c.log.tensorboard = False
    return c
