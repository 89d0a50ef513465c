"""One optimizer update: forward, backward, the check for NaN, the step, and what the method changes after it."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from accelerate import Accelerator
from torch import Tensor

from unlabeled.config.recipe import Recipe
from unlabeled.data.batch import Batch
from unlabeled.engine.optim.optimizer import (
    build_optimizer,
    clip_and_norm,
    drop_frozen_gradients,
    set_learning_rate,
    set_weight_decay,
)
from unlabeled.engine.plan import Plan
from unlabeled.engine.steps import make_step, make_views
from unlabeled.errors import UserError
from unlabeled.methods.base import Method
from unlabeled.ops.batchnorm import convert, unsynchronised_buffers
from unlabeled.ops.distributed import broadcast_buffers, counts_per_part, gather, rank, world
from unlabeled.ops.machine.layout import channels_last, network_channels_last
from unlabeled.ops.machine.memory import to_device
from unlabeled.ops.norms import statistics


@dataclass(frozen=True)
class Outcome:
    """Values of one update for the log (this rank's, 0-d), whether it was dropped, the largest notes of all ranks.

    abandoned: a rank had no data for it, and nothing was changed on any. nonfinite: what was not finite in an update
    that was dropped for it, by rank; empty where the scaler alone has dropped it.
    """

    values: dict[str, Tensor]
    dropped: bool
    notes: list[int]
    abandoned: bool = False
    nonfinite: list[list[str]] = field(default_factory=list)


class NonFinite(UserError):
    """The end of a run by a loss or gradient that is not finite; by_rank: which were not."""

    def __init__(self, message: str, update: int, by_rank: list[list[str]]) -> None:
        super().__init__(message)
        self.update, self.by_rank = update, by_rank


class Updater:
    """A method with its optimizer on this process's device, wrapped for data-parallel training."""

    def __init__(self, method: Method, recipe: Recipe, plan: Plan, accelerator: Accelerator) -> None:
        self.recipe, self.plan, self.accelerator, self.seed = recipe, plan, accelerator, recipe.train.seed
        accum = recipe.train.grad_accum
        if accum > 1 and method.couples_batch:
            raise UserError(
                f"train.grad_accum is {accum}, but {recipe.method.name} compares samples across the batch: the loss "
                f"would see {plan.batch // accum} images, not {plan.batch}. Use more GPUs or a smaller batch"
            )
        if recipe.train.sync_bn and world() > 1:
            convert(method, accelerator.device)
        last = recipe.train.channels_last
        self.laid_out = channels_last if last else Tensor.contiguous
        method = method.to(accelerator.device)
        method = network_channels_last(method) if last else method.to(memory_format=torch.contiguous_format)
        self.method = method.train()
        self.optimizer = build_optimizer(self.method, recipe.optim)
        self.model = accelerator.prepare_model(self.method)
        self.statistics = statistics(self.method)

    @torch.no_grad()
    def views(self, update: int, micro: int, batch: dict[str, Batch]) -> dict[str, Tensor]:
        """Return what the network sees of `batch`: a function of seed, update, micro-batch and rank alone."""
        step = make_step(self.plan, update, micro, self.seed, rank())
        views = make_views(self.method, batch, step, self.seed, rank(), self.accelerator.device)
        return {name: self.laid_out(x) for name, x in views.items()}

    def prime(self, views: dict[str, Tensor]) -> None:
        """Let DDP settle the order of its buckets, which it changes after the first backward, in a throw-away pass.

        Without it a resumed run would sum gradients of three or more processes in another order than the first one did.
        """
        if world() == 1:
            return
        before = [b.clone() for b in self.method.buffers()]
        with self.enough_values():
            losses = self.model(views, make_step(self.plan, 0, 0, self.seed, rank()))
        sum(losses.terms.values()).backward()
        with torch.no_grad():
            for buffer, value in zip(self.method.buffers(), before, strict=True):
                buffer.copy_(value)
        self.optimizer.zero_grad(set_to_none=True)

    def update(
        self, update: int, micros: list[dict[str, Batch]], notes: list[int], *, abandon: bool = False
    ) -> Outcome:
        """Do one update. `notes` are small numbers that all ranks learn the maximum of, at no further collective.

        abandon: this rank has no data, and other batches stand in so that the others do not wait for it; the update is
        done on no rank. A non-finite loss or gradient on any rank drops the update on all ranks, or raises UserError
        (train.nonfinite).
        """
        epoch = update / self.plan.updates_per_epoch
        set_learning_rate(self.optimizer, self.plan.lr(update), epoch)
        set_weight_decay(self.optimizer, self.plan.value(self.recipe.optim.weight_decay, update))
        before = [b.clone() for b in self.statistics]
        with self.enough_values():
            terms, values, carry = self._forward_backward(update, micros)
        drop_frozen_gradients(self.optimizer, epoch)  # the scaler must not look at them
        scaler = self.accelerator.scaler
        if scaler:
            scaler.unscale_(self.optimizer)
        norm = clip_and_norm(self.optimizer, self.recipe.optim.clip)
        nonfinite, (*notes, abandoned) = self._agree(update, terms, norm, [*notes, int(abandon)], before)
        dropped = nonfinite is not None
        if not dropped:
            scaler.step(self.optimizer) if scaler else self.optimizer.step()
            broadcast_buffers(unsynchronised_buffers(self.method))
            after = self.method.after_step(make_step(self.plan, update, len(micros), self.seed, rank()), carry)
            values |= {name: torch.full_like(norm, value) for name, value in after.items()}
        if scaler and not abandoned:
            scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        named = {f"loss/{name}": term for name, term in terms.items()}
        values = {"loss": torch.stack(list(terms.values())).sum(), **named, "grad_norm": norm, **values}
        return Outcome(values, dropped, notes, bool(abandoned), nonfinite or [])

    @contextlib.contextmanager
    def enough_values(self) -> Iterator[None]:
        """Turn torch's word on a BatchNorm with one value per channel into UserError; all ranks meet it together."""
        try:
            yield
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            train, clock = self.recipe.train, self.method.clock
            apart = {"train.grad_accum": train.grad_accum, "processes": 1 if train.sync_bn else world()}
            parts = math.prod(apart.values())
            shared = " x ".join(f"{count} {name}" for name, count in apart.items() if count > 1)
            raise UserError(
                f"data.{clock}.batch is {self.plan.batch}{f', shared by {shared}' * (parts > 1)}, but a BatchNorm of "
                f"the network then sees a single value per channel; take at least {2 * parts} images"
                f"{' or train.sync_bn=true' * (not train.sync_bn and world() > 1)}, or larger crops"
            ) from error

    def _forward_backward(self, update: int, micros: list[dict[str, Batch]]) -> tuple[dict[str, Tensor], ...]:
        terms: dict[str, Tensor] = {}
        values: dict[str, Tensor] = {}
        carry: dict[str, list[Tensor]] = {}
        parts = [self.views(update, micro, batch) for micro, batch in enumerate(micros)]
        counts = counts_per_part([self.method.counts(views) for views in parts])
        for micro, views in enumerate(parts):
            last = micro == len(micros) - 1
            with contextlib.nullcontext() if last else self.accelerator.no_sync(self.model):
                losses = self.model(views, make_step(self.plan, update, micro, self.seed, rank(), counts))
                loss = sum(losses.terms.values()) / len(micros)
                (self.accelerator.scaler.scale(loss) if self.accelerator.scaler else loss).backward()
            for into, found in ((terms, losses.terms), (values, losses.metrics)):
                for name, value in found.items():
                    into[name] = into.get(name, 0.0) + value.detach() / len(micros)
            for name, tensor in losses.carry.items():
                carry.setdefault(name, []).append(tensor)
        return terms, values, {name: torch.cat(tensors) for name, tensors in carry.items()}

    def _agree(
        self, update: int, terms: dict[str, Tensor], norm: Tensor, notes: list[int], before: list[Tensor]
    ) -> tuple[list[list[str]] | None, list[int]]:
        """Return what was not finite, by rank, None for an update that is to be done; and the largest notes."""
        bad = torch.stack([*(t.to(norm.dtype) for t in terms.values()), norm]).isfinite().logical_not()
        row = torch.cat([bad.long(), to_device(torch.tensor(notes), bad.device)])
        ranks = gather(row[None]).tolist()  # the one wait for a GPU in an update
        notes = [max(column) for column in zip(*(r[len(bad) :] for r in ranks), strict=True)]
        flags = [r[: len(bad)] for r in ranks]
        if not notes[-1] and not any(map(any, flags)):
            return None, notes
        # one non-finite forward poisons the running statistics
        for buffer, value in zip(self.statistics, before, strict=True):
            buffer.copy_(value)
        overflow = self.accelerator.scaler is not None and not any(any(f[:-1]) for f in flags)
        if overflow or notes[-1]:
            return [], notes
        names = [*(f"loss/{name}" for name in terms), "gradient"]
        by_rank = [[name for name, flag in zip(names, row, strict=True) if flag] for row in flags]
        if self.recipe.train.nonfinite == "stop":
            raise NonFinite(self._nonfinite(update, by_rank), update, by_rank)
        return by_rank, notes

    def _nonfinite(self, update: int, by_rank: list[list[str]]) -> str:
        where = next(number for number, names in enumerate(by_rank) if names)
        return (
            f"non-finite at update {update}: {', '.join(by_rank[where])} (lr {self.plan.lr(update):.3g}, rank {where}"
            "). Checkpoints are from before. Drop such updates with train.nonfinite=skip, or start anew (fresh=true) "
            "with a lower optim.lr.base or with optim.clip"
        )
