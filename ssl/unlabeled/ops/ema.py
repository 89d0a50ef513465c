"""Exponential moving average of a network."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from unlabeled.config.base.curve import CurveRule


def rising(momentum: float | CurveRule) -> CurveRule:
    """Return the curve of a teacher's momentum: a plain number rises by a half cosine to 1 at the horizon."""
    return momentum if isinstance(momentum, CurveRule) else CurveRule(start=momentum, end=1.0)


@torch.no_grad()
def ema_update(
    teacher: nn.Module, student: nn.Module, decay: float, buffers: Literal["keep", "copy", "average"] = "copy"
) -> None:
    """Move every parameter of `teacher` towards `student`: t <- decay t + (1 - decay) s.

    buffers: keep the teacher's own, copy the student's, or average floating ones and copy the rest.
    """
    if parameters := tuple(teacher.parameters()):
        torch._foreach_lerp_(parameters, tuple(student.parameters()), 1 - decay)
    if buffers == "keep":
        return
    for t, s in zip(teacher.buffers(), student.buffers(), strict=True):
        if buffers == "average" and t.is_floating_point():
            t.lerp_(s, 1 - decay)
        else:
            t.copy_(s)
