"""The linear probe of DINOv2 and POA: many classifiers learn at once on the features of one frozen network.

Every form of the features meets every learning rate (arXiv 2304.07193, arXiv 2408.01031, their code); they learn on the
sum of their losses, which does not mix gradients. Which one counts is chosen afterwards, by images that none has seen.
"""

from __future__ import annotations

import copy
from typing import cast

import torch
from torch import Tensor, nn

from unlabeled.augment.photometric import to_input
from unlabeled.data.batch import Batch, Stream
from unlabeled.errors import UserError
from unlabeled.methods.base import Export, Group, Info, Losses, MakeBackbone, Method, Step, input_of, width_of
from unlabeled.methods.classifier import labelled
from unlabeled.methods.probe.forms import Forms
from unlabeled.methods.probe.grid_config import LinearGridConfig
from unlabeled.ops.frozen import Frozen
from unlabeled.ops.labels import known, known_accuracy, known_cross_entropy

_STD = 0.01  # of the weights at the start; biases are zero


class Chosen(nn.Module):
    """One classifier on one form of the features: [b, 3, S, S] -> logits [b, classes]."""

    def __init__(self, forms: Forms, form: str, head: nn.Module) -> None:
        super().__init__()
        self.forms, self.form, self.head = forms, form, head

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        logits: Tensor = self.head(self.forms(x)[self.form])
        return logits


class Verdicts(nn.Module):
    """What every classifier takes an image for, in one pass: [b, 3, S, S] -> classes float32 [b, K]."""

    def __init__(self, forms: Forms, heads: nn.ModuleDict) -> None:
        super().__init__()
        self.forms, self.heads = forms, heads

    def forward(self, x: Tensor) -> Tensor:
        """Return the classes."""
        features = self.forms(x)
        return torch.stack([head(features[form]).argmax(1) for form, heads in self.heads.items()
                            for head in cast(nn.ModuleList, heads)], 1).float()


class LinearGrid(Method):
    """One linear classifier for every form of the frozen features and every learning rate."""

    Config = LinearGridConfig

    @classmethod
    def streams(cls, cfg: LinearGridConfig) -> dict[str, Stream]:
        """One crop of every image, or one clip of every video, with its label."""
        return {"train": labelled(cfg.crop, cfg.clip)}

    def __init__(self, cfg: LinearGridConfig, make_backbone: MakeBackbone, info: Info) -> None:
        super().__init__()
        if info.classes is None:
            raise UserError("a probe needs labels, and the data card names no classes")
        network = make_backbone()
        width_of(network)
        self.cfg = cfg
        self.input = input_of(network, cfg.crop.size, info, cfg.clip)
        network.eval()
        self.features = Frozen(Forms(network, cfg.crop.size), "backbone")
        sample = self.features(torch.zeros(1, *self.input.shape))
        self.heads = nn.ModuleDict({
            form: nn.ModuleList(_head(features.shape[1], info.classes) for _ in cfg.lr)
            for form, features in sample.items()
        })

    @property
    def choices(self) -> list[tuple[str, float]]:
        """The form and the learning rate of every classifier, in the order of `verdicts`."""
        return [(form, lr) for form in self.heads for lr in self.cfg.lr]

    def views(self, batch: dict[str, Batch], step: Step) -> dict[str, Tensor]:
        """Crops [b, 3, S, S] or clips [b, 3, T, S, S], and labels."""
        train = batch["train"]
        assert train.label is not None
        return {"view": to_input(train.crops[0], self.input.mean, self.input.std), "label": train.label}

    def counts(self, views: dict[str, Tensor]) -> dict[str, Tensor]:
        """The known labels."""
        return {"labels": known(views["label"])}

    def forward(self, views: dict[str, Tensor], step: Step) -> Losses:
        """Mean cross-entropy over the labelled images, summed over the learning rates; the best of their accuracies."""
        features, label = self.features(views["view"]), views["label"]
        count = self.mean_counts(views, step)["labels"]
        losses = Losses({})
        for form, heads in self.heads.items():
            logits = [head(features[form]) for head in cast(nn.ModuleList, heads)]
            losses.terms[form] = torch.stack([known_cross_entropy(found, label, count) for found in logits]).sum()
            accuracy = torch.stack([known_accuracy(found, label, count) for found in logits])
            losses.metrics[f"{form}_accuracy"] = accuracy.max()
        return losses

    def param_groups(self) -> list[Group]:
        """One group per learning rate."""
        return [Group(tuple(f"heads.{form}.{place}.{name}" for form in self.heads for name in ("weight", "bias")),
                      lr_mult=lr) for place, lr in enumerate(self.cfg.lr)]

    def exports(self) -> dict[str, Export]:
        """The frozen network: which classifier counts is not known yet."""
        network = self._forms().network
        return {"backbone": Export(lambda: copy.deepcopy(network).eval(), "vector", self.input)}

    def verdicts(self) -> Export:
        """What all classifiers take images for (see `Verdicts`)."""
        return Export(lambda: copy.deepcopy(Verdicts(self._forms(), self.heads)).eval(), "vector", self.input)

    def classifier(self, choice: tuple[str, float]) -> Export:
        """One classifier of `choices`."""
        form, lr = choice
        head = cast(nn.ModuleList, self.heads[form])[self.cfg.lr.index(lr)]
        return Export(lambda: copy.deepcopy(Chosen(self._forms(), form, head)).eval(), "logits", self.input)

    def _forms(self) -> Forms:
        return cast(Forms, self.features.network)


def _head(width: int, classes: int) -> nn.Linear:
    head = nn.Linear(width, classes)
    nn.init.normal_(head.weight, std=_STD)
    nn.init.zeros_(head.bias)
    return head
