"""Where public weights are: files on disk, known files to fetch, the Hugging Face hub.

Nothing is executed from what is fetched: the files are read by `weights.files`.
"""

import re
from pathlib import Path

from avs_jax.errors import InputError, nearest
from avs_jax.models.torch_keys import Published
from avs_jax.paths import is_remote, to_path

_TORCHVISION = "https://download.pytorch.org/models/"
_PVT = "https://github.com/whai362/PVT/releases/download/v2/"
_SWIN = "https://github.com/SwinTransformer/storage/releases/download/"
_VGGISH = "https://github.com/harritaylor/torchvggish/releases/download/v0.1/"
_GLUON = "https://github.com/rwightman/pytorch-pretrained-gluonresnet/releases/download/v0.1/"
_MIT = "http://sceneparsing.csail.mit.edu/model/pretrained_resnet/"
_HRNET = "https://github.com/HRNet/HRNet-Image-Classification/releases/download/PretrainedWeights/"
_TIMM_HRNET = "https://github.com/rwightman/pytorch-image-models/releases/download/v0.1-hrnet/"
# File name -> where it is published.
KNOWN = {
    **{
        name: _TORCHVISION + name
        for name in (
            "resnet18-f37072fd.pth",
            "resnet18-5c106cde.pth",  # the same training, an older file
            "resnet50-0676ba61.pth",
            "resnet50-19c8e357.pth",  # older: the one AVSBench's code names
            "resnet50-11ad3fa6.pth",  # "V2", another training
            "resnet101-63fe2227.pth",
            "resnet101-5d3b4d8f.pth",  # older
            "resnet101-cd907fc2.pth",  # "V2"
        )
    },
    **{f"pvt_v2_b{i}.pth": f"{_PVT}pvt_v2_b{i}.pth" for i in range(6)},
    **{  # ImageNet's 1000 classes; 22k: its 21841 classes
        name: f"{_SWIN}{release}/{name}"
        for release, names in {
            "v1.0.0": (
                *(f"swin_{size}_patch4_window7_224.pth" for size in ("tiny", "small", "base")),
                *(f"swin_{size}_patch4_window7_224_22k.pth" for size in ("base", "large")),
                *(f"swin_{size}_patch4_window12_384_22k.pth" for size in ("base", "large")),
            ),
            "v1.0.8": [f"swin_{size}_patch4_window7_224_22k.pth" for size in ("tiny", "small")],
        }.items()
        for name in names
    },
    "vggish-10086976.pth": f"{_VGGISH}vggish-10086976.pth",
    # ResNets with a deep stem, 64, 64 and 128 channels wide
    **{name: _GLUON + name for name in ("gluon_resnet50_v1s-1762acc0.pth", "gluon_resnet101_v1s-60fe0cc1.pth")},
    **{name: _MIT + name for name in ("resnet50-imagenet.pth", "resnet101-imagenet.pth")},
    "hrnetv2_w48-abd2e6ab.pth": f"{_TIMM_HRNET}hrnetv2_w48-abd2e6ab.pth",
    "HRNet_W48_C_ssld_pretrained.pth": f"{_HRNET}HRNet_W48_C_ssld_pretrained.pth",  # the one CAVP's code names
}
_HASHED = (_TORCHVISION, _VGGISH)
HUB_IDS = (  # each with a model.safetensors
    *(f"timm/{name}.{tag}_in1k" for name in ("resnet50", "resnet101") for tag in ("tv", "tv2")),
    "timm/resnet18.tv_in1k",
    *(f"timm/pvt_v2_b{i}.in1k" for i in range(6)),
    *(f"timm/swin_{size}_patch4_window7_224.ms_in1k" for size in ("tiny", "small", "base")),
    *(f"timm/swin_{size}_patch4_window7_224.ms_in22k" for size in ("tiny", "small", "base", "large")),
    *(f"timm/swin_{size}_patch4_window12_384.ms_in22k" for size in ("base", "large")),
    *(f"timm/{name}s.gluon_in1k" for name in ("resnet50", "resnet101")),  # deep stems
    "timm/hrnet_w48.ms_in1k",
    "timm/hrnet_w48_ssld.paddle_in1k",
)
HUB = "hf:"
HUB_FILE = "model.safetensors"
_HUB_ID = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:/([\w.-]+(?:/[\w.-]+)*))?")
_HASH = re.compile(r"-([0-9a-f]{8})\.")
_SUFFIXES = (".pth", ".tar", ".pt", ".bin", ".ckpt", ".pkl", ".safetensors")


