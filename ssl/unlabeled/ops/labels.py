"""Losses on labels of which some are unknown (-1), exact over any number of processes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from unlabeled.ops.distributed import sum_over_ranks, world


def known_share(label: Tensor) -> Tensor:
    """Return this process's part of the known labels per process, 0-d: dividing by it gives the mean over all ranks."""
    return sum_over_ranks((label >= 0).sum().double()).clamp_min(1) / world()


def known_cross_entropy(logits: Tensor, label: Tensor) -> Tensor:
    """Return the mean cross-entropy of logits [b, C] over the global batch's known labels, int64 [b]; zero without any.

    Computed in at least float32. The mean over the processes is that of one process with the whole batch.
    """
    logits = logits if logits.dtype == torch.float64 else logits.float()
    total = F.cross_entropy(logits, label, ignore_index=-1, reduction="sum")
    return total / known_share(label).to(total.dtype)


def one_hot(label: Tensor, classes: int, smoothing: float = 0.0) -> Tensor:
    """Return targets float32 [b, C] of label int64 [b], smoothed evenly over the classes; zero where it is unknown."""
    known = (label >= 0)[:, None]
    hot = F.one_hot(label.clamp_min(0), classes).float()
    return (hot * (1 - smoothing) + smoothing / classes) * known


def likeliest(target: Tensor) -> Tensor:
    """Return the class with the largest part of targets [b, C], int64 [b]; -1 for rows of zeros."""
    return target.argmax(1).masked_fill(target.sum(1) == 0, -1)


def known_soft_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Return the cross-entropy of logits [b, C] with targets [b, C], by the mass of the global batch's targets.

    As `known_cross_entropy`, for targets that are smoothed or mixed; rows of zeros do not count.
    """
    logits = logits if logits.dtype == torch.float64 else logits.float()
    mass = sum_over_ranks(target.detach().sum().double()).clamp_min(1e-12) / world()
    return -(target.to(logits.dtype) * logits.log_softmax(1)).sum() / mass.to(logits.dtype)


def known_accuracy(logits: Tensor, label: Tensor) -> Tensor:
    """Return the share of known labels [b] that the largest logit [b, C] hits, 0-d, without gradient."""
    return (logits.detach().argmax(1) == label).sum() / known_share(label)
