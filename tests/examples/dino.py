"""DINO: a student matches what its own average says of other crops of the image (arXiv 2104.14294).

A method of one's own, written against the contract alone: nothing in the package knows it. A recipe names it by
`method: {name: "dino:DINO"}` where this folder is on the path of Python.
"""

from __future__ import annotations

import copy
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from unlabeled.augment import geometry, photometric
from unlabeled.config.augment import Crop, ResizedCrop
from unlabeled.config.base.curve import CurveRule, Momentum, Temperature
from unlabeled.config.recipe import MethodConfig
from unlabeled.data.batch import Batch, Stream
from unlabeled.methods.base import Export, Group, Info, Losses, MakeBackbone, Method, Step, input_of, width_of
from unlabeled.ops.distributed import gather
from unlabeled.ops.ema import ema_update
from unlabeled.ops.precision import at_least_float32


class DINOConfig(MethodConfig):
    """`method: {name: "dino:DINO", ...}`; the defaults are the paper's for ViT-S with multi-crop."""

    name: Literal["dino:DINO"] = "dino:DINO"
    prototypes: int = Field(65536, gt=0, description="outputs of the head")
    hidden: int = Field(2048, gt=0, description="width of the head's first two layers")
    bottleneck: int = Field(256, gt=0)
    student_temperature: Temperature = 0.1
    teacher_temperature: Temperature = CurveRule(
        start=0.07, shape="constant", warmup_epochs=30, warmup_start=0.04, warmup_rule="k/(w-1)"
    )
    center_momentum: float = Field(0.9, ge=0, lt=1)
    momentum: Momentum = CurveRule(start=0.996, end=1.0)
    freeze_last_layer: float = Field(1, ge=0, description="epochs in which the prototypes get no gradient")
    crop: Crop = ResizedCrop(area=(0.4, 1.0))
    local_crop: Crop = ResizedCrop(size=96, area=(0.05, 0.4))
    local_crops: int = Field(8, ge=0)


