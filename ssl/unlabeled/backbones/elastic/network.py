"""What all elastic networks have in common: one set of weights, features of every size, and extraction."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from unlabeled.backbones.elastic.random_depth import Depth
from unlabeled.backbones.elastic.sizes import Grid, Size, size_of
from unlabeled.errors import UserError


class Features(NamedTuple):
    """What a network gives of images: a vector each, [b, D], and tokens of the places of a grid, [b, T, D]."""

    vector: Tensor
    tokens: Tensor


class ElasticNetwork(nn.Module):
    """A network that contains smaller ones: slices in width of chosen blocks (arXiv 2408.01031).

    grid: its sizes; of one size it is a plain network. num_features: width of the vectors at full size. masked: whether
    it has the token that stands for masked places.
    """

    grid: Grid
    num_features: int
    grad_checkpointing: bool = False

    def features(self, x: Tensor, size: Size | None = None, mask: Tensor | None = None, depth: Depth | None = None,
                 ) -> Features:
        """Return what the sub-network of a size, by default the whole, gives of images [b, 3, S, S].

        mask: bool [b, T], the places that it shall not see. depth: random depth, drawn by `random_depth`.
        """
        raise NotImplementedError

    def cells(self, side: int) -> int:
        """Return the side of the grid of tokens of images of `side` pixels: T is its square."""
        raise NotImplementedError

    def random_depth(self, size: Size, images: int, generator: torch.Generator) -> Depth | None:
        """Draw which images of a call skip which branches of a size; None if none does."""
        return None

    def layers_behind(self) -> dict[str, int]:
        """Return, by parameter name, how many layers lie between it and the output: what learning rates decay by."""
        raise NotImplementedError

    def extract(self, size: Size) -> ElasticNetwork:
        """Return the plain network that computes what this one does at a size, with weights of its own.

        Raises UserError for a size that is not of the grid.
        """
        raise NotImplementedError

    def part(self, size: Size | str) -> ElasticNetwork:
        """Return what `extract` gives, or a copy of a network of one size, whose layers may be plain already.

        size: as a text, WIDTHxDEPTH. Raises UserError for a size that is not of the grid, and for another text.
        """
        wanted = size_of(size) if isinstance(size, str) else size
        if wanted is None:
            raise UserError(f"a size is WIDTHxDEPTH, such as {self.grid.full}, given '{size}'")
        return copy.deepcopy(self).eval() if self.grid.sizes == [wanted] else self.extract(wanted)

    def forward(self, x: Tensor) -> Tensor:
        """Return vectors [b, num_features] of images [b, 3, S, S] at full size."""
        return self.features(x).vector

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the activations of every block in the backward pass, or no longer."""
        self.grad_checkpointing = enable

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Raise UserError: every width would be compiled on its own."""
        raise UserError("train.compile: an elastic network has a graph of its own for every size; leave it false")

    def run_blocks(self, x: Tensor, blocks: Iterable[nn.Module], depth: Depth | None) -> Tensor:
        """Return x after the blocks, each with its part of the random depth."""
        for number, block in enumerate(blocks):
            kept = (None, None) if depth is None else depth[number]
            x = self.run(block, x, *kept)
        return x

    def run(self, block: nn.Module, x: Tensor, *others: Any) -> Tensor:
        """Return what a block gives, which is computed again in the backward pass where that was asked for."""
        if self.grad_checkpointing and self.training and torch.is_grad_enabled():
            output: Tensor = checkpoint(block, x, *others, use_reentrant=False)
            return output
        output = block(x, *others)
        return output


def attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return attention of [b, heads, T, d] -> [b, heads, T, d]; bias: added to the logits, broadcast.

    Written out where that is faster (measured): on a CPU in bfloat16, where the fused one's backward pass is two to six
    times slower, and with a bias.
    """
    if q.device.type != "cpu" or (bias is None and q.dtype == torch.float32):
        return nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=bias)
    logits = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    return (logits if bias is None else logits + bias).softmax(-1).to(v.dtype) @ v


def refuse_cut_grid(grid: Grid, cut_from: Size | None) -> None:
    """Raise UserError if a network that was cut out of a whole has more than one size, or is no part of it."""
    if cut_from is None:
        return
    if len(grid.sizes) > 1:
        raise UserError(f"backbone.options.cut_from is for a network of one size, but this one has {len(grid.sizes)}; "
                        "give one width and one depth, or leave it out")
    width, depth = grid.full
    if len(depth) != len(cut_from.depth) or width > cut_from.width or any(map(int.__gt__, depth, cut_from.depth)):
        raise UserError(f"backbone.options.cut_from {cut_from} does not contain {grid.full}; give the size of the "
                        "whole network")


def narrow(source: nn.Module, target: nn.Module, width: int, full: int) -> None:
    """Give `target` the plain layers that compute what the elastic layers of `source` do, under the same names.

    width, full: of the sub-network and of the whole, whose ratio is the share of its channels that every layer meets.
    """
    for name, layer in list(source.named_modules()):
        if hasattr(layer, "narrowed"):
            target.set_submodule(name, layer.narrowed(layer.width * width // full))
