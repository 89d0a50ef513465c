"""Probes trained with augmentation: classifiers on the frozen features of an earlier run, or of a random network.

The linear probe of the papers (arXiv 2002.05709 section B.6), and RotNet's classifiers on inner blocks (arXiv
1803.07728 section 3): several blocks are probed in one run, on the sum of the losses, which does not mix gradients.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn

from unlabeled.augment.photometric import to_input
from unlabeled.backbones.intermediate import outputs, refuse_unknown
from unlabeled.data.batch import Batch, Stream
from unlabeled.errors import UserError
from unlabeled.methods.base import Export, Info, Losses, MakeBackbone, Method, Step, input_of
from unlabeled.methods.classifier import labelled
from unlabeled.methods.probe.config import ProbeConfig
from unlabeled.methods.probe.heads import build_head, feature_shape
from unlabeled.ops.frozen import Frozen
from unlabeled.ops.labels import known, known_accuracy, known_cross_entropy


class Features(nn.Module):
    """Outputs of several blocks of one network, None being its own: [b, 3, S, S] or [b, 3, T, S, S] -> by block."""

    def __init__(self, network: nn.Module, blocks: list[str | None]) -> None:
        super().__init__()
        self.network, self.whole = network, None in blocks
        self.blocks = [block for block in blocks if block is not None]
        for block in self.blocks:
            refuse_unknown(network, block)

    def forward(self, x: Tensor) -> dict[str | None, Tensor]:
        """Return the features by block, all of one pass; tokens are averaged, and maps of clips over their time."""
        features = outputs(self.network, self.blocks, x, whole=self.whole)
        return {block or None: _pooled(y) for block, y in features.items()}


def _pooled(y: Tensor) -> Tensor:
    """Return a vector [b, C] of tokens [b, T, C], a map [b, C, H, W] of one over time [b, C, T, H, W], else y itself.
    """
    return y.mean(1) if y.ndim == 3 else y.mean(2) if y.ndim == 5 else y


class Probed(nn.Module):
    """A network up to a block, with a classifier on it: [b, 3, S, S] or [b, 3, T, S, S] -> logits [b, classes]."""

    def __init__(self, network: nn.Module, block: str | None, head: nn.Module) -> None:
        super().__init__()
        self.features, self.head, self.block = Features(network, [block]), head, block

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        return self.head(self.features(x)[self.block])


class Probe(Method):
    """Classifiers on frozen features in evaluation mode."""

    Config = ProbeConfig

    @classmethod
    def streams(cls, cfg: ProbeConfig) -> dict[str, Stream]:
        """One crop of every image, or one clip of every video, with its label."""
        return {"train": labelled(cfg.crop, cfg.clip)}

    def __init__(self, cfg: ProbeConfig, make_backbone: MakeBackbone, info: Info) -> None:
        super().__init__()
        if info.classes is None:
            raise UserError("a probe needs labels, and the data card names no classes")
        network = make_backbone()
        self.cfg = cfg
        self.input = input_of(network, cfg.crop.size, info, cfg.clip)
        self.features = Frozen(Features(network, [head.block for head in cfg.heads.values()]), "backbone")
        with torch.no_grad():
            sample = self.features(torch.zeros(1, *self.input.shape))
        shapes = {block: feature_shape(features) for block, features in sample.items()}
        self.heads = nn.ModuleDict(
            {name: build_head(head, shapes[head.block], info.classes) for name, head in cfg.heads.items()}
        )

    def views(self, batch: dict[str, Batch], step: Step) -> dict[str, Tensor]:
        """Crops [b, 3, S, S] or clips [b, 3, T, S, S], and labels."""
        train = batch["train"]
        assert train.label is not None
        return {"view": to_input(train.crops[0], self.input.mean, self.input.std), "label": train.label}

    def counts(self, views: dict[str, Tensor]) -> dict[str, Tensor]:
        """The known labels."""
        return {"labels": known(views["label"])}

    def forward(self, views: dict[str, Tensor], step: Step) -> Losses:
        """Mean cross-entropy of every head over the labelled images."""
        features, label = self.features(views["view"]), views["label"]
        count = self.mean_counts(views, step)["labels"]
        losses = Losses({})
        for name, head in self.cfg.heads.items():
            logits = self.heads[name](features[head.block])
            losses.terms[name] = known_cross_entropy(logits, label, count)
            losses.metrics[f"{name}_accuracy"] = known_accuracy(logits, label, count)
        return losses

    def exports(self) -> dict[str, Export]:
        """Per head the whole classifier."""

        def build(name: str, block: str | None) -> Callable[[], nn.Module]:
            network = cast(Features, self.features.network).network
            return lambda: copy.deepcopy(Probed(network, block, self.heads[name])).eval()

        return {
            name: Export(build(name, head.block), "logits", self.input) for name, head in self.cfg.heads.items()
        }
