"""How good a segmentation is: mean intersection over union, from a confusion matrix over the pixels of a split."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from unlabeled.data.sources.dense.masks import IGNORED
from unlabeled.evaluation.vectors.scores import Score


def confusion(predicted: Tensor, mask: Tensor, classes: int) -> Tensor:
    """Count pixels by true and predicted class, int64 [C, C]; those whose mask is 255 are left out."""
    counted = mask != IGNORED
    pairs = mask[counted].long() * classes + predicted[counted].long()
    return torch.bincount(pairs, minlength=classes**2).view(classes, classes)


def upsampled_classes(logits: Tensor, height: int, width: int) -> Tensor:
    """Return the class of every pixel [b, H, W] from logits [b, C, h, w], bilinear between the cells."""
    full = F.interpolate(logits, size=(height, width), mode="bilinear", align_corners=False)
    return full.argmax(1)


def class_iou(counts: Tensor) -> Tensor:
    """Return the intersection over union of every class, float64 [C]; NaN for one neither seen nor predicted."""
    right = counts.diagonal().double()
    return right / (counts.sum(0) + counts.sum(1) - counts.diagonal())


def score(counts: Tensor, names: Sequence[str], details: dict[str, Any]) -> Score:
    """Return the mIoU in percent over the classes that were seen or predicted; details: what else is to be kept."""
    by_class = class_iou(counts)
    accuracy = 100.0 * float(counts.diagonal().sum()) / float(counts.sum())
    listed = {name: None if value != value else round(100 * value, 2)
              for name, value in zip(names, by_class.tolist(), strict=True)}
    details = {**details, "pixel accuracy": round(accuracy, 2), "iou": listed}
    return Score(100.0 * float(by_class.nanmean()), details=details)


def constant_miou(counts: Tensor) -> float:
    """Return the mIoU in percent of the best constant answer: the largest class's share over the number of classes."""
    seen = counts.sum(1).double()
    return 100.0 * float(seen.max() / seen.sum() / (seen > 0).sum())
