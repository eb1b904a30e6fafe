"""From the tally of a data set to its figures: every one a float64 function of the rows, or of a resampling of them."""

from collections.abc import Mapping

import numpy as np

from avs_jax.metrics import confusion as semantic
from avs_jax.metrics.fmeasure import THRESHOLDS, batched_fscore, f_beta, precision_recall, ratio, threshold_counts
from avs_jax.metrics.jaccard import batched_jaccard, frame_jaccard
from avs_jax.metrics.sounds import CONDITIONS
from avs_jax.metrics.tally import Tally

DESCRIPTIONS = {
    "miou": "J by the AVSBench protocol",
    "fscore": "F by the AVSBench protocol (best threshold per batch)",
    "audio_gain": "J with the true sound minus J with another clip's",
    "j_swap": "J with another clip's sound",
    "j_silence": "J with silence",
    "j_noise": "J with white noise",
    "j_nonempty": "J over frames in which something sounds",
    "j_video": "J over those frames, mean of the clips' means",
    "j_dataset": "intersection over union of all pixels together",
    "f_05": "F at threshold 0.5, frames in which something sounds",
    "f_best": "F at the best single threshold for the data set",
    "precision": "precision of all pixels together",
    "recall": "recall of all pixels together",
    "fdr": "false discovery rate of all pixels together",
    "silent_false_positive_rate": "silent frames: share of pixels marked as sounding",
    "silent_exactly_empty": "silent frames: share left exactly empty",
}
CLASS_DESCRIPTIONS = {
    "miou": "mean IoU over classes by the AVSBench protocol (per frame)",
    "fscore": "F over classes by the AVSBench protocol (per frame)",
    "audio_gain": "miou with the true sound minus miou with another clip's",
    "j_swap": "miou with another clip's sound",
    "j_silence": "miou with silence",
    "j_noise": "miou with white noise",
    "f_05": "F of the predicted mask, frames in which something sounds",
    "miou_classes": "mean IoU over classes, one confusion matrix",
    "miou_all_classes": "the same, a class that never occurs counts 0",
    "f1": "F1, mean over classes, one confusion matrix",
    "f03": "F with beta squared 0.3, mean over classes",
    "fdr": "false discovery rate, mean over classes",
}
GROUPS = {  # of a table with classes: headings, each before the first figure of its group
    "miou_classes": "Pixels of all clips together, background included (CAVP, VPO, AVSBench-Single+)",
    "miou": "Frame by frame (AVSBench-semantic, AVSS)",
    "j_nonempty": "Sounding or not, whatever the class",
}


def descriptions(multi_class: bool) -> dict[str, str]:
    """Every figure's name and what it is, in the order of a table."""
    if not multi_class:
        return dict(DESCRIPTIONS)
    classes = [
        name for name in CLASS_DESCRIPTIONS if name not in DESCRIPTIONS or name == "fdr"
    ]  # fdr: the classes' one
    order = classes + [name for name in DESCRIPTIONS if name != "fdr"]
    return {name: (DESCRIPTIONS | CLASS_DESCRIPTIONS)[name] for name in order}


def conditions(rows: Tally) -> list[str]:
    """The sounds that were measured."""
    return [name for name in CONDITIONS if f"{name}.pred" in rows]


def clip_columns(rows: Tally, sound: str = "true") -> dict[str, np.ndarray]:
    """(N,) float64 sums over each clip's frames of what the binary figures are ratios of.

    A frame counts when it is present and has a pixel that is not ignored; it is silent when nothing in it sounds.
    """
    areas = rows[f"{sound}.inter"], rows[f"{sound}.pred"], rows["truth"], rows["pixels"]
    inter, pred, truth, pixels = (area * rows["present"] for area in areas)
    scored, sounding = pixels > 0, truth > 0
    silent = scored & ~sounding
    j = frame_jaccard(inter, pred, truth, pixels)
    columns = {
        "j": j * scored,
        "frames": scored,
        "j_sounding": j * sounding,
        "sounding": sounding,
        "f_05": f_beta(inter, pred, truth) * sounding,
        "inter": inter,
        "pred": pred,
        "truth": truth,
        "silent": silent,
        "silent_pred": pred * silent,
        "silent_pixels": pixels * silent,
        "silent_empty": silent & (pred == 0),
    }
    columns = {name: values.sum(1, dtype=np.float64) for name, values in columns.items()}
    columns["video"] = np.nan_to_num(ratio(columns["j_sounding"], columns["sounding"]))
    columns["videos"] = (columns["sounding"] > 0) * 1.0
    return columns


