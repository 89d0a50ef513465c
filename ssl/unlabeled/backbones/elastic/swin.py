"""The elastic Swin transformer of POA: fewer heads, and fewer blocks in its third stage (arXiv 2103.14030, 2408.01031).

As in the published code of POA it follows mmdetection's: heads of 16 channels, windows shifted in every stage, padding
before the shift, and merged neighbours in the order of rows. Modules are named as timm's. Activations have their
channels last.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn

from unlabeled.backbones.elastic.layers import LayerNorm, Linear, copied, refuse_uneven
from unlabeled.backbones.elastic.network import ElasticNetwork, Features, attention, narrow, refuse_cut_grid
from unlabeled.backbones.elastic.random_depth import Depth, Kept, add_branch, draw_depth
from unlabeled.backbones.elastic.sizes import Grid, Size, chosen_blocks
from unlabeled.backbones.elastic.vit import MLP

EPS = 1e-5
_BLOCKS = 2  # of the first, second and last stage
_APART = -100.0  # added to the logits of places that only the shift brought into one window


class WindowAttention(nn.Module):
    """Self-attention within windows [b, H, W, D] -> [b, H, W, D], which begin `shift` places inside the map."""

    relative_position_index: Tensor

    def __init__(self, width: int, head_width: int, window: int, shift: int) -> None:
        super().__init__()
        self.head_width, self.window, self.shift = head_width, window, shift
        self.qkv = Linear(width, 3 * width, groups_out=3)
        self.proj = Linear(width, width)
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, width // head_width))
        self.register_buffer("relative_position_index", relative_positions(window), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the attention's output; windows that reach over the edge see zeros there."""
        height, width, n = x.shape[1], x.shape[2], self.window
        x = F.pad(x, (0, 0, 0, -width % n, 0, -height % n))
        if self.shift:
            x = x.roll((-self.shift, -self.shift), (1, 2))
        rows, columns = x.shape[1] // n, x.shape[2] // n
        # windows stand beside heads, so that the bias is shared by all images
        q, k, v = rearrange(self.qkv(x), "b (i h) (j w) (three a d) -> three b (i j a) (h w) d", three=3, h=n, w=n,
                            d=self.head_width)
        x = attention(q, k, v, self._bias(rows, columns, q.shape[1] // (rows * columns)))
        x = rearrange(x, "b (i j a) (h w) d -> b (i h) (j w) (a d)", i=rows, j=columns, h=n)
        if self.shift:
            x = x.roll((self.shift, self.shift), (1, 2))
        output: Tensor = self.proj(x[:, :height, :width])
        return output

    def _bias(self, rows: int, columns: int, heads: int) -> Tensor:
        """Return what is added to the logits: [1, windows * heads, T, T]."""
        table = self.relative_position_bias_table[:, :heads]
        bias = rearrange(table[self.relative_position_index], "q k a -> a q k")
        if self.shift:
            apart = _apart(rows * self.window, columns * self.window, self.window, self.shift, bias.device)
            return (bias + _APART * apart[:, None].to(bias.dtype)).flatten(0, 1)[None]
        return bias.repeat(rows * columns, 1, 1)[None]


class Block(nn.Module):
    """A block with its norms first: [b, H, W, D] -> [b, H, W, D]."""

    def __init__(self, width: int, head_width: int, window: int, shift: int) -> None:
        super().__init__()
        self.norm1 = LayerNorm(width, EPS)
        self.attn = WindowAttention(width, head_width, window, shift)
        self.norm2 = LayerNorm(width, EPS)
        self.mlp = MLP(width)

    def forward(self, x: Tensor, kept_attn: Kept | None = None, kept_mlp: Kept | None = None) -> Tensor:
        """Return x after both branches."""
        x = add_branch(x, lambda part: self.attn(self.norm1(part)), kept_attn)
        return add_branch(x, lambda part: self.mlp(self.norm2(part)), kept_mlp)


class PatchEmbed(nn.Module):
    """Patches as normalised vectors: [b, 3, S, S] -> the first channels [b, H, W, width]."""

    def __init__(self, patch: int, width: int) -> None:
        super().__init__()
        self.patch = patch
        self.proj = nn.Conv2d(3, width, patch, patch)
        self.norm = nn.LayerNorm(width, EPS)

    def forward(self, x: Tensor, width: int) -> Tensor:
        """Return the first `width` channels of what is normalised over all of them."""
        x = self.proj(F.pad(x, (0, -x.shape[3] % self.patch, 0, -x.shape[2] % self.patch)))
        output: Tensor = self.norm(rearrange(x, "b d h w -> b h w d"))
        return output[..., :width]


class Merging(nn.Module):
    """Four neighbours become one place: [b, H, W, D] -> [b, H/2, W/2, 2D]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = LayerNorm(4 * width, EPS, groups=4)
        self.reduction = Linear(4 * width, 2 * width, bias=False, groups_in=4)

    def forward(self, x: Tensor) -> Tensor:
        """Return the merged places; an odd side is padded with zeros."""
        x = F.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
        output: Tensor = self.reduction(self.norm(rearrange(x, "b (h i) (w j) d -> b h w (i j d)", i=2, j=2)))
        return output


class Stage(nn.Module):
    """Blocks of one width, behind the merging if there is one: [b, H, W, D] -> [b, H', W', D']."""

    def __init__(self, width: int, head_width: int, window: int, numbers: Sequence[int], merging: bool) -> None:
        super().__init__()
        self.downsample = Merging(width // 2) if merging else nn.Identity()
        self.blocks = nn.ModuleList(Block(width, head_width, window, window // 2 * (i % 2)) for i in numbers)

    def forward(self, x: Tensor, chosen: Sequence[int], depth: Depth | None,
                run_blocks: Callable[[Tensor, list[nn.Module], Depth | None], Tensor]) -> Tensor:
        """Return x after the chosen blocks."""
        return run_blocks(self.downsample(x), [self.blocks[i] for i in chosen], depth)


class ElasticSwin(ElasticNetwork):
    """A Swin transformer whose sub-networks have fewer heads, and fewer blocks in stage 3; the vector is a mean.

    Tokens are the places of the last map, each four times. window: side of the windows, in places. drop_path: share of
    the images that skip a branch of the last block; it rises from 0 in the first. cut_from: the whole that a network of
    one size was cut out of, by which its patch embedding is as wide and its blocks are shifted. Raises UserError for a
    grid that does not fit.
    """

    output_fmt = "NHWC"  # by timm's word

    def __init__(self, grid: Grid, *, patch: int = 4, window: int = 7, head_width: int = 16, drop_path: float = 0.0,
                 masked: bool = True, cut_from: Size | None = None) -> None:
        super().__init__()
        refuse_uneven(grid.widths, head_width, "the width of a head")
        refuse_cut_grid(grid, cut_from)
        whole, (width, (depth,)) = cut_from or grid.full, grid.full
        self.grid, self.num_features, self.drop_path, self.cut_from = grid, 8 * width, drop_path, cut_from
        self.patch, self.window, self.head_width = patch, window, head_width
        self.patch_embed = PatchEmbed(patch, whole.width)
        self.mask_token = nn.Parameter(torch.zeros(1, whole.width)) if masked else None
        third, others = chosen_blocks(depth, whole.depth[0]), range(_BLOCKS)
        self.layers = nn.ModuleList(
            Stage(width * 2**i, head_width, window, numbers, merging=i > 0)
            for i, numbers in enumerate((others, others, third, others))
        )
        self.norm = LayerNorm(self.num_features, EPS)
        self.feature_info: list[dict[str, Any]] = [
            {"num_chs": width * 2**i, "reduction": patch * 2**i, "module": f"layers.{i}"} for i in range(4)
        ]

    def cells(self, side: int) -> int:
        """Return twice the side of the last map."""
        side = -(-side // self.patch)
        for _ in self.layers[1:]:
            side = -(-side // 2)
        return 2 * side

    def random_depth(self, size: Size, images: int, generator: torch.Generator) -> Depth | None:
        """Draw for every image and branch on its own."""
        total = sum(self._counts())
        rates = [self.drop_path * number / (total - 1) for number in self._numbers(size)]
        return draw_depth(rates, images, "image", generator, self.norm.weight.device)

    def features(self, x: Tensor, size: Size | None = None, mask: Tensor | None = None, depth: Depth | None = None,
                 ) -> Features:
        """Return the means [b, D] of the last map behind its norm, and its places twice as fine [b, T, D]."""
        x = self._map(x, size or self.grid.full, mask, depth)
        return Features(x.mean((1, 2)), repeat(x, "b h w d -> b (h i w j) d", i=2, j=2))

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the last map [b, H, W, D] behind its norm."""
        return self._map(x, self.grid.full, None, None)

    def _map(self, x: Tensor, size: Size, mask: Tensor | None, depth: Depth | None) -> Tensor:
        side = self.cells(x.shape[2])
        x = self.patch_embed(x, size.width)
        if mask is not None:
            assert self.mask_token is not None
            hidden = repeat(mask, "b (h w) -> b (h i) (w j)", h=side, i=4, j=4)[:, : x.shape[1], : x.shape[2], None]
            x = torch.where(hidden, self.mask_token[:, : size.width].to(x.dtype), x)
        first = 0
        for stage, chosen in zip(self.layers, self._chosen(size), strict=True):
            x = stage(x, chosen, None if depth is None else depth[first : first + len(chosen)], self.run_blocks)
            first += len(chosen)
        output: Tensor = self.norm(x)
        return output

    def _counts(self) -> list[int]:
        """Return how many blocks every stage has."""
        return [len(stage.blocks) for stage in self._stages()]

    def _stages(self) -> list[Any]:
        return list(self.layers)

    def _chosen(self, size: Size) -> list[list[int]]:
        """Return which blocks of every stage a sub-network keeps."""
        return [chosen_blocks(size.depth[0] if i == 2 else count, count) for i, count in enumerate(self._counts())]

    def _numbers(self, size: Size) -> list[int]:
        """Return which of all blocks a sub-network keeps."""
        counts = self._counts()
        return [sum(counts[:i]) + number for i, chosen in enumerate(self._chosen(size)) for number in chosen]

    def layers_behind(self) -> dict[str, int]:
        """Return 0 for the last norm, 1 for the last block, one more than the first block's for what embeds.

        A merging counts as the block behind it.
        """
        counts = self._counts()

        def behind(name: str) -> int:
            if name.startswith("norm."):
                return 0
            if not name.startswith("layers."):
                return sum(counts) + 1
            _, stage, part, number, *_ = name.split(".")
            return sum(counts[int(stage) :]) - (int(number) if part == "blocks" else 0)

        return {name: behind(name) for name, _ in self.named_parameters()}

    def extract(self, size: Size) -> ElasticSwin:
        """Return the plain network of a size; its patch embedding stays as wide, since its norm sees all channels."""
        self.grid.refuse_untrained(size)
        width, full = size.width, self.grid.full.width
        with torch.device("meta"):  # all of it is replaced
            plain = ElasticSwin(
                Grid((width,), (size.depth,)), patch=self.patch, window=self.window, head_width=self.head_width,
                masked=False, cut_from=self.cut_from or (None if size == self.grid.full else self.grid.full),
            )
        plain.patch_embed = copy.deepcopy(self.patch_embed).requires_grad_()
        for stage, target, chosen in zip(self._stages(), plain._stages(), self._chosen(size), strict=True):
            narrow(stage.downsample, target.downsample, width, full)
            for number, block in zip(chosen, target.blocks, strict=True):
                narrow(stage.blocks[number], block, width, full)
                source, heads = stage.blocks[number].attn, block.attn.relative_position_bias_table.shape[1]
                block.attn.relative_position_bias_table = copied(source.relative_position_bias_table[:, :heads])
                block.attn.relative_position_index = source.relative_position_index.clone()
        plain.norm = self.norm.narrowed(plain.num_features)  # type: ignore[assignment]
        return plain.eval()


def relative_positions(window: int) -> Tensor:
    """Return the row of the table for every pair of places of a window, int64 [T, T]: by row and column difference."""
    rows, columns = torch.arange(window * window) // window, torch.arange(window * window) % window
    down, across = rows[:, None] - rows + window - 1, columns[:, None] - columns + window - 1
    return down * (2 * window - 1) + across


def _apart(height: int, width: int, window: int, shift: int, device: torch.device) -> Tensor:
    """Return which pairs of a shifted window were not neighbours before the shift: bool [windows, T, T]."""
    regions = []
    for side in (height, width):
        place = torch.arange(side, device=device)
        regions.append((place >= side - window).int() + (place >= side - shift).int())
    region = rearrange(3 * regions[0][:, None] + regions[1], "(i h) (j w) -> (i j) (h w)", h=window, w=window)
    return region[:, :, None] != region[:, None]
