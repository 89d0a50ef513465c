"""What label pooling costs: its share of an update of the network that learns from it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks import measure
from unlabeled.backbones.build import build_backbone
from unlabeled.config.read import read_recipe
from unlabeled.data.records.labelmaps import KIND
from unlabeled.engine.optim.optimizer import build_optimizer, set_learning_rate
from unlabeled.methods.base import Info, Losses, Step, StreamInfo
from unlabeled.methods.relabel.method import Relabel
from unlabeled.ops.targets.label_pooling import edges, pool

QUESTION = "how much of a ReLabel update does pooling the label maps take?"
SHARE = 0.02  # bar: at most this part of an update
CLASSES, K, CELLS = 1000, 5, 15  # of the published maps


def main(words: list[str] | None = None) -> int:
    """Time an update on ready views and targets, and the pooling of stored maps into these targets."""
    given = _arguments(words)
    measure.one_thread()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    report = measure.Report("relabel_share", "What label pooling costs", QUESTION)
    work = Work(given.batch, device, tiny=given.quick)
    calls: dict[str, Callable[[], object]] = {"update": work.update, "pooling": work.targets}
    seconds = measure.take_turns(calls, given.repeats, device)
    clock = "wall s" if device.type == "cuda" else "CPU s"
    rows = []
    for name, taken in seconds.items():
        share = measure.ratio(taken, seconds["update"])
        met = measure.bar(share, at_most=SHARE) if name == "pooling" else ""
        rows.append([name, f"{measure.median(taken):.3g} ± {measure.spread(taken):.0%}", f"{share:.2%}", met])
    report.say(f"**{work.recipe.backbone.name}, {work.size} px, fp32**, batch {given.batch}, on {device.type}: "
               f"forward, backward and SGD on ready views. Pooling: from stored maps, {K} classes in each of {CELLS} x "
               f"{CELLS} cells, to targets over {CLASSES} classes, as `views` does it.")
    report.table(["", f"{clock} ± quartiles", "share of the update", "bar"], rows)
    report.finish(given.out)
    return 0


def _arguments(words: list[str] | None) -> argparse.Namespace:
    cuda = torch.cuda.is_available()
    parser = measure.arguments("relabel_share", QUESTION, repeats=7)
    parser.add_argument("--batch", type=int, default=256 if cuda else 8, help="images (default 8; on a GPU 256)")
    given = parser.parse_args(words)
    if given.quick:
        given.repeats, given.batch = 1, 2
    return given


class Work:
    """The published recipe's method and optimizer on ready views, and stored maps with boxes."""

    def __init__(self, batch: int, device: torch.device, tiny: bool) -> None:
        small = ["backbone.name=resnet18", "backbone.width=0.125", "method.crop.size=32"] if tiny else []
        self.recipe = read_recipe("relabel", small)
        self.size = self.recipe.method.crop.size

        def make_backbone(source: str | None = None) -> torch.nn.Module:
            network = build_backbone(self.recipe.backbone)
            network.input = network.gives = None
            return network

        about = {"num_classes": CLASSES, "orientation": "row_major_HW", "resize": "squash"}
        info = Info(0, 0, 1, CLASSES, {"train": StreamInfo(batch, batch, records={KIND: about})})
        method = Relabel(self.recipe.method, make_backbone, info)
        self.method = method.to(device).to(memory_format=torch.channels_last).train()
        self.optimizer = build_optimizer(method, self.recipe.optim)
        set_learning_rate(self.optimizer, 1e-6, 0.0)
        self.step = Step(0, 100, 100, 0, 1, 100, 0.0, 0, torch.Generator(), torch.Generator())
        view = torch.randn(batch, 3, self.size, self.size, device=device).contiguous(memory_format=torch.channels_last)
        self.logit = (10 * torch.rand(batch, K, CELLS, CELLS, device=device)).half()
        self.index = torch.randint(CLASSES, self.logit.shape, device=device).to(torch.uint16)
        whole = torch.tensor([60.0, 80.0, 240.0, 250.0, 375.0, 500.0, 0.0], device=device)
        self.boxes = whole.expand(batch, 7).contiguous()
        self.views = {"view": view, "target": self.targets()}

    def update(self) -> None:
        """Do one update on ready views."""
        losses: Losses = self.method(self.views, self.step)
        losses.terms["labels"].backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def targets(self) -> Tensor:
        """Pool the maps of the batch inside its boxes."""
        return pool(self.logit, self.index, edges(self.boxes), CLASSES).softmax(1)


if __name__ == "__main__":
    sys.exit(main())
