"""Which samples an update takes, and what takes the place of an unreadable one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from unlabeled.ops.random import LARGE, KeyedPermutation, permutation, uniforms


class Order:
    """The order of one stream: a function of (seed, stream, epoch, position) that keeps no state but a cache.

    That of more than `LARGE` samples is computed at the positions that are asked for, so an epoch begins at once.
    """

    def __init__(self, samples: int, seed: int, name: str) -> None:
        self.samples, self.seed, self.name = samples, seed, name
        self.large = samples > LARGE
        # by what is permuted, for sets of millions take long
        self._kept: dict[str, dict[tuple[int, ...], np.ndarray | KeyedPermutation]] = {}

    def indices(self, epoch: int, positions: np.ndarray) -> np.ndarray:
        """Return the samples, int64 [b], at `positions` [b] of an epoch; beyond the set follow more permutations."""
        return self._cycled("order", self.samples, positions, epoch)

    def substitute(self, epoch: int, position: int, attempt: int) -> int:
        """Return the sample that stands in at `position` after `attempt` unreadable ones there."""
        return int(self._chance(epoch, position, attempt) * self.samples)

    def _chance(self, epoch: int, position: int, attempt: int) -> float:
        return float(uniforms(np.array([position]), 1, self.seed, self.name, "substitute", epoch, attempt)[0, 0])

    def _cycled(self, what: str, samples: int, positions: np.ndarray, epoch: int) -> np.ndarray:
        """Return what stands at `positions` of an epoch's permutations of range(samples) behind one another."""
        out = np.empty(len(positions), np.int64)
        rounds = positions // samples
        for again in np.unique(rounds).tolist():
            chosen = rounds == again
            order = self._permutation(what, samples, (epoch, *([again] if again else [])))
            out[chosen] = order[positions[chosen] % samples]
        return out

    def _permutation(self, what: str, samples: int, which: tuple[int, ...]) -> np.ndarray | KeyedPermutation:
        kept = self._kept.setdefault(what, {})
        if which not in kept:
            if len(kept) > 1:  # an update may touch two epochs; older ones are not needed again
                kept.pop(next(iter(kept)))
            kind = KeyedPermutation if self.large else permutation
            kept[which] = kind(samples, self.seed, self.name, what, *which)
        return kept[which]


class WeightedOrder(Order):
    """The order of several sets behind one another, of which each epoch takes fixed shares.

    sizes: samples of each set. epoch: positions of an epoch, divided in proportion to `weights` (largest remainders);
    each set's part goes through permutations of it, one behind the other where the part is larger than the set. If the
    epoch or a set has more than `LARGE`, no permutation of any is made.
    """

    def __init__(self, sizes: Sequence[int], weights: Sequence[float], epoch: int, seed: int, name: str) -> None:
        super().__init__(epoch, seed, name)
        self.sizes = list(sizes)
        self.large = max(epoch, *sizes) > LARGE
        self.starts = np.cumsum([0, *sizes])
        self.bounds = np.cumsum([0, *shares(weights, epoch)])

    def indices(self, epoch: int, positions: np.ndarray) -> np.ndarray:
        """Return the samples, int64 [b], at `positions` [b] of an epoch; beyond it follow more of the kind."""
        slots = super().indices(epoch, positions)
        which = np.searchsorted(self.bounds, slots, "right") - 1
        out = np.empty(len(positions), np.int64)
        for number in np.unique(which).tolist():
            chosen = which == number
            within = slots[chosen] - self.bounds[number]
            out[chosen] = self.starts[number] + self._cycled(f"set {number}", self.sizes[number], within, epoch)
        return out

    def substitute(self, epoch: int, position: int, attempt: int) -> int:
        """Return a sample of the same set as the one at `position`."""
        index = self.indices(epoch, np.array([position]))[0]
        number = int(np.searchsorted(self.starts, index, "right")) - 1
        return int(self.starts[number]) + int(self._chance(epoch, position, attempt) * self.sizes[number])


def shares(weights: Sequence[float], total: int) -> list[int]:
    """Divide `total` in proportion to `weights` into whole numbers; those with the largest remainders get the rest."""
    exact = np.array(weights, np.float64) / sum(weights) * total
    parts = np.floor(exact).astype(np.int64)
    for place in np.argsort(parts - exact, kind="stable")[: total - int(parts.sum())]:
        parts[place] += 1
    return [int(part) for part in parts]
