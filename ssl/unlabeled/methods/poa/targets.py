"""What the teacher of POA says, as targets, and which of them belong to a block of images."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from unlabeled.methods.poa.views import Views
from unlabeled.ops.distributed import sum_over_ranks
from unlabeled.ops.precision import at_least_float32
from unlabeled.ops.targets.sinkhorn import sinkhorn


class Targets(NamedTuple):
    """Of one head, block after block: of the global crops [2 b, K], each in the place of the other crop of its image,
    and of the n hidden patches [n, K]; probabilities, or the logits that they are made of."""

    crops: Tensor
    patches: Tensor


def targets_of_blocks(targets: list[Targets], seen: Sequence[Views]) -> list[list[Targets]]:
    """Return the targets of every block by head, without a copy: those of patches may be gigabytes."""
    crops, patches = [len(views.crops) for views in seen], [len(views.hidden) for views in seen]
    heads = [map(Targets, head.crops.split(crops), head.patches.split(patches)) for head in targets]
    return [list(of_block) for of_block in zip(*heads, strict=True)]


def by_sinkhorn(logits: Targets, temperature: float) -> Targets:
    """Return targets whose mass is spread evenly over the prototypes, by all processes' crops, and by their patches."""
    return Targets(*(sinkhorn(x, temperature) for x in logits))


class Centering(nn.Module):
    """Instead of Sinkhorn: a softmax of logits less their moving mean (arXiv 2104.14294), of crops and of patches."""

    def __init__(self, prototypes: int, momentum: float) -> None:
        super().__init__()
        self.momentum = momentum
        for kind in Targets._fields:
            self.register_buffer(kind, torch.zeros(prototypes))

    def forward(self, logits: Targets, temperature: float) -> Targets:
        """Return the targets by the centres as they are."""
        pairs = zip(logits, self.buffers(), strict=True)
        return Targets(*(((at_least_float32(x) - center) / temperature).softmax(1) for x, center in pairs))

    @staticmethod
    def sums(logits: Targets) -> dict[str, Tensor]:
        """Return what the centres move by: sums of logits [1, K] and numbers of rows [1]."""
        sums: dict[str, Tensor] = {}
        for kind, x in logits._asdict().items():
            sums[kind] = at_least_float32(x).sum(0, keepdim=True)
            sums[f"{kind}_rows"] = x.new_full((1,), len(x), dtype=torch.float64)
        return sums

    def move(self, sums: Mapping[str, Tensor]) -> None:
        """Move the centres by the means over all processes."""
        for kind, center in self.named_buffers():
            total, rows = sum_over_ranks(sums[kind].sum(0)), sum_over_ranks(sums[f"{kind}_rows"].sum())
            mean = torch.where(rows > 0, total / rows.clamp_min(1), center)  # no patch may be hidden
            center.lerp_(mean.to(center.dtype), 1 - self.momentum)


def entropy(targets: list[Targets]) -> Tensor:
    """Return the mean entropy of the crops' targets over rows and heads, as a share of the largest one, 0-d."""
    crops = [head.crops for head in targets]
    return -torch.stack([torch.special.xlogy(p, p).sum(1).mean() / math.log(max(2, p.shape[1])) for p in crops]).mean()
