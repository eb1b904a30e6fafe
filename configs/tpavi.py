"""TPAVI as published: Zhou et al., Audio-visual segmentation, ECCV 2022; its semantic setting (AVSS), 2023.

    python -m avs_jax.train --config=configs/tpavi.py:setting=s4,root=/data/avsbench --workdir=runs/s4
    python -m avs_jax.train --config=configs/tpavi.py:setting=ms3,root=/data/avsbench --workdir=runs/ms3 \
        --config.pretrained.method=runs/s4        # table A2's S4 -> MS3 initialisation; leave it out for table 3

Arguments after the colon (default first):

    setting=ms3|s4|avss, or a benchmark of CAVP's paper (`_still`): vpo_ss|vpo_ms|single_plus|salient|avs_m
    backbone=resnet50|pvt_v2_b5|resnet18|resnet101|pvt_v2_b0 ... b4
    dataset=auto|avsbench|benchmark|synthetic      auto: avsbench for the first three settings, else benchmark
    root=avsbench_data: AVSBench's folder; for avss that of AVSBench-semantic; for benchmark the one with VPO's in it
    scale=full|tiny                tiny: a network, frames and a length for minutes on a CPU (see `_tiny`)
    fusion=va|vv|both|none|add|no_projection     stages=1234: those with fusion, as in table A1
    avm=auto|none|av|vv|cosine     auto: av for ms3 and avss, none for s4, as in the public scripts
    pretrained=public|audio|none   public: ImageNet's and VGGish's files; audio: VGGish's alone
    seed=123

Where paper and public code disagree, this follows the code, which made the figures; the comments say where.
"""

import math

from avs_jax import config

EPOCHS = {"s4": 15, "ms3": 30, "avss": 60}  # paper and code
CLIPS = {"s4": 3452, "ms3": 296, "avss": 8498}  # of AVSBench's training splits
SYNTHETIC = {"s4": "single", "ms3": "multi", "avss": "semantic"}  # the embedded data set's names of the settings
SYNTHETIC_CLIPS, SYNTHETIC_CLASSES = 3000, 9
STILL = {"vpo_ss": 22, "vpo_ms": 22, "single_plus": 24, "salient": 2, "avs_m": 2}  # classes with background
STILL_CLIPS = {"vpo_ss": 11312, "vpo_ms": 8380, "single_plus": 3452, "salient": 3452, "avs_m": 3452}
ENCODERS = {  # ImageNet's files; the public code names resnet50-19c8e357 and pvt_v2_b5
    "resnet18": "resnet18-f37072fd.pth",
    "resnet50": "resnet50-19c8e357.pth",
    "resnet101": "resnet101-5d3b4d8f.pth",
    **{f"pvt_v2_b{i}": f"pvt_v2_b{i}.pth" for i in range(6)},
}
VGGISH = "vggish-10086976.pth"


def get_config(arg=None):
    a = config.parse_arg(arg, setting="ms3", backbone="resnet50", dataset="auto", root="avsbench_data",
                         scale="full", fusion="va", stages="1234", avm="auto", pretrained="public",
                         seed=123)  # fmt: skip
    config.one_of("setting", a.setting, (*EPOCHS, *STILL))
    home = "benchmark" if a.setting in STILL else "avsbench"
    a.dataset = home if a.dataset == "auto" else a.dataset
    config.one_of("dataset", a.dataset, (home, "synthetic"))
    config.one_of("scale", a.scale, ("full", "tiny"))
    config.one_of("pretrained", a.pretrained, ("public", "audio", "none"))
    for stage in a.stages:
        config.one_of("stages", stage, "1234")

    c = config.defaults()
    c.seed = a.seed  # code: 123; paper: not stated
    c.steps, c.epochs = 0, float(EPOCHS.get(a.setting, 0))
    c.batch_size = 4  # clips: 20 frames share one set of batch statistics

    # The network at its published sizes: the defaults of avs_jax.methods.tpavi.create. Its code, not its paper:
    # - the neck ("ASPP") is the sum of four dilated 3x3 convolutions;
    # - TPAVI normalises twice, batch norm before and layer norm after the residual: equation 1 has neither;
    # - the decoder ("Panoptic-FPN") fuses through residual units, whose ReLU reaches the maps that losses see;
    # - the mapping loss is the mean of the stages' divergences, KL(sound || picture) over channels, summed over frames,
    #   of masks pooled as logits: equation 3 sums the stages inside one KL and pools probabilities.
    # Paper and code: the encoder and its norms are trained. The code's "freeze visual" is never read. VGGish is frozen.
    c.method.update(name="tpavi", setting=a.setting, backbone=a.backbone, fusion=a.fusion,
                    tpavi_stages=tuple(int(stage) - 1 for stage in a.stages), train_audio=False)  # fmt: skip
    # Tables 3, A1, A2 and the code's scripts have it for MS3; the MS3 figures "with TPAVI" of table 4 are table 6's BCE
    # alone (avm=none). Code: 0.5 in the scripts' arguments; constants of 50 and 5 in its config files are not read.
    c.method.update(avm=a.avm, avm_weight=0.5)
    # The arguments' default is vectors of length one, but the scripts leave the switch off.
    c.method.update(avm_distance="kl", avm_norm=False, avm_threshold=False, avm_pool="avg")

    if a.setting in STILL:
        _still(c, a)
    elif a.dataset == "avsbench":
        # Frames lie there squashed to 224 x 224, each from 15/16 of its second (paper: the last frame); the log-mel's
        # windows are of 0.96 s (paper: one second). AVSS crops for training and squashes otherwise, as its code does.
        c.data.update(source="avsbench", root=a.root, setting=a.setting, image_size=224)
        if a.setting != "avss":
            c.data.update(resize=False, sound="auto")
    else:
        c.data.update(source="synthetic", setting=SYNTHETIC[a.setting], image_size=224, difficulty="easy")
        if a.setting == "avss":
            c.method.num_classes = SYNTHETIC_CLASSES
    if a.dataset == "synthetic":
        c.tagging.update(steps=400, batch_size=32)  # no public file knows these sounds
    else:
        c.pretrained.encoder = ENCODERS.get(a.backbone, "") if a.pretrained == "public" else ""
        c.pretrained.audio = VGGISH if a.pretrained != "none" else ""
    if a.fusion == "none" or not a.stages:
        c.tagging.steps = 0  # nothing hears

    # No augmentation, schedule, warm-up, clipping or averaging, in paper and code. The code parses a weight decay of
    # 5e-4 and never uses it; the paper states none.
    c.optimizer.update(name="adam", lr=1e-4, b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.0, schedule="constant")

    # Code: evaluates after every epoch (AVSS: every second one, from epoch 15 on) and keeps the best; the paper does
    # not say. Code only: F is a maximum over thresholds for each batch of four clips (`evaluate --clips-per-batch`).
    clips = SYNTHETIC_CLIPS if a.dataset == "synthetic" else (CLIPS | STILL_CLIPS)[a.setting]
    epoch = math.ceil(clips / c.batch_size)
    c.eval.every_steps = epoch * {"avss": 2, **dict.fromkeys(STILL, 5)}.get(a.setting, 1)
    c.eval.first_step = epoch * (15 if a.setting == "avss" else 0)
    c.eval.best = "miou_all_classes" if STILL.get(a.setting, 2) > 2 else "miou"
    c.checkpoint.every_steps = epoch
    if a.scale == "tiny":
        _tiny(c, a)
    return c


