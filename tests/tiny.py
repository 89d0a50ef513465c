"""Tiny runs of every method, in this process or in several: what the battery and the engine's tests train."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from unlabeled.config.read import read_recipe
from unlabeled.config.recipe import Recipe
from unlabeled.data.batch import Batch
from unlabeled.data.stream import TrainStream
from unlabeled.engine import build, launch
from unlabeled.engine.plan import make_plan
from unlabeled.engine.steps import make_step
from unlabeled.engine.updater import Updater
from unlabeled.ops.distributed import rank, world

UPDATES = 6
BATCH = 24  # divides by 1, 2, 3 and 4 processes

# method -> variants, each a recipe and overrides; together the variants use every part of the method
TINY: dict[str, dict[str, tuple[str, list[str]]]] = {
    "simclrv2": {
        "plain": ("demo/simclrv2", []),
        "colour": ("demo/simclrv2-shapes", ["method.augment.blur_p=0.5"]),
        "memory": ("demo/simclrv2", ["method.memory={size: 120, decay: 0.9}", "method.online_probe=true"]),
    },
}
VARIANTS = [(method, variant) for method, variants in TINY.items() for variant in variants]


def tiny_recipe(method: str, variant: str, overrides: Sequence[str] = ()) -> Recipe:
    """Read a variant at tiny size."""
    name, own = TINY[method][variant]
    small = [
        "backbone.width=0.125",
        "train.epochs=null",
        f"train.updates={UPDATES}",
        "optim.warmup_epochs=0",
        "eval.at_end=[]",
        "eval.every=0",
    ]
    recipe = read_recipe(name, [*small, *own, *overrides])
    batches = [f"data.{stream}.batch={BATCH}" for stream in recipe.data.streams()]
    return read_recipe(name, [*small, *batches, *own, *overrides])


@dataclass
class Tiny:
    """One process's part of a tiny run."""

    updater: Updater
    streams: dict[str, TrainStream]

    def micros(self, update: int) -> list[dict[str, Batch]]:
        """Return the micro-batches of `update` of this process."""
        parts = [next(stream.updates(update, update + 1)) for stream in self.streams.values()]
        return [dict(zip(self.streams, batches, strict=True)) for batches in zip(*parts, strict=True)]

    def train(self, start: int, stop: int) -> list[float]:
        """Do the updates [start, stop) and return their losses."""
        return [float(self.updater.update(u, self.micros(u), [0]).values["loss"]) for u in range(start, stop)]

    def first_gradients(self) -> tuple[dict[str, torch.Tensor], torch.Tensor, dict[str, torch.Tensor]]:
        """Return views, loss and gradients of the first update, without stepping."""
        views = self.updater.views(0, 0, self.micros(0)[0])
        dtype = next(self.updater.method.parameters()).dtype
        views = {name: x.to(dtype) if x.is_floating_point() else x for name, x in views.items()}
        losses = self.updater.model(views, make_step(self.updater.plan, 0, 0, self.updater.seed, rank()))
        loss = sum(losses.terms.values())
        loss.backward()
        named = self.updater.method.named_parameters()
        return views, loss.detach(), {name: p.grad for name, p in named if p.requires_grad}


def tiny_run(recipe: Recipe, dtype: torch.dtype = torch.float32) -> Tiny:
    """Build the run in this process, which may be one of several."""
    accelerator = launch.start(recipe.train)
    opened = build.open_streams(recipe)
    clock = build.method_class(recipe).clock
    plan = make_plan(recipe, clock, len(opened[clock].source), world())
    method = build.build_method(recipe, build.make_info(recipe, opened)).to(dtype)
    streams = build.train_streams(recipe, opened, plan)
    return Tiny(Updater(method, recipe, plan, accelerator), streams)


def snapshot(tiny: Tiny) -> dict[str, torch.Tensor]:
    """Return a copy of the method's state."""
    return {name: x.clone() for name, x in tiny.updater.method.state_dict().items()}


def differing(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> list[str]:
    """Return the names whose bits differ."""
    assert a.keys() == b.keys()
    return [name for name in a if not torch.equal(a[name], b[name])]
