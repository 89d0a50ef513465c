"""What the protocols on feature maps share: networks, splits with masks, whole images, and the report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from unlabeled.augment.photometric import to_input
from unlabeled.config.card import Card
from unlabeled.config.protocols.dense import Dense
from unlabeled.data.sources.open import Source, open_source
from unlabeled.engine.exports.networks import open_residuals
from unlabeled.engine.maps import LastMap, last_map
from unlabeled.engine.restore import Restored, load_run
from unlabeled.errors import UserError
from unlabeled.evaluation.cautions import cautions
from unlabeled.evaluation.setup import find_card, open_train, pick_export, scored_split
from unlabeled.evaluation.vectors.scores import Score
from unlabeled.methods.base import Input
from unlabeled.ops.precision import Resolved, autocast
from unlabeled.report.report import Number, Report, Split


@dataclass(frozen=True)
class Network:
    """A network that a protocol judges: its last map with (C, h, w), and the input that it expects.

    precision: in which it runs; the protocols are on float32.
    """

    export: str
    map: LastMap
    shape: tuple[int, int, int]
    input: Input
    precision: Resolved = "fp32"

    def prepare(self, images: Tensor) -> Tensor:
        """Turn images, uint8 [b, 3, H, W] on the device, into what the network sees."""
        x = to_input(images, self.input.mean, self.input.std)
        return x.contiguous(memory_format=torch.channels_last)

    def __call__(self, images: Tensor) -> Tensor:
        """Return the maps, float32 [b, C, h, w], of images, uint8 [b, 3, H, W] on the device."""
        with autocast(images.device, self.precision):
            maps: Tensor = self.map(self.prepare(images))
        return maps.float()


def networks(cfg: Dense, restored: Restored, run: Path, size: int | None, device: torch.device,
             ) -> Iterator[tuple[str, Network]]:
    """Yield "network", the run's own, then "random_init", the same untrained with open residual branches, if asked for.

    size: side of the images; None: as in training. The second is made when the first is done with. Raises UserError as
    `last_map` does.
    """
    for kind in ("network", *(["random_init"] if cfg.random_init else [])):
        trained = kind == "network"
        method = (restored if trained else load_run(run, random_init=True, device=device)).method
        name, export = pick_export(method, cfg.export, size)
        found, shape = last_map(name, export if trained else open_residuals(export), device)
        yield kind, Network(name, found, shape, export.input)


@dataclass(frozen=True)
class MaskedSplits:
    """The opened splits of a set with masks, and the names of the masks' classes."""

    card: Card
    train: Source
    test: Source
    names: list[str]


def open_masked(cfg: Dense, restored: Restored) -> MaskedSplits:
    """Open train and test of a protocol's card, its own or the run's. Raises UserError if it has no masks."""
    card, train, test = open_both(cfg, restored, "masks", "voc2012-segmentation")
    assert train.mask_classes is not None
    return MaskedSplits(card, train, test, train.mask_classes)


def open_both(cfg: Dense, restored: Restored, need: Literal["masks", "boxes"], example: str,
              ) -> tuple[Card, Source, Source]:
    """Return a protocol's card, its own or the run's, with train and test opened.

    Raises UserError, with a card as an example, if the training images lack what is needed.
    """
    card, root, own = find_card(cfg.card, cfg.root, restored)
    train = open_train(cfg.train, card, root, own)
    if (train.mask_classes if need == "masks" else train.object_classes) is None:
        raise UserError(f"data card '{card.name}' has no {need}; choose one that has, such as card=shapes96, or "
                        f"card={example} root=FOLDER")
    return card, train, open_source(card, scored_split(cfg.test, card), root)


def dense_report(name: str, cfg: Dense, restored: Restored, export: str, card: Card, splits: tuple[Split, Split],
                 scores: Mapping[str, Mapping[str, Score]], chance: Mapping[str, float], *, measure: str,
                 classes: int | None = None, shared: int = 0) -> Report:
    """Set scores by kind (network, random_init) and number beside chance; splits: train and test as they were used.

    shared: how many of the scored test images stand in train too.
    """
    numbers = [Number(number, chance[number], **{kind: vars(found[number]) for kind, found in scores.items()})
               for number in scores["network"]]
    return Report(
        name=name, settings=cfg.model_dump(mode="json"), run=restored.name, method=restored.recipe.method.name,
        export=export, update=restored.update, train_seed=restored.train_seed, seed=cfg.seed, card=card.name,
        classes=classes, train=splits[0], test=splits[1], numbers=numbers, health={}, measure=measure,
        shared=shared, cautions=cautions(cfg, splits[0].split, splits[1].split, shared, splits[1].n),
    )
