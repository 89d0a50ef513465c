"""Which axis of published label maps is which: by test, since no code and no paper says it (arXiv 2101.05022)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from unlabeled.augment.resample import crop_resize, crop_resize_batch
from unlabeled.config.passes.convert_relabel import Orientation
from unlabeled.data.evaluation import ImageMaker
from unlabeled.data.sources.base import Source
from unlabeled.errors import UserError
from unlabeled.ops.boxes import crop_boxes
from unlabeled.ops.precision import full_precision
from unlabeled.ops.targets.label_pooling import edges, pool
from unlabeled.passes.labelmaps import CellTeacher

_CLEAR = 0.1  # share of the crops by which one orientation must be better


@dataclass(frozen=True)
class Trial:
    """Maps [n, k, H, W] as their files have them, of the samples at `places` [n]."""

    places: np.ndarray
    logit: Tensor
    index: Tensor


@dataclass(frozen=True)
class CornerCrop:
    """A wide crop in the upper right or the lower left of the image, which a transposed map has on the other side."""

    size: int
    draws: ClassVar[int] = 5
    boxes: ClassVar[bool] = True

    def draw(self, uniforms: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        """Turn uniforms [n, 5] (height, width, two gaps, which corner) and image sizes [n, 2] into boxes [n, 7]."""
        sizes = sizes.astype(np.float64)
        extent = np.maximum(np.rint(sizes * (np.array([0.3, 0.45]) + 0.15 * uniforms[:, :2])), 1)
        gap = np.floor(0.1 * uniforms[:, 2:4] * sizes)
        upper = (uniforms[:, 4:] < 0.5) == np.array([True, False])  # the axis along which the crop begins at 0
        place = np.where(upper, gap, np.maximum(sizes - extent - gap, 0))
        return crop_boxes(place, extent, sizes, np.zeros(len(sizes)))

    def apply(self, image: np.ndarray, parameters: np.ndarray) -> np.ndarray:
        """Cut one uint8 image [H, W, 3] by its box [7] into uint8 [3, size, size]."""
        return crop_resize(image, parameters, self.size, "bilinear")

    def apply_batch(self, images: Tensor, parameters: np.ndarray) -> Tensor:
        """Cut equally large uint8 images [n, 3, H, W] by boxes [n, 7] into uint8 [n, 3, size, size]."""
        return crop_resize_batch(images, parameters, self.size, "bilinear")


def orientation_by_test(trial: Trial, source: Source, teacher: CellTeacher, device: torch.device) -> Orientation:
    """Return hw or wh: how the axes of maps lie whose targets of crops are what the teacher sees in them.

    Prints how often both agree. Raises UserError if they do about equally often.
    """
    batch = ImageMaker(source, [CornerCrop(teacher.input.size)], name="orientation").make(trial.places)
    rows = torch.from_numpy(np.searchsorted(trial.places, batch.index.numpy()))
    logit, index, boxes = trial.logit[rows], trial.index[rows], batch.boxes[0]
    assert boxes is not None
    with torch.inference_mode(), full_precision(device):
        seen = torch.cat([teacher.logits(part.to(device)).argmax(1).cpu() for part in batch.crops[0].split(16)])
    classes, where = teacher.linear.out_features, edges(boxes)
    agree = {name: int((pool(a, b, where, classes).argmax(1) == seen).sum())
             for name, a, b in (("hw", logit, index), ("wh", logit.mT, index.mT))}
    told = f"rows first (hw) on {agree['hw']}, columns first (wh) on {agree['wh']} of {len(seen)} crops"
    print(f"maps and teacher agree {told}", flush=True)
    if abs(agree["hw"] - agree["wh"]) < max(1, _CLEAR * len(seen)):
        raise UserError(f"which axis of the label maps is which cannot be told: they agree with the teacher {told}. "
                        "Take a better teacher of the same classes, or say it with orientation=hw or wh")
    return "hw" if agree["hw"] > agree["wh"] else "wh"
