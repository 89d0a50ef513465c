"""Random erasing with black (arXiv 1708.04896) on batches, drawn apart from being applied."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

NONE = 65535  # the first number of a box that is not there: no row of an image has that number

_TRIES = 10
_AREA = (0.02, 0.33)
_ASPECT = (0.3, 3.3)  # height by width
DRAWS = 2 * _TRIES + 3


def draw(uniforms: np.ndarray, p: float, size: int) -> np.ndarray:
    """Turn uniforms [n, DRAWS] into boxes (top, left, height, width) in views of size x size pixels, int64 [n, 4].

    torchvision's law: with probability `p` the first of ten candidates of area and log-uniform aspect that is smaller
    than the view, at a uniform place. Where none is, torchvision blanks the whole view; here it stays whole.
    """
    shares, turns, place, chosen = np.split(uniforms, [_TRIES, 2 * _TRIES, 2 * _TRIES + 2], 1)
    area = size**2 * (_AREA[0] + (_AREA[1] - _AREA[0]) * shares)
    low, high = np.log(_ASPECT)
    aspect = np.exp(low + (high - low) * turns)
    height, width = np.rint(np.sqrt(area * aspect)), np.rint(np.sqrt(area / aspect))
    fits = (height < size) & (width < size)
    first = fits.argmax(1)[:, None]
    extent = np.concatenate([np.take_along_axis(height, first, 1), np.take_along_axis(width, first, 1)], 1)
    boxes = np.concatenate([np.floor(place * (size - extent + 1)), extent], 1).astype(np.int64)
    erased = fits.any(1) & (chosen[:, 0] < p)
    return np.where(erased[:, None], boxes, NONE)


def erase(x: Tensor, boxes: Tensor) -> Tensor:
    """Return float images x [n, 3, H, W] with 0 inside of boxes [n, 4], whole numbers on x's device."""
    top, left, height, width = (column.view(-1, 1, 1, 1) for column in boxes.long().unbind(1))
    return x.masked_fill(inside(x, top, left, top + height, left + width), 0.0)


def inside(x: Tensor, top: Tensor, left: Tensor, bottom: Tensor, right: Tensor) -> Tensor:
    """Return which pixels of x [n, 3, H, W] lie in boxes, whose edges are [n, 1, 1, 1]: bool [n, 1, H, W]."""
    row = torch.arange(x.shape[2], device=x.device)[:, None]
    column = torch.arange(x.shape[3], device=x.device)
    return (row >= top) & (row < bottom) & (column >= left) & (column < right)