def _still(c, a):
    """CAVP's benchmarks: one picture with its sound. Neither TPAVI's paper nor CAVP's, whose tables have these rows,
    says how it was trained on them. This is TPAVI's network and Adam with the cross-entropy alone, on pictures squashed
    to 224 x 224 with the second in the middle of their sound, and, as CAVP is trained, 16 pictures and 80 epochs."""
    classes = STILL[a.setting]
    c.epochs, c.batch_size = 80.0, 16
    c.method.update(setting="s4" if classes == 2 else "avss", attend="frame", avm="none" if a.avm == "auto" else a.avm)
    if a.dataset == "synthetic":
        c.data.update(source="synthetic", setting="multi" if classes == 2 else "semantic", image_size=224,
                      difficulty="easy", still=True)  # fmt: skip
        classes = min(classes, SYNTHETIC_CLASSES)
    else:
        source = "vpo" if a.setting.startswith("vpo") else "single_plus"
        c.data.update(source=source, root=a.root, setting=a.setting, image_size=224, fit="squash", front_end="vggish",
                      seconds=1.0)  # fmt: skip
        if source == "vpo":
            c.data.eval.split = "test"  # there is no other: report the latest checkpoint, which it has not selected
    if classes > 2:
        c.method.num_classes = classes


def _tiny(c, a):
    """What the quickstart does to the network, made smaller still: every part of the published one is there, from
    scratch. Backbones keep their kind: ResNets become a ResNet-10, PVTs a PVT-v2-b0, both narrow."""
    pvt = a.backbone.startswith("pvt")
    c.method.update(backbone="pvt_v2_b0" if pvt else "resnet10", width=8 if pvt else 16, channels=32,
                    head_channels=(16, 8), neck_dilations=(1, 2, 3, 6), audio_width=4, audio_hidden=256, dice=1.0,
                    output_bias=-2.5)  # fmt: skip
    c.pretrained.update(encoder="", audio="")
    c.data.image_size = 32
    if a.dataset == "synthetic":
        c.data.train.length = 1000
        c.tagging.steps = min(c.tagging.steps, 200)
    else:
        c.data.update({"resize": True} if a.setting in ("s4", "ms3") else {})
        c.method.train_audio = True  # from scratch, and nobody can name its sounds first
    c.steps, c.epochs = 800, 0.0
    if a.setting in STILL:  # the pictures and the length of configs/cavp.py's tiny scale
        c.data.image_size, c.steps = 64, 700
        if a.dataset == "synthetic":
            c.data.train.length = 400
    c.loader.cache = True
    c.augment.hflip = 0.5
    c.optimizer.update(lr=2.5e-3, schedule="cosine", warmup_steps=50, clip_norm=1.0, ema=0.99)
    c.eval.update(every_steps=0, first_step=0, max_clips=16)
    c.checkpoint.every_steps = 400
    c.log.update(every_steps=100, tensorboard=False)
