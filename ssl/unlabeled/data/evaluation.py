"""Every sample of a split once, over all processes; or fixed random crops of it: what is compared needs the same views.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from unlabeled.data.batch import Batch, Clips, Geometry
from unlabeled.data.clips import clips_of, refuse_no_clips
from unlabeled.data.crops import TOGETHER, ClipCrop, cut, shape_of
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

    What the geometry of number e draws of a sample depends on (seed, name, e) and the place of the sample alone. For a
    `ClipCrop` samples are videos: it gives a crop of each of its clips, and all geometries must name the same clips.
    """

    def __init__(self, source: Source, geometries: Sequence[Geometry], seed: int = 0, name: str = "") -> None:
        self.source, self.geometries, self.seed, self.name = source, tuple(geometries), seed, name
        named = [one.clips if isinstance(one, ClipCrop) else None for one in geometries]
        self.clips = named[0] if named else None
        if any(clips != self.clips for clips in named):
            raise ValueError("geometries that are cut together must name the same clips")
        if self.clips is not None:
            refuse_no_clips(source)
        self.together = TOGETHER if self.clips is None else 1
        # what is cut: numbers of a geometry and of a clip
        self.cuts = [(number, clip) for number in range(len(named))
                     for clip in range(1 if self.clips is None else self.clips.count)]

    def make(self, unit: np.ndarray) -> Batch:
        """Return the readable samples among those at the places `unit`, int64 [b], in order; a crop per geometry."""
        reasons = self.source.unreadable
        corrupt: list[str] = [CorruptKey(self.source.key(i), reasons[i]) for i in unit.tolist() if i in reasons]
        indices = np.array([i for i in unit.tolist() if i not in reasons], np.int64)
        parts: list[list[Cut]] = []
        if self.source.images is not None and self.clips is None:
            if len(indices):
                parts.append(self._cut(self.source.images[indices], indices))
        else:
            readable = []
            for first in range(0, len(indices), self.together):
                images, places = self._read(indices[first : first + self.together], corrupt)
                readable += places
                if images:
                    parts.append(self._cut(images, np.array(places, np.int64)))
            indices = np.array(readable, np.int64)
        labels = self.source.labels_of(indices)
        label = None if labels is None else torch.from_numpy(labels)
        cuts = [self._joined(self.geometries[number], [part[place] for part in parts])
                for place, (number, _) in enumerate(self.cuts)]
        return Batch([crop for crop, _ in cuts], [box for _, box in cuts], torch.from_numpy(indices), label, corrupt)

    def _read(self, indices: np.ndarray, corrupt: list[str]) -> tuple[list[np.ndarray], list[int]]:
        """Return images, or clips [count, T, H, W, 3], that can be read, and their places; name others in `corrupt`."""
        images, places = [], []
        for index in indices.tolist():
            try:
                images.append(self.source.image(index) if self.clips is None else self._clips(self.clips, index))
                places.append(index)
            except CorruptSample as error:
                corrupt.append(error.key)
        return images, places

    def _clips(self, clips: Clips, index: int) -> np.ndarray:
        draw = uniforms(np.array([index]), clips.draws, self.seed, self.name, "clips")
        return clips_of(self.source, clips, draw, index)

    def _cut(self, images: np.ndarray | list[np.ndarray], places: np.ndarray) -> list[Cut]:
        draws = [uniforms(places, geometry.draws, self.seed, self.name, number)
                 for number, geometry in enumerate(self.geometries)]
        return [cut(self.geometries[number], images if self.clips is None else [image[clip] for image in images],
                    draws[number]) for number, clip in self.cuts]

    def _joined(self, geometry: Geometry, parts: list[Cut]) -> Cut:
        """Put what a geometry cut behind one another."""
        if len(parts) == 1:
            return parts[0]
        none = torch.zeros(0, *shape_of(geometry), dtype=torch.uint8)
        crops = torch.cat([crop for crop, _ in parts] or [none])
        boxes = [box for _, box in parts if box is not None]
        return crops, torch.cat(boxes or [torch.zeros(0, 7)]) if geometry.boxes else None


def fixed_crops(source: Source, crops: Sequence[Geometry], key: Sequence[Hashable], rank: int, world: int, batch: int,
                workers: int = 0) -> Iterator[Batch]:
    """Yield this process's contiguous part of the split, in order, cut by every geometry of `crops`.

    What is drawn for a sample depends on `key`, the place of the geometry in `crops` and the sample's place in the
    split alone. Unreadable samples are left out and named in `corrupt`; a batch may have no rows.
    """
    units = own_units(len(source), rank, world, batch)
    return batches(_FixedMaker(source, crops, key), units, workers if source.images is None else 0)


class _FixedMaker:
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
