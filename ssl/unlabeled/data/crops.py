"""Cutting images by a geometry."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from unlabeled.data.batch import Geometry

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
