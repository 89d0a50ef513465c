"""Randomness as a pure function of what it is for: no generator carries state from one update to the next."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable

import numpy as np
import torch

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def seed_of(*parts: Hashable) -> int:
    """Hash `parts` (numbers and strings) into a seed of 63 bits, the same on every machine."""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def generator(*parts: Hashable) -> torch.Generator:
    """Return a CPU generator seeded by `parts`; drawing on the CPU gives every device the same numbers."""
    return torch.Generator().manual_seed(seed_of(*parts))


def permutation(n: int, *parts: Hashable) -> np.ndarray:
    """Return a permutation of range(n), int64 [n], that depends on `parts` alone."""
    return np.random.Generator(np.random.Philox(seed_of(*parts))).permutation(n)


def uniforms(positions: np.ndarray, count: int, *parts: Hashable) -> np.ndarray:
    """Return float64 [n, count] in [0, 1): row i depends on `parts` and positions[i] alone, not on its neighbours.

    Counter-based: the finaliser of SplitMix64 (Steele et al., OOPSLA 2014) over key, position and column.
    """
    with np.errstate(over="ignore"):
        row = _mix(np.uint64(seed_of(*parts)) + positions.astype(np.uint64) * _GOLDEN)
        bits = _mix(row[:, None] + np.arange(1, count + 1, dtype=np.uint64)[None] * _GOLDEN)
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(x: np.ndarray) -> np.ndarray:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
