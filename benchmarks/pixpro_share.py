"""What the propagation and the pairs of PixPro cost: their share of a whole update."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks import measure
from unlabeled.backbones.build import build_backbone
from unlabeled.config.read import read_recipe
from unlabeled.config.recipe import Recipe
from unlabeled.engine.optim.optimizer import build_optimizer, set_learning_rate
from unlabeled.methods.base import Info, Losses, Step
from unlabeled.methods.pixpro import PixPro
from unlabeled.ops.cells import distances

QUESTION = "how much of a PixPro update do the pixel propagation and the pairs of cells take?"
SHARE = 0.05  # bar: at most this part of an update
CELLS = 7  # side of the map of 224 pixels


def main(words: list[str] | None = None) -> int:
    """Time an update, and its parts that only PixPro has, on ready views."""
    given = _arguments(words)
    measure.one_thread()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    report = measure.Report("pixpro_share", "PixPro's own share of its time", QUESTION)
    work = Work(given.batch, device, given.precision, tiny=given.quick)
    calls: dict[str, Callable[[], object]] = {
        "update": work.update, "propagation": work.propagation, "pairs of cells": work.pairs}
    seconds = measure.take_turns(calls, given.repeats, device)
    both = [a + b for a, b in zip(seconds["propagation"], seconds["pairs of cells"], strict=True)]
    seconds["propagation and pairs"] = both
    clock = "wall s" if device.type == "cuda" else "CPU s"
    rows = []
    for name, taken in seconds.items():
        share = measure.ratio(taken, seconds["update"])
        met = measure.bar(share, at_most=SHARE) if name == "propagation and pairs" else ""
        rows.append([name, f"{measure.median(taken):.3g} ± {measure.spread(taken):.0%}", f"{share:.2%}", met])
    report.say(f"**{work.recipe.backbone.name}, {work.recipe.method.crop.size} px, {given.precision}**, batch "
               f"{given.batch}, on {device.type}: both views through both networks, backward, LARS, the key network's "
               "move. The parts are timed as an update has them: both views, forward and backward.")
    report.table(["", f"{clock} ± quartiles", "share of the update", "bar"], rows)
    report.finish(given.out)
    return 0


def _arguments(words: list[str] | None) -> argparse.Namespace:
    cuda = torch.cuda.is_available()
    parser = measure.arguments("pixpro_share", QUESTION, repeats=7)
    parser.add_argument("--batch", type=int, default=128 if cuda else 4, help="images (default 4; on a GPU 128)")
    parser.add_argument("--precision", choices=["fp32", "bf16"],
                        default="bf16" if cuda or measure.native_bf16() else "fp32",
                        help="default: bf16 on a GPU or a CPU that has it, else fp32")
    given = parser.parse_args(words)
    if given.quick:
        given.repeats, given.batch = 1, 2
    return given


class Work:
    """The published recipe's method and optimizer on ready views, and its parts on ready maps."""

    def __init__(self, batch: int, device: torch.device, precision: str, tiny: bool) -> None:
        small = ["backbone.name=resnet18", "backbone.width=0.125", "method.hidden=32", "method.dim=16"] if tiny else []
        self.recipe: Recipe = read_recipe("pixpro", small)
        cfg, size = self.recipe.method, self.recipe.method.crop.size

        def make_backbone(source: str | None = None) -> torch.nn.Module:
            network = build_backbone(self.recipe.backbone)
            network.input = network.gives = None
            return network

        method = PixPro(cfg, make_backbone, Info(0, 0, 1, None, {}))
        self.method = method.to(device).to(memory_format=torch.channels_last).train()
        self.optimizer = build_optimizer(method, self.recipe.optim)
        set_learning_rate(self.optimizer, 1e-6, 0.0)
        self.step = Step(0, 100, 100, 0, 1, 100, 0.0, 0, torch.Generator(), torch.Generator())
        self.bf16 = torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")
        views = torch.randn(2, batch, 3, size, size, device=device)
        self.views = {f"view{i + 1}": x.contiguous(memory_format=torch.channels_last) for i, x in enumerate(views)}
        start = 0.5 * torch.rand(2, batch, 2, device=device)
        self.places = torch.cat([start, start + 0.5], 2).unbind()
        self.views |= {f"place{i + 1}": place for i, place in enumerate(self.places)}
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        self.maps = [torch.randn(batch, cfg.dim, CELLS, CELLS, device=device, dtype=dtype) for _ in range(2)]

    def update(self) -> None:
        """Do one update on ready views."""
        with self.bf16:
            losses: Losses = self.method(self.views, self.step)
        torch.stack(list(losses.terms.values())).sum().backward()
        self.optimizer.step()
        self.method.after_step(self.step, {})
        self.optimizer.zero_grad(set_to_none=True)

    def propagation(self) -> None:
        """Propagate both online maps, forward and backward."""
        maps = [x.detach().requires_grad_() for x in self.maps]
        with self.bf16:
            found: list[Tensor] = [self.method.queries[0](x) for x in maps]
        torch.stack(found).sum().backward()
        self.optimizer.zero_grad(set_to_none=True)

    def pairs(self) -> Tensor:
        """Find the pairs of cells that lie near each other."""
        return distances(*self.places, (CELLS, CELLS)) < self.method.cfg.threshold


if __name__ == "__main__":
    sys.exit(main())
