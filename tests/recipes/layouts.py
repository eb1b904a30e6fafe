"""Small runs of the three methods, of eight clips a step, to compare how devices and processes share the work."""

import importlib.util
from pathlib import Path

from avs_jax import config

ROOT = Path(__file__).parent.parent.parent


def get_config(arg=None):
    a = config.parse_arg(arg, method="small", steps=3)
    c = _of(a.method)
    c.steps, c.epochs, c.batch_size = a.steps, 0.0, 8
    c.data.image_size = 32
    c.data.train.length, c.data.eval.length, c.data.test.length = 11, 3, 5  # no multiple of the processes
    c.loader.embeddings = ""
    c.mesh.min_size = 64
    c.tagging.steps = 0
    c.augment.hflip = 0.5
    # Of a gradient that is zero but for rounding (a bias before BatchNorm) Adam's own eps would make a whole step.
    c.optimizer.update(schedule="constant", warmup_steps=0, ema=0.5, eps=1e-3)
    c.checkpoint.every_steps, c.eval.every_steps, c.eval.max_clips = 0, 0, 3
    c.log.update(every_steps=1, tensorboard=False)
    return c


def _of(method):
    if method == "small":
        c = _recipe("tests/recipes/small.py").get_config()
        c.method.name = str(ROOT / "tests" / "recipes" / "small_method.py")
        return c
    c = _recipe(f"configs/{method}.py").get_config("dataset=synthetic,scale=tiny")
    if method == "cavp":
        c.method.update(width=4, channels=12, low=4, projector=8, audio_width=4, max_views=8)
        c.data.seconds = 0.5
    elif method == "transavs":
        c.method.update(backbone="resnet10", width=4, num_queries=8, dim=16, heads=4, ffn=8, decoder_layers=2,
                        dropout=0.1, audio_width=2, audio_hidden=8, pixel_options={"groups": 4})  # fmt: skip
    else:
        c.method.update(backbone="resnet10", width=4, channels=8, head_channels=(8, 4), neck_dilations=(1, 2),
                        audio_width=2, audio_hidden=8)  # fmt: skip
    return c


def _recipe(path):
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
