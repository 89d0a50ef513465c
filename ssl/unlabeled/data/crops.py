"""Cutting images, and the frames of clips, by a geometry."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import cast

import numpy as np
import torch
from torch import Tensor

from unlabeled.data.batch import Clips, Geometry, RecordGeometry
from unlabeled.data.records.rows import Rows
from unlabeled.ops.boxes import CropBox

TOGETHER = 8  # images decoded before they are cropped: draws are shared, memory stays small


@dataclass(frozen=True)
class ClipCrop:
    """A geometry of images that cuts all frames of a clip by one draw; see `shape_of`."""

    crop: Geometry
    clips: Clips

    @property
    def size(self) -> int:
        """Return the side of the output, pixels."""
        return self.crop.size

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the shape of one cut clip."""
        return 3, self.clips.frames, self.size, self.size

    @property
    def draws(self) -> int:
        """Return how many uniform numbers one clip takes."""
        return self.crop.draws

    @property
    def boxes(self) -> bool:
        """Return whether parameters are crop boxes."""
        return self.crop.boxes

    def draw(self, uniforms: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        """Turn uniforms [n, draws] and frame sizes [n, 2] (height, width) into parameters [n, p], float64."""
        return self.crop.draw(uniforms, sizes)

    def apply(self, image: np.ndarray, parameters: np.ndarray) -> np.ndarray:
        """Cut the uint8 frames [T, H, W, 3] of one clip by parameters [p] into uint8 [3, T, size, size]."""
        return np.stack([self.crop.apply(frame, parameters) for frame in image], 1)

    def apply_batch(self, images: Tensor, parameters: np.ndarray) -> Tensor:
        """Cut equally large uint8 clips [n, 3, T, H, W] by parameters [n, p] into uint8 [n, 3, T, size, size]."""
        n, frames = images.shape[0], images.shape[2]
        flat = images.transpose(1, 2).flatten(0, 1)
        return self.crop.apply_batch(flat, parameters.repeat(frames, 0)).unflatten(0, (n, frames)).transpose(1, 2)


def shape_of(geometry: Geometry) -> tuple[int, ...]:
    """Return the shape of what a geometry cuts: [3, size, size], unless it says another one."""
    shape: tuple[int, ...] = getattr(geometry, "shape", (3, geometry.size, geometry.size))
    return shape


def cut(geometry: Geometry, images: np.ndarray | Sequence[np.ndarray], uniforms: np.ndarray, rows: Rows | None = None,
        ) -> tuple[Tensor, Tensor | None]:
    """Cut images by uniforms [b, draws]: crops uint8 [b, 3, S, S] and boxes float32 [b, 7] (see Batch) or None.

    images: one array [b, H, W, 3], which is cut in one call, or single images [H, W, 3], for a `ClipCrop` [T, H, W, 3],
    of any sizes. rows: what is stored of the samples, for a geometry that asks for it.
    """
    sizes = np.array([image.shape[-3:-1] for image in images], np.int64).reshape(-1, 2)
    parameters = drawn(geometry, uniforms, sizes, rows)
    if isinstance(images, np.ndarray):
        crops = geometry.apply_batch(torch.from_numpy(images).permute(0, 3, 1, 2), parameters)
    else:
        cuts = [geometry.apply(image, row) for image, row in zip(images, parameters, strict=True)]
        crops = torch.from_numpy(np.stack(cuts))
    return crops, torch.from_numpy(parameters.astype(np.float32)) if geometry.boxes else None


def drawn(geometry: Geometry, uniforms: np.ndarray, sizes: np.ndarray, rows: Rows | None) -> np.ndarray:
    """Return the parameters [n, p] of crops, for which a `RecordGeometry` also gets its rows."""
    record = getattr(geometry, "record", None)
    if record is None:
        return geometry.draw(uniforms, sizes)
    assert rows is not None
    return cast(RecordGeometry, geometry).draw(uniforms, sizes, rows[record])


def cut_in_turn(geometries: Sequence[Geometry], samples: Iterable[Sequence[np.ndarray]], uniforms: Sequence[np.ndarray],
                rows_of: Callable[[slice], Rows] = lambda _: {}, together: int = TOGETHER,
                ) -> list[tuple[Tensor, Tensor | None]]:
    """Cut images of any sizes, which are decoded as they are asked for, by each geometry and its uniforms [b, draws].

    samples: for each one the image that each geometry cuts (for a `ClipCrop` the frames), `together` of them in memory
    until that is done. rows_of: gives what is stored of samples that were asked for.
    """
    samples, first = iter(samples), 0
    crops = [np.empty((len(draw), *shape_of(geometry)), np.uint8)
             for geometry, draw in zip(geometries, uniforms, strict=True)]
    boxes = [np.empty((len(draw), len(CropBox._fields)), np.float32) for draw in uniforms]
    while part := list(islice(samples, together)):
        stop = first + len(part)
        rows = rows_of(slice(first, stop))
        for number, geometry in enumerate(geometries):
            images = [sample[number] for sample in part]
            sizes = np.array([image.shape[-3:-1] for image in images], np.int64)
            parameters = drawn(geometry, uniforms[number][first:stop], sizes, rows)
            if geometry.boxes:
                boxes[number][first:stop] = parameters
            for row, image in enumerate(images):
                crops[number][first + row] = geometry.apply(image, parameters[row])
        first = stop
    return [(torch.from_numpy(out), torch.from_numpy(box) if geometry.boxes else None)
            for out, box, geometry in zip(crops, boxes, geometries, strict=True)]
