"""Every sample of a split once, over all processes."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from unlabeled.data.batch import Batch, Geometry
from unlabeled.data.crops import TOGETHER, cut
from unlabeled.data.loader import batches, own_units
from unlabeled.data.sources.base import CorruptKey, CorruptSample, Source


def eval_batches(source: Source, geometry: Geometry, rank: int, world: int, batch: int, workers: int = 0,
                 ) -> Iterator[Batch]:
    """Yield this process's contiguous part of the split, in order, in batches of `batch` or fewer, without padding.

    The geometry draws nothing. Unreadable samples are left out and named in `corrupt`. A batch has no rows only if
    none of the process's samples is readable.
    """
    units = own_units(len(source), rank, world, batch)
    ready: Batch | None = None
    for made in batches(_EvalMaker(source, geometry), units, workers if source.images is None else 0):
        if ready is None or len(made.index) == 0 or len(ready.index) == 0:
            ready = made if ready is None else _merge(ready, made)
            continue
        yield ready
        ready = made
    if ready is not None:
        yield ready


def _merge(first: Batch, second: Batch) -> Batch:
    """Join two batches of which one has no rows."""
    full = second if len(first.index) == 0 else first
    return Batch(full.crops, full.boxes, full.index, full.label, first.corrupt + second.corrupt)


class _EvalMaker:
    def __init__(self, source: Source, geometry: Geometry) -> None:
        self.source, self.geometry = source, geometry

    def make(self, unit: np.ndarray) -> Batch:
        """Return the readable samples of a unit."""
        reasons = self.source.unreadable
        corrupt: list[str] = [CorruptKey(self.source.key(i), reasons[i]) for i in unit.tolist() if i in reasons]
        indices = np.array([i for i in unit if int(i) not in self.source.unreadable], np.int64)
        if self.source.images is not None:
            crops, boxes = self._cut(self.source.images[indices])
        else:
            readable, parts = [], []
            for first in range(0, len(indices), TOGETHER):
                images = []
                for index in indices[first : first + TOGETHER].tolist():
                    try:
                        images.append(self.source.image(index))
                        readable.append(index)
                    except CorruptSample as error:
                        corrupt.append(error.key)
                if images:
                    parts.append(self._cut(images))
            indices = np.array(readable, np.int64)
            if parts:
                crops = torch.cat([crop for crop, _ in parts])
                boxes = torch.cat([box for _, box in parts if box is not None]) if self.geometry.boxes else None
            else:
                crops, boxes = self._empty()
        label = None if self.source.labels is None else torch.from_numpy(self.source.labels[indices])
        return Batch([crops], [boxes], torch.from_numpy(indices), label, corrupt)

    def _cut(self, images: np.ndarray | list[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor | None]:
        if len(images) == 0:
            return self._empty()
        return cut(self.geometry, images, np.zeros((len(images), self.geometry.draws)))

    def _empty(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        size = self.geometry.size
        return torch.zeros(0, 3, size, size, dtype=torch.uint8), torch.zeros(0, 7) if self.geometry.boxes else None
