"""A small plain network for checks of learning: per CPU second it learns more than the residual ones."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Plain(nn.Module):
    """Four pairs of 3 x 3 convolutions, BatchNorm and ReLU, of which the last three begin with a stride of 2.

    forward: images [b, 3, S, S] -> vectors [b, 8 width], the mean of the map [b, 8 width, S / 8, S / 8].
    """

    def __init__(self, width: int, pairs: int = 4) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 3
        for pair in range(pairs):
            channels = width << pair
            for stride in (1 if pair == 0 else 2, 1):
                layers += [nn.Conv2d(before, channels, 3, stride, 1, bias=False), nn.BatchNorm2d(channels), nn.ReLU()]
                before = channels
        self.layers = nn.Sequential(*layers)
        self.num_features = before

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the map."""
        out: Tensor = self.layers(x)
        return out

    def forward(self, x: Tensor) -> Tensor:
        """Return the vectors."""
        return torch.mean(self.forward_features(x), (2, 3))


def plain(width: int = 16, pairs: int = 4) -> Plain:
    """Build the network; width: channels of the first pair, doubled by each of the others."""
    return Plain(width, pairs)
