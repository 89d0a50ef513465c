"""The entries of samples: views drawn for a place and an entry, cut, and kept as parameters in their stored types."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from unlabeled.augment.replay.crops import Drawn, StoredCrop, encode
from unlabeled.augment.replay.entries import Law, draw, draw_mixing, numbers, unmixed
from unlabeled.data.batch import Batch
from unlabeled.data.sources.base import CorruptSample, Source
from unlabeled.ops.random import uniforms

KIND = "reinforcement"  # of the rows, and the name of their record
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
        samples, readable, corrupt = [], [], []
        for place in unit.tolist():
            try:
                samples.append(self._sample(place))
                readable.append(place)
            except CorruptSample as error:
                corrupt.append(error.key)
        index = torch.tensor(readable, dtype=torch.int64)
        if not samples:
            return Batch([], [], index, corrupt=corrupt)
        crops = [torch.from_numpy(np.stack(cuts)) for cuts in zip(*(cuts for cuts, _ in samples), strict=True)]
        rows = {name: torch.from_numpy(np.stack([row[name] for _, row in samples])) for name in samples[0][1]}
        return Batch(crops, [None] * len(crops), index, corrupt=corrupt, records={KIND: rows})

    def _sample(self, place: int) -> tuple[list[np.ndarray], dict[str, np.ndarray]]:
        image, which = self._image(place), numbers(place, self.entries)
        cut, row = self._view([image] * self.entries, which, second=False)
        if not self.law.mix:
            return [cut], row
        mixing = draw_mixing(self.law, len(self.source), which, self.seed)
        others = [self._partner(int(number), mixing, entry) for entry, number in enumerate(which)]
        second, other_row = self._view([image if other is None else other for other in others], which, second=True)
        return [cut, second], {**row, **mixing, **{f"{name}2": value for name, value in other_row.items()}}

    def _view(self, images: Sequence[np.ndarray], which: np.ndarray, *, second: bool,
              ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Cut one crop of each image and draw the rest: uint8 [entries, 3, S, S] and fields [entries, ...]."""
        name = f"{KIND}{2 if second else ''}"
        sizes = np.array([image.shape[:2] for image in images])
        crop = StoredCrop(self.crop)
        boxes = crop.draw(uniforms(which, crop.draws, self.seed, name, "crop"), sizes)
        places, flipped = encode(boxes, self.crop)
        cuts = np.stack([crop.apply(image, box) for image, box in zip(images, boxes, strict=True)])
        return cuts, {"crop": places, "flip": flipped, **draw(self.law, which, self.seed, second)}

    def _partner(self, number: int, mixing: dict[str, np.ndarray], entry: int) -> np.ndarray | None:
        """Return the image that is mixed into an entry, or None; one that cannot be read gives way to others."""
        for attempt in range(_PARTNERS):
            place = int(mixing["partner"][entry])
            if place < 0:
                return None
            try:
                return self._image(place)
            except CorruptSample:
                again = uniforms(np.array([number]), 1, self.seed, KIND, "partner", attempt)[0, 0]
                mixing["partner"][entry] = int(again * len(self.source))
        for name, values in unmixed(1).items():
            mixing[name][entry] = values[0]
        return None

    def _image(self, place: int) -> np.ndarray:
        if place in self.source.unreadable:
            raise CorruptSample(self.source.key(place), self.source.unreadable[place])
        return self.source.image(place)
