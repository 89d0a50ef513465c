"""Affine warps of whole images as maps from output to input."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

_CHUNK = 256  # images warped at a time: the float copies of small images stay in the cache


def inverse_maps(
    sizes: np.ndarray, *, angle: np.ndarray, shift: np.ndarray, scale: np.ndarray, shear: np.ndarray
) -> np.ndarray:
    """Return maps [n, 6] (rows of 2 x 3 matrices) from output to input, both measured in [-1, 1] from the centre.

    sizes: [n, 2]. angle, shear (along x): radians [n]. shift: of the content, [n, 2] as share of the output's side
    (x, y). scale: of the content, [n]. Angle and shear act on pixels, so they keep shapes also where the image is not
    square; without any of the four the map is the identity, a plain resize.
    """
    sin, cos, tan = np.sin(angle), np.cos(angle), np.tan(shear)
    half = sizes[:, ::-1].astype(np.float64) / 2  # half width, half height
    # Inverse of scale * rotation * [[1, -tan], [0, 1]], in pixels of the input.
    inverse = np.stack([cos - tan * sin, sin + tan * cos, -sin, cos], 1).reshape(-1, 2, 2) / scale[:, None, None]
    matrix = inverse * half[:, None, :] / half[:, :, None]
    offset = -np.einsum("nij,nj->ni", matrix, 2 * shift)
    return np.concatenate([matrix, offset[:, :, None]], 2).reshape(-1, 6)


def warp(images: Tensor, maps: np.ndarray, size: int) -> Tensor:
    """Warp uint8 images [n, 3, H, W] by maps [n, 6] into uint8 [n, 3, size, size], bilinear, without antialiasing.

    Beyond the outermost pixels' edge is black, as the ground of digit scans; up to it the outermost pixels reach.
    Replicating them further would draw strokes that touch the border into streaks.
    """
    n, channels = images.shape[:2]
    out = torch.empty(n, channels, size, size, dtype=torch.uint8, device=images.device)
    for start in range(0, n, _CHUNK):
        part = slice(start, start + _CHUNK)
        theta = torch.from_numpy(maps[part]).to(images.device, torch.float32).view(-1, 2, 3)
        grid = F.affine_grid(theta, [len(theta), channels, size, size], align_corners=False)
        view = F.grid_sample(images[part].float(), grid, padding_mode="border", align_corners=False)
        inside = (grid.abs().amax(3) <= 1)[:, None]
        out[part] = view.round_().mul_(inside)
    return out


def warp_image(image: np.ndarray, parameters: np.ndarray, size: int) -> np.ndarray:
    """Warp one uint8 image [H, W, 3] by its map [6] into uint8 [3, size, size]."""
    batch = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None]
    return warp(batch, parameters[None], size)[0].numpy()
