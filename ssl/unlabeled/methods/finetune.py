"""Fine-tuning: a linear classifier that starts at zero on a network whose weights all train.

SimCLRv2's second stage (arXiv 2006.10029 section 2) with `backbone.init: RUN:backbone+head1`; from any other export the
usual fine-tuning; without `backbone.init` the supervised baseline, from random weights. Off by default is what
transformers need besides: layer-wise learning rates, RandAugment, random erasing, mixup, CutMix, smoothing, a moving
average of the weights. With `clip` it sees clips of videos.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from unlabeled.augment import operations, regularise
from unlabeled.augment.photometric import to_input
from unlabeled.backbones.depth import layer_depths, stages
from unlabeled.data.batch import Batch, Stream
from unlabeled.errors import UserError
from unlabeled.methods.base import Export, Group, Info, Losses, MakeBackbone, Method, Step, input_of
from unlabeled.methods.classifier import Classifier, labelled
from unlabeled.methods.finetune_config import FinetuneConfig
from unlabeled.ops.ema import ema_update
from unlabeled.ops.labels import known, known_accuracy, known_soft_cross_entropy, likeliest, one_hot


class Finetune(Method):
    """Mean cross-entropy on the labelled images, one crop of each, or on videos, one clip of each."""

    Config = FinetuneConfig

    @classmethod
    def streams(cls, cfg: FinetuneConfig) -> dict[str, Stream]:
        """One crop of every image, or one clip of every video, with its label."""
        return {"train": labelled(cfg.crop, cfg.clip)}

    def __init__(self, cfg: FinetuneConfig, make_backbone: MakeBackbone, info: Info) -> None:
        super().__init__()
        if info.classes is None:
            raise UserError("fine-tuning needs labels, and the data card names no classes")
        if cfg.clip is not None:
            _refuse_changes_of_images(cfg)
        self.cfg, self.info = cfg, info
        network = make_backbone()
        self.input = input_of(network, cfg.crop.size, info, cfg.clip)
        self.classifier = Classifier(network, info.classes, cfg.dropout)
        self.average = None if cfg.ema is None else copy.deepcopy(self.classifier).requires_grad_(False)

    def views(self, batch: dict[str, Batch], step: Step) -> dict[str, Tensor]:
        """Crops [b, 3, S, S] or clips [b, 3, T, S, S], and targets [b, C], zero where the label is unknown."""
        train, cfg = batch["train"], self.cfg
        assert train.label is not None and self.info.classes is not None
        crop = train.crops[0]
        place = step.shared, self.info.share(len(crop))
        if cfg.randaugment is not None:
            total, mine = self.info.share(len(crop))
            k, magnitude = cfg.randaugment.operations, cfg.randaugment.magnitude
            drawn = operations.draw_rand_augment(total, k, magnitude, cfg.crop.size, step.shared)
            crop = operations.apply(crop, drawn.rows(mine), "bilinear")
        view = to_input(crop, self.input.mean, self.input.std)
        if cfg.erasing > 0:
            view = regularise.each(view, regularise.random_erasing(cfg.erasing), *place)
        target = one_hot(train.label, self.info.classes, cfg.smoothing)
        view, target = regularise.mix(view, target, cfg.mixup, cfg.cutmix)
        return {"view": view, "target": target}

    def counts(self, views: dict[str, Tensor]) -> dict[str, Tensor]:
        """The mass of the targets, and the images that have any: mixed with an unknown one, they have less than 1."""
        target = views["target"]
        return {"mass": target.sum(dtype=torch.float64), "labels": known(likeliest(target))}

    def forward(self, views: dict[str, Tensor], step: Step) -> Losses:
        """Mean cross-entropy over the images whose label is known."""
        logits, target, counts = self.classifier(views["view"]), views["target"], self.mean_counts(views, step)
        return Losses(
            {"labels": known_soft_cross_entropy(logits, target, counts["mass"])},
            metrics={"accuracy": known_accuracy(logits, likeliest(target), counts["labels"])},
        )

    def after_step(self, step: Step, carry: dict[str, Tensor]) -> dict[str, float]:
        """Move the average, if there is one, BatchNorm statistics included: they belong to averaged weights."""
        if self.average is None or self.cfg.ema is None:
            return {}
        decay = step.value(self.cfg.ema)
        ema_update(self.average, self.classifier, decay, "average")
        return {"ema": decay}

    def param_groups(self) -> list[Group]:
        """One group; with `layer_decay` or `stage_lr` one per factor, and all new layers at the full rate."""
        network, cfg = self.classifier.network, self.cfg
        if cfg.stage_lr is not None:
            factors = {name: cfg.stage_lr[stage] for name, stage in stages(network, len(cfg.stage_lr)).items()}
        elif cfg.layer_decay != 1:
            factors = {name: cfg.layer_decay**below for name, below in layer_depths(network).items()}
        else:
            return super().param_groups()
        groups: dict[float, list[str]] = {}
        for name, p in self.named_parameters():
            if p.requires_grad:
                groups.setdefault(factors.get(name.removeprefix("classifier.network."), 1.0), []).append(name)
        return [Group(tuple(names), lr_mult=factor) for factor, names in groups.items()]

    def exports(self) -> dict[str, Export]:
        """The classifier, and the network without it; of averaged weights, if there are any."""
        return (self.average or self.classifier).exports(self.input)


def _refuse_changes_of_images(cfg: FinetuneConfig) -> None:
    """Raise UserError for an option that changes single images, of which a clip's would each be changed in its own way.
    """
    for key in ("randaugment", "erasing", "mixup", "cutmix"):
        if getattr(cfg, key):
            raise UserError(f"method.{key} changes images and not clips; leave it out")
