"""The one rule by which values beyond 8 bits become gray levels from 0 to 255."""

from __future__ import annotations

import numpy as np

Levels = tuple[float, float]


def eight_bits(values: np.ndarray, levels: Levels | None, bits: int = 16) -> np.ndarray:
    """Return values of any shape as uint8.

    With `levels` (low, high), low and all below it become 0, high and all above it 255, what lies between is scaled and
    rounded. Without: 16-bit numbers are shifted so that the range of their `bits` becomes 0 to 255, floats from 0 to 1
    are scaled and rounded, False and True are 0 and 255. uint8 stays as it is in any case. Raises ValueError for values
    to which no rule applies, NaN and infinity among them.
    """
    if values.dtype == np.uint8:
        return values
    if values.dtype == np.bool_:
        return values.astype(np.uint8) * np.uint8(255)
    if values.dtype.kind not in "iuf":
        raise ValueError(f"values of type {values.dtype} are no gray levels")
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise ValueError(f"{values.dtype.name} values that are NaN or infinite; mend or remove the image")
    if levels is not None:
        low, high = levels
        return np.clip(np.rint((values.astype(np.float64) - low) * 255 / (high - low)), 0, 255).astype(np.uint8)
    if values.dtype.kind == "u" and values.dtype.itemsize == 2:
        return np.minimum(values >> (bits - 8), 255).astype(np.uint8)
    if values.dtype.kind == "f" and values.size and values.min() >= 0 and values.max() <= 1:
        return np.rint(values.astype(np.float64) * 255).astype(np.uint8)
    raise ValueError(f"{values.dtype.name} values {_range(values)} have no known black and white; state them in the "
                     "data card, levels: [low, high]")


def _range(values: np.ndarray) -> str:
    return f"from {values.min():.9g} to {values.max():.9g}" if values.size else "of an empty image"
