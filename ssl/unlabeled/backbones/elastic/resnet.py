"""The elastic ResNet of POA: narrower bottlenecks, and fewer blocks in the second and third stage.

arXiv 1512.03385 with the stride in the 3x3 convolution and GroupNorm (arXiv 1803.08494) throughout, since statistics of
batches would be others for every sub-network (arXiv 2408.01031). Modules are named as timm's, but for norms.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from einops import repeat
from torch import Tensor, nn

from unlabeled.backbones.elastic.layers import Conv2d, GroupNorm, refuse_uneven
from unlabeled.backbones.elastic.network import ElasticNetwork, Features, refuse_cut_grid
from unlabeled.backbones.elastic.random_depth import Depth
from unlabeled.backbones.elastic.sizes import Grid, Size, chosen_blocks


class Bottleneck(nn.Module):
    """A block whose two middle maps are elastic: [b, channels, H, W] -> [b, outputs, H/stride, W/stride]."""

    def __init__(self, channels: int, width: int, outputs: int, stride: int, groups: int) -> None:
        super().__init__()
        self.conv1 = Conv2d(channels, width, 1, bias=False)
        self.norm1 = GroupNorm(groups, width)
        self.conv2 = Conv2d(width, width, 3, stride, 1, bias=False)
        self.norm2 = GroupNorm(groups, width)
        self.conv3 = Conv2d(width, outputs, 1, bias=False)
        self.norm3 = GroupNorm(groups, outputs)
        self.downsample: nn.Module | None = None
        if channels != outputs or stride > 1:
            shortcut = nn.Conv2d(channels, outputs, 1, stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.GroupNorm(groups, outputs))

    def forward(self, x: Tensor, width: int | None = None) -> Tensor:
        """Return the block's output; width: of the middle maps in channels, by default all."""
        cut = () if width is None else (width,)
        shortcut = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.norm1(self.conv1(x, *cut)), inplace=True)
        x = F.relu(self.norm2(self.conv2(x, *cut)), inplace=True)
        return F.relu(self.norm3(self.conv3(x)) + shortcut, inplace=True)

    def narrow(self, target: Bottleneck, width: int) -> None:
        """Give `target` the plain layers that compute what this block does at a width."""
        target.conv1 = self.conv1.narrowed(self.conv1.in_channels, width)  # type: ignore[assignment]
        target.norm1 = self.norm1.narrowed(width)  # type: ignore[assignment]
        target.conv2 = self.conv2.narrowed(width, width)  # type: ignore[assignment]
        target.norm2 = self.norm2.narrowed(width)  # type: ignore[assignment]
        target.conv3 = self.conv3.narrowed(width)  # type: ignore[assignment]
        target.norm3 = self.norm3.narrowed(self.norm3.num_channels)  # type: ignore[assignment]
        target.downsample = copy.deepcopy(self.downsample)


class Stage(nn.ModuleList):
    """Blocks of one width, the first of which may halve the map: [b, channels, H, W] -> [b, outputs, H', W']."""

    def forward(self, x: Tensor, chosen: Sequence[int], width: int | None, run: Callable[..., Tensor]) -> Tensor:
        """Return x after the chosen blocks."""
        for number in chosen:
            x = run(self[number], x, width)
        return x


