"""The quickstart: TPAVI, small, on the embedded world, in minutes on two CPU cores, from scratch.

    python -m avs_jax.train --config=configs/quickstart.py --workdir=runs/quickstart

Arguments after a colon: `schedule=persist|per_second` (who sounds holds for the clip, or changes every second),
`fusion=va|vv|both|none` (none: the video-only control), `seed=0`.
"""

from avs_jax import config


def get_config(arg=None):
    a = config.parse_arg(arg, schedule="persist", fusion="va", seed=0)
    config.one_of("schedule", a.schedule, ("persist", "per_second"))
    config.one_of("fusion", a.fusion, ("va", "vv", "both", "none"))
    c = config.defaults()
    c.seed = a.seed
    c.steps = 3200
    c.batch_size = 4

    c.data.update(source="synthetic", setting="multi", schedule=a.schedule, image_size=64, difficulty="easy")
    c.data.train.length = 3000
    c.data.eval.length = c.data.test.length = 200
    c.loader.cache = True

    # A tenth of the paper's widths; `per_second` needs fusion within each second: over the clip,
    # TPAVI cannot say which second sounds (no softmax and no time code: the order of the sounds does not matter).
    c.method.update(name="tpavi", setting="ms3", backbone="resnet10", width=16, channels=32, head_channels=(16, 8),
                    neck_dilations=(1, 2, 3, 6), audio_width=4, audio_hidden=256, avm="none", dice=1.0,
                    output_bias=-2.5,
                    fusion=a.fusion, attend="frame" if a.schedule == "per_second" else "clip")  # fmt: skip
    c.tagging.update(steps=400 if a.fusion != "none" else 0, batch_size=32)

    c.augment.hflip = 0.5
    c.optimizer.update(name="adam", lr=2.5e-3, schedule="cosine", warmup_steps=100, clip_norm=1.0)
    c.optimizer.ema = 0.998
    c.checkpoint.every_steps = 1000
    c.eval.update(max_clips=50, report="test")
    c.log.every_steps = 100
    return c
