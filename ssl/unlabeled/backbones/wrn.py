"""Wide residual networks for small images (arXiv 1605.07146) as semi-supervised methods use them.

The variant is that of FixMatch's protocol (arXiv 2001.07685, TorchSSL and USB): leaky ReLU, slow BatchNorm statistics,
convolutions with bias, and in blocks that change the width an activation before the shortcut too.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor, nn

from unlabeled.config.recipe import Backbone

# name -> (factor on the widths, groups of blocks, stride of the first group)
NETWORKS = {"wrn28_2": (2, 3, 1), "wrn28_8": (8, 3, 1), "wrn37_2": (2, 4, 2)}

_BLOCKS = 4  # per group, two convolutions each: 28 layers in three groups, 37 in four
_norm = partial(nn.BatchNorm2d, eps=0.001, momentum=0.001)
_activation = partial(nn.LeakyReLU, 0.1)


class Block(nn.Module):
    """Norm, activation and convolution, twice, beside a shortcut: [b, C, H, W] -> [b, filters, H', W']."""

    def __init__(self, channels: int, filters: int, stride: int) -> None:
        super().__init__()
        self.norm1, self.act1 = _norm(channels), _activation()
        self.conv1 = nn.Conv2d(channels, filters, 3, stride, 1)
        self.norm2, self.act2 = _norm(filters), _activation()
        self.conv2 = nn.Conv2d(filters, filters, 3, 1, 1)
        self.shortcut = None if channels == filters else nn.Conv2d(channels, filters, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum of both ways."""
        active = self.act1(self.norm1(x))
        shortcut = x if self.shortcut is None else self.shortcut(active)
        return shortcut + self.conv2(self.act2(self.norm2(self.conv1(active))))


class WideResNet(nn.Module):
    """Groups of four blocks and a global average pool: [b, 3, S, S] -> [b, num_features]."""

    def __init__(self, factor: int, groups: int, first_stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1)
        self.feature_info: list[dict[str, Any]] = []
        channels, reduction = 16, 1
        for group in range(groups):
            filters, stride = 16 * factor * 2**group, 2 if group else first_stride
            reduction *= stride
            blocks = [Block(channels if i == 0 else filters, filters, stride if i == 0 else 1) for i in range(_BLOCKS)]
            name = f"group{group + 1}"
            self.add_module(name, nn.Sequential(*blocks))
            self.feature_info.append({"num_chs": filters, "reduction": reduction, "module": name})
            channels = filters
        self.norm, self.act = _norm(channels), _activation()
        self.num_features = channels
        for module in self.modules():
            if isinstance(module, nn.Conv2d):  # their biases keep torch's initial values, as in the protocol
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="leaky_relu")

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the last map: [b, 3, S, S] -> [b, num_features, s, s]."""
        for module in self.children():
            x = module(x)
        return x

    def forward(self, x: Tensor) -> Tensor:
        """Return the mean of the last map: [b, num_features]."""
        return self.forward_features(x).mean((2, 3))


def build_wrn(cfg: Backbone) -> WideResNet:
    """Build the network that the recipe names."""
    return WideResNet(*NETWORKS[cfg.name])
