"""The numbers that follow from a recipe and the size of its data."""

from __future__ import annotations

import math
from dataclasses import dataclass

from unlabeled.config.base.curve import CurveRule, Table, curves
from unlabeled.config.base.optim import Optim
from unlabeled.config.batches import block_problem, small_batches
from unlabeled.config.recipe import Recipe
from unlabeled.errors import UserError
from unlabeled.ops.curves import Curve, curve_of, table_rate, value_at


@dataclass(frozen=True)
class Plan:
    """Lengths in updates. An epoch is the first floor(n / B) B samples of the clock stream's order.

    curve, table: the learning rate; a table of (end epoch, rate) takes the curve's place. beside: names of the other
    streams and the images that an update takes from them.
    """

    batch: int
    batch_per_process: int
    updates_per_epoch: int
    total: int
    horizon: int
    curve: Curve
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
        return self.curve.at(update)

    def value(self, number: float | CurveRule, update: int) -> float:
        """Return what a number of the recipe that may be a curve is at `update`."""
        return value_at(number, update, self.horizon, self.updates_per_epoch)


def make_plan(recipe: Recipe, clock: str, samples: int, world: int) -> Plan:
    """Derive the plan from the number of samples in the clock stream and of processes.

    Raises UserError if an epoch holds no full batch, the batch does not divide into the processes' micro-batches, or
    the method learns nothing from so few images.
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
    if train.blocks is not None and (problem := block_problem(train.blocks, batch, world, train.grad_accum)):
        raise UserError(f"train.blocks with data.{clock}.batch {batch}: {problem}")
    for problem in small_batches(recipe.method, recipe.data, world, sync_bn=train.sync_bn).values():
        raise UserError(problem)
    per_epoch = samples // batch
    total = train.updates or (train.epochs or 0) * per_epoch
    warmup, horizon = int(optim.warmup_epochs * per_epoch), int(total / train.schedule_scale)
    rises = {"optim": optim.warmup_epochs} | {key: rule.warmup_epochs for key, rule in curves(recipe)}
    for key, epochs in rises.items():
        if int(epochs * per_epoch) >= total:
            raise UserError(
                f"{key}.warmup_epochs {epochs:g} are {int(epochs * per_epoch)} updates, but the run has only {total}"
            )
    table = tuple(optim.lr.table) if optim.lr.table is not None else None
    return Plan(
        batch,
        batch // world,
        per_epoch,
        total,
        horizon,
        learning_rate(optim, batch, horizon, warmup, per_epoch),
        table,
        tuple((name, other.batch) for name, other in others.items()),
    )


def learning_rate(optim: Optim, batch: int, horizon: int, warmup: int, per_epoch: int) -> Curve:
    """Return the learning rate for updates of `batch` images; horizon, warmup and per_epoch (an epoch) in updates."""
    rule, peak = optim.lr, optim.lr.peak(batch)
    return Curve(
        start=peak,
        end=rule.final,
        horizon=horizon,
        shape=optim.schedule,
        portion=rule.portion,
        warmup=warmup,
        warmup_start=rule.warmup_start * peak,
        warmup_rule=rule.warmup_rule,
        count_from=rule.count_from,
        hold=per_epoch if rule.every == "epoch" else 1,
    )


def describe(plan: Plan, recipe: Recipe) -> list[str]:
    """Return the plan in words, one line each."""
    length = (
        f"{plan.total} updates ({plan.updates_per_epoch} per epoch), {plan.batch} images each, "
        f"{plan.batch_per_process} per process"
        + "".join(f"; with them {batch} of data.{name}" for name, batch in plan.beside)
    )
    others = [f"{key} {_rule(rule, plan)}" for key, rule in curves(recipe)]
    others += [f"{key} {_start(epoch, plan)}" for key, epoch in recipe.method.starts().items() if epoch]
    if plan.table is not None:
        return [length, f"learning rate {_steps(plan.table)}", *others]
    rule = recipe.optim.lr
    how = {
        "linear": f"{rule.base:g} x {plan.batch} / {rule.per or 256}",
        "sqrt": f"{rule.base:g} x sqrt({plan.batch})",
        "none": f"{rule.base:g}",
    }[rule.scaling]
    return [length, f"learning rate {how} = {_course(plan.curve)}", *others]


def _rule(rule: CurveRule, plan: Plan) -> str:
    if rule.table is not None:
        return _steps(rule.table)
    return _course(curve_of(rule, plan.horizon, plan.updates_per_epoch))


def _start(epoch: float, plan: Plan) -> str:
    update = math.ceil(epoch * plan.updates_per_epoch)
    return f"from update {update} on{': never, for the run ends before' if update >= plan.total else ''}"


def _steps(table: Table | tuple[tuple[float, float], ...]) -> str:
    return ", ".join(f"{value:g} before epoch {end:g}" for end, value in table)


def _course(curve: Curve) -> str:
    begin = f" from {curve.warmup_start:g}" if curve.warmup and curve.warmup_start else ""
    last = f"{curve.end:g}" if curve.portion == 1 else f"{curve.at(curve.horizon):.3g}"
    end = f" to {last}" if curve.shape != "constant" and (curve.end or curve.portion < 1) else ""
    return f"{curve.start:g} after {curve.warmup} warm-up updates{begin}, {curve.shape}{end} over {curve.horizon}"
