"""Options of the three methods, and files of weights, that are wrong."""

import functools
from pathlib import Path

import numpy as np
from bad_input import Row, at, put
from safetensors.numpy import save_file
from torch_writer import T, legacy_bytes, zip_bytes

import avs_jax
from avs_jax.weights.files import read_state_dict

METHODS = {
    "tpavi": [
        ({"setting": "ms4"}, "method.setting; 'ms4'"),
        ({"bakbone": "resnet50"}, "method.bakbone; Did you mean 'backbone'?"),
        ({"backbone": "resnet51"}, "method.backbone; Did you mean 'resnet50'?"),
        ({"fusion": "av"}, "method.fusion; 'av'"),
        ({"attend": "clips"}, "method.attend; Did you mean 'clip'?"),
        ({"tpavi_stages": (4,)}, "method.tpavi_stages"),
        ({"tpavi_stages": (1, 1)}, "method.tpavi_stages"),
        ({"avm": "kl"}, "method.avm; 'kl'"),
        ({"avm_distance": "l2"}, "method.avm_distance; 'l2'"),
        ({"avm_stages": (5,)}, "method.avm_stages"),
        ({"num_classes": 1}, "method.num_classes; 1"),
        ({"channels": 0}, "method.channels; 0"),
        ({"audio_width": -1}, "method.audio_width; -1"),
        ({"width": "wide"}, "method.width; 'wide'"),
        ({"drop_path": 1.5}, "method.drop_path; 1.5"),
        ({"compute_dtype": "float16"}, "method.compute_dtype; 'float16'"),
        ({"head_channels": (8,)}, "method.head_channels"),
        ({"neck_dilations": ()}, "method.neck_dilations"),
    ],
    "cavp": [
        ({"setting": "vpo"}, "method.setting; 'vpo'"),
        ({"archtecture": "ocr"}, "method.archtecture; Did you mean 'architecture'?"),
        ({"architecture": "unet"}, "method.architecture; 'unet'"),
        ({"backbone": "hrnet_w48"}, "method.backbone; 'hrnet_w48'"),
        ({"architecture": "ocr", "backbone": "resnet50"}, "method.backbone; 'resnet50'"),
        ({"output_stride": 4}, "method.output_stride; 4"),
        ({"audio_encoder": "resnet50"}, "method.audio_encoder; 'resnet50'"),
        ({"fusion": "add"}, "method.fusion; 'add'"),
        ({"attention_gate": "relu"}, "method.attention_gate; 'relu'"),
        ({"heads": 7}, "method.heads; 7"),
        ({"heads": 0}, "method.heads; 0"),
        ({"temperature": 0}, "method.temperature; 0"),
        ({"contrastive": -1.0}, "method.contrastive; -1.0"),
        ({"max_views": 0}, "method.max_views; 0"),
        ({"num_classes": 1}, "method.num_classes; 1"),
        ({"audio_channels": 3}, "method.audio_channels; 3"),
        ({"channels": -8}, "method.channels; -8"),
        ({"groups": 0}, "method.groups; 0"),
        ({"compute_dtype": "half"}, "method.compute_dtype; 'half'"),
    ],
    "transavs": [
        ({"setting": "s5"}, "method.setting; Did you mean 's4'?"),
        ({"queries": 3}, "method.queries; 'num_queries'"),
        ({"backbone": "swin"}, "method.backbone; 'swin'"),
        ({"num_queries": 0}, "method.num_queries; at least 1; 0"),
        ({"num_queries": 2.5}, "method.num_queries; 2.5"),
        ({"query_init": "frames"}, "method.query_init; Did you mean 'frame'?"),
        ({"query_init": "clip", "num_frames": 1}, "method.query_init; 'clip'"),
        ({"pixel_decoder": "fpm"}, "method.pixel_decoder; Did you mean 'fpn'?"),
        ({"dim": 6}, "method.dim; a multiple of 4; 6"),
        ({"heads": 7}, "method.heads; a divisor; 7"),
        ({"dropout": 1}, "method.dropout; [0, 1); 1"),
        ({"class_prior": 0}, "method.class_prior; between 0 and 1; 0"),
        ({"decoder_layers": 0}, "method.decoder_layers; at least 1; 0"),
        ({"depths": (1, 1, 1, 1), "backbone": "resnet50"}, "method.depths; a Swin"),
        ({"inference_threshold": 1.0}, "method.inference_threshold; 1.0"),
        ({"inference_rule": "mx"}, "method.inference_rule; 'mx'"),
        ({"max_iter": 0}, "method.max_iter; at least 1; 0"),
        ({"width": 0}, "method.width; 0"),
        ({"compute_dtype": "int8"}, "method.compute_dtype; 'int8'"),
    ],
}
ONE = {"a": T(np.arange(64, dtype=np.float32))}
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"


