"""The views of POA as its networks take them, and the parts of them that belong to a block of images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from unlabeled.methods.base import Block


class Views(NamedTuple):
    """Global crops [2 b, 3, S, S], crop after crop; local ones [V b, 3, S, S]; hidden patches, bool [2 b, T].

    hides: whether patches are hidden at all at this time of the run.
    """

    crops: Tensor
    local: Tensor
    masks: Tensor
    hides: bool

    def of_block(self, images: int, block: Block) -> Views:
        """Return the views of a block of the `images` images."""
        crops, local, masks = (rows_of_block(x, images, block) for x in self[:3])
        return Views(crops, local, masks, self.hides)


class HiddenPatches(NamedTuple):
    """Hidden patches [n] of global crops, in the order of `tokens[masks]`: which image each is of, and its weight.

    weight: 1 / the number of hidden patches of the crop.
    """

    image: Tensor
    weight: Tensor


def views_of(views: Mapping[str, Tensor], cells: int) -> Views:
    """Collect view0, view1, ... [b, 3, S, S] and mask0, mask1 [b, cells * cells]; without masks nothing is hidden."""
    first, second, *local = (view for name, view in views.items() if name.startswith("view"))
    crops = torch.cat([first, second])
    hides = "mask0" in views
    masks = torch.cat([views["mask0"], views["mask1"]]) if hides else None
    if masks is None:
        masks = torch.zeros(len(crops), cells * cells, dtype=torch.bool, device=crops.device)
    return Views(crops, torch.cat(local) if local else crops[:0], masks, hides)


def hidden_patches(masks: Tensor) -> HiddenPatches:
    """Return the hidden patches of masks, bool [2 b, T]."""
    crop = masks.nonzero()[:, 0]
    return HiddenPatches(crop % (len(masks) // 2), 1 / masks.sum(1)[crop])


def rows_of_block(x: Tensor, images: int, block: Block) -> Tensor:
    """Return the rows of a block of x [crops * images, ...], crop after crop."""
    return x.unflatten(0, (len(x) // images, images))[:, block.rows].flatten(0, 1)
