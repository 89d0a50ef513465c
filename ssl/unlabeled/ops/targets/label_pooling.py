"""LabelPooling: from the label map of an image and the box of a crop to what is in the crop.

arXiv 2101.05022 section 3.3. A map is, of every cell of the image, the k largest logits and their classes: `logit` and
`index` [k, H, W]. The published code scatters the stored logits into a dense map [C, H, W], whose other entries are 0,
and pools it by RoIAlign with one output cell. That is linear and separable, so here every stored logit is added to its
class with the weight of its row times that of its column: equal to 1e-6, without the dense map.
"""

from __future__ import annotations

import torch
from torch import Tensor

from unlabeled.ops.boxes import Edges, crop_columns, edge_columns
from unlabeled.ops.precision import at_least_float32


def edges(boxes: Tensor) -> Tensor:
    """Return left, top, right and bottom [b, 4] of crops with boxes [b, 7], as shares of the image.

    A flip leaves them as they are: the region is the same, and so is what is pooled over it.
    """
    box = crop_columns(boxes)
    left, right = box.left / box.image_width, (box.left + box.width) / box.image_width
    top, bottom = box.top / box.image_height, (box.top + box.height) / box.image_height
    return torch.stack(Edges(left, top, right, bottom), 1)


def cell_weights(start: Tensor, end: Tensor, cells: int) -> Tensor:
    """Return how much each of `cells` along one axis counts for intervals [start, end] [b], shares of it: [b, cells].

    Intervals are no longer than the axis.
    RoIAlign's rule with aligned=False and sampling_ratio=-1, whose boxes the published code moves by half a cell: the
    interval, at least one cell long, is sampled at ceil(length) points, each between its two nearest cells. The weights
    sum to 1 for an interval inside the image; points more than half a cell outside of it count as 0.
    """
    first = start * cells - 0.5
    length = (end * cells - 0.5 - first).clamp_min(1.0)
    points = length.ceil()
    number = torch.arange(int(cells) + 1, device=start.device)  # one more than whole boxes need, for what is rounded up
    place = first[:, None] + (number + 0.5) * (length / points)[:, None]
    counts = (number < points[:, None]) & (place >= -1) & (place <= cells)
    place = place.clamp(0, cells - 1)
    near = 1 - (place[:, :, None] - torch.arange(cells, device=start.device)).abs()
    return (near.clamp_min_(0) * counts[:, :, None]).sum(1) / points[:, None]


def pool(logit: Tensor, index: Tensor, edges: Tensor, classes: int) -> Tensor:
    """Return the logits of crops, at least float32 [b, classes]; what no cell holds enters as 0.

    logit, index: the k largest logits of every cell of the image's map and their classes, [b, k, H, W]. edges: [b, 4].
    """
    box = edge_columns(at_least_float32(edges))
    down = cell_weights(box.top, box.bottom, logit.shape[2])
    across = cell_weights(box.left, box.right, logit.shape[3])
    share = (down[:, :, None] * across[:, None, :])[:, None] * at_least_float32(logit)
    pooled = share.new_zeros(len(logit), classes)
    return pooled.scatter_add_(1, index.long().flatten(1), share.flatten(1))


def whole(logit: Tensor) -> Tensor:
    """Return the edges [b, 4] of whole images, of as many as `logit` [b, ...]: pooled is then the mean of the cells."""
    edges = torch.zeros(len(logit), 4, device=logit.device)
    edges[:, 2:] = 1
    return edges
