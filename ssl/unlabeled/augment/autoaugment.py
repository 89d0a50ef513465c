"""AutoAugment's policy for ImageNet (arXiv 1805.09501 table 9) in torchvision's law, drawn for whole batches.

Every image takes one of 25 sub-policies, each of whose two operations is done with a probability of its own, at a fixed
strength and, where it has one, a random sign.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from unlabeled.augment.operations import OPERATIONS, Operations, apply

GRAY = (128, 128, 128)  # of what comes from outside the image
_BINS = 10  # of a magnitude


class Change(NamedTuple):
    """One operation of a sub-policy; bin: of its magnitude, None where it takes none."""

    name: str
    probability: float
    bin: int | None = None


POLICY: tuple[tuple[Change, Change], ...] = (
    (Change("Posterize", 0.4, 8), Change("Rotate", 0.6, 9)),
    (Change("Solarize", 0.6, 5), Change("AutoContrast", 0.6)),
    (Change("Equalize", 0.8), Change("Equalize", 0.6)),
    (Change("Posterize", 0.6, 7), Change("Posterize", 0.6, 6)),
    (Change("Equalize", 0.4), Change("Solarize", 0.2, 4)),
    (Change("Equalize", 0.4), Change("Rotate", 0.8, 8)),
    (Change("Solarize", 0.6, 3), Change("Equalize", 0.6)),
    (Change("Posterize", 0.8, 5), Change("Equalize", 1.0)),
    (Change("Rotate", 0.2, 3), Change("Solarize", 0.6, 8)),
    (Change("Equalize", 0.6), Change("Posterize", 0.4, 6)),
    (Change("Rotate", 0.8, 8), Change("Color", 0.4, 0)),
    (Change("Rotate", 0.4, 9), Change("Equalize", 0.6)),
    (Change("Equalize", 0.0), Change("Equalize", 0.8)),
    (Change("Invert", 0.6), Change("Equalize", 1.0)),
    (Change("Color", 0.6, 4), Change("Contrast", 1.0, 8)),
    (Change("Rotate", 0.8, 8), Change("Color", 1.0, 2)),
    (Change("Color", 0.8, 8), Change("Solarize", 0.8, 7)),
    (Change("Sharpness", 0.4, 7), Change("Invert", 0.6)),
    (Change("ShearX", 0.6, 5), Change("Equalize", 1.0)),
    (Change("Color", 0.4, 0), Change("Equalize", 0.6)),
    (Change("Equalize", 0.4), Change("Solarize", 0.2, 4)),
    (Change("Solarize", 0.6, 5), Change("AutoContrast", 0.6)),
    (Change("Invert", 0.6), Change("Equalize", 1.0)),
    (Change("Color", 0.6, 4), Change("Contrast", 1.0, 8)),
    (Change("Equalize", 0.8), Change("Equalize", 0.6)),
)
# largest magnitudes of the operations that take a sign, in the units of `operations.apply`
_SIGNED = {"ShearX": 0.3, "Rotate": 30.0, "Color": 0.9, "Contrast": 0.9, "Sharpness": 0.9}


def draw(n: int, generator: torch.Generator) -> Operations:
    """Draw the policy for n images: two operations each, Identity where one is not done."""
    return sub_policies(torch.rand(n, 5, dtype=torch.float64, generator=generator))


def sub_policies(uniforms: Tensor) -> Operations:
    """Turn uniforms float64 [n, 5] into the operations of n images.

    They are: sub-policy, whether its first and its second operation is done, their signs.
    """
    which = (uniforms[:, 0] * len(POLICY)).long()
    number, probability, size, signed = (torch.tensor(column)[which] for column in _columns())
    done, sign = uniforms[:, 1:].split(2, 1)
    magnitude = torch.where(signed & (sign <= 0.5), -size, size)
    done = done <= probability
    return Operations(torch.where(done, number, 0), torch.where(done, magnitude, 0.0))


def auto_augment(images: Tensor, drawn: Operations) -> Tensor:
    """Return uint8 images [n, 3, H, W] after their operations, in new memory."""
    return apply(images, drawn, "nearest", GRAY)


def _columns() -> tuple[list[list[float]], ...]:
    """Return the policy as lists [25, 2]: number of the operation, probability, magnitude, whether it takes a sign."""
    names = list(OPERATIONS)
    return (
        [[names.index(change.name) for change in pair] for pair in POLICY],
        [[change.probability for change in pair] for pair in POLICY],
        [[_magnitude(change) for change in pair] for pair in POLICY],
        [[change.name in _SIGNED for change in pair] for pair in POLICY],
    )


def _magnitude(change: Change) -> float:
    """Return a magnitude in the unit of `operations.apply`, rounded to float32 as torchvision's are."""
    if change.bin is None:
        return 0.0
    if change.name == "Posterize":
        return float(8 - round(4 * change.bin / (_BINS - 1)))
    if change.name == "Solarize":
        return 255 * float(torch.linspace(1.0, 0.0, _BINS)[change.bin])
    return float(torch.linspace(0.0, _SIGNED[change.name], _BINS)[change.bin])
