"""The elastic vision transformer of POA: fewer heads, and fewer blocks (arXiv 2408.01031, arXiv 2010.11929).

Modules are named as timm's, which loads what `extract` gives.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from unlabeled.backbones.elastic.layers import (
    LayerNorm,
    LayerScale,
    Linear,
    copied,
    multiples_beside,
    refuse_uneven,
)
from unlabeled.backbones.elastic.network import ElasticNetwork, Features, attention, narrow
from unlabeled.backbones.elastic.random_depth import Depth, Kept, add_branch, draw_depth
from unlabeled.backbones.elastic.sizes import Grid, Size, chosen_blocks
from unlabeled.errors import UserError
from unlabeled.ops.precision import full_precision

EPS = 1e-6
_STD = 0.02  # of the weights of linear layers and of the position embedding


class Attention(nn.Module):
    """Self-attention [b, T, D] -> [b, T, D] with as many heads as D has head widths."""

    def __init__(self, width: int, head_width: int) -> None:
        super().__init__()
        self.head_width = head_width
        self.qkv = Linear(width, 3 * width, groups_out=3)
        self.proj = Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return the attention's output."""
        q, k, v = rearrange(self.qkv(x), "b t (three h d) -> three b h t d", three=3, d=self.head_width)
        output: Tensor = self.proj(rearrange(attention(q, k, v), "b h t d -> b t (h d)"))
        return output


