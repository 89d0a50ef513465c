"""Colour operations on batches of float images [n, 3, H, W] in [0, 1], with parameters per sample.

Two conventions. `torchvision`: contrast blends with the mean of the gray image, saturation with the gray image itself.
`simclr` (arXiv 2006.10029, tf2/data_util.py): contrast is about the mean of each channel, saturation scales the S of
HSV. Brightness (a factor), hue (a shift on the HSV circle) and gray weights are the same in both; every operation
clips its result to [0, 1]. Clips come with their frames below one another, H being that of all frames together, so that
contrast is about the mean of the clip; that is CVRL's chain (arXiv 2008.03800) with the colours of `simclr`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from unlabeled.ops.machine.memory import to_device

Convention = Literal["torchvision", "simclr"]
OPERATIONS = ("brightness", "contrast", "saturation", "hue")
GRAY = (0.2989, 0.5870, 0.1140)

_compiling = False


class Jitter(NamedTuple):
    """Colour jitter of n samples, on the CPU.

    active: bool [n]. order: int64 [n, 4], indices of OPERATIONS in the order in which they are applied.
    brightness, contrast, saturation: factors [n]; hue: shifts [n] as shares of the circle; float64.
    """

    active: Tensor
    order: Tensor
    brightness: Tensor
    contrast: Tensor
    saturation: Tensor
    hue: Tensor

    def rows(self, part: slice) -> Jitter:
        """Return the parameters of these samples."""
        return Jitter(*(values[part] for values in self))

    def around_contrast(self) -> tuple[Jitter, Tensor, Jitter] | None:
        """Return what comes before the contrast of a single sample, its factor [1, 1, 1, 1], and what comes after it.

        None if it has no contrast.
        """
        if not self.active or self.contrast == 1:
            return None
        place = self.order[0].tolist().index(OPERATIONS.index("contrast"))
        before, after = self.order[:, :place], self.order[:, place + 1 :]
        return self._replace(order=before), self.contrast.view(1, 1, 1, 1), self._replace(order=after)


class Chosen(NamedTuple):
    """Which of n samples an operation without further parameters is applied to: active, bool [n], on the CPU."""

    active: Tensor

    def rows(self, part: slice) -> Chosen:
        """Return the parameters of these samples."""
        return Chosen(self.active[part])


def draw_jitter(
    n: int, brightness: float, contrast: float, saturation: float, hue: float, p: float, generator: torch.Generator
) -> Jitter:
    """Draw colour jitter for n samples: factors from max(0, 1 - strength) to 1 + strength, hue from -hue to hue."""
    uniform = torch.rand(n, 9, dtype=torch.float64, generator=generator)
    active, u_brightness, u_contrast, u_saturation, u_hue, *u_order = uniform.unbind(1)

    def factor(u: Tensor, strength: float) -> Tensor:
        low, high = max(0.0, 1 - strength), 1 + strength
        return low + (high - low) * u

    return Jitter(
        active=active < p,
        order=torch.stack(u_order, 1).argsort(1),
        brightness=factor(u_brightness, brightness),
        contrast=factor(u_contrast, contrast),
        saturation=factor(u_saturation, saturation),
        hue=hue * (2 * u_hue - 1),
    )


def draw_chosen(n: int, p: float, generator: torch.Generator) -> Chosen:
    """Choose each of n samples with probability p, for `gray` and `solarize`."""
    return Chosen(torch.rand(n, dtype=torch.float64, generator=generator) < p)


def jitter(x: Tensor, params: Jitter, convention: Convention = "torchvision", *, inplace: bool = False) -> Tensor:
    """Apply colour jitter to x [n, 3, H, W]: four operations in each sample's own order.

    In each of the four stages the samples are grouped by operation, so each pays for its own only. The grouping is
    made from the parameters on the CPU and sent to the device in two copies; nothing waits for the device.
    """
    amounts, acts = _amounts(params)
    if not acts.any():
        return x
    out = x if inplace else x.clone()
    operations = _operations(convention)
    if len(out) == 1:
        for stage, index in enumerate(params.order[0].tolist()):
            if acts[0, stage]:
                amount = amounts[:, stage].to(out.dtype).view(1, 1, 1, 1)
                out = operations[index](out, to_device(amount, x.device))
        return out
    runs, rows, values = _grouped(params.order, amounts, acts)
    rows, values = to_device(rows, x.device), to_device(values.to(x.dtype), x.device)
    for index, start, stop in runs:
        chosen, amount = rows[start:stop], values[start:stop].view(-1, 1, 1, 1)
        out.index_copy_(0, chosen, operations[index](out.index_select(0, chosen), amount))
    return out


def gray(x: Tensor, params: Chosen, *, inplace: bool = False) -> Tensor:
    """Replace the chosen samples of x [n, 3, H, W] by their gray image in all three channels."""
    return apply_to(x, params.active, lambda part: luminance(part).expand_as(part), inplace)


def solarize(x: Tensor, params: Chosen, threshold: float = 0.5, *, inplace: bool = False) -> Tensor:
    """Invert the pixels of x [n, 3, H, W] at or above the threshold, in the chosen samples."""

    def invert(part: Tensor) -> Tensor:
        above = torch.ge(part, threshold, out=torch.empty_like(part))
        return torch.lerp(part, 1 - part, above)  # exact at 0 and 1; torch.where is ten times slower on a CPU

    return apply_to(x, params.active, invert, inplace)


def luminance(x: Tensor) -> Tensor:
    """Return the gray image [n, 1, H, W] of x [n, 3, H, W]."""
    red, green, blue = x.split(1, dim=1)
    return (red * GRAY[0]).add_(green, alpha=GRAY[1]).add_(blue, alpha=GRAY[2])


def apply_to(x: Tensor, active: Tensor, operation: Callable[[Tensor], Tensor], inplace: bool = False) -> Tensor:
    """Replace the samples of x in which the CPU tensor `active` [n] is true by operation(those samples).

    As all functions here: with `inplace` x may be overwritten, without it is not; where nothing changes, x is returned.
    """
    rows = active.nonzero().squeeze(1)
    if len(rows) == 0:
        return x
    if len(rows) == len(x):
        return operation(x).contiguous()
    out = x if inplace else x.clone()
    rows = to_device(rows, x.device)
    return out.index_copy_(0, rows, operation(out.index_select(0, rows)))


def _amounts(params: Jitter) -> tuple[Tensor, Tensor]:
    """Return, per sample and stage [n, 4], the amount of the operation and whether it changes anything."""
    table = torch.stack([params.brightness, params.contrast, params.saturation, params.hue], 1)
    neutral = torch.tensor([1.0, 1.0, 1.0, 0.0], dtype=table.dtype)
    amounts = table.gather(1, params.order)
    return amounts, (amounts != neutral[params.order]) & params.active[:, None]


def _grouped(order: Tensor, amounts: Tensor, acts: Tensor) -> tuple[list[tuple[int, int, int]], Tensor, Tensor]:
    """Group the samples by operation in each stage; all arguments are [n, 4].

    Returns the runs (operation, start, stop) in order, and what they index: rows [k] and the operations' amounts [k].
    """
    runs, rows, values, start = [], [], [], 0
    for stage in range(len(OPERATIONS)):
        active = acts[:, stage].nonzero().squeeze(1)
        operation = order[active, stage]
        rows.append(active[operation.argsort(stable=True)])
        values.append(amounts[rows[-1], stage])
        for index, count in enumerate(operation.bincount(minlength=len(OPERATIONS)).tolist()):
            if count:
                runs.append((index, start, start + count))
            start += count
    return runs, torch.cat(rows), torch.cat(values)


def _operations(convention: Convention) -> tuple[Callable[[Tensor, Tensor], Tensor], ...]:
    operations = (adjust_brightness, adjust_contrast, adjust_saturation, adjust_hue)
    if convention == "simclr":
        operations = (adjust_brightness, adjust_contrast_per_channel, adjust_saturation_hsv, adjust_hue)
    return tuple(map(_compiled, operations)) if _compiling else operations


def compile_operations(on: bool = True) -> None:
    """Run the jitter's operations through torch.compile from now on, in this process, or no longer.

    Each is compiled by itself, for groups of any size: compiled as a whole, every sample would pay for all operations.
    """
    global _compiling
    _compiling = on


@functools.cache
def _compiled(operation: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    return torch.compile(operation)


def adjust_brightness(x: Tensor, factor: Tensor) -> Tensor:
    """Scale x [n, 3, H, W] by the factor [n, 1, 1, 1] and clip; as all `adjust_*`, overwrites x and returns it."""
    return x.mul_(factor).clamp_(0, 1)


def adjust_contrast(x: Tensor, factor: Tensor) -> Tensor:
    """Blend x with the mean of its gray image."""
    return _blend(x, luminance(x.mean((2, 3), keepdim=True)), factor)


def adjust_contrast_per_channel(x: Tensor, factor: Tensor) -> Tensor:
    """Blend x with the mean of each channel."""
    return _blend(x, x.mean((2, 3), keepdim=True), factor)


def contrast_about(x: Tensor, mean: Tensor, factor: Tensor, convention: Convention) -> Tensor:
    """Blend x with the mean per channel [n, 3, 1, 1] of a whole that x is a part of, as `adjust_contrast*` does."""
    return _blend(x, luminance(mean) if convention == "torchvision" else mean.clone(), factor)


def adjust_saturation(x: Tensor, factor: Tensor) -> Tensor:
    """Blend x with its gray image."""
    return _blend(x, luminance(x), factor)


def _blend(x: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    return x.mul_(factor).add_(other.mul_(1 - factor)).clamp_(0, 1)


def adjust_saturation_hsv(x: Tensor, factor: Tensor) -> Tensor:
    """Scale the S of HSV, clipped to 1: every channel keeps its share of the distance to the largest one.

    S = chroma / value, so the distances to the largest channel grow by min(factor, value / chroma).
    """
    value = x.amax(1, keepdim=True)
    chroma = value - x.amin(1, keepdim=True)
    growth = torch.minimum(factor, value / chroma.clamp_min_(torch.finfo(x.dtype).tiny))
    return torch.lerp(value, x, growth, out=x).clamp_(0, 1)


def adjust_hue(x: Tensor, shift: Tensor) -> Tensor:
    """Turn the hue by `shift` of the circle: each channel is a clipped triangle wave of hue, from lowest to highest.

    Highest and lowest channel stay as they are, so no HSV image is made. In sixths of the circle, and times chroma,
    hue is +-(highest - 2 lowest + green + blue - red), negative where blue exceeds green (no case for each sextant).
    """
    red, green, blue = x.split(1, dim=1)
    highest = torch.maximum(torch.maximum(red, green), blue)
    lowest = torch.minimum(torch.minimum(red, green), blue)
    difference = green - blue
    hue = (green + blue).sub_(red).add_(highest).sub_(lowest, alpha=2)
    chroma = (highest - lowest).clamp_min_(torch.finfo(x.dtype).tiny)
    hue.div_(chroma.mul_(6)).copysign_(difference)
    # The wave of red, green, blue peaks at 0, 1/3, 2/3; two whole turns keep the argument of frac positive.
    peak = torch.stack([shift + 2, shift + (2 + 2 / 3), shift + (2 + 1 / 3)], 1).view(-1, 3, 1, 1)
    wave = (hue + peak).frac_().sub_(0.5).abs_().mul_(6).sub_(1).clamp_(0, 1)
    return torch.lerp(lowest, highest, wave, out=x)
