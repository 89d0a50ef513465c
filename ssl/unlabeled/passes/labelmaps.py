from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from unlabeled.ops.precision import at_least_float32


def cell_logits(features: Tensor, linear: nn.Linear) -> Tensor:
    """Return what a classifier says of every cell [b, classes, H, W] of a map of features [b, D, H, W].

    Its linear layer stands where global pooling was: the mean over the cells is what it says of the image.
    """
    return F.linear(features.movedim(1, -1), linear.weight, linear.bias).movedim(-1, 1)


def strongest(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the k largest logits of every cell of [b, classes, H, W], descending, and their classes: [b, k, H, W]."""
    value, index = logits.topk(k, dim=1)
    return value, index