class ElasticResNet(ElasticNetwork):
    """A ResNet whose sub-networks have narrower bottlenecks, and fewer blocks in stages 2 and 3; the vector is a mean.

    The width of a size is the middle width of stage 1, half of what its blocks give at full size. Tokens are the places
    of the last map, each four times. outer: blocks of the first and of the last stage. groups: of every norm. stem:
    imagenet quarters the side of the images, cifar keeps it. cut_from: the whole that a network of one size was cut
    out of, whose blocks give as many channels. Raises UserError for a grid that does not fit.
    """

    def __init__(self, grid: Grid, *, outer: tuple[int, int] = (3, 3), groups: int = 32,
                 stem: Literal["imagenet", "cifar"] = "imagenet", masked: bool = True,
                 cut_from: Size | None = None) -> None:
        super().__init__()
        whole = cut_from or grid.full
        refuse_cut_grid(grid, cut_from)
        refuse_uneven(grid.widths, groups, "the groups of every norm")
        refuse_uneven((whole.width,), 2 * groups, "twice the groups of every norm, since the stem is half as wide")
        self.grid, self.num_features, self.cut_from = grid, 16 * whole.width, cut_from
        self.outer, self.groups, self.stem = outer, groups, stem
        channels = whole.width // 2
        kernel, stride = (7, 2) if stem == "imagenet" else (3, 1)
        self.conv1 = nn.Conv2d(3, channels, kernel, stride, kernel // 2, bias=False)
        self.norm1 = nn.GroupNorm(groups, channels)
        self.maxpool = nn.MaxPool2d(3, 2, 1) if stem == "imagenet" else nn.Identity()
        self.mask_token = nn.Parameter(torch.zeros(1, channels, 1, 1)) if masked else None
        self.feature_info: list[dict[str, Any]] = []
        for i, count in enumerate(self._counts(grid.full)):
            width, outputs, stride = grid.full.width * 2**i, whole.width * 2 ** (i + 1), 2 if i else 1
            inputs = [channels, *[outputs] * (count - 1)]
            blocks = (Bottleneck(c, width, outputs, 1 if j else stride, groups) for j, c in enumerate(inputs))
            self.add_module(f"layer{i + 1}", Stage(blocks))
            reduction = 2**i * (4 if stem == "imagenet" else 1)
            self.feature_info.append({"num_chs": outputs, "reduction": reduction, "module": f"layer{i + 1}"})
            channels = outputs

    def cells(self, side: int) -> int:
        """Return twice the side of the last map."""
        for _ in range(5 if self.stem == "imagenet" else 3):
            side = -(-side // 2)
        return 2 * side

    def features(self, x: Tensor, size: Size | None = None, mask: Tensor | None = None, depth: Depth | None = None,
                 ) -> Features:
        """Return the means [b, D] of the last map, and its places twice as fine [b, T, D]."""
        x = self._map(x, size or self.grid.full, mask)
        return Features(x.mean((2, 3)), repeat(x, "b d h w -> b (h i w j) d", i=2, j=2))

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the last map [b, D, H, W]."""
        return self._map(x, self.grid.full, None)

    def _map(self, x: Tensor, size: Size, mask: Tensor | None) -> Tensor:
        side = self.cells(x.shape[2])
        x = self.maxpool(F.relu(self.norm1(self.conv1(x)), inplace=True))
        if mask is not None:
            assert self.mask_token is not None
            hidden = repeat(mask, "b (h w) -> b (h i) (w j)", h=side, i=4, j=4)[:, None, : x.shape[2], : x.shape[3]]
            x = torch.where(hidden, self.mask_token.to(x.dtype), x)
        for i, (stage, chosen) in enumerate(zip(self._stages(), self._chosen(size), strict=True)):
            x = stage(x, chosen, None if size.width == self.grid.full.width else size.width * 2**i, self.run)
        return x

    def _stages(self) -> list[Any]:
        return [getattr(self, f"layer{i}") for i in range(1, 5)]

    def _counts(self, size: Size) -> tuple[int, ...]:
        """Return how many blocks every stage has at a size."""
        first, last = self.outer
        return first, *size.depth, last

    def _chosen(self, size: Size) -> list[list[int]]:
        """Return which blocks of every stage a sub-network keeps."""
        return [chosen_blocks(*counts) for counts in zip(self._counts(size), self._counts(self.grid.full), strict=True)]

    def layers_behind(self) -> dict[str, int]:
        """Return 0 for the last block, and one more than the first block's for the stem."""
        counts = self._counts(self.grid.full)

        def behind(name: str) -> int:
            if not name.startswith("layer"):
                return sum(counts)
            stage, number, *_ = name.split(".")
            return sum(counts[int(stage[-1]) - 1 :]) - int(number) - 1

        return {name: behind(name) for name, _ in self.named_parameters()}

    def extract(self, size: Size) -> ElasticResNet:
        """Return the plain network of a size."""
        self.grid.refuse_untrained(size)
        with torch.device("meta"):  # all of it is replaced
            plain = ElasticResNet(
                Grid((size.width,), (size.depth,)), outer=self.outer, groups=self.groups, stem=self.stem, masked=False,
                cut_from=self.cut_from or (None if size == self.grid.full else self.grid.full),
            )
        plain.conv1, plain.norm1 = copy.deepcopy(self.conv1), copy.deepcopy(self.norm1)
        for i, (stage, target, chosen) in enumerate(zip(self._stages(), plain._stages(), self._chosen(size),
                                                        strict=True)):
            for number, block in zip(chosen, target, strict=True):
                stage[number].narrow(block, size.width * 2**i)
        return plain.requires_grad_().eval()
