"""RandAugment as semi-supervised methods use it: random operations of random strength, then a gray square.

The law is that of FixMatch's protocol (arXiv 2001.07685 appendix, 1909.13719). Images stay uint8 between operations,
whose values are those of PIL (tests compare them). Drawing is apart from applying, as in `augment.photometric`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2.functional import equalize as equalize_images

from unlabeled.ops.machine.memory import to_device

GRAY = (125, 123, 114)  # what the square is filled with
_FIXED = 1 << 16  # PIL computes places in 16.16 fixed point


class RandAugment(NamedTuple):
    """What is done to n samples, on the CPU.

    operation: int64 [n, k], indices of OPERATIONS in the order in which they are applied. amount: float64 [n, k] in
    [0, 1), the place in the operation's range. square: float64 [n, 3], side of the square and its centre's row and
    column, as shares of the image's side.
    """

    operation: Tensor
    amount: Tensor
    square: Tensor

    def rows(self, part: slice) -> RandAugment:
        """Return the parameters of these samples."""
        return RandAugment(*(values[part] for values in self))


def draw(n: int, operations: int, square: float, generator: torch.Generator) -> RandAugment:
    """Draw `operations` of OPERATIONS with replacement, and a square of up to `square` of the side, for n samples."""
    uniform = torch.rand(n, 2 * operations + 3, dtype=torch.float64, generator=generator)
    which, amount, place = uniform.split([operations, operations, 3], 1)
    side = place * torch.tensor([square, 1.0, 1.0], dtype=torch.float64)
    return RandAugment((which * len(OPERATIONS)).long(), amount, side)


def apply(x: Tensor, drawn: RandAugment) -> Tensor:
    """Return uint8 images x [n, 3, H, W] after their operations and the square, in new memory.

    In each stage the samples are grouped by operation, so each pays for its own only.
    """
    x = x.clone(memory_format=torch.contiguous_format)
    for which, amount in zip(drawn.operation.unbind(1), drawn.amount.unbind(1), strict=True):
        for index, operation in enumerate(OPERATIONS.values()):
            samples = (which == index).nonzero().squeeze(1)
            if len(samples):
                rows = to_device(samples, x.device)
                x.index_copy_(0, rows, operation(x.index_select(0, rows), amount[samples]))
    return _fill_square(x, drawn.square)


# ---- operations: uint8 [n, 3, H, W] and amounts [n] on the CPU -> uint8 [n, 3, H, W]


def autocontrast(x: Tensor, amount: Tensor) -> Tensor:
    """Stretch every channel to the whole range."""
    low, high = (v.double() for v in (x.amin((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)))
    # a true division: `255 / x` is 255 times the rounded reciprocal
    scale = torch.full_like(low, 255).div_((high - low).clamp_min(1))
    stretched = (x * scale - low * scale).clamp_(0, 255).to(torch.uint8)
    return torch.where(high > low, stretched, x)


def brightness(x: Tensor, amount: Tensor) -> Tensor:
    """Blend with black."""
    return _blend(x, torch.zeros_like(x), _factor(amount))


def color(x: Tensor, amount: Tensor) -> Tensor:
    """Blend with the gray image."""
    return _blend(x, _gray(x), _factor(amount))


def contrast(x: Tensor, amount: Tensor) -> Tensor:
    """Blend with the mean of the gray image."""
    mean = (_gray(x).double().mean((2, 3), keepdim=True) + 0.5).to(torch.uint8)
    return _blend(x, mean, _factor(amount))


def equalize(x: Tensor, amount: Tensor) -> Tensor:
    """Flatten the histogram of every channel."""
    return equalize_images(x)


def identity(x: Tensor, amount: Tensor) -> Tensor:
    """Leave the image as it is."""
    return x


def posterize(x: Tensor, amount: Tensor) -> Tensor:
    """Keep the upper 4 to 7 bits (8 at an amount of 1)."""
    dropped = 4 - (4 * amount).long()
    return x & _per_sample(256 - (1 << dropped), x)


def rotate(x: Tensor, amount: Tensor) -> Tensor:
    """Rotate by -30 to 30 degrees about the centre; what comes from outside is black, as in all that follows."""
    angle = torch.deg2rad(60 * amount - 30)
    cos, sin = angle.cos(), angle.sin()
    middle_x, middle_y = x.shape[3] / 2, x.shape[2] / 2
    return _warp(x, cos, -sin, middle_x - cos * middle_x + sin * middle_y,
                 sin, cos, middle_y - sin * middle_x - cos * middle_y)  # fmt: skip


def sharpness(x: Tensor, amount: Tensor) -> Tensor:
    """Blend with a smoothed image, whose outermost pixels stay as they are."""
    kernel = to_device(torch.tensor([[1.0, 1, 1], [1, 5, 1], [1, 1, 1]]), x.device).expand(3, 1, 3, 3)
    inner = F.conv2d(x.float(), kernel, groups=3)
    smooth = x.clone()
    smooth[:, :, 1:-1, 1:-1] = ((2 * inner + 13) / 26).floor().to(torch.uint8)
    return _blend(x, smooth, _factor(amount))


def shear_x(x: Tensor, amount: Tensor) -> Tensor:
    """Shift every row by -0.3 to 0.3 of its number."""
    one, none = torch.ones_like(amount), torch.zeros_like(amount)
    return _warp(x, one, _signed(amount), none, none, one, none)


def shear_y(x: Tensor, amount: Tensor) -> Tensor:
    """Shift every column by -0.3 to 0.3 of its number."""
    one, none = torch.ones_like(amount), torch.zeros_like(amount)
    return _warp(x, one, none, none, _signed(amount), one, none)


def solarize(x: Tensor, amount: Tensor) -> Tensor:
    """Invert the pixels at or above a threshold of 0 to 256."""
    return torch.where(x < _per_sample((256 * amount).float(), x), x, 255 - x)


def translate_x(x: Tensor, amount: Tensor) -> Tensor:
    """Shift by -0.3 to 0.3 of the width."""
    one, none = torch.ones_like(amount), torch.zeros_like(amount)
    return _warp(x, one, none, _signed(amount) * x.shape[3], none, one, none)


def translate_y(x: Tensor, amount: Tensor) -> Tensor:
    """Shift by -0.3 to 0.3 of the height."""
    one, none = torch.ones_like(amount), torch.zeros_like(amount)
    return _warp(x, one, none, none, none, one, _signed(amount) * x.shape[2])


OPERATIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    operation.__name__: operation
    for operation in (
        autocontrast, brightness, color, contrast, equalize, identity, posterize, rotate, sharpness, shear_x, shear_y,
        solarize, translate_x, translate_y,
    )
}  # fmt: skip


def _factor(amount: Tensor) -> Tensor:
    return 0.05 + 0.9 * amount


def _signed(amount: Tensor) -> Tensor:
    return 0.6 * amount - 0.3


def _per_sample(values: Tensor, x: Tensor) -> Tensor:
    """Return values [n] on x's device as [n, 1, 1, 1]; whole numbers become uint8."""
    values = values if values.is_floating_point() else values.to(torch.uint8)
    return to_device(values, x.device).view(-1, 1, 1, 1)


