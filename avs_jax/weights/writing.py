"""State dicts to files that PyTorch's users can load: .safetensors, and .pth without torch."""

import io
import struct
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from avs_jax.errors import InputError
from avs_jax.paths import is_remote, to_path, upload
from avs_jax.torch_files import STORAGES

TORCH_SUFFIXES = (".pth", ".pt", ".tar")
SUFFIXES = (".safetensors", *TORCH_SUFFIXES)
_ALIGN = 64  # bytes: so that torch can map the file into memory


def save_state_dict(path: str | Path, state_dict: Mapping[str, np.ndarray]) -> None:
    """Writes names and arrays; the suffix says how. The file appears whole or not at all.

    Args:
      path: ends in .safetensors, or in .pth, .pt or .pth.tar for what `torch.load(path, weights_only=True)` reads.
      state_dict: key -> array, bfloat16 and the like through ml_dtypes.
    Raises:
      InputError: another suffix, or numbers of a type that torch files lack.
    """
    path = to_path(path)
    arrays = {key: np.array(value, order="C") for key, value in state_dict.items()}
    if path.suffix not in SUFFIXES:
        raise InputError(path, expected="a name that ends in " + ", ".join(SUFFIXES), found=repr(path.suffix))
    if is_remote(path):
        with tempfile.TemporaryDirectory() as folder:
            save_state_dict(Path(folder) / path.name, state_dict)
            return upload(Path(folder), path.parent, [path.name])
    half = path.with_name(path.name + ".part")
    try:
        if path.suffix == ".safetensors":
            from safetensors.numpy import save_file

            save_file(arrays, half, metadata={"format": "pt"})
        else:
            with open(half, "wb") as file:
                _write_torch(file, arrays, path)
        half.replace(path)
    except OSError as error:
        raise InputError(path, expected="a place to write to", found=str(error)) from None
    finally:
        half.unlink(missing_ok=True)


def _write_torch(file, arrays: Mapping[str, np.ndarray], where: Path) -> None:
    """The zip archive of `torch.save(OrderedDict(...))`: a pickle of names, and a member for every array's bytes."""
    root = "archive"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:

        def add(name, data):
            info = zipfile.ZipInfo(f"{root}/{name}")  # dated 1980: the same arrays give the same bytes
            start = file.tell() + 30 + len(info.filename) + 4
            pad = -start % _ALIGN
            info.extra = struct.pack("<HH", 0x4246, pad) + bytes(pad)
            with archive.open(info, "w") as member:
                member.write(data)

        add("data.pkl", _pickle(arrays, where))
        add("byteorder", b"little")
        for i, array in enumerate(arrays.values()):
            add(f"data/{i}", _little_endian(array).reshape(-1).view(np.uint8).data)
        add("version", b"3\n")


def _pickle(arrays: Mapping[str, np.ndarray], where: Path) -> bytes:
    """OrderedDict of tensors as torch pickles it: each a call of `_rebuild_tensor_v2` on a numbered storage."""
    kinds = {dtype: name for name, dtype in STORAGES.items()}
    out = io.BytesIO()
    write = out.write
    write(b"\x80\x02" + _ORDERED_DICT)
    write(b"(")
    for i, (key, array) in enumerate(arrays.items()):
        kind = kinds.get(array.dtype.name)
        if kind is None:
            raise InputError(where, expected="numbers of torch's types", found=f"{array.dtype} in '{key}'",
                             hint="Write .safetensors.")  # fmt: skip
        write(_text(key))
        write(b"ctorch._utils\n_rebuild_tensor_v2\n(")
        write(b"(" + _text("storage") + f"ctorch\n{kind}Storage\n".encode() + _text(str(i)) + _text("cpu"))
        write(_integer(array.size) + b"tQ")
        strides = np.cumprod((1, *array.shape[:0:-1]))[::-1] if array.ndim else ()
        write(_integer(0) + _integers(array.shape) + _integers(strides) + b"\x89" + _ORDERED_DICT + b"tR")
    write(b"u.")
    return out.getvalue()


_ORDERED_DICT = b"ccollections\nOrderedDict\n)R"


def _text(text: str) -> bytes:
    raw = text.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def _integer(n: int) -> bytes:
    n = int(n)
    return b"J" + struct.pack("<i", n) if n < 1 << 31 else b"\x8a\x08" + struct.pack("<q", n)


def _integers(values) -> bytes:
    return b"(" + b"".join(map(_integer, values)) + b"t"


def _little_endian(array: np.ndarray) -> np.ndarray:
    return array.astype(array.dtype.newbyteorder("<"), copy=False) if array.dtype.byteorder == ">" else array
