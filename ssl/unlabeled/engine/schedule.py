"""Learning rates as pure functions of the update."""

from __future__ import annotations

import math
from collections.abc import Sequence


def warmup_cosine(update: int, peak: float, warmup: int, horizon: int) -> float:
    """Rise linearly from 0 to `peak` over `warmup` updates, then fall by a half cosine to 0 at `horizon`."""
    if update < warmup:
        return peak * update / warmup
    progress = (update - warmup) / max(1, horizon - warmup)
    return peak * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def warmup_cosine_1pct(update: int, peak: float, warmup: int, horizon: int) -> float:
    """Rise linearly from 1 % of `peak` over `warmup` updates, then fall by a half cosine to 1e-6 at `horizon`.

    Source: the published code of arXiv 2011.10043.
    """
    if update < warmup:
        return peak * (0.01 + 0.99 * update / warmup)
    return 1e-6 + warmup_cosine(update, peak - 1e-6, warmup, horizon)


def warmup_constant(update: int, peak: float, warmup: int, horizon: int) -> float:
    """Rise linearly from 0 to `peak` over `warmup` updates and stay there."""
    return peak * update / warmup if update < warmup else peak


def warmup_cosine_7_16(update: int, peak: float, warmup: int, horizon: int) -> float:
    """Rise linearly from 0 to `peak`, then fall by 7/16 of a half cosine, to 0.195 peak (arXiv 2001.07685)."""
    if update < warmup:
        return peak * update / warmup
    return peak * math.cos(7 * math.pi / 16 * min(1.0, (update - warmup) / max(1, horizon - warmup)))


def cosine_by_epoch(update: int, peak: float, warmup: int, horizon: int, per_epoch: int) -> float:
    """Rise linearly, by the first update too, to `peak` at the last of `warmup`; then as `warmup_cosine`, but only when
    an epoch of `per_epoch` updates begins (arXiv 2308.06692, its code).
    """
    if update < warmup:
        return peak * (update + 1) / warmup
    return warmup_cosine(max(warmup, update // per_epoch * per_epoch), peak, warmup, horizon)


def table_rate(epoch: float, table: Sequence[tuple[float, float]]) -> float:
    """Return the rate of the first entry (end, rate) that ends after `epoch`; after the last end its rate stays."""
    return next((rate for end, rate in table if end > epoch), table[-1][1])


SCHEDULES = {
    "cosine": warmup_cosine,
    "constant": warmup_constant,
    "cosine_1pct": warmup_cosine_1pct,
    "cosine_7_16": warmup_cosine_7_16,
}
