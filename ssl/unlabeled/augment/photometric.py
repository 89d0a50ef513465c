"""From crops to views: the photometric chain of all methods, batched, with parameters per sample.

Drawing is apart from applying. The `draw_*` functions return CPU tensors for the whole global batch; a process takes
its `rows` and applies them on the device. Images are float [n, 3, H, W] in [0, 1] until they are normalised. A clip
[n, 3, T, H, W] is a sample too: what is drawn for it is done to all of its frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from unlabeled.augment.blur import Blur, Padding, blur, default_taps, draw_blur
from unlabeled.augment.color import (
    Chosen,
    Convention,
    Jitter,
    compile_operations,
    contrast_about,
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
_FRAMES_VALUES = 3 * 224 * 224  # of a longer clip so many values at a time
_GPU_VALUES = 1 << 25  # of clips, so many at a time on a GPU: what the operations need besides is then small


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
    """Turn crops, uint8 or float [n, 3, S, S] or clips [n, 3, T, S, S], into views of the same shape.

    In this order: jitter, gray, blur, solarize, normalise (if mean is given). In a clip the contrast is about the mean
    of all frames, and the blur stays within a frame. convention: "torchvision", or "simclr" with its colour operations
    and zero-padded blur. taps: of the blur, see `blur`. float64 crops stay float64, all others become float32.
    """
    n, values, chain = len(crops), crops[:1].numel(), _Chain(convention, taps, mean, std)
    cpu, clips = crops.device.type == "cpu", crops.ndim == 5
    long = cpu and clips and values > _FRAMES_VALUES
    step = 1 if long else max(1, _step(values) if cpu else _GPU_VALUES // max(values, 1) if clips else n)
    if n <= step and not long:
        return _render(crops, drawn, chain)
    out = torch.empty(crops.shape, dtype=_float_type(crops), device=crops.device)
    for start in range(0, n, step):
        part = slice(start, start + step)
        if long:
            _render_long(crops[start], drawn.rows(part), chain, out[start])
        else:
            out[part] = _render(crops[part], drawn.rows(part), chain)
    return out


class _Chain(NamedTuple):
    """What is the same for all samples of a batch; see `render`."""

    convention: Convention
    taps: int | None
    mean: Sequence[float] | None
    std: Sequence[float] | None


def _render(crops: Tensor, drawn: Drawn, chain: _Chain) -> Tensor:
    x = to_float(crops)
    if crops.ndim == 5:
        return _steps(_below(x), drawn, chain, crops.shape[2], inplace=x is not crops).view(crops.shape)
    return _steps(x, drawn, chain, 1, inplace=x is not crops)


def _render_long(clip: Tensor, drawn: Drawn, chain: _Chain, out: Tensor) -> None:
    """Write the view of one clip [3, T, H, W] into `out`, a few frames at a time, which stay in the cache.

    The contrast parts the chain, for its centre is known when all frames have come to it.
    """
    frames = max(1, _FRAMES_VALUES // clip[:, 0].numel())
    parts = [slice(start, start + frames) for start in range(0, clip.shape[1], frames)]
    views = [_below(out[None, :, part]) for part in parts]
    around = drawn.jitter and drawn.jitter.around_contrast()
    sums = []
    for part, view in zip(parts, views, strict=True):
        view.copy_(_below(to_float(clip[None, :, part])))
        if around:
            sums.append(jitter(view, around[0], chain.convention, inplace=True).sum((2, 3), keepdim=True))
    if around:
        factor, mean = around[1].to(out.dtype), torch.stack(sums).sum(0) / clip[0].numel()
        drawn = drawn._replace(jitter=around[2])
    for view in views:
        if around:
            contrast_about(view, mean, factor, chain.convention)
        count = view.shape[2] // clip.shape[2]
        done = _steps(view, drawn, chain, count, inplace=True)
        if done is not view:
            view.copy_(done)


def _below(clips: Tensor) -> Tensor:
    """Return clips [n, 3, T, H, W] with their frames below one another, [n, 3, T H, W]."""
    return clips.flatten(2, 3)


def _steps(x: Tensor, drawn: Drawn, chain: _Chain, frames: int, *, inplace: bool) -> Tensor:
    """Do what is drawn to x [n, 3, frames H, W]."""
    if drawn.jitter is not None:
        x = jitter(x, drawn.jitter, chain.convention, inplace=inplace)
    if drawn.gray is not None:
        x = gray(x, drawn.gray, inplace=inplace)
    if drawn.blur is not None:
        apart = x.unflatten(2, (frames, x.shape[2] // frames)).flatten(1, 2)  # frames are channels that do not mix
        padding: Padding = "zeros" if chain.convention == "simclr" else "reflect"
        x = blur(apart, drawn.blur, taps=chain.taps, padding=padding, inplace=inplace).view(x.shape)
    if drawn.solarize is not None:
        x = solarize(x, drawn.solarize, inplace=inplace)
    return x if chain.mean is None or chain.std is None else normalise(x, chain.mean, chain.std)


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
    """Return (x - mean) / std per channel of x [n, 3, H, W] or [n, 3, T, H, W], in new memory."""
    statistics = to_device(torch.tensor([mean, std], dtype=x.dtype), x.device).view(2, 1, -1, *[1] * (x.ndim - 2))
    return (x - statistics[0]).div_(statistics[1])


def to_input(crops: Tensor, mean: Sequence[float] | None, std: Sequence[float] | None) -> Tensor:
    """Return crops [n, 3, H, W] or [n, 3, T, H, W] as a network expects them: in [0, 1], or normalised."""
    x = to_float(crops)
    return x if mean is None or std is None else normalise(x, mean, std)


def _float_type(crops: Tensor) -> torch.dtype:
    return torch.float64 if crops.dtype == torch.float64 else torch.float32
