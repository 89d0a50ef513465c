"""Boxes in images, arrays whose columns have names."""

from __future__ import annotations

from typing import Generic, NamedTuple, TypeVar

import numpy as np
from torch import Tensor

Values = TypeVar("Values")
Table = TypeVar("Table", np.ndarray, Tensor)


class CropBox(NamedTuple, Generic[Values]):
    """Where a crop was cut and whether it was flipped: the columns of boxes [n, 7], or their numbers in one box [7].

    All but `flipped` (1 or 0) are in pixels of the original image; a crop may begin outside of it.
    """

    top: Values
    left: Values
    height: Values
    width: Values
    image_height: Values
    image_width: Values
    flipped: Values


class Edges(NamedTuple, Generic[Values]):
    """Around an object: the columns of boxes [k, 4], or their numbers in one box [4], in pixels of the image."""

    left: Values
    top: Values
    right: Values
    bottom: Values


def crop_columns(boxes: Table) -> CropBox[Table]:
    """Return the columns [n] of crop boxes [n, 7], or [n, 1] of boxes [n, 1, 7]; views of their memory."""
    return CropBox(*(boxes[..., column] for column in range(len(CropBox._fields))))


def edge_columns(boxes: Table) -> Edges[Table]:
    """Return the columns [k] of boxes [k, 4] around objects; views of their memory."""
    return Edges(*(boxes[..., column] for column in range(len(Edges._fields))))


def crop_boxes(place: np.ndarray, extent: np.ndarray, sizes: np.ndarray, flipped: np.ndarray) -> np.ndarray:
    """Return boxes [n, 7] of crops at `place` (top, left) that are `extent` (height, width) large.

    All are [n, 2] but `flipped`, [n]; sizes: (height, width) of the images.
    """
    return np.concatenate([place, extent, sizes, flipped[:, None]], 1)
