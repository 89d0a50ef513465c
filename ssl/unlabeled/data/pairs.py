"""Fixed random crops of every sample of a split once, over all processes: what is compared needs the same views."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence

import numpy as np
import torch

from unlabeled.data.batch import Batch, Geometry
from unlabeled.data.crops import cut
from unlabeled.data.loader import batches, own_units
from unlabeled.data.sources.base import CorruptSample, Source
from unlabeled.ops.random import uniforms


def fixed_crops(source: Source, crops: Sequence[Geometry], key: Sequence[Hashable], rank: int, world: int, batch: int,
                workers: int = 0) -> Iterator[Batch]:
    """Yield this process's contiguous part of the split, in order, cut by every geometry of `crops`.

    What is drawn for a sample depends on `key`, the place of the geometry in `crops` and the sample's place in the
    split alone. Unreadable samples are left out and named in `corrupt`; a batch may have no rows.
    """
    units = own_units(len(source), rank, world, batch)
    return batches(_Maker(source, crops, key), units, workers if source.images is None else 0)


class _Maker:
    def __init__(self, source: Source, crops: Sequence[Geometry], key: Sequence[Hashable]) -> None:
        self.source, self.crops, self.key = source, crops, tuple(key)

    def make(self, unit: np.ndarray) -> Batch:
        """Return the readable samples of a unit."""
        images, readable, corrupt = [], [], []
        for index in unit.tolist():
            try:
                if index in self.source.unreadable:
                    raise CorruptSample(self.source.key(index), self.source.unreadable[index])
                images.append(self.source.image(index))
                readable.append(index)
            except CorruptSample as error:
                corrupt.append(error.key)
        places = np.array(readable, np.int64)
        if not readable:
            empty = [torch.zeros(0, 3, crop.size, crop.size, dtype=torch.uint8) for crop in self.crops]
            return Batch(list(empty), [torch.zeros(0, 7) for _ in self.crops], torch.from_numpy(places), None, corrupt)
        cuts = [cut(crop, images, uniforms(places, crop.draws, *self.key, number))
                for number, crop in enumerate(self.crops)]
        return Batch([crop for crop, _ in cuts], [box for _, box in cuts], torch.from_numpy(places), None, corrupt)
