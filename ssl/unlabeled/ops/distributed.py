"""Collectives that losses and statistics may use; without a process group they are the identity.

Every rank of a data-parallel run computes the loss of its own samples against everybody's, DDP averages the gradients;
so a gather must pass gradients back as a sum over ranks (checked against one process with the whole batch).
"""

from __future__ import annotations

import datetime
import os
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from unlabeled.errors import UserError

T = TypeVar("T")


class Share(NamedTuple):
    """Rows of a global batch: how many all processes have together, and which of them are this process's."""

    total: int
    mine: slice


def world() -> int:
    """Return the number of processes."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Return the number of this process, from 0."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def gather(x: Tensor) -> Tensor:
    """Concatenate equal-shaped x [n, ...] of all ranks in rank order, without gradient: [world * n, ...]."""
    if world() == 1:
        return x.detach()
    parts = [torch.empty_like(x) for _ in range(world())]
    dist.all_gather(parts, x.detach().contiguous())
    return torch.cat(parts)


def gather_with_grad(x: Tensor) -> Tensor:
    """As `gather`, but the gradient of every rank's copy flows back to the rank that gave the rows, as a sum."""
    return x if world() == 1 else _Gather.apply(x)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.rows = x.shape[0]
        return gather(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        grad = grad.contiguous()
        dist.all_reduce(grad)
        return grad[rank() * ctx.rows : (rank() + 1) * ctx.rows]


def sum_over_ranks(x: Tensor) -> Tensor:
    """Add x of all ranks in place and return it; for numbers and statistics, not for use inside a gradient."""
    if world() > 1:
        dist.all_reduce(x)
    return x


@torch.no_grad()
def counts_per_part(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Return the mean of every named count, 0-d, over this rank's `parts` and those of all ranks, which have as many.

    So the mean over parts and ranks of `a part's sum / count` is the sum over everything by the count of everything. A
    count of nothing at all is taken as one, by which sums of nothing stay zero. One collective, in float64.
    """
    names = list(parts[0])
    if not names:
        return {}
    total = torch.stack([torch.stack([part[name].double() for name in names]) for part in parts]).sum(0)
    total = sum_over_ranks(total)
    mean = total.masked_fill(total == 0, 1.0) / (len(parts) * world())
    return dict(zip(names, mean.unbind(), strict=True))


def max_over_ranks(x: Tensor) -> Tensor:
    """Take the elementwise maximum of x over all ranks in place and return it."""
    if world() > 1:
        dist.all_reduce(x, op=dist.ReduceOp.MAX)
    return x


def broadcast_buffers(tensors: list[Tensor]) -> None:
    """Give every rank rank 0's values of `tensors`, one message per dtype."""
    if world() == 1:
        return
    for dtype in sorted({t.dtype for t in tensors}, key=str):
        same = [t for t in tensors if t.dtype == dtype]
        flat = torch.cat([t.reshape(-1) for t in same])
        dist.broadcast(flat, 0)
        for target, value in zip(same, flat.split([t.numel() for t in same]), strict=True):
            target.copy_(value.view_as(target))


def raise_together(problem: Exception | None, device: torch.device) -> None:
    """Raise `problem` where a rank has one, and UserError, with its words, on the others; call it on all ranks at once.
    """
    failed = int(max_over_ranks(torch.tensor(problem is not None, dtype=torch.int64, device=device)))
    if not failed:
        return
    words = [str(problem) if isinstance(problem, UserError) else ""]
    if world() > 1:
        mine, words = words[0], [""] * world()
        dist.all_gather_object(words, mine)
    if problem is not None:
        raise problem
    raise UserError(next(filter(None, words), "another process could not do its part; it says why"))


def leave_group() -> None:
    """Leave the process group, if there is one: its threads end."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def meeting_place(patience: float) -> dist.Store:
    """Return the store in which the processes of a launch leave messages for one another; patience: seconds.

    Raises RuntimeError if nobody keeps it.
    """
    return dist.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False,
                         wait_for_workers=False, timeout=datetime.timedelta(seconds=patience))


def on_rank0(work: Callable[[], T]) -> T:
    """Run `work` on rank 0 and give every rank its result; its UserError is raised on every rank."""
    box: list[Any] = [None, None]
    if rank() == 0:
        try:
            box[0] = work()
        except UserError as error:
            box[1] = str(error)
    if world() > 1:
        dist.broadcast_object_list(box)
    if box[1] is not None:
        raise UserError(box[1])
    return box[0]
