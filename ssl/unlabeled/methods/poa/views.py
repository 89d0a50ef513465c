"""The views of POA as its networks take them, by blocks of images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from unlabeled.methods.base import Block
from unlabeled.ops.machine.memory import to_device


class Views(NamedTuple):
    """Of b images: global crops [2 b, 3, S, S], crop after crop; local ones [V b, 3, S, S]; hidden patches.

    masks: which patches of the global crops are hidden, bool [2 b, T]. hidden: the same as places among all 2 b T of
    them, rising, int64 [n]. hides: whether patches are hidden at all at this time of the run.
    """

    crops: Tensor
    local: Tensor
    masks: Tensor
    hidden: Tensor
    hides: bool

    def weights(self) -> Tensor:
        """Return for every hidden patch 1 / the number of those in its crop, [n]."""
        return 1 / self.masks.sum(1)[self.hidden // self.masks.shape[1]]


def views_of_blocks(views: Mapping[str, Tensor], blocks: Sequence[Block], cells: int) -> list[Views]:
    """Collect view0, view1, ... [b, 3, S, S] and mask0, mask1 [b, cells * cells] by block.

    Without masks nothing is hidden. With them a GPU is waited for, once: how many patches are hidden decides the shapes
    of all that follows.
    """
    first, second, *others = (view for name, view in views.items() if name.startswith("view"))
    images, crops, hides = len(first), torch.cat([first, second]), "mask0" in views
    local = torch.cat(others) if others else crops[:0]
    if hides:
        masks = torch.cat([views["mask0"], views["mask1"]])
        known = masks.cpu()
    else:
        masks = torch.zeros(len(crops), cells**2, dtype=torch.bool, device=crops.device)
        known = torch.zeros(len(crops), 0, dtype=torch.bool)
    found = []
    for block in blocks:
        hidden = rows_of_block(known, images, block).flatten().nonzero()[:, 0]
        of_crops, of_local, masked = (rows_of_block(x, images, block) for x in (crops, local, masks))
        found.append(Views(of_crops, of_local, masked, to_device(hidden, crops.device), hides))
    return found


def rows_of_block(x: Tensor, images: int, block: Block) -> Tensor:
    """Return the rows of a block of x [crops * images, ...], crop after crop."""
    return x.unflatten(0, (len(x) // images, images))[:, block.rows].flatten(0, 1)


def hidden_tokens(tokens: Tensor, hidden: Tensor) -> Tensor:
    """Return the tokens [n, D] of [2 b, T, D] at the places of hidden patches."""
    return tokens.flatten(0, 1).index_select(0, hidden)
