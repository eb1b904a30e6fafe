"""The recipe of the experiments' tests: the small method, with the arguments that every table's recipe has."""

import importlib.util
from pathlib import Path

from avs_jax import config

spec = importlib.util.spec_from_file_location("small", Path(__file__).with_name("small.py"))
small = importlib.util.module_from_spec(spec)
spec.loader.exec_module(small)


def get_config(arg=None):
    a = config.parse_arg(arg, dataset="synthetic", scale="tiny", lr=0.03, nan_after=0)
    c = small.get_config("steps=4")
    c.optimizer.lr = a.lr
    c.method.nan_after = a.nan_after
    c.data.test.length = 4
    c.eval.every_steps = 0
    c.checkpoint.every_steps = 2
    return c
