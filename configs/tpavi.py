"""TPAVI as published: Zhou et al., Audio-visual segmentation, ECCV 2022.

    python -m avs_jax.train --config=configs/tpavi.py:setting=ms3,root=/data/avsbench_data --workdir=runs/ms3 \
        --config.pretrained.encoder=resnet50-19c8e357.pth --config.pretrained.audio=vggish-10086976.pth

Arguments after the colon: `setting=s4|ms3`; `backbone=resnet18|resnet50|resnet101`; `dataset=avsbench|synthetic`;
`root`, the folder of AVSBench. Where paper and public code disagree, this follows the code, which made the figures.
"""

from avs_jax import config

EPOCHS = {"s4": 15, "ms3": 30}
SYNTHETIC = {"s4": "single", "ms3": "multi"}  # the embedded data set's names of the settings


def get_config(arg=None):
    a = config.parse_arg(arg, setting="ms3", backbone="resnet50", dataset="avsbench", root="avsbench_data")
    a.setting = config.one_of("setting", a.setting, EPOCHS)
    a.dataset = config.one_of("dataset", a.dataset, ("avsbench", "synthetic"))

    c = config.defaults()
    c.seed = 123
    c.steps, c.epochs = 0, float(EPOCHS[a.setting])
    c.batch_size = 4  # clips: 20 frames share one set of batch statistics

    # The network at the paper's sizes; options of avs_jax.methods.tpavi.create.
    c.method.update(
        name="tpavi",
        setting=a.setting,
        backbone=a.backbone,
        tpavi_stages=(0, 1, 2, 3),
        fusion="va",
        attend="clip",
        channels=256,
        width=64,
        train_audio=False,  # VGGish is frozen; everything else is trained, the backbone and its norms included
        dice=0.0,  # binary cross-entropy alone: Table 6's first row for MS3
    )

    if a.dataset == "avsbench":
        c.data.update(source="avsbench", root=a.root, setting=a.setting, image_size=224, resize=False, sound="auto")
    else:
        c.data.update(source="synthetic", setting=SYNTHETIC[a.setting], image_size=224, difficulty="easy")

    # No augmentation, schedule, warm-up, clipping or averaging, in paper and code. The code parses a weight decay of
    # 5e-4 and never uses it.
    c.optimizer.update(name="adam", lr=1e-4, b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.0, schedule="constant")
    c.optimizer.groups.update(encoder=1.0, head=1.0)

    # The code evaluates after every epoch and keeps the best: 3452 and 296 clips in batches of four.
    c.eval.every_steps = {"s4": 863, "ms3": 74}[a.setting]
    c.eval.best = "miou"
    c.checkpoint.every_steps = c.eval.every_steps
    return c
