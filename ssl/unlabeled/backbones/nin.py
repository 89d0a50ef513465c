"""RotNet's Network in Network for 32-pixel images (arXiv 1803.07728 section 4.1, its code; the idea: arXiv 1312.4400).

`convK` is block K with its pool: features after it are those that the paper calls conv K.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from unlabeled.config.recipe import Backbone

WIDTH = 192  # channels of all blocks behind the first


class Nin(nn.Module):
    """Blocks of three convolutions and a global average pool: [b, 3, 32, 32] -> [b, 192].

    blocks: 3, 4 or 5. avg_after_block3: halve the map once more behind block 3, if more blocks follow.
    """

    def __init__(self, blocks: int = 4, avg_after_block3: bool = False) -> None:
        super().__init__()
        self.num_features = WIDTH
        self.feature_info: list[dict[str, Any]] = []
        pools = {1: nn.MaxPool2d(3, 2, 1), 2: nn.AvgPool2d(3, 2, 1)}
        if avg_after_block3 and blocks > 3:
            pools[3] = nn.AvgPool2d(3, 2, 1)
        for number in range(1, blocks + 1):
            block = _block(number)
            if number in pools:
                block.append(pools[number])
            self.add_module(f"conv{number}", block)
            halved = sum(place <= number for place in pools)
            self.feature_info.append(
                {"num_chs": 96 if number == 1 else WIDTH, "reduction": 2**halved, "module": f"conv{number}"}
            )

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the last block's map: [b, 3, S, S] -> [b, 192, s, s]."""
        for block in self.children():
            x = block(x)
        return x

    def forward(self, x: Tensor) -> Tensor:
        """Return the mean of the last map: [b, 192]."""
        return self.forward_features(x).mean((2, 3))


def build_nin(cfg: Backbone) -> Nin:
    """Build the network with torch's own initial weights, which the published code uses."""
    return Nin(cfg.blocks, cfg.avg_after_block3)


def _block(number: int) -> nn.Sequential:
    if number == 1:
        return nn.Sequential(_unit(3, 192, 5), _unit(192, 160, 1), _unit(160, 96, 1))
    return _wide_block(96, 5) if number == 2 else third_block(WIDTH)


def third_block(channels: int) -> nn.Sequential:
    """Return block 3, which is also RotNet's classifier on maps: [b, channels, h, w] -> [b, 192, h, w]."""
    return _wide_block(channels, 3)


def _wide_block(channels: int, kernel: int) -> nn.Sequential:
    return nn.Sequential(_unit(channels, WIDTH, kernel), _unit(WIDTH, WIDTH, 1), _unit(WIDTH, WIDTH, 1))


def _unit(channels: int, filters: int, kernel: int) -> nn.Sequential:
    """Return convolution, BatchNorm and ReLU, which keep height and width (odd kernels)."""
    convolution = nn.Conv2d(channels, filters, kernel, padding=kernel // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(filters), nn.ReLU(inplace=True))
