"""A toy method that keeps every rule, and copies of it that break one each."""

from __future__ import annotations

import copy
from typing import Literal

import torch
from methods.battery.planted_config import ToyConfig
from torch import Tensor, nn

from unlabeled.augment import geometry
from unlabeled.data.batch import Batch, Stream
from unlabeled.methods.base import Export, Info, Input, Losses, MakeBackbone, Method, Step
from unlabeled.ops.distributed import gather, sum_over_ranks, world
from unlabeled.ops.ema import ema_update


class Toy(Method):
    """A student predicts what its averaged copy gives of another view, less the centre of what that gave before."""

    Config = ToyConfig
    average: Literal["keep", "copy", "average"] = "copy"

    @classmethod
    def streams(cls, cfg: ToyConfig) -> dict[str, Stream]:
        crop = geometry.build(cfg.crop)
        return {"train": Stream((crop, crop))}

    def __init__(self, cfg: ToyConfig, make_backbone: MakeBackbone, info: Info) -> None:
        super().__init__()
        self.cfg, self.info = cfg, info
        pixels = 3 * cfg.crop.size**2
        self.student = nn.Sequential(nn.Flatten(), nn.Linear(pixels, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4))
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)
        self.register_buffer("centre", torch.zeros(4))

    def views(self, batch: dict[str, Batch], step: Step) -> dict[str, Tensor]:
        return {f"view{i}": self._view(crop, step) for i, crop in enumerate(batch["train"].crops, 1)}

    def _view(self, crop: Tensor, step: Step) -> Tensor:
        rows = slice(self.info.rank * len(crop), (self.info.rank + 1) * len(crop))
        noise = torch.rand(self.info.world * len(crop), 1, 1, 1, generator=self._draws(step))[rows]
        return crop.float() / 255 + 0.1 * noise

    def _draws(self, step: Step) -> torch.Generator:
        return step.shared

    def forward(self, views: dict[str, Tensor], step: Step) -> Losses:
        with torch.no_grad():
            target = self.teacher(views["view2"])
        return Losses({"match": self._loss(self.student(views["view1"]), target)}, {"target": target})

    def _loss(self, predicted: Tensor, target: Tensor) -> Tensor:
        return (predicted - target + self.centre).square().mean()

    def after_step(self, step: Step, carry: dict[str, Tensor]) -> dict[str, float]:
        self.centre.lerp_(self._mean(carry["target"]), 0.1)
        ema_update(self.teacher, self.student, 0.9, self.average)
        return {}

    def _mean(self, target: Tensor) -> Tensor:
        return gather(target).mean(0)

    def exports(self) -> dict[str, Export]:
        return {"backbone": Export(lambda: copy.deepcopy(self.student).eval(), "vector", Input(self.cfg.crop.size))}


class StillStatistics(Toy):
    """The copy's BatchNorm never moves."""

    average = "keep"

    def train(self, mode: bool = True) -> StillStatistics:
        super().train(mode)
        self.teacher.eval()
        return self


class StillWeights(Toy):
    """The copy is never averaged, though its BatchNorm moves."""

    def after_step(self, step: Step, carry: dict[str, Tensor]) -> dict[str, float]:
        return {}


class CountsInPython(Toy):
    """A counter acts after 100 updates."""

    done = 0

    def after_step(self, step: Step, carry: dict[str, Tensor]) -> dict[str, float]:
        self.done += 1
        return super().after_step(step, carry) if self.done <= 100 else {}


_calls = {"after_step": 0}


class CountsInFile(Toy):
    """A counter that the file keeps acts after 100 updates."""

    def after_step(self, step: Step, carry: dict[str, Tensor]) -> dict[str, float]:
        _calls["after_step"] += 1
        return super().after_step(step, carry) if _calls["after_step"] <= 100 else {}


class KeepsGenerator(Toy):
    """A generator lives from one update to the next, and is used late."""

    def __init__(self, cfg: ToyConfig, make_backbone: MakeBackbone, info: Info) -> None:
        super().__init__(cfg, make_backbone, info)
        self.random = torch.Generator().manual_seed(0)

    def after_step(self, step: Step, carry: dict[str, Tensor]) -> dict[str, float]:
        noise = torch.rand((), generator=self.random)
        if step.update > 1000:
            self.centre += noise
        return super().after_step(step, carry)


class SumsCentre(Toy):
    """The centre is a sum over processes in place of their mean."""

    def _mean(self, target: Tensor) -> Tensor:
        return sum_over_ranks(target.mean(0))


class DrawsByRank(Toy):
    """In one update of eight the draw depends on the process."""

    def _draws(self, step: Step) -> torch.Generator:
        return step.local if step.update % 8 == 6 and world() > 1 else step.shared


class CouplesBatch(Toy):
    """The loss compares images, yet `couples_batch` is False."""

    def _loss(self, predicted: Tensor, target: Tensor) -> Tensor:
        return super()._loss(predicted - predicted.mean(0), target)


class CountsDropped(Toy):
    """What is not finite is counted, in the update that is dropped for it."""

    def __init__(self, cfg: ToyConfig, make_backbone: MakeBackbone, info: Info) -> None:
        super().__init__(cfg, make_backbone, info)
        self.register_buffer("bad", torch.zeros(()))

    def forward(self, views: dict[str, Tensor], step: Step) -> Losses:
        losses = super().forward(views, step)
        if not losses.carry["target"].isfinite().all() and self.without_statistics():
            self.bad += 1
        return losses

    def without_statistics(self) -> bool:
        return not any("running_mean" in name for name, _ in self.named_buffers())


class ParameterView(Toy):
    """A view is a parameter, which the optimizer changes in place."""

    def views(self, batch: dict[str, Batch], step: Step) -> dict[str, Tensor]:
        return {**super().views(batch, step), "weight": self.student[1].weight}
