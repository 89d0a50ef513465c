"""Masks of blocks of patches, as many crops as a share says, their sizes stratified (arXiv 2304.07193, its code)."""

from __future__ import annotations

import math

import numpy as np

_TRIES = 10
_SMALLEST = 4  # patches of a rectangle
_LOG_ASPECT = (math.log(0.3), math.log(1 / 0.3))


def draw_masks(crops: int, cells: int, masked: float, ratio: tuple[float, float], random: np.random.Generator,
               ) -> np.ndarray:
    """Return bool [crops, cells, cells]: which patches are hidden.

    masked: share of the crops that are; crop i of n has a share of hidden patches from the i-th of n equal parts of
    `ratio`. Then the crops are shuffled.
    """
    count = int(crops * masked)
    masks = np.zeros((crops, cells, cells), bool)
    edges = np.linspace(*ratio, count + 1)
    for mask, low, high in zip(masks, edges[:-1], edges[1:], strict=False):
        _hide(mask, int(cells * cells * random.uniform(low, high)), random)
    return random.permutation(masks)


def _hide(mask: np.ndarray, target: int, random: np.random.Generator) -> None:
    """Hide rectangles until `target` patches are hidden, or until one cannot be placed."""
    largest = 0.5 * mask.size
    hidden = 0
    while hidden < target:
        new = _hide_rectangle(mask, min(target - hidden, largest), random)
        if not new:
            return
        hidden += new


def _hide_rectangle(mask: np.ndarray, remaining: float, random: np.random.Generator) -> int:
    """Hide one more rectangle of at most `remaining` new patches; return how many are new, 0 after ten tries."""
    side = len(mask)
    for _ in range(_TRIES):
        # the bounds come in either order, as on small grids
        area = _SMALLEST + (remaining - _SMALLEST) * random.random()
        aspect = math.exp(random.uniform(*_LOG_ASPECT))
        height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if height >= side or width >= side:
            continue
        top, left = random.integers(side - height + 1), random.integers(side - width + 1)
        rectangle = mask[top : top + height, left : left + width]
        new = rectangle.size - int(rectangle.sum())
        if 0 < new <= remaining:
            rectangle[:] = True
            return new
    return 0
