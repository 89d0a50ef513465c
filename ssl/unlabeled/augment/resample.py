"""Cut boxes out of images and resize them with antialiasing: one large image, or many small ones as matrix products."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from unlabeled.ops.boxes import CropBox, crop_columns

Interpolation = Literal["bilinear", "bicubic"]

# Working memory of one chunk on a CPU: small enough to stay in the cache, large enough to hide the cost of a call.
_CHUNK_BYTES = 4 << 20


def crop_resize(image: np.ndarray, box: np.ndarray, size: int, interpolation: Interpolation) -> np.ndarray:
    """Cut box [7] (see `ops.boxes`) out of uint8 [H, W, 3] and resize it to uint8 [3, size, size].

    Integer arithmetic with an 8-bit intermediate as in PIL, whose result it equals within one grey level (bicubic,
    rarely two), in a third of PIL's time (torch's uint8 kernel, which wants channels-last memory).
    `crop_resize_batch` rounds once: bilinear it differs by one level at most, bicubic by more where the overshoot is
    clipped in between.
    """
    top, left, height, width, _, _, flipped = CropBox(*(int(v) for v in box))
    part = torch.from_numpy(np.ascontiguousarray(image[top : top + height, left : left + width]))
    view = part.permute(2, 0, 1)[None]
    if (height, width) != (size, size):
        view = F.interpolate(view, size=(size, size), mode=interpolation, align_corners=False, antialias=True)
    return (view[0].flip(-1) if flipped else view[0]).contiguous().numpy()


def crop_resize_batch(images: Tensor, boxes: np.ndarray, size: int, interpolation: Interpolation) -> Tensor:
    """Cut boxes [n, 7] out of equally large uint8 images [n, 3, H, W] and resize them to uint8 [n, 3, size, size].

    Row i is rows(i) @ image(i) @ columns(i)^T in float32, rounded once at the end; a flip reverses `columns`.
    """
    n, channels, height, width = images.shape
    out = torch.empty(n, channels, size, size, dtype=torch.uint8, device=images.device)
    per_image = 4 * (size * (height + width) + channels * (height * width + size * width + size * size))
    step = max(1, _CHUNK_BYTES // per_image) if images.device.type == "cpu" else max(1, n)
    for start in range(0, n, step):
        part = slice(start, start + step)
        box = crop_columns(torch.from_numpy(boxes[part]).to(images.device, torch.float32))
        rows = resize_weights(box.top, box.height, size, height, interpolation)
        columns = resize_weights(box.left, box.width, size, width, interpolation, mirror=box.flipped)
        # Bicubic weights overshoot, hence the clamp.
        view = resample(images[part], rows, columns).round_().clamp_(0, 255)
        out[part] = view.permute(0, 2, 1, 3)
    return out


def resample(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Return rows [n, S, H] @ images [n, C, H, W] @ columns [n, S, W]^T as [n, S, C, S] (row, channel, column)."""
    n, channels, height, width = images.shape
    size = rows.shape[1]
    # In row-channel-column order both products are one plain batch of matrices, with no copy of the weights.
    flat = images.permute(0, 2, 1, 3).to(rows.dtype, memory_format=torch.contiguous_format).contiguous()
    with torch.autocast(images.device.type, enabled=False):
        half = torch.bmm(rows, flat.view(n, height, channels * width))
        full = torch.bmm(half.view(n, size * channels, width), columns.transpose(1, 2))
    return full.view(n, size, channels, size)


def resize_weights(
    start: Tensor,
    length: Tensor,
    size: int,
    limit: int,
    interpolation: Interpolation,
    *,
    mirror: Tensor | None = None,
    antialias: bool = True,
) -> Tensor:
    """Return the matrices [n, size, limit] that resize pixels [start, start + length) of `limit` to `size` pixels.

    start, length: [n], whole pixels. mirror: [n], 1 where the output runs backwards. The filter is the triangle or
    Keys' cubic with a = -0.5, stretched by the reduction factor if `antialias` (as PIL and torch do); taps outside the
    interval are dropped and the others renormalised.
    """
    position = torch.arange(size, device=start.device, dtype=start.dtype) + 0.5
    if mirror is None:
        centre = position.expand(len(start), size)
    else:
        centre = torch.where(mirror[:, None] > 0.5, size - position, position)
    scale = (length / size)[:, None]
    stretch = scale.clamp_min(1) if antialias else torch.ones_like(scale)
    centre = (start[:, None] + centre * scale) / stretch
    source = torch.arange(limit, device=start.device, dtype=start.dtype)
    inside = (source >= start[:, None]) & (source < (start + length)[:, None])
    taps = (source + 0.5) / stretch  # [n, limit]
    distance = (taps[:, None] - centre[:, :, None]).abs_()
    weights = _triangle(distance) if interpolation == "bilinear" else _cubic(distance)
    weights.mul_(inside[:, None])
    return weights.div_(weights.sum(2, keepdim=True))


def _triangle(distance: Tensor) -> Tensor:
    return distance.neg_().add_(1).clamp_min_(0)


def _cubic(distance: Tensor) -> Tensor:
    """Keys' cubic convolution with a = -0.5 as u^2 (u - 1) / 2 + v^2 (1 - 2 v), u and v the parts below 2 and below 1.

    Equal to the two published pieces; torch.where, which would choose between them, is slow on a CPU.
    """
    below_two = (2 - distance).clamp_min_(0)
    below_one = distance.neg_().add_(1).clamp_min_(0)
    far = (below_two - 1).mul_(below_two).mul_(below_two)
    near = (1 - 2 * below_one).mul_(below_one).mul_(below_one)
    return near.add_(far, alpha=0.5)
