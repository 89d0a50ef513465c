"""Learning rates as pure functions of the update."""

from __future__ import annotations

import math


def warmup_cosine(update: int, peak: float, warmup: int, horizon: int) -> float:
    """Rise linearly from 0 to `peak` over `warmup` updates, then fall by a half cosine to 0 at `horizon`."""
    if update < warmup:
        return peak * update / warmup
    progress = (update - warmup) / max(1, horizon - warmup)
    return peak * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def warmup_constant(update: int, peak: float, warmup: int, horizon: int) -> float:
    """Rise linearly from 0 to `peak` over `warmup` updates and stay there."""
    return peak * update / warmup if update < warmup else peak


SCHEDULES = {"cosine": warmup_cosine, "constant": warmup_constant}
