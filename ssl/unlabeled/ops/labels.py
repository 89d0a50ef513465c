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


def known_accuracy(logits: Tensor, label: Tensor) -> Tensor:
    """Return the share of known labels [b] that the largest logit [b, C] hits, 0-d, without gradient."""
    return (logits.detach().argmax(1) == label).sum() / known_share(label)
