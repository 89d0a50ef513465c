"""Numbers that change over a run, such as learning rates, as pure functions of the update."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from unlabeled.config.base.curve import CurveRule


@dataclass(frozen=True)
class Curve:
    """A rise from `warmup_start` to the wave, then the wave: from `start` to `end` at update `horizon`, where it stays.

    horizon, warmup: in updates. shape: half a cosine wave, a quarter of one, a straight line, or `start` all along.
    portion: the share of the wave that is run by `horizon`; with less than 1 it does not reach `end`.
    warmup_rule: how far the rise has come at its update k of w. count_from: where the wave begins; of one that begins
    with the run the part under the warm-up is not seen, and the rise ends at its value there. hold: the wave moves only
    at multiples of so many updates.
    """

    start: float
    end: float
    horizon: int
    shape: Literal["cosine", "quarter_cosine", "linear", "constant"] = "cosine"
    portion: float = 1.0
    warmup: int = 0
    warmup_start: float = 0.0
    warmup_rule: Literal["k/w", "(k+1)/w", "k/(w-1)"] = "k/w"
    count_from: Literal["warmup", "start"] = "warmup"
    hold: int = 1

    def at(self, update: int) -> float:
        """Return the value at `update`."""
        if update >= self.warmup:
            return self._wave(update)
        done, steps = {
            "k/w": (update, self.warmup),
            "(k+1)/w": (update + 1, self.warmup),
            "k/(w-1)": (update, max(1, self.warmup - 1)),
        }[self.warmup_rule]
        return self.warmup_start + (self._wave(self.warmup) - self.warmup_start) * done / steps

    def _wave(self, update: int) -> float:
        origin = self.warmup if self.count_from == "warmup" else 0
        update = max(self.warmup, update // self.hold * self.hold)
        progress = min(1.0, (update - origin) / max(1, self.horizon - origin))
        match self.shape:
            case "cosine":
                left = 0.5 * (1 + math.cos(math.pi * self.portion * progress))
            case "quarter_cosine":
                left = math.cos(math.pi / 2 * self.portion * progress)
            case "linear":
                left = 1 - self.portion * progress
            case "constant":
                left = 1.0
        return self.end + (self.start - self.end) * left


def table_rate(epoch: float, table: Sequence[tuple[float, float]]) -> float:
    """Return the rate of the first entry (end, rate) that ends after `epoch`; after the last end its rate stays."""
    return next((rate for end, rate in table if end > epoch), table[-1][1])


def value_at(value: float | CurveRule, update: int, horizon: int, updates_per_epoch: int) -> float:
    """Return what a number of the recipe is at `update`: itself, or the value of its curve (horizon in updates)."""
    if not isinstance(value, CurveRule):
        return value
    if value.table is not None:
        return table_rate(update // updates_per_epoch, value.table)
    return curve_of(value, horizon, updates_per_epoch).at(update)


def curve_of(rule: CurveRule, horizon: int, updates_per_epoch: int) -> Curve:
    """Return a rule, which is no table, in updates."""
    assert rule.start is not None
    return Curve(
        start=rule.start,
        end=rule.start if rule.end is None else rule.end,
        horizon=horizon,
        shape=rule.shape,
        portion=rule.portion,
        warmup=int(rule.warmup_epochs * updates_per_epoch),
        warmup_start=rule.warmup_start or 0.0,
        warmup_rule=rule.warmup_rule,
        count_from=rule.count_from,
        hold=updates_per_epoch if rule.every == "epoch" else 1,
    )