def _blend(x: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    """Return other + factor (x - other), cut down to whole numbers."""
    other = other.float()
    return (x - other).mul_(_per_sample(factor.float(), x)).add_(other).to(torch.uint8)


def _gray(x: Tensor) -> Tensor:
    red, green, blue = x.int().split(1, dim=1)
    return ((red * 19595 + green * 38470 + blue * 7471 + 32768) >> 16).to(torch.uint8)


def _warp(x: Tensor, *matrix: Tensor) -> Tensor:
    """Take every output pixel (column u, row v) from the pixel in which (a u + b v + c, d u + e v + f) lies.

    matrix: a, b, c, d, e, f, float64 [n] on the CPU; u and v are centres of pixels.
    """
    a, b, c, d, e, f = matrix
    steps = torch.stack([a, b, c + 0.5 * (a + b), d, e, f + 0.5 * (d + e)], 1)
    fixed = to_device((steps * _FIXED + 0.5).floor().long(), x.device).view(-1, 6, 1, 1)
    n, channels, height, width = x.shape
    u, v = torch.arange(width, device=x.device), torch.arange(height, device=x.device)[:, None]
    a, b, c, d, e, f = fixed.unbind(1)
    column, row = (a * u + b * v + c) >> 16, (d * u + e * v + f) >> 16
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    place = (row.clamp(0, height - 1) * width + column.clamp(0, width - 1)).view(n, 1, -1).expand(-1, channels, -1)
    return x.flatten(2).gather(2, place).view_as(x) * inside[:, None]


def _fill_square(x: Tensor, square: Tensor) -> Tensor:
    side, row, column = to_device(square, x.device).view(-1, 3, 1, 1).unbind(1)
    height, width = x.shape[2:]
    v = (torch.arange(height, device=x.device, dtype=torch.float64)[:, None] + 0.5) / height
    u = (torch.arange(width, device=x.device, dtype=torch.float64) + 0.5) / width
    covered = ((v - row).abs() < side / 2) & ((u - column).abs() < side / 2)
    gray = to_device(torch.tensor(GRAY, dtype=torch.uint8), x.device).view(1, 3, 1, 1)
    return torch.where(covered[:, None], gray, x)
