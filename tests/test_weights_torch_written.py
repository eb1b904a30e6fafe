"""Files that torch itself wrote (tests/golden/torch/make_files.py), read back without torch."""

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from avs_jax.errors import InputError
from avs_jax.torch_files import container
from avs_jax.weights.files import read_file, read_state_dict

FOLDER = Path(__file__).parent / "golden" / "torch"
FILES = ("zip.pth", "legacy.pth", "parameters.pt", "views.pth", "views_legacy.pth", "kinds.pth", "kinds_legacy.pth",
         "checkpoint.pth.tar")  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_values_are_torchs(name):
    with np.load(FOLDER / "expected.npz") as z:
        truth = {k.partition("/")[2]: z[k] for k in z.files if k.partition("/")[0] == name}
    found = read_state_dict(FOLDER / name)
    assert list(found) == list(truth) and len(truth) >= 4
    for key, value in truth.items():
        dtype = np.dtype(ml_dtypes.bfloat16) if key == "bfloat16" else value.dtype
        assert found[key].dtype == dtype and found[key].shape == value.shape, key
        np.testing.assert_array_equal(found[key].astype(value.dtype), value, err_msg=key)


def test_containers_are_told_apart():
    assert {name: container(FOLDER / name) for name in FILES} == {
        name: "legacy" if "legacy" in name else "zip" for name in FILES
    }


def test_tied_weights_share_memory():
    for name in ("zip.pth", "legacy.pth", "parameters.pt"):
        found = read_state_dict(FOLDER / name)
        assert np.shares_memory(found["a.weight"], found["b.weight"])


def test_what_lies_beside_the_weights_is_named():
    contents = read_file(FOLDER / "checkpoint.pth.tar")
    assert set(contents.ignored) == {"epoch", "arch", "best", "args", "optimizer", "device", "shape"}


def test_a_pickled_module_is_refused():
    with pytest.raises(InputError, match=r"asks for torch\.nn\.modules\.container\.Sequential.*Nothing.*executed"):
        read_state_dict(FOLDER / "module.pth")