def promised_hash(name: str) -> str:
    """The first eight hexadecimal digits of a known file's SHA-256, where its name gives them, else ""."""
    match = _HASH.search(name)
    return match[1] if match and KNOWN.get(name, "").startswith(_HASHED) else ""


def locate(text: str, *, field: str, folder: str | Path = "weights", published: Published | None = None) -> Path:
    """The file or folder that `text` means.

    Args:
      text: a path; a bare file name, looked up in the working directory and in `folder`; or a hub id
        ("timm/resnet50.tv_in1k", with "hf:" before it or "/<file>" after it if need be), whose file is taken from
        `folder`/<id>/<file> if it is there, else downloaded once into the hub's own cache.
      field: what the user wrote it in, for errors.
      folder: where fetched files are put.
      published: what kind of file is needed, for the error.
    Raises:
      InputError: there is no such file; it says where to fetch it and where to put it.
    """
    folder, path = to_path(folder), to_path(text.removeprefix(HUB))
    hub = _hub_id(text)
    if not text.startswith(HUB):
        for candidate in (path, *([folder / path] if len(path.parts) == 1 and not is_remote(path) else [])):
            if candidate.exists():
                return candidate
    if hub is None:
        raise _missing(text, path, field, folder, published)
    repository, file = hub
    local = folder / repository / file
    return local if local.is_file() else _download(repository, file, field, local, text)


def _hub_id(text: str) -> tuple[str, str] | None:
    """(repository, file), or None where the text can only be a path."""
    match = _HUB_ID.fullmatch(text.removeprefix(HUB))
    if match is None:
        return None
    repository, file = match[1], match[2]
    if not text.startswith(HUB):
        if Path(repository.split("/")[0]).is_dir() or (file is None and repository.endswith(_SUFFIXES)):
            return None  # a path whose file is not there
    return repository, file or HUB_FILE


def _missing(text: str, path: Path, field: str, folder: Path, published: Published | None) -> InputError:
    bare = len(path.parts) == 1
    target = folder / path if bare else path
    if path.name in KNOWN:
        hint = f"Fetch {KNOWN[path.name]} and put it at {target}."
        if published and path.name not in published.names:
            hint += f" But needed is {_needed(published)}."
    elif published and published.names:
        hint = f"Needed is {_needed(published)}."
    else:
        close = nearest(text, (*KNOWN, *HUB_IDS))
        hint = f"{close.split('?')[0]}? " if close.startswith("Did") else ""
        hint += f"Give the path of a file, one of {', '.join(_families())}, or a hub id such as {HUB_IDS[0]}."
    where = f"no such file, here or in '{folder}'" if bare else "no such file"
    return InputError(field, expected="a file of weights", found=f"{text!r}: {where}", hint=hint)


def _needed(published: Published) -> str:
    return f"{published.kind}: {' or '.join(published.names)}"


def _families() -> list[str]:
    return [
        "resnet<18|50|101>-<hash>.pth",
        "pvt_v2_b<0..5>.pth",
        "swin_<tiny|small|base|large>_patch4_window7_224[_22k].pth",
        "vggish-10086976.pth",
        "gluon_resnet<50|101>_v1s-<hash>.pth",
        "hrnetv2_w48-abd2e6ab.pth",
    ]


def _download(repository: str, file: str, field: str, local: Path, text: str) -> Path:
    url = f"https://huggingface.co/{repository}/resolve/main/{file}"
    hint = f"Fetch {url} and put it at {local}."
    expected = f"the file '{file}' of '{repository}' on the Hugging Face hub"
    try:
        from huggingface_hub import hf_hub_download
    except ImportError:
        raise InputError(field, expected=expected, found=f"{text!r}, and no huggingface_hub library",
                         hint=f"pip install huggingface_hub. Or: {hint}") from None  # fmt: skip
    try:
        return Path(hf_hub_download(repository, file))
    except Exception as error:  # no network, no such repository, no access: the library has a dozen kinds
        reason = " ".join(str(error).split()).partition(". ")[0].rstrip(".")[:160]
        found = f"{text!r}, neither here nor downloaded ({type(error).__name__}: {reason})"
        raise InputError(field, expected=expected, found=found, hint=hint) from None
