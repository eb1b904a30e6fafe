"""Tensors out of the files that torch and pickle write, without torch and without executing anything in them.

Three containers, told apart by their first bytes: the zip archive of `torch.save` since 1.6, the row of pickles it
wrote before, and a plain pickle of tensors (AVSBench's log-mel files).
"""

import dataclasses
import io
import mmap
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from avs_jax import safe_pickle
from avs_jax.errors import InputError
from avs_jax.paths import is_remote, local_copy, to_path
from avs_jax.safe_pickle import Bag, Budget, Name, shown

_LEGACY_MAGIC, _LEGACY_PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
_MAX_EXPANDED = 1 << 24  # elements of a tensor that repeats its storage (stride 0) and so may exceed it
_ZIP_ERRORS = (zipfile.BadZipFile, OSError, NotImplementedError, RuntimeError, EOFError, ValueError, IndexError,
               OverflowError, struct.error, zlib.error)  # fmt: skip  # what zipfile raises on damaged archives

STORAGES = {  # torch.<X>Storage -> dtype
    "Float": "float32",
    "Double": "float64",
    "Half": "float16",
    "BFloat16": "bfloat16",
    "Long": "int64",
    "Int": "int32",
    "Short": "int16",
    "Char": "int8",
    "Byte": "uint8",
    "Bool": "bool",
    "ComplexFloat": "complex64",
    "ComplexDouble": "complex128",
}
_STORAGE_NAMES = {f"torch.{gpu}{n}Storage": t for n, t in STORAGES.items() for gpu in ("", "cuda.")} | {
    "torch.storage.UntypedStorage": "uint8",
    "torch.storage._UntypedStorage": "uint8",
}
_DTYPES = (*STORAGES.values(), "uint16", "uint32", "uint64", "float8_e4m3fn", "float8_e5m2")
_DTYPE_NAMES = {f"torch.{t}": t for t in _DTYPES}
_TENSOR_TYPES = {"torch.Tensor", "torch._tensor.Tensor", "torch.nn.parameter.Parameter", "torch.nn.Parameter"}
_NAMES = frozenset(
    {
        *_STORAGE_NAMES,
        *_DTYPE_NAMES,
        *_TENSOR_TYPES,
        "numpy.ndarray",
        "builtins.list",
        "builtins.dict",
        "builtins.int",
        "builtins.float",
        "__builtin__.list",
        "__builtin__.dict",
    }
)


