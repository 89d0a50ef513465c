"""What earlier versions wrote into recipes, in today's words, so that their runs go on."""

from __future__ import annotations

from typing import Any

# schedule -> the schedule, and what it implied of `lr`
_SCHEDULES: dict[str, tuple[str, dict[str, Any]]] = {
    "cosine_1pct": ("cosine", {"warmup_start": 0.01, "final": 1e-6}),
    "cosine_7_16": ("quarter_cosine", {"portion": 0.875}),
    "cosine_by_epoch": ("cosine", {"every": "epoch", "warmup_rule": "(k+1)/w"}),
}


def translate(value: dict[str, Any]) -> None:
    """Replace in place what a recipe or protocol says in words that are no longer in use."""
    optim = value.get("optim")
    if not isinstance(optim, dict) or not isinstance(optim.get("lr"), dict):
        return
    schedule = optim.get("schedule")
    if isinstance(schedule, str) and schedule in _SCHEDULES:
        optim["schedule"], implied = _SCHEDULES[schedule]
        optim["lr"] = implied | optim["lr"]
