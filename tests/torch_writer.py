"""Writes the file formats of torch without torch, for tests: zip archives, legacy files, pickled tensors.

`T(array)` stands for a tensor; `T(array, base)` for a view into the storage of `base`. The pickles mention the same
names with the same arguments as torch's own.
"""

import io
import pickle
import sys
import types
import zipfile
from collections import OrderedDict
from unittest import mock

import numpy as np

STORAGES = {"float32": "Float", "float64": "Double", "float16": "Half", "bfloat16": "BFloat16", "int64": "Long",
            "int32": "Int", "int16": "Short", "int8": "Char", "uint8": "Byte", "bool": "Bool"}  # fmt: skip


def _fake(module: str, name: str, kind=types.FunctionType):
    """A function or class that pickles as `module.name`."""
    made = type(name, (), {}) if kind is type else types.FunctionType((lambda *a: None).__code__, {}, name)
    made.__module__, made.__qualname__ = module, name
    return made


_FAKES = {
    "torch": types.SimpleNamespace(
        **{f"{s}Storage": _fake("torch", f"{s}Storage", type) for s in STORAGES.values()},
        uint16=_fake("torch", "uint16", type),
    ),
    "torch._utils": types.SimpleNamespace(
        **{
            name: _fake("torch._utils", name)
            for name in ("_rebuild_tensor_v2", "_rebuild_tensor_v3", "_rebuild_parameter")
        }
    ),
    "torch.storage": types.SimpleNamespace(
        _load_from_bytes=_fake("torch.storage", "_load_from_bytes"),
        UntypedStorage=_fake("torch.storage", "UntypedStorage", type),
    ),
}


class Storage:
    """The flat memory of a tensor. `legacy` bytes are embedded where the pickle itself must carry them."""

    def __init__(self, flat: np.ndarray):
        self.flat, self.key = flat, str(id(flat))

    def __reduce__(self):
        return _FAKES["torch.storage"]._load_from_bytes, (legacy_bytes(self),)


class T:
    """A tensor: an array and the storage it looks into."""

    def __init__(self, array, base: "T | None" = None, parameter: bool = False):
        self.array, self.parameter = np.asarray(array), parameter
        self.storage = base.storage if base else Storage(np.ascontiguousarray(self.array).reshape(-1))
        if base is None:
            self.array = self.storage.flat.reshape(self.array.shape)
        start = self.array.__array_interface__["data"][0] - self.storage.flat.__array_interface__["data"][0]
        self.offset = start // self.array.itemsize if self.array.size else 0

    def __reduce__(self):
        utils = _FAKES["torch._utils"]
        strides = tuple(s // self.array.itemsize for s in self.array.strides)
        args = (self.storage, self.offset, self.array.shape, strides, False, OrderedDict())
        if self.array.dtype == np.uint16:
            return utils._rebuild_tensor_v3, (*args, _FAKES["torch"].uint16)
        if self.parameter:
            return utils._rebuild_parameter, (T(self.array, self), True, OrderedDict())
        return utils._rebuild_tensor_v2, args


class _Pickler(pickle.Pickler):
    def __init__(self, stream, storages: dict | None, protocol: int, legacy: bool = False):
        super().__init__(stream, protocol)
        self.storages, self.legacy = storages, legacy

    def persistent_id(self, value):
        if self.storages is None or not isinstance(value, Storage):
            return None
        key = value.key if self.legacy else self.storages.setdefault(value.key, (str(len(self.storages)), value))[0]
        self.storages.setdefault(value.key, (key, value))
        if value.flat.dtype == np.uint16:
            kind, count = _FAKES["torch.storage"].UntypedStorage, value.flat.nbytes
        else:
            kind, count = getattr(_FAKES["torch"], f"{STORAGES[value.flat.dtype.name]}Storage"), value.flat.size
        return ("storage", kind, key, "cpu", count) + ((None,) if self.legacy else ())


def _dump(value, storages, protocol, legacy=False) -> bytes:
    stream = io.BytesIO()
    with mock.patch.dict(sys.modules, _FAKES):
        _Pickler(stream, storages, protocol, legacy).dump(value)
    return stream.getvalue()


def pickle_bytes(value, protocol: int = 4) -> bytes:
    """As `pickle.dump` writes tensors: every storage a torch file of its own inside the pickle."""
    return _dump(value, None, protocol)


def legacy_bytes(value) -> bytes:
    """As torch wrote before 1.6."""
    storages: dict = {}
    body = _dump(value, storages, 2, legacy=True)
    system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}
    head = b"".join(pickle.dumps(v, 2) for v in (0x1950A86A20F9469CFC6C, 1001, system))
    keys = pickle.dumps([key for key, _ in storages.values()], 2)
    counts = [s.flat.nbytes if s.flat.dtype == np.uint16 else s.flat.size for _, s in storages.values()]
    tail = b"".join(
        n.to_bytes(8, "little") + s.flat.tobytes() for n, (_, s) in zip(counts, storages.values(), strict=True)
    )
    return head + body + keys + tail


def zip_bytes(value, root: str = "archive", byteorder: str = "little", change=None) -> bytes:
    """As torch writes since 1.6. `change(members)` may alter the archive's {name: bytes} before it is written."""
    storages: dict = {}
    members = {f"{root}/data.pkl": _dump(value, storages, 2), f"{root}/byteorder": byteorder.encode()}
    for key, storage in storages.values():
        flat = storage.flat.byteswap() if byteorder == "big" else storage.flat
        members[f"{root}/data/{key}"] = flat.tobytes()
    members[f"{root}/version"] = b"3\n"
    if change:
        change(members)
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return stream.getvalue()
