"""Randomness as a pure function of what it is for: no generator carries state from one update to the next."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable

import numpy as np
import torch

LARGE = 1 << 26  # samples above which a permutation is computed where it is asked: made whole, it takes seconds and GBs
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_ROUNDS = 6  # of the Feistel network; four of random functions cannot be told from a random permutation (Luby, Rackoff)


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


class KeyedPermutation:
    """A permutation of range(n) that depends on `parts` alone and holds nothing but a key: for any n, at once.

    A Feistel network permutes the numbers of the fewest bits, an even count, that hold n of them; what leaves range(n)
    goes through it again until it is back ("cycle walking": Black and Rogaway, CT-RSA 2002). Its rounds take the
    finaliser of SplitMix64. Below 4 passes are expected for any n.
    """

    def __init__(self, n: int, *parts: Hashable) -> None:
        self.n = n
        self._half = np.uint64(max(1, ((n - 1).bit_length() + 1) // 2))
        with np.errstate(over="ignore"):
            self._keys = _mix(np.uint64(seed_of(*parts)) + np.arange(1, _ROUNDS + 1, dtype=np.uint64) * _GOLDEN)

    def __getitem__(self, positions: np.ndarray) -> np.ndarray:
        """Return what stands at `positions`, int64 [b], as int64 [b]. Raises IndexError outside of range(n)."""
        if len(positions) and not 0 <= positions.min() <= positions.max() < self.n:
            raise IndexError(f"positions {positions.min()} to {positions.max()} of a permutation of {self.n}")
        places = self._network(positions.astype(np.uint64))
        while len(outside := np.flatnonzero(places >= self.n)):
            places[outside] = self._network(places[outside])
        return places.astype(np.int64)

    def _network(self, numbers: np.ndarray) -> np.ndarray:
        mask = (np.uint64(1) << self._half) - np.uint64(1)
        left, right = numbers >> self._half, numbers & mask
        with np.errstate(over="ignore"):
            for key in self._keys:
                left, right = right, left ^ (_mix(right + key) & mask)
        return left << self._half | right


def shuffled(n: int, *parts: Hashable) -> np.ndarray | KeyedPermutation:
    """Return a permutation of range(n) that depends on `parts` alone, to be asked for the places int64 [b] in it.

    Up to `LARGE` it is that of `permutation`, above it a keyed one.
    """
    return permutation(n, *parts) if n <= LARGE else KeyedPermutation(n, *parts)


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