@dataclasses.dataclass
class Storage:
    """A flat run of numbers that tensors look into; read from the file when first needed, and only once.

    Attributes:
      dtype: of its elements, unless a tensor says otherwise.
      size: how many bytes the file holds of it.
      read: returns those bytes, or raises InputError.
      swap: the file is of the other byte order.
    """

    dtype: str
    size: int | None = None
    read: Callable[[], bytes] | None = None
    swap: bool = False
    _array: np.ndarray | None = None
    _flat: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)

    def array(self, where: object) -> np.ndarray:
        """(size,) uint8, read-only."""
        if self._array is None:
            self._array = np.frombuffer(self.read(), np.uint8)
            if self._array.size != self.size:
                raise InputError(where, expected=f"{self.size} bytes in a storage", found=f"{self._array.size}")
        return self._array

    def elements(self, dtype: np.dtype, where: object) -> np.ndarray:
        """(size // itemsize,) of `dtype`, read-only; made once, however many tensors look into it."""
        if dtype.name not in self._flat:
            raw = self.array(where)[: self.size // dtype.itemsize * dtype.itemsize]
            if self.swap:
                raw = raw.view(f"u{dtype.itemsize // (2 if dtype.kind == 'c' else 1)}").byteswap().view(np.uint8)
            self._flat[dtype.name] = raw != 0 if dtype == np.bool_ else raw.view(dtype)
        return self._flat[dtype.name]


@dataclasses.dataclass
class Tensor:
    """A tensor as the file describes it. `numpy` checks the description against the storage before using it."""

    storage: Storage
    offset: int  # offset, shape and strides in elements
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: str

    def numpy(self, where: object) -> np.ndarray:
        """A read-only array; arrays of tensors that share a storage share its memory.

        Raises:
          InputError: the tensor reaches beyond its storage, or repeats it an absurd number of times.
        """
        dtype = _dtype(self.dtype)
        held = self.storage.size // dtype.itemsize
        count = 1
        for n in self.shape:
            count *= n
        reach = 1 + sum((n - 1) * s for n, s in zip(self.shape, self.strides, strict=True)) if count else 0
        end = self.offset + reach
        if end > held:
            raise InputError(
                where,
                expected=f"{end} elements of {self.dtype} for a tensor of shape {self.shape}",
                found=f"{held} in the file",
                hint="The file is cut short or damaged.",
            )
        if count > held and count > _MAX_EXPANDED:
            raise InputError(
                where,
                expected=f"at most {_MAX_EXPANDED} elements in a tensor that repeats its storage",
                found=f"shape {self.shape} over {held} stored elements",
            )
        if not count:
            return _empty(self.shape, dtype, where)
        flat = self.storage.elements(dtype, where)
        strides = [s * dtype.itemsize if n > 1 else 0 for n, s in zip(self.shape, self.strides, strict=True)]
        return np.lib.stride_tricks.as_strided(flat[self.offset :], self.shape, strides, writeable=False)


def _empty(shape: tuple[int, ...], dtype: np.dtype, where: object) -> np.ndarray:
    try:
        return np.zeros(shape, dtype)
    except ValueError as error:  # one side is 0, but the others are beyond what NumPy can count
        raise InputError(where, expected="a tensor of a possible shape", found=f"{shape}: {error}") from None


def load(path: str | Path) -> Any:
    """Reads a torch or pickle file as plain data: dicts, lists, numbers, strings, and `Tensor` for every tensor.

    Safe with files of any origin: nothing in them is imported or called, and every size that they state is compared
    with the bytes that are there before memory is taken.

    Raises:
      InputError: the file is missing, damaged, of another kind, or asks for anything but data.
    """
    path = to_path(path)
    if is_remote(path):
        with local_copy(path) as copy:
            return load(copy)
    if not path.is_file():
        raise InputError(path, expected="a file of tensors", found="a folder" if path.is_dir() else "no such file")
    try:
        if path.stat().st_size == 0:
            raise InputError(path, expected="a file of tensors", found="an empty file")
        with open(path, "rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise InputError(path, expected="a readable file", found=str(error)) from None
    if data[:4] == b"PK\x03\x04":
        return _load_zip(path, path)
    return _load_pickles(data, path, Budget.of_file(len(data)))


def container(path: str | Path) -> str:
    """How a file that `load` reads is built: "zip" (torch since 1.6), "legacy" (torch before) or "pickle"."""
    with open(path, "rb") as file:
        head = file.read(64)
    if head.startswith(b"PK\x03\x04"):
        return "zip"
    return "legacy" if _LEGACY_MAGIC.to_bytes(10, "little") in head else "pickle"


def read_torch_pickle(path: str | Path) -> np.ndarray:
    """The one tensor that a file holds, as AVSBench's log-mel pickles do.

    Returns:
      an array of the stored shape and dtype, read-only.
    Raises:
      InputError: see `load`; or the file holds something else than one tensor.
    """
    value = load(path)
    if not isinstance(value, Tensor):
        raise InputError(path, expected="one tensor", found=f"a {_kind(value)}")
    return value.numpy(path)


def _kind(value: Any) -> str:
    return value.name if isinstance(value, Bag) else type(value).__name__


def _dtype(name: str) -> np.dtype:
    if name == "bfloat16" or name.startswith("float8"):
        import ml_dtypes

        return np.dtype(getattr(ml_dtypes, name))
    return np.dtype(name)


# --- containers ---


def _load_zip(file: Any, where: object) -> Any:
    """`file`: a path, or an open binary file. Storages are read later, so the archive stays open with them."""
    try:
        archive = zipfile.ZipFile(file)
        members, root = _members(archive, where)
        swap = f"{root}byteorder" in members and archive.read(f"{root}byteorder").strip() == b"big"
        raw = archive.read(f"{root}data.pkl")
    except InputError:
        raise
    except _ZIP_ERRORS as error:
        raise InputError(where, expected="an undamaged torch archive", found=str(error)) from None
    storages: dict[str, Storage] = {}

    def persistent(pid):
        tag, kind, key, _location, count = _expect(pid, tuple)[:5]
        dtype, key = _storage_type(tag, kind), _key(key)
        if key not in storages:
            member = members.get(f"{root}data/{key}")
            if member is None:
                raise InputError(where, expected=f"a member {root}data/{key}", found="no such member in the archive")
            if type(count) is not int or not 0 <= count * _dtype(dtype).itemsize <= member.file_size:
                raise InputError(
                    where,
                    expected=f"{shown(count)} elements of {dtype} in {root}data/{key}",
                    found=f"{member.file_size} bytes",
                )
            storages[key] = Storage(dtype, member.file_size, lambda: _read_member(archive, member, where), swap)
        return storages[key]

    budget = Budget.of_file(len(raw))
    makers = _makers(where, budget)
    return safe_pickle.load(io.BytesIO(raw), where, makers=makers, names=_NAMES, persistent=persistent, budget=budget)


def _members(archive: zipfile.ZipFile, where: object) -> tuple[dict[str, zipfile.ZipInfo], str]:
    """The members by name, and the folder that holds data.pkl. They are what torch writes: stored as they are, so that
    together they cannot be larger than the file."""
    members = {m.filename: m for m in archive.infolist()}
    pickle_name = next((n for n in members if n.endswith("/data.pkl") and n.count("/") == 1), None)
    if pickle_name is None:
        raise InputError(
            where,
            expected="a torch archive with a data.pkl in its root folder",
            found="a zip of " + ", ".join(list(members)[:5]),
        )
    root = pickle_name[: -len("data.pkl")]
    total = sum(m.file_size for m in members.values())
    end = archive.start_dir  # where the members end
    stored = all(m.compress_type == zipfile.ZIP_STORED for m in members.values())
    if total > end or not stored or any(m.compress_size != m.file_size for m in members.values()):
        raise InputError(
            where,
            expected="a torch archive, whose members are stored uncompressed",
            found=f"members that claim {total} bytes in a file of {end}",
        )
    if f"{root}constants.pkl" in members:
        raise InputError(
            where,
            expected="a state dict",
            found="a TorchScript archive",
            hint="Save model.state_dict() with torch.save instead.",
        )
    return members, root


def _read_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo, where: object) -> bytes:
    try:
        return archive.read(member)  # verifies the checksum
    except _ZIP_ERRORS as error:
        raise InputError(
            where, expected=f"an undamaged {member.filename}", found=str(error), hint="Copy or download the file again."
        ) from None


def _load_pickles(data: mmap.mmap | io.BytesIO, where: object, budget: Budget, depth: int = 0) -> Any:
    """A plain pickle, or torch's legacy row: magic number, protocol, system, object, storage keys, storages."""
    head = data.read(512)
    data.seek(0)
    if head[:1] != b"\x80" and not (head[:1] in b"(}]c" and b"\n" in head):  # protocols 0 and 1 have no header
        raise InputError(where, expected="a torch file or a pickle of tensors", found=_describe(head))
    first = safe_pickle.load(data, where, makers=_makers(where, budget, depth), names=_NAMES, budget=budget)
    if type(first) is not int or first != _LEGACY_MAGIC:
        return first
    storages: dict[str, Storage] = {}

    def persistent(pid):
        tag, kind, key = _expect(pid, tuple)[:3]
        root = storages.setdefault(_key(key), Storage(_storage_type(tag, kind)))
        if len(pid) < 6 or pid[5] is None:
            return root
        _view_key, offset, _count = _expect(pid[5], tuple)
        return _View(root, _expect(offset, int))

    def part(**options):
        return safe_pickle.load(data, where, budget=budget, **options)

    protocol, system = part(), part()
    if type(protocol) is not int or protocol != _LEGACY_PROTOCOL or not isinstance(system, dict):
        raise InputError(where, expected=f"torch's file protocol {_LEGACY_PROTOCOL}", found=shown(protocol))
    value = part(makers=_makers(where, budget, depth), names=_NAMES, persistent=persistent)
    _locate_storages(data, part(), storages, where)
    return value


@dataclasses.dataclass
class _View:
    """A part of a storage that a legacy file shares between tensors; resolved when its root is located."""

    root: Storage
    offset: int


def _locate_storages(data, keys: Any, storages: dict[str, Storage], where: object) -> None:
    """Legacy files end with, for each key, an int64 count of elements and their bytes, always little-endian."""
    for key in keys if isinstance(keys, list) else ():
        storage = storages.get(key if isinstance(key, str) else shown(key))
        if storage is None:
            raise InputError(where, expected="a tensor for every storage", found=f"storage {shown(key)} without one")
        count = int.from_bytes(data.read(8), "little", signed=True)
        start, size = data.tell(), count * _dtype(storage.dtype).itemsize
        data.seek(0, io.SEEK_END)
        left = data.tell() - start
        if not 0 <= size <= left:
            raise InputError(
                where,
                expected=f"{size} bytes for a storage of {count} {storage.dtype}",
                found=f"{left} bytes to the end of the file",
                hint="The file is cut short or damaged.",
            )
        data.seek(start + size)
        storage.size = size
        storage.read = lambda start=start, size=size: _copy(data, start, size)
    missing = [key for key, storage in storages.items() if storage.size is None]
    if missing:
        raise InputError(
            where,
            expected="the bytes of every storage",
            found=f"none for storage {missing[0]!r:.40}",
            hint="The file is cut short or damaged.",
        )


def _copy(data, start: int, size: int) -> bytes:
    data.seek(start)
    return data.read(size)


def _describe(head: bytes) -> str:
    """What a file that is no torch file seems to be."""
    if head.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer, not the file it stands for"
    if head.lstrip()[:1] == b"<":
        return "a web page (a failed download?)"
    if head[:2] == b"\x1f\x8b":
        return "a gzip file; unpack it first"
    if head[257:262] == b"ustar":
        return "a tar archive; unpack it first"
    if head[8:9] == b"{":
        return "a safetensors file"
    return f"a file that begins with {head[:12]!r}"


# --- what a pickle may call ---


def _storage_type(tag: Any, kind: Any) -> str:
    if not isinstance(tag, str) or tag != "storage" or not isinstance(kind, Name) or kind.text not in _STORAGE_NAMES:
        raise ValueError(f"a persistent id that is no storage: {shown(tag)}")
    return _STORAGE_NAMES[kind.text]


def _key(key: Any) -> str:
    """The name of a storage, which some versions of torch write as a number."""
    return key if isinstance(key, str) else shown(_expect(key, int))


def _makers(where: object, budget: Budget, depth: int = 0) -> dict[str, Callable]:
    """Our stand-ins for the functions and classes that pickled tensors and checkpoints mention."""

    def nested(raw):  # torch.storage._load_from_bytes: a whole torch file, holding one storage, inside a pickle
        if not isinstance(raw, bytes) or depth:
            raise ValueError("a nested torch file that is not bytes, or is nested twice")
        return _load_pickles(io.BytesIO(raw), where, budget, depth + 1)

    def rebuild_from_type(function, _type, args, _state):
        if not isinstance(function, Name) or function.text not in tensors:
            raise ValueError("a tensor rebuilt by something else than torch's own functions")
        return tensors[function.text](*args)

    tensors = {
        "torch._utils._rebuild_tensor_v2": _tensor_v2,
        "torch._utils._rebuild_tensor_v3": _tensor_v3,
        "torch._utils._rebuild_tensor": lambda *args: _tensor_v2(*args, False, {}),
        "torch._utils._rebuild_parameter": lambda tensor, *_: _expect(tensor, Tensor),
        "torch._utils._rebuild_parameter_with_state": lambda tensor, *_: _expect(tensor, Tensor),
    }
    bags = (
        "argparse.Namespace",
        "torch.device",
        "numpy.dtype",
        *(f"numpy.{core}.multiarray.{kind}" for core in ("core", "_core") for kind in ("scalar", "_reconstruct")),
    )
    return {
        **tensors,
        "torch._tensor._rebuild_from_type_v2": rebuild_from_type,
        "torch.storage._load_from_bytes": nested,
        "torch.Size": lambda sizes=(): tuple(_expect(sizes, list | tuple)),
        "collections.OrderedDict": _dict,
        "collections.Counter": _dict,
        "collections.defaultdict": lambda _factory=None: {},
        "builtins.set": lambda items=(): list(_expect(items, list | tuple)),
        "__builtin__.set": lambda items=(): list(_expect(items, list | tuple)),
        "_codecs.encode": lambda text, encoding: _expect(text, str).encode("latin1"),  # bytes in protocol 2
        **{name: lambda *args, name=name: Bag(name, args) for name in bags},
    }


def _expect(value: Any, kind: Any) -> Any:
    if not isinstance(value, kind):
        raise ValueError(f"a {type(value).__name__} where {kind} belongs")
    return value


def _dict(items: Any = ()) -> dict:
    if isinstance(items, dict):
        return dict(items)
    pairs = [_expect(pair, list | tuple) for pair in _expect(items, list | tuple)]
    return {key if isinstance(key, str) else shown(key): value for key, value in pairs}


def _sizes(values: Any) -> tuple[int, ...]:
    values = _expect(values, list | tuple)
    if len(values) > 32 or any(type(n) is not int or not 0 <= n < 1 << 63 for n in values):
        raise ValueError("sizes or strides that are no short list of numbers")
    return tuple(values)


def _tensor_v2(storage, offset, shape, strides, _requires_grad=False, _hooks=None, _metadata=None) -> Tensor:
    return _tensor(storage, offset, shape, strides, None)


def _tensor_v3(storage, offset, shape, strides, _requires_grad, _hooks, dtype, _metadata=None) -> Tensor:
    if not isinstance(dtype, Name) or dtype.text not in _DTYPE_NAMES:
        raise ValueError(f"a tensor of dtype {dtype.text if isinstance(dtype, Name) else shown(dtype)}")
    return _tensor(storage, offset, shape, strides, _DTYPE_NAMES[dtype.text])


def _tensor(storage, offset, shape, strides, dtype: str | None) -> Tensor:
    start = 0
    if isinstance(storage, _View):
        storage, start = storage.root, storage.offset
    _expect(storage, Storage)
    shape, strides, (offset, start) = _sizes(shape), _sizes(strides), _sizes([offset, start])
    if len(shape) != len(strides):
        raise ValueError(f"shape {shape} with strides {strides}")
    return Tensor(storage, start + offset, shape, strides, dtype or storage.dtype)
