"""AVSBench's log-mel files, written without torch: a Python pickle of a torch tensor."""

import pickle
import struct

import numpy as np

_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # of torch's legacy file format
_SYSTEM = {"protocol_version": _PROTOCOL, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}


def tensor_pickle(values: np.ndarray) -> bytes:
    """What `pickle.dumps(tensor)` gives for a contiguous float32 CPU tensor that requires gradients.

    Such a pickle calls `torch._utils._rebuild_tensor_v2` on a storage that is a torch file of the legacy format of its
    own, inside the pickle. The public code reads it by `pickle.load`, `avs_jax.torch_files` without executing anything.

    Args:
      values: any shape, float32; AVSBench's log-mel is (5, 1, 96, 64).
    """
    values = np.array(values, "<f4", order="C")
    strides = [n // values.itemsize for n in values.strides]
    storage = _storage_file(values)
    return b"".join([
        b"\x80\x04",
        _name("torch._utils", "_rebuild_tensor_v2"),
        b"(",
        _name("torch.storage", "_load_from_bytes"),
        b"B" + struct.pack("<I", len(storage)) + storage,
        b"\x85R",  # the storage: one argument, called
        _integer(0),  # offset into it
        _integers(values.shape),
        _integers(strides),
        b"\x88",  # requires_grad, as the tensors that the public code dumped
        _name("collections", "OrderedDict") + b")R",  # backward hooks
        b"tR.",
    ])  # fmt: skip


def _storage_file(values: np.ndarray) -> bytes:
    """A legacy torch file that holds a float storage: magic, protocol, system, storage, keys, count and numbers."""
    key = "0"
    head = b"".join(pickle.dumps(part, 2) for part in (_MAGIC, _PROTOCOL, _SYSTEM))
    identity = [_text("storage"), _name("torch", "FloatStorage"), _text(key), _text("cpu"), _integer(values.size), b"N"]
    body = b"\x80\x02(" + b"".join(identity) + b"tQ."
    return head + body + pickle.dumps([key], 2) + struct.pack("<q", values.size) + values.tobytes()


def _name(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def _text(text: str) -> bytes:
    return b"X" + struct.pack("<I", len(text)) + text.encode()


def _integer(n: int) -> bytes:
    return b"J" + struct.pack("<i", n)


def _integers(numbers) -> bytes:
    return b"(" + b"".join(map(_integer, numbers)) + b"t"
