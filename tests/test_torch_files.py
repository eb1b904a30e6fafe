"""Torch files read without torch: every format, dtype and view; nothing executed, nothing read beyond its storage."""

import argparse
import io
import logging
import os
import pickle
import subprocess
import tarfile
import zipfile
from collections import Counter, OrderedDict
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch_writer as tw
from safetensors.numpy import save_file
from torch_writer import T

from avs_jax import torch_files
from avs_jax.errors import InputError
from avs_jax.torch_files import read_torch_pickle
from avs_jax.weights.files import read_state_dict

GOLDEN = Path(__file__).parent / "golden"
WRITERS = {"zip": tw.zip_bytes, "legacy": tw.legacy_bytes, "pickle": tw.pickle_bytes}
DTYPES = (np.float32, np.float64, np.float16, ml_dtypes.bfloat16, np.int64, np.int32, np.int16, np.int8, np.uint8,
          np.bool_, np.uint16)  # fmt: skip


def write(tmp_path, data: bytes, name: str = "weights.pth") -> Path:
    path = tmp_path / name
    path.write_bytes(data)
    return path


def check_equal(found: dict, truth: dict):
    assert list(found) == list(truth)
    for key, value in truth.items():
        assert found[key].dtype == value.dtype and found[key].shape == value.shape, key
        np.testing.assert_array_equal(found[key], value, err_msg=key)


def test_the_data_sets_pickle():
    found = read_torch_pickle(GOLDEN / "vggish_logmel_sample.pkl")
    truth = np.load(GOLDEN / "vggish_logmel.npz")["logmel_float"][:, :, ::8, ::8]
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, truth)


@pytest.mark.parametrize("writer", WRITERS)
def test_every_dtype(tmp_path, writer):
    rng = np.random.default_rng(0)
    truth = {np.dtype(d).name: rng.integers(0, 2 if d is np.bool_ else 100, (3, 4)).astype(d) for d in DTYPES}
    path = write(tmp_path, WRITERS[writer](OrderedDict((k, T(v)) for k, v in truth.items())))
    check_equal(read_state_dict(path), truth)


@pytest.mark.parametrize("writer", WRITERS)
def test_views_keep_their_strides(tmp_path, writer):
    base = T(np.arange(60, dtype=np.float32).reshape(3, 4, 5))
    a = base.array
    views = {
        "whole": a,
        "transposed": a.transpose(2, 0, 1),
        "part": a[1:, 2:, ::2],
        "expanded": np.broadcast_to(a[:1, :1], (7, 4, 5)),
        "scalar": a[2, 3, 4, ...],
        "channels_last": a.reshape(1, 3, 4, 5).transpose(0, 3, 1, 2),
    }
    tensors = {k: T(v, base) for k, v in views.items()} | {"empty": T(np.zeros((0, 3), np.float32))}
    path = write(tmp_path, WRITERS[writer](tensors))
    found = read_state_dict(path)
    check_equal(found, views | {"empty": np.zeros((0, 3), np.float32)})
    if writer != "pickle":  # one storage, read once
        assert np.shares_memory(found["whole"], found["part"])
    with pytest.raises(ValueError, match="read-only"):
        found["whole"][0] = 0


@pytest.mark.parametrize("protocol", range(6))
def test_every_pickle_protocol(tmp_path, protocol):
    truth = np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4)
    path = write(tmp_path, tw.pickle_bytes(T(truth), protocol), "x.pkl")
    np.testing.assert_array_equal(read_torch_pickle(path), truth)


