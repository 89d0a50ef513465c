"""Boxes by name: columns of arrays and of tensors, and boxes put together from places, extents and sizes."""

import numpy as np
import pytest
import torch

from unlabeled.ops.boxes import CropBox, Edges, crop_boxes, crop_columns, edge_columns


@pytest.mark.parametrize("kind", [np.array, torch.tensor])
def test_columns_are_found_by_name(kind) -> None:
    box = crop_columns(kind([[1.0, 2, 3, 4, 50, 60, 1], [7.0, 8, 9, 10, 110, 120, 0]]))
    assert {name: column.tolist() for name, column in box._asdict().items()} == {
        "top": [1, 7], "left": [2, 8], "height": [3, 9], "width": [4, 10],
        "image_height": [50, 110], "image_width": [60, 120], "flipped": [1, 0]}  # fmt: skip
    edge = edge_columns(kind([[1.0, 2, 3, 4]]))
    assert (edge.left, edge.top, edge.right, edge.bottom) == (1, 2, 3, 4)


def test_a_box_is_put_together_in_the_order_of_its_columns() -> None:
    boxes = crop_boxes(np.array([[1.0, 2]]), np.array([[3.0, 4]]), np.array([[50.0, 60]]), np.array([True]))
    assert CropBox(*boxes[0]) == CropBox(top=1, left=2, height=3, width=4, image_height=50, image_width=60, flipped=1)
    assert Edges(left=1, top=2, right=3, bottom=4) == (1, 2, 3, 4)


def test_columns_of_a_box_per_cell_keep_their_dimension() -> None:
    boxes = torch.arange(21.0).view(3, 1, 7)
    assert crop_columns(boxes).left.shape == (3, 1) and crop_columns(boxes).left.flatten().tolist() == [1, 8, 15]