class Resampling:
    """Data sets made of the rows of one: `order` (R, N) holds the rows of each; None is the data set itself (R = 1)."""

    def __init__(self, rows: int, order: np.ndarray | None = None):
        self.identity = order is None
        self.order = np.arange(rows)[None] if order is None else order
        self.times = None  # (R, N) how often each row occurs
        if not self.identity:
            self.times = np.stack([np.bincount(one, minlength=rows) for one in self.order]).astype(np.float64)

    def total(self, values: np.ndarray) -> np.ndarray:
        """(N, ...) -> (R, ...) float64 sums over each data set's rows."""
        if self.identity:  # no matrix product: its rounding may differ between machines
            return values.sum(0, dtype=np.float64)[None]
        flat = np.asarray(values, np.float64).reshape(len(values), -1)
        return (self.times @ flat).reshape(-1, *values.shape[1:])

    def __len__(self):
        return len(self.order)


def summarise(rows: Tally) -> dict[str, np.ndarray]:
    """(N, ...) float64 sums over each clip's frames of all that `figures` needs: computed once, resampled often."""
    out = {"curves": rows["curves"]}
    for sound in conditions(rows):
        out |= {f"{sound}.{name}": values for name, values in clip_columns(rows, sound).items()}
        if "confusion" in rows:
            sums = semantic.protocol_sums(rows[f"{sound}.areas"], rows["pixels"] > 0)
            out |= {f"{sound}.class_{name}": values for name, values in sums.items()}
    if "confusion" in rows:
        out["confusion"] = rows["confusion"].astype(np.float64)
    return out


def figures(clips: Mapping[str, np.ndarray], clips_per_batch: int, data: Resampling) -> dict[str, np.ndarray]:
    """Every figure of each of R data sets, (R,) float64; NaN where a data set does not define one.

    Args:
      clips: from `summarise`.
      clips_per_batch: the protocol's batch.
      data: the data sets, as resamplings of the clips.
    """
    if "confusion" in clips:
        out = _semantic_protocol(clips, data, "true")
    else:
        j, frames, sounding = (clips[f"true.{name}"][data.order] for name in ("j", "frames", "sounding"))
        out = {
            "miou": batched_jaccard(j, frames, clips_per_batch),
            "fscore": batched_fscore(clips["curves"][data.order], sounding, frames, clips_per_batch),
        }
    for sound in CONDITIONS[1:]:
        if f"{sound}.j" not in clips:
            continue
        if "confusion" in clips:
            out[f"j_{sound}"] = _semantic_protocol(clips, data, sound)["miou"]
        else:
            out[f"j_{sound}"] = batched_jaccard(clips[f"{sound}.j"][data.order], frames, clips_per_batch)
    if "j_swap" in out:
        out["audio_gain"] = out["miou"] - out["j_swap"]
    out.update(_mask_figures(clips, data))
    if "confusion" in clips:
        out.update(semantic.confusion_figures(data.total(clips["confusion"])))
    return out


def _semantic_protocol(clips, data, sound):
    total, f, frames = (data.total(clips[f"{sound}.class_{name}"]) for name in ("iou", "f", "frames"))
    return {"miou": semantic.protocol_mean(total, frames), "fscore": semantic.protocol_mean(f, frames)}


def _mask_figures(clips, data):
    """The figures of "sounding or not" that depend on no batch rule."""
    s = {name.removeprefix("true."): data.total(x) for name, x in clips.items() if name.startswith("true.")}
    return {
        "j_nonempty": ratio(s["j_sounding"], s["sounding"]),
        "j_video": ratio(s["video"], s["videos"]),
        "j_dataset": ratio(s["inter"], s["pred"] + s["truth"] - s["inter"]),
        "f_05": ratio(s["f_05"], s["sounding"]),
        "f_best": ratio(data.total(clips["curves"]).max(-1), s["sounding"]),
        "precision": ratio(s["inter"], s["pred"]),
        "recall": ratio(s["inter"], s["truth"]),
        "fdr": ratio(s["pred"] - s["inter"], s["pred"]),
        "silent_false_positive_rate": ratio(s["silent_pred"], s["silent_pixels"]),
        "silent_exactly_empty": ratio(s["silent_empty"], s["silent"]),
    }


def curves(rows: Tally) -> dict[str, np.ndarray]:
    """What happens at each of the 255 thresholds, (255,) each: threshold, f (mean over frames in which something
    sounds), and precision and recall of all pixels together."""
    sounding = float((rows["truth"] * rows["present"] > 0).sum())
    inter, pred = threshold_counts(rows["hist"].sum(0))
    precision, recall = precision_recall(inter, pred, (rows["truth"] * rows["present"]).sum())
    f = ratio(Resampling(len(rows["index"])).total(rows["curves"])[0], sounding)
    return {"threshold": THRESHOLDS.astype(np.float64), "f": f, "precision": precision, "recall": recall}
