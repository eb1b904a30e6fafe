"""AVSBench's clips as a PyTorch data set, as the public code loads them: the other side of `benchmarks.loading`.

A clip is five pictures opened with Pillow, turned to (3, H, W) float32 in [0, 1] and normalised by ImageNet's mean and
standard deviation, the masks as (1, H, W) float32, and the pickled log-mel tensor. Needs torch.
"""

import pickle

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

MEAN = torch.tensor((0.485, 0.456, 0.406)).view(3, 1, 1)
STD = torch.tensor((0.229, 0.224, 0.225)).view(3, 1, 1)


class Clips(Dataset):
    """files: (frames, masks, log-mel) paths of each clip. normalised: False leaves frames as uint8."""

    def __init__(self, files, normalised: bool = True):
        self.files, self.normalised = files, normalised

    def __len__(self):
        return len(self.files)

    def __getitem__(self, index):
        frames, masks, log_mel = self.files[index]
        with open(log_mel, "rb") as file:
            audio = pickle.load(file).detach()
        return torch.stack([self._frame(f) for f in frames]), audio, torch.stack([_mask(m) for m in masks])

    def _frame(self, path):
        with Image.open(path) as image:
            pixels = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
        if not self.normalised:
            return pixels.contiguous()
        return pixels.contiguous().to(torch.float32).div_(255).sub_(MEAN).div_(STD)


def _mask(path):
    with Image.open(path) as image:
        return torch.from_numpy(np.array(image.convert("1"), np.float32))[None]


def batches(files, *, batch_size: int, workers: int, normalised: bool):
    """Batches of one epoch after the other, each in a new order, without end."""
    loader = DataLoader(Clips(files, normalised), batch_size, shuffle=True, num_workers=workers, drop_last=True,
                        persistent_workers=workers > 0, generator=torch.Generator().manual_seed(0))  # fmt: skip
    while True:
        yield from loader
