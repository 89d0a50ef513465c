"""torchvision's operations of RandAugment and AutoAugment on batches, every sample with its own operation and strength.

Drawing is apart from applying, as in `augment.photometric`; what is computed is torchvision's to the bit.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from functools import partial
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from unlabeled.ops.machine.memory import to_device

Interpolation = Literal["nearest", "bilinear"]

BINS = 31  # of a RandAugment magnitude, as torchvision and timm count them


class Operations(NamedTuple):
    """What is done to n samples, on the CPU: k operations each, in order.

    operation: int64 [n, k], indices of OPERATIONS. magnitude: float64 [n, k], in the operation's unit (see `apply`).
    """

    operation: Tensor
    magnitude: Tensor

    def rows(self, part: slice | Tensor) -> Operations:
        """Return the parameters of these samples."""
        return Operations(self.operation[part], self.magnitude[part])


def draw_rand_augment(n: int, operations: int, magnitude: int, side: int, generator: torch.Generator) -> Operations:
    """Draw RandAugment (arXiv 1909.13719) for n samples of side x side pixels in torchvision's law.

    magnitude: bin of 31.
    """
    drawn = torch.rand(n, 2 * operations, dtype=torch.float64, generator=generator)
    return rand_augment(drawn, magnitude, side)


def rand_augment(uniforms: Tensor, magnitude: int, side: int) -> Operations:
    """Turn uniforms float64 [n, 2 k] (k operations, k signs) into RandAugment's operations of n samples.

    Each is one of the first 14 of OPERATIONS; magnitude: bin of 31. Signs are drawn for shear, translation, rotation
    and the four enhancements.
    """
    strengths, signed = _strengths(magnitude, side)
    which, sign = uniforms.chunk(2, 1)
    operation = (which * len(strengths)).long()
    size = strengths[operation]
    return Operations(operation, torch.where(signed[operation] & (sign <= 0.5), -size, size))


def apply(x: Tensor, drawn: Operations, interpolation: Interpolation, fill: tuple[int, ...] | None = None) -> Tensor:
    """Return uint8 images x [n, 3, H, W] after their operations, in new memory.

    Magnitudes are tangents of the shear, pixels of the translation (cut to whole ones), degrees, factors less 1 of the
    enhancements, bits that posterize keeps, and the grey level from which solarize inverts; the others take none.
    fill: grey levels [3] of what comes from outside; None is torchvision's default, black. In each stage samples of
    equal operation and magnitude are changed together.
    """
    x = x.clone(memory_format=torch.contiguous_format)
    how = InterpolationMode(interpolation), None if fill is None else list(fill)
    for operation, magnitude in zip(drawn.operation.unbind(1), drawn.magnitude.unbind(1), strict=True):
        groups: dict[tuple[int, float], list[int]] = {}
        for sample, key in enumerate(zip(operation.tolist(), magnitude.tolist(), strict=True)):
            groups.setdefault(key, []).append(sample)
        for (index, strength), samples in groups.items():
            if index:  # 0 leaves the image as it is
                rows = to_device(torch.tensor(samples), x.device)
                change = list(OPERATIONS.values())[index]
                x.index_copy_(0, rows, change(x.index_select(0, rows), strength, *how))
    return x


# ---- operations: uint8 [n, 3, H, W], magnitude, interpolation, fill -> uint8 [n, 3, H, W]

Fill = list[int] | None
Operation = Callable[[Tensor, float, InterpolationMode, Fill], Tensor]


def _shear(x: Tensor, magnitude: float, interpolation: InterpolationMode, fill: Fill, *, axis: int) -> Tensor:
    """Shear about the upper left corner; axis: 0 across, 1 down."""
    shear = [0.0, 0.0]
    shear[axis] = math.degrees(math.atan(magnitude))
    return F.affine(x, 0.0, [0, 0], 1.0, shear, interpolation, fill=fill, center=[0, 0])


def _translate(x: Tensor, magnitude: float, interpolation: InterpolationMode, fill: Fill, *, axis: int) -> Tensor:
    shift = [0, 0]
    shift[axis] = int(magnitude)
    return F.affine(x, 0.0, shift, 1.0, [0.0, 0.0], interpolation, fill=fill)


def _rotate(x: Tensor, magnitude: float, interpolation: InterpolationMode, fill: Fill) -> Tensor:
    return F.rotate(x, magnitude, interpolation, fill=fill)


def _enhance(x: Tensor, magnitude: float, *_: object, adjust: Callable[[Tensor, float], Tensor]) -> Tensor:
    return adjust(x, 1.0 + magnitude)


def _posterize(x: Tensor, magnitude: float, *_: object) -> Tensor:
    return F.posterize(x, int(magnitude))


def _solarize(x: Tensor, magnitude: float, *_: object) -> Tensor:
    return F.solarize(x, magnitude)


def _alone(x: Tensor, magnitude: float, *_: object, change: Callable[[Tensor], Tensor]) -> Tensor:
    return change(x)


# RandAugment draws from all but the last, which AutoAugment has besides; stored parameters name them by their numbers
OPERATIONS: dict[str, Operation] = {
    "Identity": partial(_alone, change=torch.clone),
    "ShearX": partial(_shear, axis=0),
    "ShearY": partial(_shear, axis=1),
    "TranslateX": partial(_translate, axis=0),
    "TranslateY": partial(_translate, axis=1),
    "Rotate": _rotate,
    "Brightness": partial(_enhance, adjust=F.adjust_brightness),
    "Color": partial(_enhance, adjust=F.adjust_saturation),
    "Contrast": partial(_enhance, adjust=F.adjust_contrast),
    "Sharpness": partial(_enhance, adjust=F.adjust_sharpness),
    "Posterize": _posterize,
    "Solarize": _solarize,
    "AutoContrast": partial(_alone, change=F.autocontrast),
    "Equalize": partial(_alone, change=F.equalize),
    "Invert": partial(_alone, change=F.invert),
}
RAND_AUGMENT = [name for name in OPERATIONS if name != "Invert"]


@functools.cache
def _strengths(magnitude: int, side: int) -> tuple[Tensor, Tensor]:
    """Return the sizes of RandAugment's magnitudes, float64 [14], and whether they take a sign, bool [14].

    Rounded to float32, as torchvision's are.
    """
    share = magnitude / (BINS - 1)
    enhancements = ("Brightness", "Color", "Contrast", "Sharpness")
    top = {"ShearX": 0.3, "ShearY": 0.3, "TranslateX": 150 / 331 * side, "TranslateY": 150 / 331 * side,
           "Rotate": 30.0, **dict.fromkeys(enhancements, 0.9)}  # fmt: skip
    sizes = {name: float(torch.linspace(0.0, limit, BINS)[magnitude]) for name, limit in top.items()}
    sizes["Posterize"] = float(8 - round(4 * share))
    sizes["Solarize"] = 255 * float(torch.linspace(1.0, 0.0, BINS)[magnitude])
    return (torch.tensor([sizes.get(name, 0.0) for name in RAND_AUGMENT], dtype=torch.float64),
            torch.tensor([name in top for name in RAND_AUGMENT]))
