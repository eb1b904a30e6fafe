"""CAVP as published: Chen et al., A closer look at audio-visual semantic segmentation, 2023; and its public code.

    python -m avs_jax.train --config=configs/cavp.py:setting=vpo_ss,root=/data --workdir=runs/ss
    python -m avs_jax.train --config=configs/cavp.py:setting=vpo_ms,backbone=resnet101,root=/data --workdir=runs/ms
    python -m avs_jax.train --config=configs/cavp.py:dataset=synthetic,scale=tiny --workdir=runs/cavp_tiny

Arguments after the colon (default first):

    setting=vpo_ss|vpo_ms|vpo_msmi|single_plus|salient|avs_m|avss
    architecture=deeplab|hrnet|ocr      backbone=auto|resnet50|resnet101|hrnet_w48
    dataset=benchmark|synthetic         root=data: the folder that holds the setting's data set
    scale=full|tiny                     tiny: a network, pictures and a length for minutes on a CPU (see `_tiny`)
    fusion=attention|sum|concat|none    none: segmentation without sound
    gate=sigmoid|softmax                of the attention; softmax is the paper's letter
    contrastive=1.0                     weight of the pairing loss; 0: attention alone, as in table 4
    rate=0.5                            share of the mismatched pairs turned into matches, as in table 5
    recipe=paper|code                   what paper and public code do otherwise, see `_public_code`
    stereo=False                        two channels, sounds where their objects are (VPO)
    fold_person=False                   VPO with one class person for male, female and baby: 19 classes
    pretrained=public|none              ImageNet's and, where VGGish hears, AudioSet's files
    seed=666
"""

import math

from avs_jax import config

CLIPS = {"vpo_ss": 11312, "vpo_ms": 8380, "vpo_msmi": 8380, "single_plus": 3452, "salient": 3452, "avs_m": 3452,
         "avss": 8498}  # fmt: skip
SYNTHETIC_CLIPS, SYNTHETIC_CLASSES = 3000, 9
FOLDED_CLASSES = 20
BATCH = 16
SCALES = {"vpo": (0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0), "avsbench": (0.5, 0.75, 1.0)}
ENCODERS = {  # ImageNet's files: ResNets of the deep-stem kind; HRNet trained with SSLD, as the public code's
    "resnet50": "timm/resnet50s.gluon_in1k",
    "resnet101": "timm/resnet101s.gluon_in1k",
    "hrnet_w48": "timm/hrnet_w48_ssld.paddle_in1k",
}
AUDIO = {"vpo": "resnet18-f37072fd.pth", "avsbench": "vggish-10086976.pth"}  # ImageNet's ResNet-18; AudioSet's VGGish


def get_config(arg=None):
    a = config.parse_arg(arg, setting="vpo_ss", architecture="deeplab", backbone="auto", dataset="benchmark",
                         root="data", scale="full", fusion="attention", gate="sigmoid", contrastive=1.0, rate=0.5,
                         recipe="paper", stereo=False, fold_person=False, pretrained="public", seed=666)  # fmt: skip
    config.one_of("setting", a.setting, CLIPS)
    config.one_of("architecture", a.architecture, ("deeplab", "hrnet", "ocr"))
    config.one_of("backbone", a.backbone, ("auto", *ENCODERS))
    config.one_of("dataset", a.dataset, ("benchmark", "synthetic"))
    config.one_of("scale", a.scale, ("full", "tiny"))
    config.one_of("recipe", a.recipe, ("paper", "code"))
    config.one_of("pretrained", a.pretrained, ("public", "none"))
    family = "vpo" if a.setting.startswith("vpo") else "avsbench"
    backbone = a.backbone if a.backbone != "auto" else "resnet50" if a.architecture == "deeplab" else "hrnet_w48"

    c = config.defaults()
    c.seed = a.seed  # code: 666; paper: not stated
    c.steps, c.epochs = 0, 80.0
    c.batch_size = BATCH  # the code: two processes of 8, which pair and contrast apart; here the batch is one

    # The network at its published sizes: the defaults of avs_jax.methods.cavp.create. Its code, not its paper: the
    # attention's gate is a sigmoid (the paper's softmax over the one audio token is 1); no projection head before the
    # contrastive loss; up to 512 pixels of a class are drawn for it.
    c.method.update(name="cavp", setting="salient" if a.setting == "avs_m" else a.setting,
                    architecture=a.architecture, backbone=backbone, fusion=a.fusion, attention_gate=a.gate,
                    contrastive=a.contrastive, audio_channels=2 if a.stereo else 1)  # fmt: skip
    c.pairing.update(rule="class", rate=a.rate)  # the paper's rule; the code's is "exact"
    if a.dataset == "benchmark":
        _benchmark(c, a, family)
    else:
        binary = c.method.setting == "salient"
        c.data.update(source="synthetic", setting="multi" if binary else "semantic", image_size=224, difficulty="easy",
                      still=True, front_end="waveform", seconds=3.0 if family == "vpo" else 1.0)  # fmt: skip
        c.method.num_classes = 2 if binary else SYNTHETIC_CLASSES
    if a.pretrained == "public":
        c.pretrained.update(encoder=ENCODERS[backbone], audio=AUDIO[family] if a.fusion != "none" else "")

    # Flip, one of seven scales, brightness, contrast, saturation and hue, crop of 512 (padded with the mean colour).
    # The code's AVSBench settings have three scales and no jitter; salient frames are squashed and flipped.
    c.augment.hflip = 0.5
    if a.setting not in ("salient", "avs_m"):
        c.augment.update(crop=512 if a.dataset == "benchmark" else 224, scales=SCALES[family])
    if family == "vpo":
        c.augment.update(color=0.5, hue=0.25)

    # In the encoder and the segmentation part norms' scales and all biases do not decay (`cavp.param_groups`).
    # Paper: SGD, 1e-3, poly 0.9. Code only: ten times the rate for the segmentation part; the rate is set after each
    # step, so that the second step still has the first one's, and is at least 1e-8.
    c.optimizer.update(name="sgd", lr=1e-3, momentum=0.9, weight_decay=5e-4, schedule="poly", poly_power=0.9,
                       floor=1e-8, lag=1)  # fmt: skip
    c.optimizer.groups.segment = 10.0
    if a.recipe == "code":
        _public_code(c, a, family)

    # The code looks at the test set every 5 epochs, then every epoch, and keeps the best: a selection on test data.
    # Report the latest checkpoint (`evaluate --checkpoint=latest`); the evaluations on the way are for the eye.
    epoch = math.ceil((CLIPS[a.setting] if a.dataset == "benchmark" else SYNTHETIC_CLIPS) / BATCH)
    c.eval.update(every_steps=20 * epoch, batch_size=1)
    c.eval.best = "miou" if c.method.setting == "salient" else "miou_all_classes"
    c.checkpoint.every_steps = epoch
    if a.scale == "tiny":
        _tiny(c, a)
    return c


