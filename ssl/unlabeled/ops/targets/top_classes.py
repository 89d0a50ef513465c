"""What is kept of a teacher's probabilities, the largest of them, and the targets that are made of it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from unlabeled.ops.precision import at_least_float32


def mean_probability(logits: Sequence[Tensor]) -> Tensor:
    """Return the mean of the softmaxes of several teachers' logits [n, C]: probabilities [n, C]."""
    total = sum((at_least_float32(one).softmax(1) for one in logits), start=torch.zeros(()))
    return total / len(logits)


def sparsify(prob: Tensor, topk: int) -> tuple[Tensor, Tensor]:
    """Return the `topk` largest of probabilities [n, C], descending, and their classes: [n, K] and int64 [n, K]."""
    values, classes = prob.topk(topk, 1)
    return values, classes


def densify(prob: Tensor, classes: Tensor, count: int) -> Tensor:
    """Spread what is stored of probabilities, [n, K] of the classes [n, K], over all `count` of them: [n, C].

    The others share the rest evenly. Stored with 16 bits a sum may exceed 1, or miss it where all classes are stored:
    then it is divided by. (The published code takes a softmax of the stored values there, which none of them means.)
    """
    prob = at_least_float32(prob)
    total, others = prob.sum(1, keepdim=True), count - prob.shape[1]
    rest = (1 - total).clamp_min(0) / max(others, 1)
    dense = rest.repeat(1, count).scatter(1, classes.long(), prob)
    return dense / (total.clamp_min(1) if others else total)


def kl_divergence(logits: Tensor, target: Tensor, count: Tensor) -> Tensor:
    """Return KL(target || softmax(logits)), both [n, C], summed over the rows, by their `count`, 0-d.

    Rows of zeros do not count. Computed in at least float32.
    """
    logits = at_least_float32(logits)
    target = target.to(logits.dtype)
    divergence = torch.special.xlogy(target, target) - target * logits.log_softmax(1)
    return divergence.sum() / count.to(logits.dtype)
