"""Hashes of pictures: equal pictures, and those that differ by their size, compression or light, without a network.

Both read the whole image, squeezed to 64 x 64 pixels.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from unlabeled.ops.random import generator

SIDE = 64  # pixels of the squeezed image
BYTES = 32  # of a wave hash
_WAVES = 16  # in either direction
_GRAY = (0.299, 0.587, 0.114)
_FLAT = 2.0  # gray levels of deviation below which waves are those of the compression


def thumbnail_hashes(squeezed: Tensor) -> Tensor:
    """Hash squeezed images, uint8 [n, 3, 64, 64], into int64 [n]: equal for equal ones, and else, almost surely, not.

    A sum of pixels with random odd factors modulo 2^64.
    """
    return (squeezed.flatten(1).long() * _factors(squeezed.device)).sum(1)


@functools.cache
def _factors(device: torch.device) -> Tensor:
    least, most = torch.iinfo(torch.int64).min, torch.iinfo(torch.int64).max
    return (torch.randint(least, most, (3 * SIDE * SIDE,), generator=generator("thumbnail hash")) | 1).to(device)


def wave_hashes(squeezed: Tensor) -> Tensor:
    """Hash squeezed images, uint8 [n, 3, 64, 64], into 256 bits, uint8 [n, 32]: signs of their 16 x 16 longest waves.

    A bit says whether the gray image's cosine transform there is above the median of the others; the mean, the first
    coefficient, does not count. What was scaled, compressed, or made brighter differs in a few bits, other images in
    about half. An image that is nearly flat has no hash: all bits are 0, which no hash has.
    """
    gray = torch.einsum("nchw,c->nhw", squeezed.double(), torch.tensor(_GRAY).to(squeezed.device, torch.float64))
    waves = _cosines(squeezed.device)
    coefficients = (waves @ gray @ waves.T).flatten(1)[:, 1:]
    above = coefficients > coefficients.quantile(0.5, dim=1, keepdim=True)
    above &= (gray.flatten(1).std(1) >= _FLAT)[:, None]
    bits = torch.nn.functional.pad(above, (1, 0)).reshape(-1, BYTES, 8)
    return (bits.long() << torch.arange(7, -1, -1, device=bits.device)).sum(2).to(torch.uint8)


@functools.cache
def _cosines(device: torch.device) -> Tensor:
    """Return the 16 longest cosines over 64 places: float64 [16, 64]."""
    wave, place = torch.arange(_WAVES, dtype=torch.float64), torch.arange(SIDE, dtype=torch.float64)
    return torch.cos(math.pi * wave[:, None] * (2 * place + 1) / (2 * SIDE)).to(device)
