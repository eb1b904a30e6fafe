"""Torch itself on the other side: what it saves is read, what is written it loads. Needs torch (extra `test-torch`)."""

from collections import OrderedDict

import numpy as np
import pytest
from test_weights import PVT, SMALL, every_kind, made_up, same

import avs_jax
from avs_jax.weights.files import read_file, read_state_dict
from avs_jax.weights.writing import save_state_dict

torch = pytest.importorskip("torch")

FORMATS = {"zip": {}, "legacy": {"_use_new_zipfile_serialization": False}}


def tensors(state_dict):
    return OrderedDict((k, torch.from_numpy(np.array(v))) for k, v in state_dict.items())


def numpy(tensor):
    return tensor.float().numpy() if tensor.dtype == torch.bfloat16 else tensor.numpy()


def public_models():
    return {
        **{name: avs_jax.create_encoder(name, width=4) for name in ("resnet18", "resnet50", "pvt_v2_b0")},
        "vggish": avs_jax.create_encoder("vggish", width=2, hidden=8),
        "tpavi": avs_jax.create("tpavi", **SMALL),
        "avss": avs_jax.create("tpavi", **PVT, setting="avss"),
    }


@pytest.mark.parametrize("kind", FORMATS)
def test_torchs_files_become_variables_and_torchs_files_again(tmp_path, kind):
    for name, model in public_models().items():
        truth = made_up(model)
        torch.save({"state_dict": tensors(truth), "epoch": 3}, tmp_path / "in.pth.tar", **FORMATS[kind])
        assert read_file(tmp_path / "in.pth.tar").container == kind
        back = avs_jax.to_torch(model, avs_jax.load_torch(model, tmp_path / "in.pth.tar"))
        save_state_dict(tmp_path / "out.pth", back)
        loaded = torch.load(tmp_path / "out.pth", weights_only=True)
        assert isinstance(loaded, OrderedDict), name
        assert same({k: v.numpy() for k, v in loaded.items()}, truth), name


def test_torch_loads_every_type_that_is_written(tmp_path):
    truth = every_kind()
    save_state_dict(tmp_path / "a.pth", truth)
    for options in ({}, {"mmap": True}):
        loaded = torch.load(tmp_path / "a.pth", weights_only=True, **options)
        assert list(loaded) == list(truth)
        for key, value in truth.items():
            assert str(loaded[key].dtype) == f"torch.{value.dtype.name}" and loaded[key].is_contiguous()
            np.testing.assert_array_equal(numpy(loaded[key]), value.astype(numpy(loaded[key]).dtype), err_msg=key)


def test_a_module_loads_what_is_written(tmp_path):
    net = torch.nn.Sequential(torch.nn.Conv2d(2, 3, 3), torch.nn.BatchNorm2d(3))
    net(torch.randn(2, 2, 5, 5))
    torch.save(net.state_dict(), tmp_path / "a.pth")
    save_state_dict(tmp_path / "b.pth", read_state_dict(tmp_path / "a.pth"))
    other = torch.nn.Sequential(torch.nn.Conv2d(2, 3, 3), torch.nn.BatchNorm2d(3))
    other.load_state_dict(torch.load(tmp_path / "b.pth", weights_only=True))
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), other.state_dict().values(), strict=True))


@pytest.mark.parametrize("kind", FORMATS)
def test_views_ties_and_types_of_torch(tmp_path, kind):
    base = torch.randn(3, 4, 5)
    truth = {
        "base": base, "permuted": base.permute(2, 0, 1), "part": base[1:, ::2, 3], "expanded": base[:1].expand(6, 4, 5),
        "half": base.half(), "bfloat16": base.bfloat16(), "bool": base > 0, "parameter": torch.nn.Parameter(base * 2),
        "count": torch.tensor(12), "empty": base[:0], "channels_last": base[None].to(memory_format=torch.channels_last),
    }  # fmt: skip
    torch.save(truth, tmp_path / "a.pth", **FORMATS[kind])
    found = read_state_dict(tmp_path / "a.pth")
    assert list(found) == list(truth) and np.shares_memory(found["base"], found["part"])
    for key, value in truth.items():
        value = value.detach()
        assert found[key].dtype.name == str(value.dtype).removeprefix("torch.")
        np.testing.assert_array_equal(found[key].astype(numpy(value).dtype), numpy(value), err_msg=key)
