"""Fine-tuning: a linear classifier that starts at zero on a network whose weights all train.

SimCLRv2's second stage (arXiv 2006.10029 section 2) with `backbone.init: RUN:backbone+head1`; from any other export the
usual fine-tuning; without `backbone.init` the supervised baseline, from random weights.
"""

from __future__ import annotations

import copy

from torch import Tensor, nn

from unlabeled.augment import geometry
from unlabeled.augment.photometric import to_input
from unlabeled.data.batch import Batch, Stream
from unlabeled.errors import UserError
from unlabeled.methods.base import BackboneModule, Export, Info, Losses, MakeBackbone, Method, Step, input_of, width_of
from unlabeled.methods.finetune_config import FinetuneConfig
from unlabeled.ops.labels import known_accuracy, known_cross_entropy


class Classifier(nn.Module):
    """Network and linear classifier: [b, 3, S, S] -> logits [b, classes]."""

    def __init__(self, network: BackboneModule, classes: int) -> None:
        super().__init__()
        self.network = network
        self.linear = nn.Linear(width_of(network), classes)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        return self.linear(self.network(x))


class Finetune(Method):
    """Mean cross-entropy on the labelled images; one crop of each."""

    Config = FinetuneConfig

    @classmethod
    def streams(cls, cfg: FinetuneConfig) -> dict[str, Stream]:
        """One crop of every image, with its label."""
        return {"train": Stream((geometry.build(cfg.crop),), labels=True)}

    def __init__(self, cfg: FinetuneConfig, make_backbone: MakeBackbone, info: Info) -> None:
        super().__init__()
        if info.classes is None:
            raise UserError("fine-tuning needs labels, and the data card names no classes")
        network = make_backbone()
        self.input = input_of(network, cfg.crop.size, info)
        self.classifier = Classifier(network, info.classes)

    def views(self, batch: dict[str, Batch], step: Step) -> dict[str, Tensor]:
        """The crops [b, 3, S, S] and their labels."""
        train = batch["train"]
        assert train.label is not None
        return {"view": to_input(train.crops[0], self.input.mean, self.input.std), "label": train.label}

    def forward(self, views: dict[str, Tensor], step: Step) -> Losses:
        """Mean cross-entropy over the images whose label is known."""
        logits, label = self.classifier(views["view"]), views["label"]
        return Losses(
            {"labels": known_cross_entropy(logits, label)}, metrics={"accuracy": known_accuracy(logits, label)}
        )

    def exports(self) -> dict[str, Export]:
        """The classifier, and the network without it."""

        def classifier() -> nn.Module:
            return copy.deepcopy(self.classifier).eval()

        def network() -> nn.Module:
            return copy.deepcopy(self.classifier.network).eval()

        return {
            "classifier": Export(classifier, "logits", self.input),
            "backbone": Export(network, "vector", self.input),
        }
