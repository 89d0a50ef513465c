"""R3D: the 3D ResNets of CVRL (arXiv 2008.03800, published code), which pool time once, in the stem.

Padding is symmetric where the published code (TensorFlow) pads one more behind than before; shapes are the same.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from unlabeled.config.recipe import Backbone
from unlabeled.errors import UserError

# name -> (blocks per stage, channels of the stem, which are also those inside a block of the first stage)
NETWORKS = {
    "r3d50": ((3, 4, 6, 3), 64),
    "r3d101": ((3, 4, 23, 3), 64),
    "r3d152": ((3, 8, 36, 3), 64),
    "r3d_tiny": ((1, 1, 1, 1), 8),
}

_TEMPORAL = (1, 1, 3, 3)  # frames that the first convolution of every block sees, by stage
_EXPANSION = 4
_TRUNCATED = 0.87962566103423978  # deviation of a standard normal that is cut at +-2


def convolution(channels: int, out: int, kernel: tuple[int, int, int], stride: int = 1) -> nn.Conv3d:
    """Make a padded convolution without bias; kernel: frames, rows, columns; stride: of rows and columns."""
    frames, rows, columns = kernel
    return nn.Conv3d(channels, out, kernel, (1, stride, stride), (frames // 2, rows // 2, columns // 2), bias=False)


class Bottleneck(nn.Module):
    """Convolutions over time, over the frame, over neither, beside a shortcut: [b, C, T, H, W] -> [b, 4 D, T, H', W'].

    Names are those of torchvision's and timm's 2D block, so that their weights can be inflated (`inflate`).
    """

    def __init__(self, channels: int, inner: int, temporal: int, stride: int) -> None:
        super().__init__()
        out = _EXPANSION * inner
        self.conv1, self.bn1 = convolution(channels, inner, (temporal, 1, 1)), nn.BatchNorm3d(inner)
        self.conv2, self.bn2 = convolution(inner, inner, (1, 3, 3), stride), nn.BatchNorm3d(inner)
        self.conv3, self.bn3 = convolution(inner, out, (1, 1, 1)), nn.BatchNorm3d(out)
        self.act = nn.ReLU(inplace=True)
        self.downsample = None
        if stride > 1 or channels != out:
            self.downsample = nn.Sequential(convolution(channels, out, (1, 1, 1), stride), nn.BatchNorm3d(out))

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum of both ways."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.act(self.bn1(self.conv1(x)))
        x = self.act(self.bn2(self.conv2(x)))
        return self.act(self.bn3(self.conv3(x)) + shortcut)


class R3D(nn.Module):
    """Stem, four stages of bottlenecks, global average pool: clips [b, 3, T, S, S] -> [b, num_features].

    An image [b, 3, S, S] is a clip of one frame.
    """

    layer1: nn.Sequential
    layer2: nn.Sequential
    layer3: nn.Sequential
    layer4: nn.Sequential

    def __init__(self, layers: tuple[int, ...], channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(3, channels, (5, 7, 7), 2, (2, 3, 3), bias=False)
        self.bn1, self.act1 = nn.BatchNorm3d(channels), nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1))
        self.feature_info: list[dict[str, Any]] = []
        self.grad_checkpointing = False
        width = channels
        for stage, (blocks, temporal) in enumerate(zip(layers, _TEMPORAL, strict=True)):
            inner, out = channels << stage, _EXPANSION * channels << stage
            strides = (2 if stage else 1, *[1] * (blocks - 1))
            name = f"layer{stage + 1}"
            self.add_module(name, nn.Sequential(*(
                Bottleneck(out if block else width, inner, temporal, stride) for block, stride in enumerate(strides))))
            self.feature_info.append({"num_chs": out, "reduction": 4 << stage, "module": name})
            width = out
        self.num_features = width
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                lecun_normal(module.weight)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the activations of every block in the backward pass."""
        self.grad_checkpointing = enable

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the last map: [b, 3, T, S, S] -> [b, num_features, t, s, s]."""
        x = x.unsqueeze(2) if x.ndim == 4 else x
        x = self.maxpool(self.act1(self.bn1(self.conv1(x))))
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            if self.grad_checkpointing and self.training and torch.is_grad_enabled():
                for block in stage:
                    x = checkpoint(block, x, use_reentrant=False)
            else:
                x = stage(x)
        return x

    def forward(self, x: Tensor) -> Tensor:
        """Return the mean of the last map over time and space: [b, num_features]."""
        return self.forward_features(x).mean((2, 3, 4))


def lecun_normal(weight: Tensor) -> None:
    """Fill a kernel [D, C, ...] from a normal that is cut at two deviations, with variance 1 / (C times its places)."""
    deviation = weight[0].numel() ** -0.5 / _TRUNCATED
    nn.init.trunc_normal_(weight, std=deviation, a=-2 * deviation, b=2 * deviation)


def build_r3d(cfg: Backbone) -> R3D:
    """Build the network that the recipe names; `width` multiplies every channel count.

    Raises UserError for a width that does not give whole channel counts.
    """
    layers, channels = NETWORKS[cfg.name]
    scaled = channels * cfg.width
    if scaled != int(scaled):
        raise UserError(f"backbone.width {cfg.width:g} gives {scaled:g} channels in the stem of {cfg.name}; use a "
                        f"multiple of {1 / channels:g}")
    return R3D(layers, int(scaled))
