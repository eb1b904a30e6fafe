"""Writes the files of this folder with torch itself (made with torch 2.13): python make_files.py

`expected.npz` holds what must be read back, under "<file>/<key>"; bfloat16 is kept there as float32.
"""

import argparse
from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch

FOLDER = Path(__file__).parent


def network():
    """A convolution, a BatchNorm and two linear layers that share one weight."""
    net = torch.nn.Sequential(
        OrderedDict(conv=torch.nn.Conv2d(2, 3, 3), bn=torch.nn.BatchNorm2d(3), a=torch.nn.Linear(4, 4, bias=False),
                    b=torch.nn.Linear(4, 4, bias=False)))  # fmt: skip
    net.b.weight = net.a.weight
    for i, p in enumerate(net.state_dict().values()):
        p.copy_((torch.arange(p.numel()).reshape(p.shape) - 3 * i) / (i + 1))
    return net


def views():
    base = torch.arange(24.0).reshape(2, 3, 4)
    return {
        "whole": base,
        "transposed": base.permute(2, 0, 1),
        "part": base[:, 1:, ::2],
        "expanded": base[0, :1].expand(3, 4),
        "channels_last": torch.arange(16.0).reshape(1, 2, 2, 4).to(memory_format=torch.channels_last),
        "empty": torch.zeros(0, 3),
        "scalar": torch.tensor(7),
    }


def kinds():
    values = torch.tensor([0.0, 1.0, -2.5, 100.0])
    floats = {str(t).removeprefix("torch."): values.to(t) for t in (torch.float64, torch.float16, torch.bfloat16)}
    whole = values.abs()
    ints = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)
    return floats | {str(t).removeprefix("torch."): whole.to(t) for t in ints}


def checkpoint(net):
    """As training scripts write them: the optimiser, the epoch, the arguments and a best score beside the weights."""
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    net(torch.ones(1, 2, 6, 6)).sum().backward()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    optimizer.step()
    net.load_state_dict(before)
    return {
        "epoch": 12, "arch": "tiny", "best": np.float64(0.5), "args": argparse.Namespace(lr=1e-3, gpus=[0, 1]),
        "state_dict": OrderedDict((f"module.{k}", v) for k, v in net.state_dict().items()),
        "optimizer": optimizer.state_dict(), "device": torch.device("cpu"), "shape": torch.Size([1, 2]),
    }  # fmt: skip


def main():
    torch.manual_seed(0)
    net = network()
    state = net.state_dict()
    parameters = dict(net.named_parameters(remove_duplicate=False))
    torch.save(state, FOLDER / "zip.pth")
    torch.save(state, FOLDER / "legacy.pth", _use_new_zipfile_serialization=False)
    torch.save(parameters, FOLDER / "parameters.pt")
    torch.save(views(), FOLDER / "views.pth")
    torch.save(views(), FOLDER / "views_legacy.pth", _use_new_zipfile_serialization=False)
    torch.save(kinds(), FOLDER / "kinds.pth")
    torch.save(kinds(), FOLDER / "kinds_legacy.pth", _use_new_zipfile_serialization=False)
    torch.save(checkpoint(network()), FOLDER / "checkpoint.pth.tar")
    torch.save(net, FOLDER / "module.pth")  # refused: a whole module is code's business
    truth = {"zip.pth": state, "legacy.pth": state, "checkpoint.pth.tar": checkpoint(network())["state_dict"],
             "parameters.pt": parameters}  # fmt: skip
    truth |= {
        f"{name}{end}.pth": make() for name, make in (("views", views), ("kinds", kinds)) for end in ("", "_legacy")
    }
    arrays = {}
    for file, tensors in truth.items():
        for key, value in tensors.items():
            value = value.detach()
            value = value.float() if value.dtype == torch.bfloat16 else value
            arrays[f"{file}/{key.removeprefix('module.')}"] = value.numpy()
    np.savez_compressed(FOLDER / "expected.npz", **arrays)


if __name__ == "__main__":
    main()
