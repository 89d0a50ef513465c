"""Exponential moving average of a network."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import nn


def rising_momentum(start: float, update: int, horizon: int) -> float:
    """Return the momentum of `update`, which rises by a half cosine from `start` to 1 at `horizon`."""
    return 1 - (1 - start) * (math.cos(math.pi * min(1.0, update / horizon)) + 1) / 2


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