def _benchmark(c, a, family):
    """The setting's data set on disk. Pictures are tested whole and alone, at their own size, on a few canvases."""
    if family == "vpo":
        c.data.update(source="vpo", root=a.root, setting=a.setting, stereo=a.stereo, fold_person=a.fold_person,
                      sounds="")  # fmt: skip
        if a.fold_person:
            c.method.num_classes = FOLDED_CLASSES
    elif a.setting == "avss":
        c.data.update(source="avsbench", root=a.root, setting="avss", image_size=224, front_end="waveform", seconds=1.0)
    else:
        c.data.update(source="single_plus", root=a.root, setting=a.setting)
    if family == "vpo" or a.setting == "single_plus":
        c.data.eval.pad = c.data.test.pad = "buckets"
    if family == "vpo":
        c.data.eval.split = "test"  # there is no other


def _public_code(c, a, family):
    """What the public code (of the paper's CVPR 2024 version) does otherwise: an Adam of constant rate and no decay for
    the audio encoder; labels that stay only where image and sound have all the same classes; and, on AVSBench, another
    decay and, but for AVSS, 60 epochs."""
    c.optimizer.groups.audio = {"name": "adam", "schedule": "constant", "weight_decay": 0.0}
    if a.fusion == "none":
        del c.optimizer.groups.audio
    c.pairing.rule = "exact"
    if family == "avsbench":
        c.optimizer.weight_decay = 1e-4
        c.epochs = 80.0 if a.setting == "avss" else 60.0


def _tiny(c, a):
    """Every part of the published system, narrow, on small pictures, from scratch in minutes on a CPU. From scratch
    Adam is quicker than SGD with a rate of 1e-3, which is made for pretrained weights. The pictures are few, as real
    ones are for a real network: with five times as many the pairs have nothing left to teach (BENCHMARKS.md)."""
    c.method.update(channels=32, projector=32, audio_width=8, max_views=64)
    if a.architecture == "deeplab":
        c.method.update(backbone="resnet10", width=16, low=8)
    else:
        c.method.width = 8
    if c.method.setting in ("vpo_ss", "vpo_ms", "vpo_msmi"):
        c.method.audio_encoder = "resnet10"
    else:
        c.method.update(audio_hidden=256)
    c.pretrained.update(encoder="", audio="")
    c.data.image_size = 64
    c.data.seconds = 1.0
    c.augment.update(crop=0, scales=(), color=0.0, hue=0.0)
    if a.dataset == "benchmark":
        c.data.update({"fit": "squash"} if a.setting != "avss" else {})
        for split in (c.data.eval, c.data.test):
            if "pad" in split:
                del split.pad
    else:
        c.data.train.length = 400
    c.steps, c.epochs = 700, 0.0
    c.loader.cache = True
    c.optimizer.update(name="adam", lr=2e-3, schedule="cosine", warmup_steps=50, clip_norm=1.0, ema=0.99,
                       weight_decay=0.0, floor=0.0, lag=0)  # fmt: skip
    c.optimizer.groups = type(c.optimizer.groups)()
    c.eval.update(every_steps=0, max_clips=0, batch_size=4)
    c.checkpoint.every_steps = 350
    c.log.update(every_steps=50, tensorboard=False)