def test_legacy_views_of_a_storage(tmp_path, monkeypatch):
    """Old files name a storage within another by a sixth field: (key, offset, size)."""
    whole = tw._Pickler.persistent_id

    def view(self, value):
        pid = whole(self, value)
        return (*pid[:5], ("view", 3, 4)) if pid else None

    base = T(np.arange(10, dtype=np.float32))
    with monkeypatch.context() as patch:
        patch.setattr(tw._Pickler, "persistent_id", view)
        data = tw.legacy_bytes({"a": T(base.array[1:5], base)})
        beyond = tw.legacy_bytes({"a": T(base.array[1:8], base)})
    check_equal(read_state_dict(write(tmp_path, data)), {"a": np.arange(4, 8, dtype=np.float32)})
    with pytest.raises(InputError, match="expected 11 elements"):
        read_state_dict(write(tmp_path, beyond))


def test_other_byte_order(tmp_path):
    truth = {"a": np.arange(5, dtype=np.float32), "b": np.arange(7, dtype=np.int16), "c": np.ones(2, np.uint8)}
    path = write(tmp_path, tw.zip_bytes({k: T(v) for k, v in truth.items()}, byteorder="big"))
    check_equal(read_state_dict(path), truth)


def test_checkpoint_leftovers_are_passed_over(tmp_path, caplog):
    weights = {"a.weight": np.ones((2, 2), np.float32), "a.bias": np.zeros(2, np.float32)}
    state = OrderedDict((f"module.{k}", T(v, parameter=k == "a.bias")) for k, v in weights.items())
    state._metadata = OrderedDict(version=1)
    checkpoint = {
        "epoch": 3, "best": np.float64(0.5), "args": argparse.Namespace(lr=0.1, names=["x"]), "state_dict": state,
        "history": np.arange(3), "seen": {1, 2}, "milestones": Counter([5, 9]),
        "optimizer": {"state": {0: {"exp_avg": T(np.ones(2, np.float32))}}, "param_groups": [{"lr": 0.1}]},
    }  # fmt: skip
    for root, name in (("archive", "a.pth"), ("checkpoint_7", "a.pth.tar")):
        with caplog.at_level(logging.INFO):
            check_equal(read_state_dict(write(tmp_path, tw.zip_bytes(checkpoint, root=root), name)), weights)
        assert "optimizer" in caplog.text and "epoch" in caplog.text
    path = write(tmp_path, tw.legacy_bytes({"model": {"state_dict": state}, "epoch": 1}))
    check_equal(read_state_dict(path), weights)


def test_safetensors(tmp_path):
    truth = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(3, ml_dtypes.bfloat16)}
    for name in ("a.safetensors", "a.pth"):  # told by content
        save_file(truth, tmp_path / name)
        check_equal(read_state_dict(tmp_path / name), truth)


# --- hostile files ---


