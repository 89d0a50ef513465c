"""The sizes of an elastic network: which there are, how often each is trained, and which blocks a shallow one keeps.

Zhang et al., "POA: Pre-training Once for Models of All Sizes", arXiv 2408.01031, section 3.2, and its code.
"""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from unlabeled.config.sources import SIZE
from unlabeled.errors import UserError
from unlabeled.ops.random import permutation

_FORM = re.compile(SIZE)


class Size(NamedTuple):
    """A sub-network: the width of its first layer in channels, and the number of blocks of every elastic stage."""

    width: int
    depth: tuple[int, ...]

    def __str__(self) -> str:
        """Return WIDTHxDEPTH, such as 384x12, or 64x4-6 where two stages are elastic."""
        return f"{self.width}x{'-'.join(map(str, self.depth))}"


def size_of(text: str) -> Size | None:
    """Read WIDTHxDEPTH; None for a text of another form."""
    match = _FORM.fullmatch(text)
    return Size(int(match[1]), tuple(map(int, match[2].split("-")))) if match else None


@dataclass(frozen=True)
class Grid:
    """All sizes that are trained: `widths` rising, `depths` in the order of the list; the last of both is the whole.

    width_bias, depth_bias: how much more often the smallest width and depth is trained than the largest.
    """

    widths: tuple[int, ...]
    depths: tuple[tuple[int, ...], ...]
    width_bias: float = 1
    depth_bias: float = 1

    @property
    def full(self) -> Size:
        """The whole network."""
        return Size(self.widths[-1], self.depths[-1])

    @cached_property
    def sizes(self) -> list[Size]:
        """Every size once, widths outside."""
        return [Size(*pair) for pair in itertools.product(self.widths, self.depths)]

    @cached_property
    def copies(self) -> list[int]:
        """How often each of `sizes` stands in the list that is trained, halves rounded to even."""
        width, depth = _falling(self.width_bias, len(self.widths)), _falling(self.depth_bias, len(self.depths))
        return [round(w * d) for w, d in itertools.product(width, depth)]

    @cached_property
    def candidates(self) -> list[Size]:
        """`sizes` with their repetitions; the last one is the whole network."""
        return [size for size, copies in zip(self.sizes, self.copies, strict=True) for _ in range(copies)]

    @property
    def largest_part(self) -> Size:
        """The largest size that `drawn` gives."""
        return self.candidates[-2]

    def drawn(self, seed: int, block: int, update: int) -> Size:
        """Return the size that a block of the global batch trains at an update.

        The candidates but the last are taken one after another in a random order, and again in another one. Each block
        has orders of its own.
        """
        count = len(self.candidates) - 1
        round_, place = divmod(update, count)
        return self.candidates[permutation(count, seed, "sub-networks", block, round_)[place]]

    def refuse_untrained(self, size: Size) -> None:
        """Raise UserError, with the nearest sizes, unless `size` is one of `sizes`."""
        if size in self.sizes:
            return
        near = sorted(self.sizes, key=lambda other: _distance(size, other))[:3]
        depths = ", ".join("-".join(map(str, depth)) for depth in self.depths[:30])
        raise UserError(f"size {size} was not trained; the nearest are {', '.join(map(str, near))}. Widths: "
                        f"{', '.join(map(str, self.widths))}; depths: {depths}{', ...' * (len(self.depths) > 30)}")


def chosen_blocks(depth: int, blocks: int) -> list[int]:
    """Return which of `blocks` blocks a network of `depth` keeps: the first, the last, and evenly between, or all.

    The text's formula divides by depth - 1; of depth 1 is the first block alone.
    """
    return [(blocks - 1) * j // (depth - 1) if depth > 1 else 0 for j in range(depth)]


def steps(smallest: int, largest: int, step: int, *, key: str = "width") -> tuple[int, ...]:
    """Return smallest, smallest + step, ..., largest. Raises UserError if the steps do not end there."""
    values = tuple(range(smallest, largest + 1, step)) if step > 0 else ()
    if not values or values[-1] != largest:
        end = f", but at {values[-1]}" if values else ""
        raise UserError(f"backbone.options.{key}: {smallest} to {largest} in steps of {step} does not end at "
                        f"{largest}, the full size{end}")
    return values


def _falling(bias: float, count: int) -> np.ndarray:
    """Return the factors of the copies, from `bias` for the smallest to 1, as the published code computes them."""
    return np.linspace(bias, 1, count)[:, None].ravel()


def _distance(size: Size, other: Size) -> float:
    if len(size.depth) != len(other.depth):
        return abs(np.log(size.width / other.width))
    ratios = [(size.width, other.width), *zip(size.depth, other.depth, strict=True)]
    return float(sum(abs(np.log(max(a, 1) / b)) for a, b in ratios))
