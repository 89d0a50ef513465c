"""Where the cells of a map lie in the image that the view was cut from (arXiv 2011.10043, its published code).

A view's coordinates are its left, top, right and bottom as shares of the image's width and height, each axis by itself;
a flipped view has left and right exchanged, so that everything that follows needs to know of no flip.
"""

from __future__ import annotations

import torch
from torch import Tensor

from unlabeled.ops.boxes import crop_columns


def coordinates(boxes: Tensor) -> Tensor:
    """Return coordinates [b, 4] (x0, y0, x1, y1) of crops with boxes [b, 7] (see `ops.boxes`).

    The outermost pixels of the image are 0 and 1, and a crop ends with its last pixel. Images one pixel wide or high
    would divide by zero in the published code; their pixels are at 0.
    """
    box = crop_columns(boxes)
    across, down = (box.image_width - 1).clamp_min(1), (box.image_height - 1).clamp_min(1)
    x0, x1 = box.left / across, (box.left + box.width - 1) / across
    y0, y1 = box.top / down, (box.top + box.height - 1) / down
    flipped = box.flipped > 0
    return torch.stack([torch.where(flipped, x1, x0), y0, torch.where(flipped, x0, x1), y1], 1)


def centres(coordinates: Tensor, shape: tuple[int, int]) -> Tensor:
    """Return the centres (x, y) of the cells of maps of `shape` (H, W), row by row: [b, H W, 2]."""
    high, wide = shape
    x0, y0, x1, y1 = coordinates.unsqueeze(2).unbind(1)
    x = x0 + (torch.arange(wide, device=x0.device, dtype=x0.dtype) + 0.5) * ((x1 - x0) / wide)
    y = y0 + (torch.arange(high, device=y0.device, dtype=y0.dtype) + 0.5) * ((y1 - y0) / high)
    return torch.stack([x[:, None].expand(-1, high, -1), y[:, :, None].expand(-1, -1, wide)], 3).flatten(1, 2)


def distances(first: Tensor, second: Tensor, shape: tuple[int, int]) -> Tensor:
    """Return the distances of all cells of two views with coordinates [b, 4] and maps of `shape`: [b, H W, H W].

    The unit is the diagonal of a cell, of the view whose cells are larger. Exchanging the views transposes the result.
    """
    apart = centres(first, shape)[:, :, None] - centres(second, shape)[:, None]
    cell = torch.maximum(*(_diagonal(x, shape) for x in (first, second)))
    return apart.square().sum(3).sqrt() / cell[:, None, None]


def _diagonal(coordinates: Tensor, shape: tuple[int, int]) -> Tensor:
    """Return the diagonal of a cell of maps of `shape`, for views with coordinates [b, 4]: [b]."""
    high, wide = shape
    x0, y0, x1, y1 = coordinates.unbind(1)
    return (((x1 - x0) / wide).square() + ((y1 - y0) / high).square()).sqrt()