class Call:
    """Pickles as a call of `function(*args)`."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def hostile(flag: Path) -> dict:
    return {
        "posix.system": Call(os.system, f"touch {flag}"),
        "eval": Call(eval, f"open({str(flag)!r}, 'w')"),
        "exec": Call(exec, f"open({str(flag)!r}, 'w')"),
        "getattr": Call(getattr, "x", "upper"),
        "open": Call(open, str(flag), "w"),
        "Popen": Call(subprocess.Popen, ["touch", str(flag)]),
        "__import__": Call(__import__, "os"),
        "Path": Path(flag),
        "run_path": Call(__import__("runpy").run_path, str(flag)),
    }


@pytest.mark.parametrize("protocol", (0, 2, 4))
@pytest.mark.parametrize("name", hostile(Path("x")))
def test_nothing_is_executed(tmp_path, name, protocol):
    flag = tmp_path / "executed"
    value = hostile(flag)[name]
    files = {
        "plain": pickle.dumps(value, protocol),
        "within": tw.pickle_bytes({"a": T(np.ones(2)), "b": [value]}, protocol),
        "zip": tw.zip_bytes({"a": T(np.ones(2)), "b": value}),
        "legacy": tw.legacy_bytes({"a": T(np.ones(2)), "b": value}),
        "nested": pickle.dumps(Nested(pickle.dumps(value, protocol)), 4).replace(b"XX_modulexxxx", b"torch.storage")
        .replace(b"XX_load_from_byt", b"_load_from_bytes"),
    }  # fmt: skip
    for kind, data in files.items():
        path = write(tmp_path, data, f"{kind}.pth")
        for read in (read_state_dict, read_torch_pickle):
            with pytest.raises(InputError, match=r"asks for.*Nothing in it was executed") as caught:
                read(path)
            assert str(path) in str(caught.value)
            assert name.strip("_") in str(caught.value) or name == "Path"
    assert not flag.exists()


class Nested:
    """Its pickle, with two names of equal length replaced, calls torch.storage._load_from_bytes(raw)."""

    def __init__(self, raw):
        self.raw = raw

    def __reduce__(self):
        return XX_load_from_byt, (self.raw,)


def XX_load_from_byt(raw):
    raise AssertionError("executed")


XX_load_from_byt.__module__ = "XX_modulexxxx"


@pytest.fixture(autouse=True)
def _importable(monkeypatch):
    import sys
    import types

    monkeypatch.setitem(sys.modules, "XX_modulexxxx", types.SimpleNamespace(XX_load_from_byt=XX_load_from_byt))


@pytest.mark.parametrize(
    "raw, words",
    [
        (b"cos\nsystem\n(S'true'\ntR.", "os.system"),
        (b"(S'true'\nios\nsystem\n.", "opcode INST"),
        (b"(cos\nsystem\nS'true'\no.", "os.system"),
        (b"\x80\x02\x82\x01.", "opcode EXT1"),
        (b"\x80\x02Px\n.", "opcode PERSID"),
        (b"\x80\x02]q\x00Q.", "opcode BINPERSID"),
        (b"\x80\x05\x96\xff\xff\xff\xff\xff\xff\xff\x7f.", "undamaged"),
        (b"\x80\x02r\xff\xff\xff\x7f.", "undamaged"),
        (b"\x80\x02}(]K\x01u.", "as the key of a dict"),
        (b"\x80\x02K\x01\x85.", "one tensor"),
        (b"\x80\x02K\x01\x86.", "undamaged"),
        (b"\x80\x02h\x05.", "undamaged"),
        (b"\x80\x02K\x01}b.", "attributes set"),
        (b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\xffK\x01", "undamaged"),
        (b"\x80\x02ccollections\nOrderedDict\nK\x01R.", "a call of collections.OrderedDict"),
        (b"\x80\x02ctorch\nFloatStorage\n)R.", "a call of torch.FloatStorage"),
        (b"\x80\x02c__torch__.m\nNet\n)\x81.", "__torch__.m.Net"),
    ],
)
def test_hostile_opcodes(tmp_path, raw, words):
    with pytest.raises(InputError, match=words):
        read_torch_pickle(write(tmp_path, raw, "x.pkl"))


def tensor_call(storage, offset, shape, strides):
    return Call(tw._FAKES["torch._utils"]._rebuild_tensor_v2, storage, offset, shape, strides, False, OrderedDict())


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize(
    "offset, shape, strides, words",
    [
        (0, (11,), (1,), "expected 11 elements.*found 10"),
        (5, (6,), (1,), "expected 11 elements"),
        (0, (2, 5), (6, 1), "expected 11 elements"),
        (1 << 62, (1,), (1,), "found 10"),
        (0, (1 << 40,), (1,), "found 10"),
        (0, (1 << 40,), (0,), "repeats its storage"),
        (0, (1 << 40, 1 << 40, 1 << 40), (0, 0, 0), "repeats its storage"),
        (-1, (5,), (1,), "sizes or strides"),
        (0, (-5,), (1,), "sizes or strides"),
        (0, (5,), (-1,), "sizes or strides"),
        (0, (5, 2), (1,), "with strides"),
        (0, (5.0,), (1,), "sizes or strides"),
        (0, (1,) * 40, (1,) * 40, "sizes or strides"),
        (0, "x", (1,), "str"),
    ],
)
def test_tensors_beyond_their_storage(tmp_path, writer, offset, shape, strides, words):
    storage = T(np.arange(10, dtype=np.float32)).storage
    path = write(tmp_path, WRITERS[writer]({"a": tensor_call(storage, offset, shape, strides)}))
    with pytest.raises(InputError, match=words):
        read_state_dict(path)


def test_every_cut_is_refused(tmp_path):
    """A file cut short anywhere gives an InputError, never another exception, never numbers."""
    value = {"a": T(np.arange(40, dtype=np.float32)), "b": T(np.arange(6, dtype=np.int64).reshape(2, 3))}
    for kind, writer in WRITERS.items():
        data = writer(value)
        for n in range(0, len(data), 7):
            with pytest.raises(InputError, match=r"x\.pth"):
                read_state_dict(write(tmp_path, data[:n], "x.pth"))
                pytest.fail(f"{kind} cut to {n} of {len(data)} bytes was read")


def test_flipped_bytes_never_crash(tmp_path):
    """Random damage gives an InputError or (where no checksum guards it) other numbers, never another exception."""
    value = {"a": T(np.arange(40, dtype=np.float32)), "b": T(np.arange(6, dtype=np.int64).reshape(2, 3))}
    rng = np.random.default_rng(0)
    refused = 0
    for writer in WRITERS.values():
        data = np.frombuffer(writer(value), np.uint8)
        for _ in range(150):
            bad = data.copy()
            bad[rng.integers(0, data.size, 3)] = rng.integers(0, 256, 3)
            try:
                read_state_dict(write(tmp_path, bad.tobytes(), "x.pth"))
            except InputError:
                refused += 1
    assert refused > 200


def compressed(data: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    return out.getvalue()


def tar(data: bytes) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        info = tarfile.TarInfo("data.pkl")
        info.size = len(data)
        archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


ONE = {"a": T(np.arange(64, dtype=np.float32))}


@pytest.mark.parametrize(
    "data, words",
    [
        (b"", "an empty file"),
        (b"<!DOCTYPE html><html>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
        (b"\x1f\x8b\x08\x00" + bytes(20), "a gzip file"),
        (b"hello world, I am text\n", "found a file that begins with"),
        (tar(b"x"), "a tar archive"),
        (compressed(tw.zip_bytes(ONE)), "stored uncompressed"),
        (tw.zip_bytes(ONE, change=lambda m: m.pop("archive/data.pkl")), "a data.pkl in its root folder"),
        (tw.zip_bytes(ONE, change=lambda m: m.pop("archive/data/0")), "expected a member archive/data/0"),
        (tw.zip_bytes(ONE, change=lambda m: m.update({"archive/data/0": bytes(255)})), "64 elements.*255 bytes"),
        (tw.zip_bytes(ONE, change=lambda m: m.update({"archive/constants.pkl": b""})), "a TorchScript archive"),
        (tw.zip_bytes({}), "a dict of nothing"),
        (tw.zip_bytes({"epoch": 3, "lr": 0.1}), "a dict of epoch, lr"),
        (tw.zip_bytes([T(np.ones(3))]), "found a list"),
        (tw.zip_bytes(T(np.ones(3))), "found a tensor"),
        (tw.zip_bytes(ONE).replace(np.float32(33).tobytes(), np.float32(34).tobytes()), "Bad CRC-32"),
    ],
)
def test_other_files_are_named(tmp_path, data, words):
    path = write(tmp_path, data)
    with pytest.raises(InputError, match=words) as caught:
        read_state_dict(path)
    assert str(path) in str(caught.value)


def test_missing_files(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        read_state_dict(tmp_path / "x.pth")
    with pytest.raises(InputError, match="a folder"):
        torch_files.load(tmp_path)
    with pytest.raises(InputError, match="found a dict"):
        read_torch_pickle(write(tmp_path, tw.zip_bytes(ONE)))
