"""TransAVS as published: "TransAVS: End-to-end audio-visual segmentation with transformer", arXiv 2305.07223.

    python -m avs_jax.train --config=configs/transavs.py:setting=s4,root=/data/avsbench --workdir=runs/s4
    python -m avs_jax.train --config=configs/transavs.py:backbone=swin_b,root=/data/avsbench --workdir=runs/ms3
    python -m avs_jax.train --config=configs/transavs.py:dataset=synthetic,scale=tiny --workdir=runs/tiny

Arguments after the colon (default first):

    setting=ms3|s4|avss|vpo_ss|vpo_ms|vpo_msmi|single_plus|salient
    backbone=resnet101|swin_b|resnet18|resnet50|swin_t|swin_s|swin_l|pvt_v2_b0 ... b5
    dataset=auto|avsbench|vpo|single_plus|synthetic   auto: the setting's own; synthetic: the embedded world
    root=avsbench_data             folder of the data set
    scale=full|tiny                tiny: a network, frames and a length for minutes on a CPU (see `_tiny`)
    queries=300                    of a frame: 100 | 300 | 500 in table 3, for which tiny has 6 | 20 | 33
    query_init=frame|clip|shared|learned   clip: equation 1 to the letter; learned: no sound, the video-only control
    pixel_decoder=fpn|none|msdeform
    delta1=rising|fixed            threshold of AQDL, from 0.55 to 0.65 or 0.6 throughout, as in table 3
    delta2=rising|fixed            threshold of AQML
    aqdl=2.0  aqml=2.0             weights of these losses; 0 is without
    pretrained=public|audio|none   public: ImageNet's and VGGish's files; audio: VGGish's alone
    seed=0

No code was published; what the paper leaves open follows Mask2Former, and every choice is an option of
avs_jax.methods.transavs.create, which --config.method.<option>=<value> changes.
"""

from avs_jax import config

DATASETS = {
    **dict.fromkeys(("ms3", "s4", "avss"), "avsbench"),
    **dict.fromkeys(("vpo_ss", "vpo_ms", "vpo_msmi"), "vpo"),
    **dict.fromkeys(("single_plus", "salient"), "single_plus"),
}
SYNTHETIC = {"s4": "single", "ms3": "multi", "salient": "multi"}  # the embedded data set's settings; else "semantic"
SYNTHETIC_CLASSES = 9
BINARY = ("s4", "ms3", "salient")
ENCODERS = {  # ImageNet's files; Swin-B and Swin-L of its 22k classes, as the paper's Swin-B is
    "resnet18": "resnet18-f37072fd.pth",
    "resnet50": "resnet50-19c8e357.pth",
    "resnet101": "resnet101-5d3b4d8f.pth",
    **{f"swin_{size[0]}": f"swin_{size}_patch4_window7_224.pth" for size in ("tiny", "small")},
    **{f"swin_{size[0]}": f"swin_{size}_patch4_window7_224_22k.pth" for size in ("base", "large")},
    **{f"pvt_v2_b{i}": f"pvt_v2_b{i}.pth" for i in range(6)},
}
VGGISH = "vggish-10086976.pth"
FIXED = (0.6, 0.6)
TINY_QUERIES = {100: 6, 300: 20, 500: 33}  # a fifteenth; other numbers are what they are


def get_config(arg=None):
    a = config.parse_arg(arg, setting="ms3", backbone="resnet101", dataset="auto", root="avsbench_data", scale="full",
                         queries=300, query_init="frame", pixel_decoder="fpn", delta1="rising", delta2="rising",
                         aqdl=2.0, aqml=2.0, pretrained="public", seed=0)  # fmt: skip
    config.one_of("setting", a.setting, DATASETS)
    config.one_of("backbone", a.backbone, ENCODERS)
    config.one_of("dataset", a.dataset, ("auto", DATASETS[a.setting], "synthetic"))
    config.one_of("scale", a.scale, ("full", "tiny"))
    config.one_of("pretrained", a.pretrained, ("public", "audio", "none"))
    for name in ("delta1", "delta2"):
        config.one_of(name, a[name], ("rising", "fixed"))

    c = config.defaults()
    c.seed = a.seed  # not stated
    c.steps = 90_000  # paper: 208 epochs of S4, 2432 of MS3
    c.batch_size = 8  # paper: on 8 GPUs; read as clips, of 5 frames each but for S4 (see below)

    c.method.update(name="transavs", setting=a.setting, backbone=a.backbone, num_queries=a.queries,
                    query_init=a.query_init, pixel_decoder=a.pixel_decoder)  # fmt: skip
    # Paper: weights 2, 2, 5, 5; thresholds from 0.55 to 0.65 in 18 equal rises over the training, however long it is.
    c.method.update(lambda_aqdl=a.aqdl, lambda_aqml=a.aqml, lambda_class=5.0, lambda_dice=5.0)
    c.method.update({name: FIXED for name in ("delta1", "delta2") if a[name] == "fixed"})
    c.method.max_iter = c.get_ref("steps")
    # Not in the paper: losses after every decoder layer, without which queries from scratch converge poorly; the
    # encoder's BatchNorms are frozen, a batch being small; 40 frames with 300 queries each do not fit a small GPU
    # unless layers are recomputed. In S4 only the first frame has labels, and only it is looked at.
    c.method.update(aux_loss=True, frozen_norm=True, remat=True)

    _data(c, a)
    if a.query_init == "learned":  # nothing hears
        c.tagging.steps, c.pretrained.audio = 0, ""
        # What it cannot know no query is sure of: its probability times its mask stays below one half, and the frame
        # empty, where both are above. The sum over queries, at the product of two halves, is what it does see.
        c.method.update(inference_rule="semantic", inference_threshold=0.25)
    # Frames of 224 x 224, flipped half of the time, the whole clip together.
    c.augment.hflip = 0.5

    # Paper: AdamW, 1e-4, and a "learning-rate multiplier of 0.1", which is Mask2Former's of the encoder; its decay of
    # 0.05 (none of norms and embeddings), its clipping at 0.01, and its polynomial schedule.
    c.optimizer.update(name="adamw", lr=1e-4, weight_decay=0.05, clip_norm=0.01, schedule="poly", poly_power=0.9)
    c.optimizer.groups.encoder = 0.1

    c.eval.update(every_steps=5000, best="miou" if a.setting in BINARY else "miou_all_classes")
    c.checkpoint.every_steps = 5000
    if a.scale == "tiny":
        _tiny(c, a)
    return c


