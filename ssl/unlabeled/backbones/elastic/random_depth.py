"""Random depth of elastic networks (arXiv 1603.09382): residual branches that only some images of a call take.

What is drawn is drawn before the first block runs, from a generator of the caller's: so activation checkpointing meets
it again, and blocks of the global batch have draws of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from unlabeled.ops.machine.memory import to_device


class Kept(NamedTuple):
    """Which images take a residual branch, int64 [k], and the factor on what it gives them."""

    rows: Tensor
    factor: float


# what both branches of every block do
Depth = Sequence[tuple[Kept, Kept]]


def draw_depth(rates: Sequence[float], images: int, law: Literal["subset", "image"], generator: torch.Generator,
               device: torch.device) -> Depth | None:
    """Draw for the two branches of blocks with these drop rates; None if nothing is dropped.

    subset: a random subset of max(floor((1 - rate) images), 1) images, factor images / subset (arXiv 2304.07193, its
    code). image: each image on its own, factor 1 / (1 - rate).
    """
    if not any(rates):
        return None
    draw = _subset if law == "subset" else _each
    return [(draw(rate, images, generator, device), draw(rate, images, generator, device)) for rate in rates]


def add_branch(x: Tensor, branch: Callable[[Tensor], Tensor], kept: Kept | None) -> Tensor:
    """Return x [b, ...] plus what `branch` gives for the images that take it."""
    if kept is None:
        return x + branch(x)
    return x.index_add(0, kept.rows, branch(x[kept.rows]).to(x.dtype), alpha=kept.factor)


def _subset(rate: float, images: int, generator: torch.Generator, device: torch.device) -> Kept:
    count = max(int(images * (1 - rate)), 1)
    rows = torch.randperm(images, generator=generator)[:count]
    return Kept(to_device(rows, device), images / count)


def _each(rate: float, images: int, generator: torch.Generator, device: torch.device) -> Kept:
    rows = torch.nonzero(torch.rand(images, generator=generator) >= rate).flatten()
    return Kept(to_device(rows, device), 1 / (1 - rate))
