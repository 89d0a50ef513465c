"""Sinkhorn-Knopp: logits as targets whose mass is spread evenly over the classes (arXiv 2006.09882, 2304.07193)."""

from __future__ import annotations

import torch
from torch import Tensor

from unlabeled.ops.distributed import max_over_ranks, sum_over_ranks
from unlabeled.ops.precision import at_least_float32


@torch.no_grad()
def sinkhorn(logits: Tensor, temperature: float, iterations: int = 3) -> Tensor:
    """Return targets [n, K], at least float32, whose rows sum to 1, of the logits of all processes together.

    logits: [n, K] of this process; processes may have different n, also none. Every iteration gives each class the same
    mass, then each row. A constant that is added to all logits changes nothing.
    """
    q = at_least_float32(logits) / temperature  # the one copy of what may be gigabytes
    tiny = torch.finfo(q.dtype).tiny
    largest = q.amax() if len(q) else q.new_full((), -torch.inf)
    q.sub_(max_over_ranks(largest)).exp_()
    # rows and total mass in one message
    total = sum_over_ranks(torch.stack([q.new_full((), len(q)), q.sum()]))
    rows = total[0].clamp_min(1)
    q /= total[1].clamp_min(tiny)
    for _ in range(iterations):
        # a class or row that has underflowed stays empty
        q /= sum_over_ranks(q.sum(0)).clamp_min_(tiny) * logits.shape[1]
        q /= q.sum(1, keepdim=True).clamp_min_(tiny) * rows
    return q.mul_(rows)
