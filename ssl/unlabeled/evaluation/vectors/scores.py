"""Scores, and what all probes share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


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
    def of(cls, x: Tensor) -> Scale:
        """Measure x [n, F]; a feature that never changes keeps its scale."""
        std, mean = torch.std_mean(x.double(), dim=0, correction=0)
        return cls(mean.float(), torch.where(std > 1e-8 * mean.abs() + 1e-30, std, 1.0).float())

    def __call__(self, x: Tensor) -> Tensor:
        """Standardise x [n, F]."""
        return (x - self.mean) / self.std


def accuracy(predicted: Tensor, label: Tensor) -> float:
    """Return the share of equal entries in percent."""
    return 100.0 * float((predicted.cpu() == label.cpu()).double().mean())


def plain(number: float) -> str:
    """Write a setting as short as it is exact, without the zero before the point: .07, 1, 1e-05."""
    text = f"{number:g}"
    return text[1:] if text.startswith("0.") else text
