"""The numbers that follow from a recipe and the size of its data."""

from __future__ import annotations

import math
from dataclasses import dataclass

from unlabeled.config.recipe import Recipe
from unlabeled.engine.schedule import SCHEDULES, cosine_by_epoch, table_rate
from unlabeled.errors import UserError


@dataclass(frozen=True)
class Plan:
    """Lengths in updates. An epoch is the first floor(n / B) B samples of the clock stream's order.

    beside: names of the other streams and the images that an update takes from them.
    """

    batch: int
    batch_per_process: int
    updates_per_epoch: int
    total: int
    horizon: int
    warmup: int
    peak_lr: float
    schedule: str
    table: tuple[tuple[float, float], ...] | None = None
    beside: tuple[tuple[str, int], ...] = ()

    @property
    def epochs(self) -> int:
        """Epochs begun by the end of the run."""
        return math.ceil(self.total / self.updates_per_epoch)

    def lr(self, update: int) -> float:
        """Return the learning rate of `update`; a table changes it between epochs only."""
        if self.table is not None:
            return table_rate(update // self.updates_per_epoch, self.table)
        if self.schedule == "cosine_by_epoch":
            return cosine_by_epoch(update, self.peak_lr, self.warmup, self.horizon, self.updates_per_epoch)
        return SCHEDULES[self.schedule](update, self.peak_lr, self.warmup, self.horizon)


def make_plan(recipe: Recipe, clock: str, samples: int, world: int) -> Plan:
    """Derive the plan from the number of samples in the clock stream and of processes.

    Raises UserError if an epoch holds no full batch or the batch does not divide into the processes' micro-batches.
    """
    stream = recipe.data.streams()[clock]
    batch, train, optim = stream.batch, recipe.train, recipe.optim
    others = {name: other for name, other in recipe.data.streams().items() if name != clock}
    for name, other in others.items():
        if other.epoch_samples is not None:
            raise UserError(f"data.{name}.epoch_samples has no effect: an epoch is one pass over data.{clock}")
    samples = stream.epoch_samples or samples
    if samples < batch:
        raise UserError(
            f"data.{clock}.batch is {batch}, but an epoch holds only {samples} samples; use a smaller one, at most "
            f"data.{clock}.batch={samples}"
        )
    if batch % (world * train.grad_accum):
        raise UserError(
            f"data.{clock}.batch {batch} does not divide into {world} processes x {train.grad_accum} micro-batches"
        )
    per_epoch = samples // batch
    total = train.updates or (train.epochs or 0) * per_epoch
    warmup, horizon = int(optim.warmup_epochs * per_epoch), int(total / train.schedule_scale)
    if warmup >= total:
        raise UserError(
            f"optim.warmup_epochs {optim.warmup_epochs:g} are {warmup} updates, but the run has only {total}"
        )
    table = tuple(optim.lr.table) if optim.lr.table is not None else None
    return Plan(
        batch,
        batch // world,
        per_epoch,
        total,
        horizon,
        warmup,
        optim.lr.peak(batch),
        optim.schedule,
        table,
        tuple((name, other.batch) for name, other in others.items()),
    )


def describe(plan: Plan, recipe: Recipe) -> list[str]:
    """Return the plan in words, one line each."""
    length = (
        f"{plan.total} updates ({plan.updates_per_epoch} per epoch), {plan.batch} images each, "
        f"{plan.batch_per_process} per process"
        + "".join(f"; with them {batch} of data.{name}" for name, batch in plan.beside)
    )
    if plan.table is not None:
        steps = ", ".join(f"{rate:g} before epoch {end:g}" for end, rate in plan.table)
        return [length, f"learning rate {steps}"]
    rule = recipe.optim.lr
    how = {
        "linear": f"{rule.base:g} x {plan.batch} / {rule.per or 256}",
        "sqrt": f"{rule.base:g} x sqrt({plan.batch})",
        "none": f"{rule.base:g}",
    }[rule.scaling]
    rise = f"after {plan.warmup} warm-up updates, {plan.schedule} over {plan.horizon}"
    return [length, f"learning rate {how} = {plan.peak_lr:g} {rise}"]
