"""2D ResNets to inflate: the smallest that fit a network for clips, with statistics that are not those of a new one."""

from __future__ import annotations

import torch
from timm.models.resnet import Bottleneck, ResNet
from torch import nn

CHANNELS = 4  # of the stem of r3d_tiny at half its width


def flat(channels: int = CHANNELS, layers: tuple[int, ...] = (1, 1, 1, 1)) -> ResNet:
    """Return a plain ResNet with bottlenecks, in evaluation mode."""
    torch.manual_seed(0)
    widths = tuple(channels << stage for stage in range(4))
    network = ResNet(Bottleneck, layers, num_classes=0, channels=widths, stem_type="deep", stem_width=channels // 2)
    network.conv1 = nn.Conv2d(3, channels, 7, 2, 3, bias=False)
    return settled(network)


def settled(network: nn.Module) -> nn.Module:
    """Give the norms of a network statistics and factors of their own, and return it in evaluation mode."""
    generator = torch.Generator().manual_seed(1)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for value in (module.weight.data, module.running_var):
                value.copy_(0.5 + torch.rand(value.shape, generator=generator))
            for value in (module.bias.data, module.running_mean):
                value.copy_(0.2 * torch.randn(value.shape, generator=generator))
    return network.eval()
