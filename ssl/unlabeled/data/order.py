"""Which samples an update takes, and what takes the place of an unreadable one."""

from __future__ import annotations

import numpy as np

from unlabeled.ops.random import permutation, uniforms


class Order:
    """The order of one stream: a function of (seed, stream, epoch, position) that keeps no state but a cache."""

    def __init__(self, samples: int, seed: int, name: str) -> None:
        self.samples, self.seed, self.name = samples, seed, name
        self._cache: dict[tuple[int, int], np.ndarray] = {}

    def indices(self, epoch: int, positions: np.ndarray) -> np.ndarray:
        """Return the samples, int64 [b], at `positions` [b] of an epoch; beyond the set follow more permutations."""
        out = np.empty(len(positions), np.int64)
        rounds = positions // self.samples
        for again in np.unique(rounds):
            chosen = rounds == again
            out[chosen] = self._permutation(epoch, int(again))[positions[chosen] % self.samples]
        return out

    def substitute(self, epoch: int, position: int, attempt: int) -> int:
        """Return the sample that stands in at `position` after `attempt` unreadable ones there."""
        draw = uniforms(np.array([position]), 1, self.seed, self.name, "substitute", epoch, attempt)[0, 0]
        return int(draw * self.samples)

    def _permutation(self, epoch: int, again: int) -> np.ndarray:
        key = (epoch, again)
        if key not in self._cache:
            if len(self._cache) > 1:  # an update may touch two permutations; older ones are not needed again
                self._cache.pop(next(iter(self._cache)))
            parts = (self.seed, self.name, "order", epoch, *([again] if again else []))
            self._cache[key] = permutation(self.samples, *parts)
        return self._cache[key]
