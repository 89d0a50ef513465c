"""What a run tells while it trains: on the terminal, in `metrics.jsonl`, and of samples that cannot be read."""

from __future__ import annotations

import torch

from unlabeled.config.base.curve import CurveRule
from unlabeled.config.recipe import Recipe
from unlabeled.data.sources.base import Source, with_reason
from unlabeled.engine.online import Online, last_measured
from unlabeled.engine.plan import Plan
from unlabeled.engine.run.corrupt import CorruptSamples
from unlabeled.engine.run.folder import RunFolder
from unlabeled.engine.run.progress import Meter, ProgressBar
from unlabeled.engine.run.sinks import Metrics
from unlabeled.engine.updater import Outcome
from unlabeled.methods.base import Method
from unlabeled.ops.distributed import on_rank0, rank, sum_over_ranks, world


class Journal:
    """The progress of a run from update `start` on; its methods are called on all ranks at once."""

    def __init__(
        self, recipe: Recipe, plan: Plan, folder: RunFolder, source: Source, device: torch.device, start: int
    ) -> None:
        self.plan, self.log_every, self.weight_decay = plan, recipe.train.log_every, recipe.optim.weight_decay
        self.corrupt = CorruptSamples(folder, len(source), recipe.data.max_corrupt)
        last = on_rank0(lambda: last_measured(folder.read_lines(folder.metrics)))
        self.online = Online(recipe, plan, source, device, last)
        self.metrics = Metrics(folder, recipe.train.sinks, start) if rank() == 0 else None
        self.bar, self.meter = ProgressBar(plan.total, start, rank() == 0), Meter(plan.batch)
        self.dropped = 0

    def update(self, update: int, outcome: Outcome, unreadable: list[str] | None) -> None:
        """Tell of an update that is done; unreadable: keys of this rank's samples, None if no rank has any.

        Raises UserError if too many samples cannot be read.
        """
        self.dropped += outcome.dropped
        if outcome.dropped and self.dropped.bit_count() == 1:  # the 1st, 2nd, 4th, 8th ...
            self.bar.say(f"update {update} was dropped for a non-finite loss or gradient, {self.dropped} so far")
        if unreadable is not None:
            for key in self.corrupt.add(update, unreadable):
                self.bar.say(f"cannot read {with_reason(key)}; another sample takes its place")
        if update % self.log_every == 0 or update + 1 == self.plan.total:
            values = self._values(update, outcome)
            self.bar.note(update + 1, values)
            if self.metrics:
                self.metrics.write(update, values)
        self.bar.advance(update + 1)

    def tell(self, text: str) -> None:
        """Say something, if it is not empty."""
        if text:
            self.bar.say(text)

    def measure(self, done: int, method: Method) -> None:
        """Measure after `done` updates, if that is due: a checkpoint or export of that moment stands already."""
        if self.online.due(done):
            measures = self.online.measure(method)
            for line in self.online.report(done, measures):
                self.bar.say(line)
            if self.metrics and measures:
                self.metrics.write(done - 1, measures)

    def close(self) -> None:
        """Take the bar away, and close the files."""
        self.bar.close()
        if self.dropped:
            self.bar.say(f"{self.dropped} updates were dropped for a non-finite loss or gradient")
        if self.metrics:
            self.metrics.close()

    def _values(self, update: int, outcome: Outcome) -> dict[str, float]:
        names, decay = sorted(outcome.values), self.weight_decay
        mean = sum_over_ranks(torch.stack([outcome.values[n].double() for n in names])) / world()
        return {
            "epoch": (update + 1) / self.plan.updates_per_epoch,
            "lr": self.plan.lr(update),
            **({"weight_decay": self.plan.value(decay, update)} if isinstance(decay, CurveRule) else {}),
            **dict(zip(names, mean.tolist(), strict=True)),
            "dropped": float(outcome.dropped),
            **self.meter.read(),
        }
