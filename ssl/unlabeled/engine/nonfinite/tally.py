"""What is said of a tensor in which a NaN or an infinity is looked for."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Tally:
    """Shape and type of a tensor, how many of its values are NaN and infinite, and the range of the others."""

    shape: list[int]
    dtype: str
    values: int
    nan: int
    infinite: int
    low: float | None
    high: float | None

    @property
    def finite(self) -> bool:
        """Whether all values are finite."""
        return not self.nan and not self.infinite

    def __str__(self) -> str:
        """Return it for people."""
        bad = [f"{count} of {self.values} {name}" for count, name in ((self.nan, "NaN"), (self.infinite, "infinite"))
               if count]
        span = "" if self.low is None else f", {'others ' * bool(bad)}{self.low:.4g} to {self.high:.4g}"
        return f"{self.dtype} {self.shape}: {' and '.join(bad) or 'finite'}{span}"

    def plain(self) -> dict[str, Any]:
        """Return it for JSON."""
        return asdict(self)


@torch.no_grad()
def tally(tensor: Tensor) -> Tally:
    """Count what is in a tensor of floating-point numbers."""
    finite = tensor[tensor.isfinite()]
    low, high = (float(finite.min()), float(finite.max())) if finite.numel() else (None, None)
    return Tally(list(tensor.shape), str(tensor.dtype).removeprefix("torch."), tensor.numel(),
                 int(tensor.isnan().sum()), int(tensor.isinf().sum()), low, high)


@torch.no_grad()
def all_finite(tensor: Tensor) -> bool:
    """Return whether a tensor holds neither NaN nor infinities; numbers that can hold none do not."""
    return not tensor.is_floating_point() or bool(tensor.isfinite().all())


@torch.no_grad()
def rows_of(tensor: Tensor | None) -> tuple[tuple[int, ...], int]:
    """Return the rows that hold non-finite values, none where all do, and how many rows there are."""
    if tensor is None or tensor.ndim == 0:
        return (), 0
    bad = ~tensor.isfinite().reshape(len(tensor), -1).all(1)
    return () if bool(bad.all()) else tuple(bad.nonzero().flatten().tolist()), len(tensor)


def tensors_of(value: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of floating-point numbers in nested containers, with dotted names."""
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield name, value
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield from tensors_of(part, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list | tuple):
        for number, part in enumerate(value):
            yield from tensors_of(part, f"{name}.{number}" if name else str(number))
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for item in dataclasses.fields(value):
            yield from tensors_of(getattr(value, item.name), f"{name}.{item.name}" if name else item.name)
