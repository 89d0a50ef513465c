"""The moment of training that methods see, and the seeds that belong to it."""

from __future__ import annotations

import random
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from unlabeled.data.batch import Batch
from unlabeled.engine.plan import Plan
from unlabeled.methods.base import Method, Step
from unlabeled.ops.random import generator, seed_of


def make_step(
    plan: Plan, update: int, micro: int, seed: int, rank: int, counts: Mapping[str, Tensor] | None = None
) -> Step:
    """Return the step of micro-batch `micro` in `update`; its generators are functions of the numbers alone."""
    return Step(
        update=update,
        total=plan.total,
        horizon=plan.horizon,
        epoch=update // plan.updates_per_epoch,
        epochs=plan.epochs,
        updates_per_epoch=plan.updates_per_epoch,
        lr=plan.lr(update),
        micro=micro,
        local=generator(seed, "local", update, micro, rank),
        shared=generator(seed, "shared", update, micro),
        counts=counts or {},
    )


@torch.no_grad()
def make_views(
    method: Method, batch: dict[str, Batch], step: Step, seed: int, rank: int, device: torch.device
) -> dict[str, Tensor]:
    """Return what the network sees of the micro-batch of process `rank` at `step`: a function of the numbers alone."""
    seed_everything(seed, "global", step.update, step.micro, rank)
    return method.views({name: b.to(device) for name, b in batch.items()}, step)


def seed_everything(*parts: int | str) -> None:
    """Seed the global generators of Python, NumPy and torch, which libraries draw from, as a function of `parts`."""
    seed = seed_of(*parts)
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - libraries draw from the old global generator
    torch.manual_seed(seed)
