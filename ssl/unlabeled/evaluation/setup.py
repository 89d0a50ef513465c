"""What an evaluation runs on: device, network, splits, labels; everything that can be refused is refused here."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from unlabeled.config.card import Card
from unlabeled.config.protocol import Protocol
from unlabeled.config.read import read_card
from unlabeled.data.source import Source, open_source
from unlabeled.engine.export import find_export, inner
from unlabeled.engine.launch import join
from unlabeled.engine.restore import Restored
from unlabeled.errors import UserError
from unlabeled.methods.base import Export, Method


@dataclass(frozen=True)
class Splits:
    """The opened splits: train always, test if there are labels; classes: their number and names."""

    card: str
    train: Source
    test: Source | None
    names: list[str]

    def check(self, cfg: Protocol) -> None:
        """Raise UserError if there are too few labels for `cfg`."""
        if self.test is not None and self.train.labels is not None:
            known = self.train.labels[self.train.labels >= 0]
            cfg.check(np.bincount(known, minlength=len(self.names)).tolist(), self.names)


def pick_device(accelerator: Any = None) -> torch.device:
    """Join the processes of the launch, if any, and return this one's device."""
    device: torch.device = (accelerator or join()).device
    return device


def pick_export(method: Method, name: str | None, size: int | None = None) -> tuple[str, Export]:
    """Return the export `name`, or the first that gives features, for images of `size`, or of its own.

    Raises UserError as `find_export` does.
    """
    exports = method.exports()
    if name is None:
        name = next((each for each, export in exports.items() if export.gives != "logits"), None)
    outer, block, export = find_export(exports, name)
    if block is not None:
        export = inner(export, block)
    return name or outer, replace(export, input=replace(export.input, size=size or export.input.size))


def find_card(card: str | None, root: str | None, restored: Restored) -> tuple[Card, str | None, str | None]:
    """Return card and root, those given or the run's, and the run's own split where the card is the run's."""
    stream = restored.recipe.data.streams()[type(restored.method).clock]
    if card is not None:
        return read_card(card), root, None
    return read_card(stream.card), stream.root if root is None else root, stream.split


def open_train(wanted: str | None, card: Card, root: str | None, own: str | None) -> Source:
    """Open the split that gives the labels: `wanted`, else train, else the run's own."""
    return open_source(card, wanted or ("train" if "train" in card.splits else own or "train"), root)


def scored_split(wanted: str | None, card: Card, other: str | None = None) -> str:
    """Return the split that is scored: `wanted`, else test, val or `other`. Raises UserError if there is none."""
    name = wanted or next((split for split in ("test", "val") if split in card.splits), other)
    if name is None:
        raise UserError(f"data card '{card.name}' has neither split test nor val (it has: {', '.join(card.splits)}); "
                        "choose one with test=SPLIT")
    return name


def open_splits(cfg: Protocol, restored: Restored) -> Splits:
    """Open the splits of a protocol: its own card's, or the run's. Raises UserError if there is nothing to score."""
    card, root, own = find_card(cfg.card, cfg.root, restored)
    train = open_train(cfg.train, card, root, own)
    if train.labels is None or not (train.labels >= 0).any():
        return Splits(card.name, train, None, [])
    name = scored_split(cfg.test, card)
    test = open_source(card, name, root)
    if test.labels is None or not (test.labels >= 0).any():
        raise UserError(f"data card '{card.name}': split '{name}' has no labels to score against; "
                        "choose another with test=SPLIT")
    return Splits(card.name, train, test, _class_names(card.name, train, test))


def _class_names(card: str, train: Source, test: Source) -> list[str]:
    """Return the names of the classes, or their numbers. Raises UserError if the two splits number them differently."""
    assert train.labels is not None and test.labels is not None
    if train.classes is None:
        return [str(i) for i in range(int(max(train.labels.max(), test.labels.max())) + 1)]
    if train.classes != test.classes:
        raise UserError(f"data card '{card}': splits '{train.split}' and '{test.split}' have different classes; "
                        "name them in the card with 'classes'")
    return train.classes
