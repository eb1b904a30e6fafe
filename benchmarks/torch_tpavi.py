"""TPAVI-ResNet-50 and its MS3 training step in plain PyTorch, for `benchmarks.side_by_side`.

Written from the papers and the description of the published network, with the public code's names of parameters, so
that `avs_jax.to_torch` fills it. What never runs in the public network is left out. Zhou et al., Audio-visual
segmentation, ECCV 2022; He et al., Deep residual learning for image recognition, CVPR 2016.

Two forms of the fusion: "quadratic" multiplies all pixels of a clip with all pixels of its sound (equation 1 as
written); "linear" brackets the same products over T audio tokens, with every 1x1 convolution folded into them, as
`avs_jax` does. ReLUs work in place; there is no other cleverness on either side of the autograd.
"""

import torch
import torch.nn.functional as F
from torch import nn

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
DEPTHS = (3, 4, 6, 3)
DILATIONS = (3, 6, 12, 18)
FUSIONS = ("quadratic", "linear")
EMBEDDING = 128


class Bottleneck(nn.Module):
    def __init__(self, inputs, width, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.downsample = None
        if stride > 1 or inputs != 4 * width:
            shortcut = nn.Conv2d(inputs, 4 * width, 1, stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(4 * width))

    def forward(self, x):
        y = torch.relu_(self.bn1(self.conv1(x)))
        y = torch.relu_(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        y += x if self.downsample is None else self.downsample(x)
        return torch.relu_(y)


class ResNet50(nn.Module):
    """(N, 3, H, W) -> four maps at strides 4, 8, 16, 32."""

    def __init__(self, width=64):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        inputs = width
        for i, (depth, name) in enumerate(zip(DEPTHS, ("layer1", "layer2", "layer3_1", "layer4_1"), strict=True)):
            blocks = []
            for j in range(depth):
                blocks.append(Bottleneck(inputs, width * 2**i, 2 if i and j == 0 else 1))
                inputs = 4 * width * 2**i
            setattr(self, name, nn.Sequential(*blocks))

    def forward(self, x):
        x = F.max_pool2d(torch.relu_(self.bn1(self.conv1(x))), 3, 2, 1)
        maps = []
        for layer in (self.layer1, self.layer2, self.layer3_1, self.layer4_1):
            x = layer(x)
            maps.append(x)
        return maps


class Neck(nn.Module):
    """The sum of dilated 3x3 convolutions."""

    def __init__(self, inputs, channels):
        super().__init__()
        self.conv2d_list = nn.ModuleList(nn.Conv2d(inputs, channels, 3, padding=d, dilation=d) for d in DILATIONS)
        for conv in self.conv2d_list:
            nn.init.normal_(conv.weight, std=0.01)

    def forward(self, x):
        y = self.conv2d_list[0](x)
        for conv in self.conv2d_list[1:]:
            y += conv(x)
        return y


class TPAVI(nn.Module):
    """(B T, C, h, w) and (B, T, 128) -> the fused maps and the sound (B, T, C) in their space."""

    def __init__(self, channels, fusion):
        super().__init__()
        inner, self.fusion = channels // 2, fusion
        self.align_channel = nn.Linear(EMBEDDING, channels)
        self.norm_layer = nn.LayerNorm(channels)
        self.g, self.theta, self.phi = (nn.Conv3d(channels, inner, 1) for _ in range(3))
        self.W_z = nn.Sequential(nn.Conv3d(inner, channels, 1), nn.BatchNorm3d(channels))
        nn.init.zeros_(self.W_z[1].weight)

    def forward(self, visual, audio):
        (b, t, _), (_, c, h, w) = audio.shape, visual.shape
        heard = self.align_channel(audio)
        pixels = visual.permute(0, 2, 3, 1).reshape(b, t * h * w, c)
        y = (self._quadratic if self.fusion == "quadratic" else self._linear)(pixels, heard)
        bn = self.W_z[1]
        y = F.batch_norm(y.reshape(-1, c), bn.running_mean, bn.running_var, bn.weight, bn.bias, self.training,
                         bn.momentum, bn.eps)  # fmt: skip
        z = self.norm_layer(pixels + y.view(pixels.shape))
        return z.view(b * t, h, w, c).permute(0, 3, 1, 2), heard

    def _quadratic(self, pixels, heard):
        n, t = pixels.shape[1], heard.shape[1]
        everywhere = heard.repeat_interleave(n // t, 1)
        similarity = affine(self.theta, pixels) @ affine(self.phi, everywhere).transpose(1, 2) / n  # (B, N, N)
        return affine(self.W_z[0], similarity @ affine(self.g, pixels))

    def _linear(self, pixels, heard):
        (b, n, c), t = pixels.shape, heard.shape[1]
        theta, g, out = (m.weight.flatten(1) for m in (self.theta, self.g, self.W_z[0]))
        tokens = affine(self.phi, heard)  # (B, T, C')
        sums = pixels.view(b, t, n // t, c).sum(2) @ g.T + n // t * self.g.bias
        similarity = (pixels @ (tokens @ theta).transpose(1, 2) + (tokens @ self.theta.bias)[:, None]) / n  # (B, N, T)
        return similarity @ (sums @ out.T) + self.W_z[0].bias


def affine(pointwise, x):
    """A 1x1x1 convolution of channels on the last axis."""
    return F.linear(x, pointwise.weight.flatten(1), pointwise.bias)


class ResidualUnit(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x):
        x = torch.relu_(x)  # in place: whoever made x sees it so too
        return self.conv2(torch.relu_(self.conv1(x))) + x


class FusionBlock(nn.Module):
    def __init__(self, channels, skip=True):
        super().__init__()
        if skip:
            self.resConfUnit1 = ResidualUnit(channels)
        self.resConfUnit2 = ResidualUnit(channels)

    def forward(self, x, skip=None):
        if skip is not None:
            x = x + self.resConfUnit1(skip)
        return F.interpolate(self.resConfUnit2(x), scale_factor=2, mode="bilinear", align_corners=True)


class Network(nn.Module):
    """(B, T, 3, H, W) normalised and (B, T, 128) -> logits (B T, 1, H, W), four maps, four (B, T, C)."""

    def __init__(self, fusion="linear", width=64, channels=256, head_channels=(128, 32)):
        super().__init__()
        self.resnet = ResNet50(width)
        for i in range(4):
            setattr(self, f"conv{i + 1}", Neck(4 * width * 2**i, channels))
            setattr(self, f"tpavi_b{i + 1}", TPAVI(channels, fusion))
            setattr(self, f"path{i + 1}", FusionBlock(channels, skip=i < 3))
        self.output_conv = nn.Sequential(
            nn.Conv2d(channels, head_channels[0], 3, padding=1),
            nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False),
            nn.Conv2d(head_channels[0], head_channels[1], 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(head_channels[1], 1, 1),
        )

    def forward(self, images, audio):
        visual, heard = [], []
        for i, x in enumerate(self.resnet(images.flatten(0, 1)), 1):
            z, a = getattr(self, f"tpavi_b{i}")(getattr(self, f"conv{i}")(x), audio)
            visual.append(z)
            heard.append(a)
        x = self.path4(visual[3])
        for i in (3, 2, 1):
            x = getattr(self, f"path{i}")(x, visual[i - 1])
        return self.output_conv(x), visual, heard


def with_channels_last(network):
    """The network with its 2-D convolutions' weights in that order of memory."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.to(memory_format=torch.channels_last)
    return network


def normalised(frames):
    """(B, T, H, W, 3) uint8 -> (B, T, 3, H, W) float32; the memory keeps its order, channels last."""
    mean, std = torch.tensor(MEAN) * 255, torch.tensor(STD) * 255
    return ((frames.float() - mean) / std).movedim(-1, 2)


def objective(logits, visual, heard, masks):
    """BCE + 0.5 L_AVM-AV of masks (B T, 1, H, W) float32: the published MS3 run's."""
    bce = F.binary_cross_entropy(torch.sigmoid(logits), masks)
    matching = 0.0
    for z, a in zip(visual, heard, strict=True):
        mask = torch.sigmoid(F.adaptive_avg_pool2d(logits, z.shape[2:]))
        seen = torch.einsum("nchw,nhw->nc", z, mask[:, 0]) / mask[0].numel()
        a = F.log_softmax(a.flatten(0, 1), -1)
        matching = matching + F.kl_div(F.log_softmax(seen, -1), a, reduction="sum", log_target=True) / len(visual)
    return bce + 0.5 * matching


def training_step(network, optimiser, batch, channels_last: bool):
    """One update of a network in train mode -> the loss. batch: tensors as `benchmarks.tpavi.problem` has them."""
    images = _images(batch, channels_last)
    masks = batch["labels"].flatten(0, 1)[:, None].float()
    loss = objective(*network(images, batch["audio_embedding"]), masks)
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    optimiser.step()
    return loss.detach()


@torch.inference_mode()
def scores(network, batch, channels_last: bool):
    """Probabilities (B T, 1, H, W) of a network in eval mode."""
    return torch.sigmoid(network(_images(batch, channels_last), batch["audio_embedding"])[0])


def _images(batch, channels_last):
    images = normalised(batch["frames"])
    return images if channels_last else images.contiguous()
