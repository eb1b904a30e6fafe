"""The trainer's tests run this: TPAVI as small as it gets, on a handful of embedded clips."""

from avs_jax import config


def get_config(arg=None):
    a = config.parse_arg(arg, steps=7, workers=0, length=6)
    c = config.defaults()
    c.steps = a.steps
    c.batch_size = 2
    c.method.update(
        name="tpavi", setting="ms3", backbone="resnet10", width=4, channels=8, neck_dilations=(1,),
        head_channels=(4, 4), audio_width=1, audio_hidden=4, tpavi_stages=(2, 3), train_audio=False,
    )  # fmt: skip
    c.data.update(source="synthetic", image_size=32)
    c.data.train.length = a.length
    c.data.eval.length = 2
    c.loader.workers = a.workers
    c.augment.update(hflip=0.5, scale=(0.8, 1.2), color=0.2)
    c.optimizer.update(lr=1e-3, schedule="cosine", warmup_steps=2, clip_norm=1.0, ema=0.5)
    c.optimizer.groups.encoder = 0.5
    c.eval.every_steps = 3
    c.checkpoint.every_steps = 2
    c.log.every_steps = 2
    return c
