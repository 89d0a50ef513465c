"""Every sample of a split once, over all processes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from unlabeled.data.batch import Batch, Geometry
from unlabeled.data.crops import TOGETHER, cut
from unlabeled.data.loader import batches, own_units
from unlabeled.data.sources.base import CorruptKey, CorruptSample, Source
from unlabeled.ops.random import uniforms

Cut = tuple[Tensor, Tensor | None]  # crops and their boxes, as in `Batch`


def eval_batches(source: Source, geometry: Geometry, rank: int, world: int, batch: int, workers: int = 0,
                 ) -> Iterator[Batch]:
    """Yield this process's contiguous part of the split, in order, in batches of `batch` or fewer, without padding.

    The geometry draws nothing. Unreadable samples are left out and named in `corrupt`. A batch has no rows only if
    none of the process's samples is readable.
    """
    units = own_units(len(source), rank, world, batch)
    ready: Batch | None = None
    for made in batches(ImageMaker(source, [geometry]), units, workers if source.images is None else 0):
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


class ImageMaker:
    """Cuts the samples at given places by every geometry (a `loader.Maker`), decoding each of them once.

    What the geometry of number e draws of a sample depends on (seed, name, e) and the place of the sample alone.
    """

    def __init__(self, source: Source, geometries: Sequence[Geometry], seed: int = 0, name: str = "") -> None:
        self.source, self.geometries, self.seed, self.name = source, tuple(geometries), seed, name

    def make(self, unit: np.ndarray) -> Batch:
        """Return the readable samples among those at the places `unit`, int64 [b], in order; a crop per geometry."""
        reasons = self.source.unreadable
        corrupt: list[str] = [CorruptKey(self.source.key(i), reasons[i]) for i in unit.tolist() if i in reasons]
        indices = np.array([i for i in unit.tolist() if i not in reasons], np.int64)
        parts: list[list[Cut]] = []
        if self.source.images is not None:
            if len(indices):
                parts.append(self._cut(self.source.images[indices], indices))
        else:
            readable = []
            for first in range(0, len(indices), TOGETHER):
                images, places = self._read(indices[first : first + TOGETHER], corrupt)
                readable += places
                if images:
                    parts.append(self._cut(images, np.array(places, np.int64)))
            indices = np.array(readable, np.int64)
        label = None if self.source.labels is None else torch.from_numpy(self.source.labels[indices])
        cuts = [self._joined(number, [part[number] for part in parts]) for number in range(len(self.geometries))]
        return Batch([crop for crop, _ in cuts], [box for _, box in cuts], torch.from_numpy(indices), label, corrupt)

    def _read(self, indices: np.ndarray, corrupt: list[str]) -> tuple[list[np.ndarray], list[int]]:
        """Return the images that can be read, and their places; add the keys of the others to `corrupt`."""
        images, places = [], []
        for index in indices.tolist():
            try:
                images.append(self.source.image(index))
                places.append(index)
            except CorruptSample as error:
                corrupt.append(error.key)
        return images, places

    def _cut(self, images: np.ndarray | list[np.ndarray], places: np.ndarray) -> list[Cut]:
        return [cut(geometry, images, uniforms(places, geometry.draws, self.seed, self.name, number))
                for number, geometry in enumerate(self.geometries)]

    def _joined(self, number: int, parts: list[Cut]) -> Cut:
        """Put what a geometry cut behind one another."""
        if len(parts) == 1:
            return parts[0]
        geometry = self.geometries[number]
        none = torch.zeros(0, 3, geometry.size, geometry.size, dtype=torch.uint8)
        crops = torch.cat([crop for crop, _ in parts] or [none])
        boxes = [box for _, box in parts if box is not None]
        return crops, torch.cat(boxes or [torch.zeros(0, 7)]) if geometry.boxes else None
