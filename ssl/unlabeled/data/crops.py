"""Cutting images by a geometry."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from unlabeled.data.batch import Geometry
from unlabeled.ops.boxes import CropBox

TOGETHER = 8  # images decoded before they are cropped: draws are shared, memory stays small


def cut(geometry: Geometry, images: np.ndarray | Sequence[np.ndarray], uniforms: np.ndarray,
        ) -> tuple[Tensor, Tensor | None]:
    """Cut images by uniforms [b, draws]: crops uint8 [b, 3, S, S] and boxes float32 [b, 7] (see Batch) or None.

    images: one array [b, H, W, 3], which is cut in one call, or single images [H, W, 3] of any sizes.
    """
    sizes = np.array([image.shape[:2] for image in images], np.int64).reshape(-1, 2)
    parameters = geometry.draw(uniforms, sizes)
    if isinstance(images, np.ndarray):
        crops = geometry.apply_batch(torch.from_numpy(images).permute(0, 3, 1, 2), parameters)
    else:
        cuts = [geometry.apply(image, row) for image, row in zip(images, parameters, strict=True)]
        crops = torch.from_numpy(np.stack(cuts))
    return crops, torch.from_numpy(parameters.astype(np.float32)) if geometry.boxes else None


def cut_in_turn(geometries: Sequence[Geometry], images: Iterable[np.ndarray], uniforms: Sequence[np.ndarray],
                ) -> list[tuple[Tensor, Tensor | None]]:
    """Cut images of any sizes, which are decoded as they are asked for, by each geometry and its uniforms [b, draws].

    Every image is decoded once and in memory only until all its crops are cut.
    """
    images, first = iter(images), 0
    crops = [np.empty((len(draw), 3, geometry.size, geometry.size), np.uint8)
             for geometry, draw in zip(geometries, uniforms, strict=True)]
    boxes = [np.empty((len(draw), len(CropBox._fields)), np.float32) for draw in uniforms]
    while together := list(islice(images, TOGETHER)):
        stop = first + len(together)
        sizes = np.array([image.shape[:2] for image in together], np.int64)
        for out, box, geometry, draw in zip(crops, boxes, geometries, uniforms, strict=True):
            parameters = geometry.draw(draw[first:stop], sizes)
            if geometry.boxes:
                box[first:stop] = parameters
            for row, image in enumerate(together):
                out[first + row] = geometry.apply(image, parameters[row])
        first = stop
    return [(torch.from_numpy(out), torch.from_numpy(box) if geometry.boxes else None)
            for out, box, geometry in zip(crops, boxes, geometries, strict=True)]