def _data(c, a):
    """The setting's data set, or what the embedded world has in its place."""
    if a.dataset == "synthetic":
        kind = SYNTHETIC.get(a.setting, "semantic")
        c.data.update(source="synthetic", setting=kind, image_size=224, difficulty="easy")
        if DATASETS[a.setting] != "avsbench":
            c.data.still = True
        c.tagging.update(steps=400, batch_size=32)  # no public file knows these sounds
        if kind == "semantic":
            c.method.num_classes = SYNTHETIC_CLASSES
        return
    c.data.update(source=DATASETS[a.setting], root=a.root, setting=a.setting, image_size=224)
    if a.setting in ("s4", "ms3"):  # frames lie there as 224 x 224
        c.data.update(resize=False, sound="auto")
    elif a.setting != "avss":
        c.data.update(front_end="vggish", fit="squash", seconds=1.0)
    if DATASETS[a.setting] == "vpo":
        c.data.eval.split = "test"  # there is no other
    c.pretrained.encoder = ENCODERS[a.backbone] if a.pretrained == "public" else ""
    c.pretrained.audio = VGGISH if a.pretrained != "none" else ""


def _tiny(c, a):
    """Every part of the published system, narrow and shallow, from scratch in minutes on a CPU: a ResNet-10 for all
    ResNets, a small PVT or Swin for these. From scratch the encoder has the whole rate, and BatchNorms are trained."""
    kind = a.backbone.split("_")[0]
    encoder = {"pvt": {"backbone": "pvt_v2_b0", "width": 8},
               "swin": {"backbone": "swin_t", "width": 32, "depths": (2, 2, 2, 2)}}  # fmt: skip
    c.method.update(encoder.get(kind, {"backbone": "resnet10", "width": 16, "frozen_norm": False}))
    c.method.update(num_queries=TINY_QUERIES.get(a.queries, a.queries), dim=64, heads=4, ffn=128, encoder_layers=1,
                    decoder_layers=3, drop_path=0.0, audio_width=4, audio_hidden=256, remat=False)  # fmt: skip
    if a.pixel_decoder != "none":
        c.method.pixel_options = {"groups": 8}
    if a.pixel_decoder == "msdeform":
        c.method.pixel_options.update(layers=1, heads=4, hidden=128)
    # Not in the paper: with dice alone, to which an object too many costs little, queries learn for long or for good
    # to draw whatever could sound (mIoU .75 on held-out clips, against .85 with Mask2Former's cross-entropy).
    c.method.lambda_mask = 5.0
    c.pretrained.update(encoder="", audio="")
    c.data.image_size = 64
    if a.dataset == "synthetic":
        c.data.train.length = 3000
    else:
        c.data.update({"resize": True} if a.setting in ("s4", "ms3") else {})
        c.method.train_audio = True  # from scratch, and nobody can name its sounds first
    c.steps = 1600
    c.batch_size = 4
    c.loader.cache = True
    c.optimizer.update(lr=5e-4, weight_decay=0.01, clip_norm=1.0, schedule="cosine", warmup_steps=100, ema=0.99)
    c.optimizer.groups.encoder = 1.0
    c.eval.update(every_steps=0, max_clips=50)
    c.checkpoint.every_steps = 400
    c.log.update(every_steps=50, tensorboard=False)
