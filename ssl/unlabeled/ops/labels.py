"""Losses on labels of which some are unknown (-1).

They divide by a count that the caller gives: that of a part of the update on average (`counts_per_part`). Then the mean
over micro-batches and processes is that of the whole batch, however the known labels are spread over them.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from unlabeled.ops.precision import at_least_float32


def known(label: Tensor) -> Tensor:
    """Return how many of the labels int64 [b] are known, 0-d."""
    return (label >= 0).sum()


def known_cross_entropy(logits: Tensor, label: Tensor, count: Tensor) -> Tensor:
    """Return the cross-entropy of logits [b, C] summed over the known labels, int64 [b], by their `count`, 0-d.

    Computed in at least float32. Zero, with a gradient of zero, where no label is known.
    """
    logits = at_least_float32(logits)
    total = F.cross_entropy(logits, label, ignore_index=-1, reduction="sum")
    return total / count.to(total.dtype)


def one_hot(label: Tensor, classes: int, smoothing: float = 0.0) -> Tensor:
    """Return targets float32 [b, C] of label int64 [b], smoothed evenly over the classes; zero where it is unknown."""
    known = (label >= 0)[:, None]
    hot = F.one_hot(label.clamp_min(0), classes).float()
    return (hot * (1 - smoothing) + smoothing / classes) * known


def likeliest(target: Tensor) -> Tensor:
    """Return the class with the largest part of targets [b, C], int64 [b]; -1 for rows of zeros."""
    return target.argmax(1).masked_fill(target.sum(1) == 0, -1)


def known_soft_cross_entropy(logits: Tensor, target: Tensor, mass: Tensor) -> Tensor:
    """Return the cross-entropy of logits [b, C] with targets [b, C], summed, by the targets' `mass`, 0-d.

    As `known_cross_entropy`, for targets that are smoothed or mixed; rows of zeros do not count.
    """
    logits = at_least_float32(logits)
    return -(target.to(logits.dtype) * logits.log_softmax(1)).sum() / mass.to(logits.dtype)


def known_accuracy(logits: Tensor, label: Tensor, count: Tensor) -> Tensor:
    """Return how many labels [b] the largest logit [b, C] hits, by the `count` of known ones, 0-d, without gradient."""
    return (logits.detach().argmax(1) == label).sum() / count
