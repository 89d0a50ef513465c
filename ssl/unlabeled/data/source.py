"""From a card to a set of images."""

from __future__ import annotations

import difflib
import importlib

import numpy as np

from unlabeled.config.card import Card
from unlabeled.data.base import CorruptSample, Source
from unlabeled.errors import UserError

# kind of source -> its opener, (card, split, root) -> Source
_OPENERS = {
    "shards": "unlabeled.data.shards:open_shards",
    "folder": "unlabeled.data.folder:open_folder",
    "classfolder": "unlabeled.data.folder:open_class_folder",
    "torchvision": "unlabeled.data.torchvision_sets:open_torchvision",
    "array": "unlabeled.data.arrays:open_array",
    "digits": "unlabeled.data.arrays:open_digits",
    "shapes": "unlabeled.data.shapes:open_shapes",
}


def open_source(card: Card, split: str, root: str | None = None) -> Source:
    """Open one split of a card; `root` overrides the card's folder.

    Raises UserError if the split is not in the card, or if files are missing or not as many as the card says.
    """
    if split not in card.splits:
        near = difflib.get_close_matches(split, card.splits, 1)
        hint = f" Did you mean '{near[0]}'?" if near else ""
        raise UserError(f"data card '{card.name}' has no split '{split}' (it has: {', '.join(card.splits)}).{hint}")
    module, name = _OPENERS[card.source.kind].split(":")
    source: Source = getattr(importlib.import_module(module), name)(card, split, root)
    expected = card.splits[split].samples
    if expected is not None and len(source) != expected:
        raise UserError(
            f"data card '{card.name}', split '{split}': {len(source)} images found, but the card says {expected}; "
            "complete the files, or correct 'samples' in the card"
        )
    if source.labels is not None and source.classes is not None and len(source.labels):
        top = int(source.labels.max())
        if top >= len(source.classes):
            raise UserError(f"data card '{card.name}', split '{split}': label {top} found, but only "
                            f"{len(source.classes)} classes are named")
    return InMemory(source) if card.in_memory and source.images is None else source


class InMemory(Source):
    """A source whose images were all decoded at start."""

    def __init__(self, source: Source) -> None:
        super().__init__(source.name, source.split)
        self.source, self.labels, self.classes = source, source.labels, source.classes
        for index in range(len(source)):
            try:
                image = source.image(index)
            except CorruptSample as error:
                self.unreadable[index] = error.reason
                continue
            if self.images is None:
                self.images = np.zeros((len(source), *image.shape), np.uint8)
            if image.shape != self.images.shape[1:]:
                raise UserError(
                    f"data card '{self.name}' says in_memory, but its images differ in size: '{source.key(index)}' is "
                    f"{image.shape[0]} x {image.shape[1]}, others {self.images.shape[1]} x {self.images.shape[2]}; "
                    "set in_memory: false"
                )
            self.images[index] = image
        if self.images is None:
            raise UserError(f"data card '{self.name}', split '{self.split}': none of {len(source)} images is readable")

    def __len__(self) -> int:
        return len(self.source)

    def key(self, index: int) -> str:
        """Return the name under which people find the sample again."""
        return self.source.key(index)

    def image(self, index: int) -> np.ndarray:
        """Return one image, uint8 [H, W, 3]. Raises CorruptSample."""
        if index in self.unreadable:
            raise CorruptSample(self.key(index), self.unreadable[index])
        assert self.images is not None
        return self.images[index]