class MLP(nn.Module):
    """Two layers with GELU between them, four times as wide inside: [..., D] -> [..., D]."""

    def __init__(self, width: int, ratio: int = 4) -> None:
        super().__init__()
        self.fc1 = Linear(width, ratio * width)
        self.fc2 = Linear(ratio * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return the second layer's output."""
        output: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return output


class Block(nn.Module):
    """A block with its norms first and factors per channel behind its branches: [b, T, D] -> [b, T, D]."""

    def __init__(self, width: int, head_width: int, layer_scale: float) -> None:
        super().__init__()
        self.norm1 = LayerNorm(width, EPS)
        self.attn = Attention(width, head_width)
        self.ls1 = LayerScale(width, layer_scale)
        self.norm2 = LayerNorm(width, EPS)
        self.mlp = MLP(width)
        self.ls2 = LayerScale(width, layer_scale)

    def forward(self, x: Tensor, kept_attn: Kept | None = None, kept_mlp: Kept | None = None) -> Tensor:
        """Return x after both branches."""
        x = add_branch(x, lambda part: self.ls1(self.attn(self.norm1(part))), kept_attn)
        return add_branch(x, lambda part: self.ls2(self.mlp(self.norm2(part))), kept_mlp)


class PatchEmbed(nn.Module):
    """Patches as vectors: [b, 3, S, S] -> the first channels [b, T, width]."""

    def __init__(self, patch: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch, patch)

    def forward(self, x: Tensor, width: int) -> Tensor:
        """Return the first `width` channels."""
        bias = self.proj.bias
        assert bias is not None
        return rearrange(F.conv2d(x, self.proj.weight[:width], bias[:width], self.proj.stride), "b d h w -> b (h w) d")


class ElasticViT(ElasticNetwork):
    """A vision transformer whose sub-networks have fewer heads and blocks; the vector is the class token's.

    img_size: side of the images whose grid the position embedding has, in pixels; it is resized for others. drop_path:
    share of the images that skip a residual branch. layer_scale: where the factors behind the branches begin. Raises
    UserError for a grid that does not fit.
    """

    def __init__(self, grid: Grid, *, patch: int = 16, head_width: int = 64, img_size: int = 224,
                 layer_scale: float = 1e-5, drop_path: float = 0.0, masked: bool = True) -> None:
        super().__init__()
        if img_size % patch:
            raise UserError(f"backbone.options.img_size {img_size} is no multiple of patch {patch}, so that patches "
                            "would not cover the image")
        refuse_uneven(grid.widths, head_width, "the width of a head")
        width, (depth,) = grid.full
        self.grid, self.num_features, self.drop_path = grid, width, drop_path
        self.patch, self.head_width, self.img_size, self.layer_scale = patch, head_width, img_size, layer_scale
        self.patch_embed = PatchEmbed(patch, width)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + (img_size // patch) ** 2, width))
        self.mask_token = nn.Parameter(torch.zeros(1, width)) if masked else None
        self.blocks = nn.ModuleList(Block(width, head_width, layer_scale) for _ in range(depth))
        self.norm = LayerNorm(width, EPS)
        self._init()

    def _init(self) -> None:
        nn.init.normal_(self.cls_token, std=1e-6)
        nn.init.trunc_normal_(self.pos_embed, std=_STD)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=_STD)
                nn.init.zeros_(module.bias)

    def cells(self, side: int) -> int:
        """Return the side of the grid of patches."""
        return side // self.patch

    def random_depth(self, size: Size, images: int, generator: torch.Generator) -> Depth | None:
        """Draw a subset of the images for every branch."""
        device = self.pos_embed.device
        return draw_depth([self.drop_path] * size.depth[0], images, "subset", generator, device)

    def features(self, x: Tensor, size: Size | None = None, mask: Tensor | None = None, depth: Depth | None = None,
                 ) -> Features:
        """Return class tokens [b, D] and patch tokens [b, T, D], both after the last norm."""
        x = self._tokens(x, size or self.grid.full, mask, depth)
        return Features(x[:, 0], x[:, 1:])

    def forward_features(self, x: Tensor) -> Tensor:
        """Return all tokens [b, 1 + T, D], the class token first."""
        return self._tokens(x, self.grid.full, None, None)

    def _tokens(self, x: Tensor, size: Size, mask: Tensor | None, depth: Depth | None) -> Tensor:
        width, (count,) = size
        uneven = next((side for side in x.shape[2:] if side % self.patch), None)
        if uneven is not None:  # a convolution would leave out the rest
            raise UserError(f"{uneven} is no multiple of {self.patch}, the side of a patch; "
                            f"{multiples_beside(uneven, self.patch)}")
        cells = (x.shape[2] // self.patch, x.shape[3] // self.patch)
        x = self.patch_embed(x, width)
        if mask is not None:
            assert self.mask_token is not None
            x = torch.where(mask[..., None], self.mask_token[:, :width].to(x.dtype), x)
        x = torch.cat([self.cls_token[..., :width].expand(len(x), -1, -1), x], 1)
        x = x + self._positions(cells)[..., :width]
        chosen = chosen_blocks(count, len(self.blocks))
        return self.norm(self.run_blocks(x, (self.blocks[i] for i in chosen), depth))

    def _positions(self, cells: tuple[int, int]) -> Tensor:
        """Return the position embedding [1, 1 + T, D] for a grid of patches (arXiv 2304.07193, its code)."""
        side = self.cells(self.img_size)
        if cells == (side, side):
            return self.pos_embed
        first, grid = self.pos_embed[:, :1], self.pos_embed[:, 1:]
        scale = ((cells[0] + 0.1) / side, (cells[1] + 0.1) / side)
        # as a product, since the backward pass of the interpolation itself is not deterministic on a GPU
        single = torch.eye(side**2, dtype=grid.dtype, device=grid.device).view(1, -1, side, side)
        weight = F.interpolate(single, scale_factor=scale, mode="bicubic")
        with full_precision(grid.device):
            return torch.cat([first, rearrange(weight, "o places h w -> o (h w) places") @ grid], 1)

    def layers_behind(self) -> dict[str, int]:
        """Return 0 for the last norm, 1 for the last block, and one more than the first block's for what embeds."""
        depth = len(self.blocks)

        def behind(name: str) -> int:
            if name.startswith("norm."):
                return 0
            return depth - int(name.split(".")[1]) if name.startswith("blocks.") else depth + 1

        return {name: behind(name) for name, _ in self.named_parameters()}

    def extract(self, size: Size) -> ElasticViT:
        """Return the plain network of a size; its weights load into timm's VisionTransformer."""
        self.grid.refuse_untrained(size)
        width, (depth,) = size
        with torch.device("meta"):  # all of it is replaced
            plain = ElasticViT(
                Grid((width,), ((depth,),)), patch=self.patch, head_width=self.head_width, img_size=self.img_size,
                layer_scale=self.layer_scale, masked=False,
            )
        for i, number in enumerate(chosen_blocks(depth, len(self.blocks))):
            narrow(self.blocks[number], plain.blocks[i], width, self.num_features)
        plain.norm = self.norm.narrowed(width)  # type: ignore[assignment]
        bias = self.patch_embed.proj.bias
        assert bias is not None
        plain.patch_embed.proj.weight = copied(self.patch_embed.proj.weight[:width])
        plain.patch_embed.proj.bias = copied(bias[:width])
        plain.cls_token = copied(self.cls_token[..., :width])
        plain.pos_embed = copied(self.pos_embed[..., :width])
        return plain.eval()
