"""The order of sets that are too large for a permutation to be made: at the positions that are asked, at once."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from tests.data.toys import Corner, Numbered

from unlabeled.data import order
from unlabeled.data.batch import Stream
from unlabeled.data.order import Order, WeightedOrder
from unlabeled.data.sources.mixed import Mixed
from unlabeled.data.stream import BatchShare, TrainStream
from unlabeled.ops.random import LARGE, KeyedPermutation, permutation

HUGE = 150_000_000


@pytest.fixture
def all_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(order, "LARGE", 0)
    monkeypatch.setattr(order, "permutation", None)


def test_up_to_the_bound_an_order_is_the_permutation_it_always_was(monkeypatch: pytest.MonkeyPatch) -> None:
    assert LARGE == 1 << 26
    monkeypatch.setattr(order, "LARGE", 1000)
    usual = Order(1000, 3, "train").indices(2, np.arange(1000))
    assert np.array_equal(usual, permutation(1000, 3, "train", "order", 2))
    larger = Order(1001, 3, "train").indices(2, np.arange(1001))
    assert np.array_equal(larger, KeyedPermutation(1001, 3, "train", "order", 2)[np.arange(1001)])
    assert not np.array_equal(larger, permutation(1001, 3, "train", "order", 2))


def test_every_epoch_and_round_of_a_large_set_has_an_order_of_its_own(all_large: None) -> None:
    own = Order(100, 0, "train")
    epochs = [own.indices(epoch, np.arange(200)) for epoch in range(3)]
    rounds = [part for epoch in epochs for part in (epoch[:100], epoch[100:])]
    assert all(np.array_equal(np.sort(part), np.arange(100)) for part in rounds)
    assert len({part.tobytes() for part in rounds}) == 6
    others = [Order(100, seed, name).indices(0, np.arange(100)) for seed, name in ((1, "train"), (0, "other"))]
    assert all(not np.array_equal(other, rounds[0]) for other in others)
    assert np.array_equal(Order(100, 0, "train").indices(1, np.array([150, 3])), epochs[1][[150, 3]])


def test_an_epoch_of_150_million_samples_begins_at_once() -> None:
    own, positions = Order(HUGE, 0, "train"), np.arange(HUGE - 4096, HUGE)
    begin = time.process_time()
    indices = [own.indices(epoch, positions) for epoch in range(4)]
    mixed = WeightedOrder([HUGE, 20_000_000], [9, 1], HUGE // 4, 0, "train").indices(1, positions - HUGE * 3 // 4)
    assert time.process_time() - begin < 1.0, "a permutation that is made takes ten seconds for each"
    assert all(len(np.unique(part)) == 4096 and part.min() >= 0 and part.max() < HUGE for part in indices)
    assert abs(np.mean(indices) / HUGE - 0.5) < 0.02
    assert len(np.intersect1d(indices[0], indices[1])) < 10, "another order in every epoch"
    assert 250 < (mixed >= HUGE).sum() < 600, "a tenth of the epoch"


def test_weights_hold_in_a_large_mix(all_large: None) -> None:
    mixed = WeightedOrder([10, 30], [3, 1], 41, 0, "train")
    for epoch in range(3):
        counts = np.bincount(mixed.indices(epoch, np.arange(41)), minlength=40)
        assert set(counts[:10]) == {3, 4} and set(counts[10:]) == {0, 1}, "one permutation after the other"
        assert counts[:10].sum() == 31


def test_a_mix_with_one_large_set_makes_no_permutation_of_the_others_either(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(order, "LARGE", 30)
    usual = WeightedOrder([10, 30], [1, 1], 30, 0, "train").indices(0, np.arange(30))
    monkeypatch.setattr(order, "LARGE", 29)
    assert not np.array_equal(WeightedOrder([10, 30], [1, 1], 29, 0, "train").indices(0, np.arange(29)), usual[:29])
    monkeypatch.setattr(order, "permutation", None)
    for sizes, epoch in (([10, 30], 20), ([10, 20], 30)):
        indices = WeightedOrder(sizes, [1, 1], epoch, 0, "train").indices(0, np.arange(epoch))
        assert (indices < 10).sum() == epoch // 2


@pytest.mark.parametrize("weights", [None, [1, 1]])
def test_a_stream_of_a_large_set_resumes_mid_epoch_and_is_shared(all_large: None, weights: list[float] | None) -> None:
    def stream(rank: int = 0, world: int = 1) -> TrainStream:
        sets = [Numbered(20, bad=(3,)), Numbered(30)]
        sets[0].classes = sets[1].classes = list("abcdefg")
        return TrainStream(Mixed(sets, [True, True], weights), Stream((Corner(),), labels=True),
                           BatchShare(8, rank, world), name="train", seed=0, updates_per_epoch=6)

    alone = [batch for (batch,) in stream().updates(0, 12)]
    rest = [batch for (batch,) in stream().updates(4, 12)]
    halves = [[batch for (batch,) in stream(rank, 2).updates(0, 12)] for rank in range(2)]
    for update, batch in enumerate(alone):
        joined = torch.cat([half[update].index for half in halves])
        assert torch.equal(batch.index, joined)
        assert update < 4 or torch.equal(batch.crops[0], rest[update - 4].crops[0])
    if weights is None:
        assert sum(len(batch.index.unique()) for batch in alone[:6]) >= 47
