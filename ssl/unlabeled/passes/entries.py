"""The entries of samples: views drawn for a place and an entry, cut, and kept as parameters in their stored types."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from unlabeled.augment.replay.crops import Drawn, StoredCrop, encode
from unlabeled.augment.replay.entries import Law, draw, draw_mixing, numbers, unmixed
from unlabeled.config.passes.reinforce import KIND
from unlabeled.data.batch import Batch
from unlabeled.data.sources.base import CorruptSample, Source
from unlabeled.ops.random import uniforms

_PARTNERS = 10  # tries to find a readable one


@dataclass(frozen=True)
class EntryMaker:
    """Draws the entries of samples and cuts their crops; of one sample they depend on (seed, place) alone.

    A batch has crops [b, entries, 3, S, S], a second one where entries may be mixed, and their fields but class and
    prob as the record `reinforcement`, [b, entries, ...]. Another image takes the place of one that is to be mixed in
    and cannot be read.
    """

    source: Source
    crop: Drawn
    law: Law
    entries: int
    seed: int

    def make(self, unit: np.ndarray) -> Batch:
        """Return the entries of the readable samples at the places `unit`."""
        images, readable, corrupt = [], [], []
        for place in unit.tolist():
            try:
                images.append(self._image(place))
                readable.append(place)
            except CorruptSample as error:
                corrupt.append(error.key)
        index = torch.tensor(readable, dtype=torch.int64)
        if not readable:
            return Batch([], [], index, corrupt=corrupt)
        which = np.concatenate([numbers(place, self.entries) for place in readable])
        own = [image for image in images for _ in range(self.entries)]
        crop, rows = self._view(own, which, second=False)
        crops = [crop]
        if self.law.mix:
            mixing = draw_mixing(self.law, len(self.source), which, self.seed)
            partners = [self._partner(row, number, mixing) for row, number in enumerate(which.tolist())]
            others = [image if other is None else other for image, other in zip(own, partners, strict=True)]
            second, other_rows = self._view(others, which, second=True)
            crops.append(second)
            rows |= {**mixing, **{f"{name}2": value for name, value in other_rows.items()}}
        shape = len(readable), self.entries
        return Batch(
            [torch.from_numpy(crop).unflatten(0, shape) for crop in crops],
            [None] * len(crops),
            index,
            corrupt=corrupt,
            records={KIND: {name: torch.from_numpy(value).unflatten(0, shape) for name, value in rows.items()}},
        )

    def _view(self, images: Sequence[np.ndarray], which: np.ndarray, *, second: bool,
              ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Cut one crop of each image and draw the rest: uint8 [n, 3, S, S] and fields [n, ...]."""
        name = f"{KIND}{2 if second else ''}"
        sizes = np.array([image.shape[:2] for image in images])
        crop = StoredCrop(self.crop)
        boxes = crop.draw(uniforms(which, crop.draws, self.seed, name, "crop"), sizes)
        places, flipped = encode(boxes, self.crop)
        cuts = np.stack([crop.apply(image, box) for image, box in zip(images, boxes, strict=True)])
        return cuts, {"crop": places, "flip": flipped, **draw(self.law, which, self.seed, second)}

    def _partner(self, row: int, number: int, mixing: dict[str, np.ndarray]) -> np.ndarray | None:
        """Return the image that is mixed into an entry, or None; one that cannot be read gives way to others."""
        for attempt in range(_PARTNERS):
            place = int(mixing["partner"][row])
            if place < 0:
                return None
            try:
                return self._image(place)
            except CorruptSample:
                again = uniforms(np.array([number]), 1, self.seed, KIND, "partner", attempt)[0, 0]
                mixing["partner"][row] = int(again * len(self.source))
        for name, values in unmixed(1).items():
            mixing[name][row] = values[0]
        return None

    def _image(self, place: int) -> np.ndarray:
        if place in self.source.unreadable:
            raise CorruptSample(self.source.key(place), self.source.unreadable[place])
        return self.source.image(place)
