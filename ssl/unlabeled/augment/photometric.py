"""From crops to views: the photometric chain of all methods, batched, with parameters per sample.

Drawing is apart from applying. The `draw_*` functions return CPU tensors for the whole global batch; a process takes
its `rows` and applies them on the device. Images are float [n, 3, H, W] in [0, 1] until they are normalised.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from unlabeled.augment.blur import Blur, blur, default_taps, draw_blur
from unlabeled.augment.color import (
    Chosen,
    Convention,
    Jitter,
    compile_operations,
    draw_chosen,
    draw_jitter,
    gray,
    jitter,
    solarize,
)
from unlabeled.ops.machine.memory import to_device

# The whole of it under one name, for methods.
__all__ = [
    "Blur",
    "Chosen",
    "Convention",
    "Drawn",
    "Jitter",
    "blur",
    "compile_operations",
    "default_taps",
    "draw_blur",
    "draw_chosen",
    "draw_jitter",
    "gray",
    "jitter",
    "normalise",
    "render",
    "solarize",
    "to_float",
    "to_input",
]

# On a CPU the chain runs over so many values at a time that they stay in the cache: one view of 224 pixels, or 256 of
# 32 pixels, where smaller chunks would pay more for calls than they save.
_CHUNK_VALUES = 256 * 3 * 32 * 32


class Drawn(NamedTuple):
    """What is done to n views, in this order; None leaves a step out."""

    jitter: Jitter | None = None
    gray: Chosen | None = None
    blur: Blur | None = None
    solarize: Chosen | None = None

    def rows(self, part: slice) -> Drawn:
        """Return the parameters of these samples."""
        return Drawn(
            jitter=self.jitter and self.jitter.rows(part),
            gray=self.gray and self.gray.rows(part),
            blur=self.blur and self.blur.rows(part),
            solarize=self.solarize and self.solarize.rows(part),
        )


def render(
    crops: Tensor,
    drawn: Drawn,
    convention: Convention = "torchvision",
    *,
    taps: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Tensor:
    """Turn crops, uint8 or float [n, 3, S, S], into views: jitter, gray, blur, solarize, normalise (if mean is given).

    convention: "torchvision", or "simclr" with its colour operations and zero-padded blur. taps: of the blur, see
    `blur`. float64 crops stay float64, all others become float32.
    """
    n, values = len(crops), crops[:1].numel()
    step = max(1, _step(values)) if crops.device.type == "cpu" else max(1, n)
    if n <= step:
        return _render(crops, drawn, convention, taps, mean, std)
    out = torch.empty(crops.shape, dtype=_float_type(crops), device=crops.device)
    for start in range(0, n, step):
        part = slice(start, start + step)
        out[part] = _render(crops[part], drawn.rows(part), convention, taps, mean, std)
    return out


def _render(
    crops: Tensor, drawn: Drawn, convention: Convention, taps: int | None, mean: Sequence[float] | None,
    std: Sequence[float] | None,
) -> Tensor:
    x = to_float(crops)
    inplace = x is not crops
    if drawn.jitter is not None:
        x = jitter(x, drawn.jitter, convention, inplace=inplace)
    if drawn.gray is not None:
        x = gray(x, drawn.gray, inplace=inplace)
    if drawn.blur is not None:
        x = blur(x, drawn.blur, taps=taps, padding="zeros" if convention == "simclr" else "reflect", inplace=inplace)
    if drawn.solarize is not None:
        x = solarize(x, drawn.solarize, inplace=inplace)
    return x if mean is None or std is None else normalise(x, mean, std)


def _step(values: int) -> int:
    """Return how many views of `values` numbers are processed at a time on a CPU; large ones singly (measured)."""
    return 1 if values > _CHUNK_VALUES // 16 else _CHUNK_VALUES // max(values, 1)


def to_float(crops: Tensor) -> Tensor:
    """Return uint8 images as float32 in [0, 1]; float32 and float64 images are returned as they are."""
    if crops.dtype in (torch.float32, torch.float64):
        return crops
    if crops.dtype != torch.uint8:
        raise TypeError(f"views are made of uint8, float32 or float64 images, got {crops.dtype}")
    return crops.to(torch.float32).div_(255)


def normalise(x: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Return (x - mean) / std per channel of x [n, 3, H, W], in new memory."""
    statistics = to_device(torch.tensor([mean, std], dtype=x.dtype), x.device).view(2, 1, -1, 1, 1)
    return (x - statistics[0]).div_(statistics[1])


def to_input(crops: Tensor, mean: Sequence[float] | None, std: Sequence[float] | None) -> Tensor:
    """Return crops [n, 3, H, W] as a network expects them: in [0, 1], normalised if it has statistics."""
    x = to_float(crops)
    return x if mean is None or std is None else normalise(x, mean, std)


def _float_type(crops: Tensor) -> torch.dtype:
    return torch.float64 if crops.dtype == torch.float64 else torch.float32
