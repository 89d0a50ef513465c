"""Scores, and what all probes share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

_ROWS = 4096  # that are measured at once


@dataclass(frozen=True)
class Score:
    """One result in percent; deviation over draws where there are several; details: settings that were chosen."""

    value: float
    deviation: float | None = None
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Scale:
    """Mean and deviation of the training features, float32 [F]."""

    mean: Tensor
    std: Tensor

    @classmethod
    def of(cls, x: Tensor, rows: np.ndarray | None = None) -> Scale:
        """Measure x [n, F], or the `rows` of it, int64; a feature that never changes keeps its scale.

        In float64, part by part, so that no second copy of x is made.
        """
        places = torch.arange(len(x)) if rows is None else torch.from_numpy(rows)
        mean = torch.zeros(x.shape[1], dtype=torch.float64)
        square = torch.zeros_like(mean)
        for part in places.split(_ROWS):
            mean += x[part].double().sum(0) / len(places)
        for part in places.split(_ROWS):
            square += (x[part].double() - mean).square().sum(0) / len(places)
        std = square.sqrt()
        return cls(mean.float(), torch.where(std > 1e-8 * mean.abs() + 1e-30, std, 1.0).float())

    @classmethod
    def none(cls, x: Tensor) -> Scale:
        """Return the scale that leaves x [n, F] as it is."""
        return cls(torch.zeros(x.shape[1]), torch.ones(x.shape[1]))

    def __call__(self, x: Tensor) -> Tensor:
        """Standardise x [n, F]."""
        return (x - self.mean).div_(self.std)


def accuracy(predicted: Tensor, label: Tensor) -> float:
    """Return the share of equal entries in percent."""
    return 100.0 * float((predicted.cpu() == label.cpu()).double().mean())


def plain(number: float) -> str:
    """Write a setting as short as it is exact, without the zero before the point: .07, 1, 1e-05."""
    text = f"{number:g}"
    return text[1:] if text.startswith("0.") else text