class Head(nn.Module):
    """Three layers, a unit vector, and its cosines with unit prototypes: [b, width] -> [b, prototypes]."""

    def __init__(self, width: int, cfg: DINOConfig) -> None:
        super().__init__()
        widths = pairwise([width, cfg.hidden, cfg.hidden, cfg.bottleneck])
        first, second, last = (nn.Linear(*pair) for pair in widths)
        self.mlp = nn.Sequential(first, nn.GELU(), second, nn.GELU(), last)
        self.prototypes = nn.Parameter(torch.empty(cfg.prototypes, cfg.bottleneck))
        for layer in (first, second, last):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)
        nn.init.trunc_normal_(self.prototypes, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """Return the cosines, in at least float32."""
        x = F.normalize(at_least_float32(self.mlp(x)), dim=1)
        with torch.autocast(x.device.type, enabled=False):
            return x @ F.normalize(at_least_float32(self.prototypes), dim=1).T


class Network(nn.Module):
    """Backbone and head."""

    def __init__(self, backbone: nn.Module, head: Head) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head

    def forward(self, views: list[Tensor]) -> Tensor:
        """Return the cosines of views [b, 3, S, S], one after another; those of one size pass the backbone at once."""
        sizes = list(dict.fromkeys(x.shape[-1] for x in views))  # views of one size follow one another
        features = [self.backbone(torch.cat([x for x in views if x.shape[-1] == size])) for size in sizes]
        return self.head(torch.cat(features))


class DINO(Method):
    """Self-distillation without labels, with multi-crop."""

    Config = DINOConfig

    @classmethod
    def streams(cls, cfg: DINOConfig) -> dict[str, Stream]:
        """Two global crops, then the local ones."""
        crop, local = geometry.build(cfg.crop), geometry.build(cfg.local_crop)
        return {"train": Stream((crop, crop, *[local] * cfg.local_crops))}

    def __init__(self, cfg: DINOConfig, make_backbone: MakeBackbone, info: Info) -> None:
        super().__init__()
        self.cfg, self.info = cfg, info
        backbone = make_backbone()
        self.input = input_of(backbone, cfg.crop.size, info)
        self.student = Network(backbone, Head(width_of(backbone), cfg))
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)
        self.register_buffer("center", torch.zeros(cfg.prototypes))

    def train(self, mode: bool = True) -> DINO:
        """Set the mode; the teacher stays in evaluation mode, without random depth."""
        super().train(mode)
        self.teacher.eval()
        return self

    def views(self, batch: dict[str, Batch], step: Step) -> dict[str, Tensor]:
        """The global views [b, 3, S, S], then the local ones, smaller."""
        return {f"view{i}": self._view(crop, i, step) for i, crop in enumerate(batch["train"].crops)}

    def _view(self, crop: Tensor, i: int, step: Step) -> Tensor:
        blur_p, solarize_p = ((1.0, 0.0), (0.1, 0.2), (0.5, 0.0))[min(i, 2)]
        total, mine = self.info.share(len(crop))
        drawn = photometric.Drawn(
            photometric.draw_jitter(total, 0.4, 0.4, 0.2, 0.1, 0.8, step.shared),
            photometric.draw_chosen(total, 0.2, step.shared),
            photometric.draw_blur(total, blur_p, (0.1, 2.0), step.shared),
            photometric.draw_chosen(total, solarize_p, step.shared),
        ).rows(mine)
        return photometric.render(crop, drawn, mean=self.input.mean, std=self.input.std)

    def forward(self, views: dict[str, Tensor], step: Step) -> Losses:
        """Cross-entropy of what the student says of every view and the teacher of every other global view."""
        seen = list(views.values())
        with torch.no_grad():
            cosines = self.teacher(seen[:2])
        with torch.autocast(cosines.device.type, enabled=False):
            targets = ((cosines - self.center) / step.value(self.cfg.teacher_temperature)).softmax(1)
        student = self.student(seen) / step.value(self.cfg.student_temperature)
        loss = dino_loss(student.chunk(len(seen)), targets.chunk(2))
        return Losses({"dino": loss}, {"cosines": cosines}, {"entropy": entropy(targets)})

    def after_step(self, step: Step, carry: dict[str, Tensor]) -> dict[str, float]:
        """Move the centre by what the teacher said of the whole batch, then the teacher."""
        self.center.lerp_(gather(carry["cosines"]).mean(0).to(self.center.dtype), 1 - self.cfg.center_momentum)
        momentum = step.value(self.cfg.momentum)
        ema_update(self.teacher, self.student, momentum)
        return {"teacher_momentum": momentum}

    def param_groups(self) -> list[Group]:
        """The prototypes, which get no gradient at first, and all else."""
        last = "student.head.prototypes"
        rest = tuple(name for name, p in self.named_parameters() if p.requires_grad and name != last)
        return [Group(rest), Group((last,), frozen="grad", frozen_epochs=self.cfg.freeze_last_layer)]

    def exports(self) -> dict[str, Export]:
        """The teacher's backbone, which is the better one, and the student's."""

        def backbone(network: Network) -> nn.Module:
            return copy.deepcopy(network.backbone).eval()

        return {
            "teacher": Export(lambda: backbone(self.teacher), "vector", self.input),
            "student": Export(lambda: backbone(self.student), "vector", self.input),
        }


def dino_loss(student: tuple[Tensor, ...], targets: tuple[Tensor, ...]) -> Tensor:
    """Return the mean cross-entropy of logits and targets, each [b, K] per view, over all pairs of different views."""
    log_p = [x.log_softmax(1) for x in student]
    pairs = [(t, s) for i, t in enumerate(targets) for j, s in enumerate(log_p) if i != j]
    return -torch.stack([(t * s).sum(1).mean() for t, s in pairs]).mean()


def entropy(p: Tensor) -> Tensor:
    """Return the mean entropy of distributions [n, K], in nats: 0 or log K when the teacher has collapsed."""
    return -(p * p.clamp_min(1e-12).log()).sum(1).mean()