class Evil:
    def __reduce__(self):
        import os

        return os.system, ("touch executed",)


def saved(share: float, **arrays):
    """A safetensors file, cut to a share of it."""

    def change(path: Path):
        save_file(arrays or {"a": np.ones(9, np.float32)}, path)
        path.write_bytes(path.read_bytes()[: round(share * path.stat().st_size)])

    return change


FILES = {
    "pth missing": ("x.pth", lambda path: None, "a file of tensors; no such file"),
    "pth empty": ("x.pth", put(b""), "a file of tensors; an empty file"),
    "pth cut short": ("x.pth", put(zip_bytes(ONE)[:-99]), "an undamaged torch archive"),
    "legacy pth cut short": ("x.pth", put(legacy_bytes(ONE)[:-1]), "256 bytes for a storage of 64 float32; 255 bytes"),
    "pth executes": ("x.pth.tar", put(zip_bytes({"a": Evil()})), "posix.system; Nothing in it was executed"),
    "pth without tensors": ("x.pth", put(zip_bytes({"epoch": 1})), "a state dict; a dict of epoch"),
    "pth is a web page": ("x.pth", put("<html>404</html>"), "a torch file; a web page"),
    "pth is a Git LFS pointer": ("x.pth", put(POINTER), "a Git LFS pointer"),
    "pth is text": ("x.pth", put("hello, this is text"), "a torch file or a pickle"),
    "safetensors missing": ("x.safetensors", lambda path: None, "a file of tensors; no such file"),
    "safetensors empty": ("x.safetensors", put(b""), "an undamaged safetensors file"),
    "safetensors cut short": ("x.safetensors", saved(0.97), "an undamaged safetensors file"),
    "safetensors claims too much": ("x.safetensors", put((1 << 60).to_bytes(8, "little") + b"{}"),
                                    "undamaged safetensors"),
    "safetensors is text": ("x.safetensors", put("hello world, this is text"), "an undamaged safetensors file"),
    "safetensors without tensors": ("x.safetensors", put((2).to_bytes(8, "little") + b"{}"), "no tensors"),
}  # fmt: skip
TINY = {"setting": "ms3", "backbone": "resnet10", "width": 4, "channels": 4, "neck_dilations": (1, 2),
        "head_channels": (4, 4), "audio_width": 2, "audio_hidden": 8}  # fmt: skip


@functools.cache
def weights():
    """(a small TPAVI, what its file holds)."""
    from avs_jax.weights.convert import initial

    method = avs_jax.create("tpavi", **TINY)
    return method, avs_jax.to_torch(method, initial(method))


def load(change):
    def attempt(here: Path):
        method, whole = weights()
        avs_jax.load_torch(method, change(dict(whole)))

    return attempt


def other(key, **changes):
    def change(found):
        name = next(k for k in found if key in k)
        array = found.pop(name)
        return found | {changes.get("name", name): changes["value"](array) if "value" in changes else array}

    return change


KEYS = {
    "a key missing": (lambda found: {k: v for k, v in found.items() if "conv1" not in k}, "conv1; missing"),
    "a key misspelt": (other("conv1", name="resnet.cnv1.weight"), "cnv1"),
    "a key too many": (lambda found: found | {"classifier.weight": np.zeros(3, np.float32)}, "classifier.weight"),
    "another shape": (other("conv1", value=lambda a: a[..., :1]), "conv1"),
    "NaN": (other("conv1", value=lambda a: np.full_like(a, np.nan)), "resnet.conv1.weight; finite numbers; NaN"),
    "infinity": (other("bn1", value=lambda a: np.full_like(a, np.inf)), "resnet.bn1.weight; finite numbers; inf"),
    "nothing": (lambda found: {}, "missing"),
}


def rows():
    for name, cases in METHODS.items():
        for options, told in cases:
            yield Row(f"{name}'s options: {options}", told, create(name, options), world="empty")
    for fault, (file, change, told) in FILES.items():
        yield Row(f"weights: {fault}", f"{file}; {told}", read(file), at(file, change), "empty")
    for fault, (change, told) in KEYS.items():
        yield Row(f"weights: {fault}", told, load(change), world="empty", report=True)


def create(name: str, options: dict):
    return lambda here: avs_jax.create(name, **options)


def read(file: str):
    return lambda here: read_state_dict(here / file)


ROWS = list(rows())
