"""Gaussian blur of batches with a deviation per sample, as products with banded matrices."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from unlabeled.augment.color import apply_to
from unlabeled.ops.machine.memory import to_device

Padding = Literal["reflect", "zeros"]

# On a CPU a large image is blurred in blocks of this many rows or columns, which skips most of the matrix's zeros.
_BLOCK = 32
_SMALL = 64  # side up to which the whole matrix is used, for many images at once
# Taps further out than this many deviations weigh less than 1e-6 of the middle one; there they are left out.
_REACH = 5.3


class Blur(NamedTuple):
    """Gaussian blur of n samples, on the CPU. active: bool [n]. sigma: deviation in pixels, float64 [n]."""

    active: Tensor
    sigma: Tensor

    def rows(self, part: slice) -> Blur:
        """Return the parameters of these samples."""
        return Blur(self.active[part], self.sigma[part])


def draw_blur(
    n: int, p: float, sigma: tuple[float, float], generator: torch.Generator, *, one_sigma: bool = False
) -> Blur:
    """Choose each of n samples with probability p and draw its deviation, or one for all, from the range `sigma`."""
    active, share = torch.rand(n, 2, dtype=torch.float64, generator=generator).unbind(1)
    low, high = sigma
    return Blur(active < p, low + (high - low) * (share[:1].expand(n) if one_sigma else share))


def default_taps(size: int) -> int:
    """Return SimCLR's number of taps for images of `size` pixels: about a tenth of the side, and odd (224: 23)."""
    return 2 * (size // 10 // 2) + 1


def blur(
    x: Tensor, params: Blur, *, taps: int | None = None, padding: Padding = "reflect", inplace: bool = False
) -> Tensor:
    """Blur the chosen samples of x [n, 3, H, W] with `taps` taps (odd; by default `default_taps(W)`).

    padding: "reflect" as torchvision, "zeros" as SimCLR. The result is clipped to [0, 1].
    """
    taps = default_taps(x.shape[-1]) if taps is None else taps
    if taps == 1:
        return x
    if taps % 2 == 0 or (padding == "reflect" and taps // 2 >= min(x.shape[-2:])):
        raise ValueError(f"blur needs an odd number of taps, below twice the image's side if it reflects; got {taps}")
    sigma = params.sigma[params.active]

    def operate(part: Tensor) -> Tensor:
        if part.device.type == "cpu" and part.shape[-1] > _SMALL:
            images = [_blur_blocks(image, s, taps, padding) for image, s in zip(part, sigma, strict=True)]
            return images[0][None] if len(images) == 1 else torch.stack(images)
        return _blur_whole(part, sigma, taps, padding)

    return apply_to(x, params.active, operate, inplace)


def _blur_whole(x: Tensor, sigma: Tensor, taps: int, padding: Padding) -> Tensor:
    """Blur x [n, C, H, W] with sigma [n], a CPU tensor: rows @ x @ columns^T."""
    n, channels, height, width = x.shape
    kernel = to_device(_kernel(sigma, taps // 2).to(x.dtype), x.device)
    rows, columns = _matrix(kernel, height, padding), _matrix(kernel, width, padding)
    with torch.autocast(x.device.type, enabled=False):
        across = torch.bmm(x.transpose(1, 2).reshape(n, height * channels, width), columns.transpose(1, 2))
        out = torch.bmm(rows, across.view(n, height, channels * width))
    return out.view(n, height, channels, width).transpose(1, 2).clamp_(0, 1)


def _blur_blocks(image: Tensor, sigma: Tensor, taps: int, padding: Padding) -> Tensor:
    """Blur one image [C, H, W]: a block of outputs depends on itself and a rim of the kernel's radius only."""
    channels, height, width = image.shape
    radius = min(taps // 2, math.ceil(_REACH * sigma.item()))
    kernel = _kernel(sigma.view(1), radius).to(image.dtype)
    rows = _matrix(kernel, height, padding)[0]
    columns = rows if height == width else _matrix(kernel, width, padding)[0]
    lines = image.new_empty(height * channels, width)  # rows of all channels side by side, as both products want them
    planes = lines.view(height, channels * width)
    lines.view(height, channels, width).copy_(image.transpose(0, 1))
    across = torch.empty_like(lines)
    for start in range(0, width, _BLOCK):
        stop, low, high = _window(start, width, radius)
        torch.mm(lines[:, low:high], columns[start:stop, low:high].t(), out=across[:, start:stop])
    across = across.view(height, channels * width)
    for start in range(0, height, _BLOCK):
        stop, low, high = _window(start, height, radius)
        torch.mm(rows[start:stop, low:high], across[low:high], out=planes[start:stop])
    return lines.view(height, channels, width).transpose(0, 1).clamp_(0, 1)


def _window(start: int, size: int, radius: int) -> tuple[int, int, int]:
    """Return where the block of outputs from `start` ends, and the interval of inputs that it depends on."""
    stop = min(start + _BLOCK, size)
    return stop, max(start - radius, 0), min(stop + radius, size)


def _kernel(sigma: Tensor, radius: int) -> Tensor:
    """Return normalised Gaussian taps, float64 [n, 2 radius + 1], for sigma [n]; a deviation of 0 is the identity."""
    offset = torch.arange(-radius, radius + 1, dtype=torch.float64)
    taps = torch.exp(-0.5 * (offset / sigma.clamp_min(1e-6)[:, None]) ** 2)
    return taps / taps.sum(1, keepdim=True)


def _matrix(kernel: Tensor, size: int, padding: Padding) -> Tensor:
    """Return the matrices [n, size, size] that convolve a line of `size` pixels with symmetric kernels [n, taps]."""
    radius = kernel.shape[1] // 2
    reach = 2 * size - 1  # offsets -reach .. reach cover all that two reflections can ask for
    line = kernel.new_zeros(len(kernel), 2 * reach + 1)
    line[:, reach - radius : reach + radius + 1] = kernel
    # sums[:, i, j] = kernel at offset i + j; a row i reversed about the middle gives offset j - i.
    sums = line.unfold(1, size, 1)
    matrix = sums[:, reach - size + 1 : reach + 1].flip(1)
    if padding == "reflect":
        # Input j is also met as its mirror images -j and 2 (size - 1) - j; the ends are their own mirror images.
        matrix[:, :, 1:] += sums[:, reach : reach + size, 1:]
        far = sums[:, reach - 2 * (size - 1) : reach - size + 2]
        matrix[:, :, :-1] += far[:, :, :-1]
    return matrix
