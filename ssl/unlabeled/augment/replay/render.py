"""From stored crops and parameters to the view: one path for the teacher, which saw it first, and for every replay.

RandAugment in whole grey levels, erasing, mixup, then CutMix; a flip is in the crop. Nothing is drawn here. The
published code mixes what is normalised, which is the same: mixing is affine, with weights that sum to 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from unlabeled.augment.operations import Interpolation, Operations, apply
from unlabeled.augment.photometric import to_float
from unlabeled.augment.replay.entries import SKIPPED
from unlabeled.augment.replay.erasing import erase, inside
from unlabeled.ops.machine.memory import to_device


def replay(crops: Sequence[Tensor], rows: Mapping[str, Tensor]) -> Tensor:
    """Return the views of n entries, float32 [n, 3, S, S] in [0, 1].

    crops: uint8 [n, 3, S, S], and a second one where entries may be mixed. rows: their fields (see `entries`), each
    [n, ...], on the CPU, where it is read which samples have equal operations.
    """
    def there(name: str) -> Tensor:
        return to_device(rows[name], crops[0].device)

    view = render(crops[0], stored_operations(rows), there("erase"))
    if len(crops) == 1:
        return view
    other = render(crops[1], stored_operations(rows, "2"), there("erase2"))
    return cutmix(mixup(view, other, there("mixup")), other, there("cut"))


def stored_operations(rows: Mapping[str, Tensor], suffix: str = "") -> Operations:
    """Return the operations of stored rows."""
    op = rows[f"op{suffix}"].long()
    return Operations(torch.where(op == SKIPPED, 0, op), rows[f"magnitude{suffix}"].double())


def render(crops: Tensor, drawn: Operations, boxes: Tensor, interpolation: Interpolation = "nearest") -> Tensor:
    """Return crops uint8 [n, 3, S, S] after their operations, with boxes [n, 4] blackened: float32 in [0, 1]."""
    return erase(to_float(apply(crops, drawn, interpolation)), boxes)


def mixup(x: Tensor, other: Tensor, share: Tensor) -> Tensor:
    """Return share x + (1 - share) other, images [n, 3, H, W] and shares [n]; x itself where the share is 1."""
    share = share.to(x.dtype).view(-1, 1, 1, 1)
    return share * x + (1 - share) * other


def cutmix(x: Tensor, other: Tensor, boxes: Tensor) -> Tensor:
    """Return x [n, 3, H, W] with `other` inside of boxes (top, left, bottom, right) [n, 4]."""
    edges = [column.view(-1, 1, 1, 1) for column in boxes.long().unbind(1)]
    return torch.where(inside(x, *edges), other, x)
