"""Seeds, permutations and uniform numbers: what they are for decides them, on every machine and in every version."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
import torch

from unlabeled.ops.random import generator, permutation, seed_of, uniforms


def split_mix(state: int):
    """SplitMix64 in whole numbers, as Steele et al. print it (OOPSLA 2014)."""
    while True:
        state = (state + 0x9E3779B97F4A7C15) % 2**64
        z = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
        yield z ^ (z >> 31)


def test_uniforms_are_streams_of_split_mix_one_per_position():
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert list(islice(split_mix(1234567), 3)) == published
    positions = np.array([0, 1, 5, 2**40])
    found = uniforms(positions, 4, 3, "train", "crop", 0)
    for row, position in zip(found, positions.tolist(), strict=True):
        start = next(split_mix((seed_of(3, "train", "crop", 0) + (position - 1) * 0x9E3779B97F4A7C15) % 2**64))
        assert row.tolist() == [(bits >> 11) / 2**53 for bits in islice(split_mix(start), 4)]


def test_a_row_does_not_depend_on_its_neighbours_nor_a_number_on_those_behind_it():
    whole = uniforms(np.arange(100), 8, 0, "x")
    np.testing.assert_array_equal(uniforms(np.array([70, 3]), 5, 0, "x"), whole[[70, 3], :5])
    assert whole.min() >= 0 and whole.max() < 1 and abs(whole.mean() - 0.5) < 0.04
    assert len(np.unique(whole)) == whole.size


def test_what_the_hash_gives_is_pinned():
    assert seed_of(0) == 3581690635855307741
    assert seed_of(0, "train", "order", 1) == 4442000997361862054
    assert permutation(8, 0, "train", "order", 1).tolist() == [2, 5, 7, 4, 1, 0, 6, 3]
    assert torch.randint(1000, (3,), generator=generator(0, "shared", 2, 0)).tolist() == [556, 524, 580]


@pytest.mark.parametrize(("one", "other"), [
    ((1,), ("1",)), ((1, 2), (12,)), (("a", "b"), ("ab",)), ((0, "x"), ("x", 0)), ((0,), (0, 0)), ((True,), (1,)),
])  # fmt: skip
def test_other_parts_are_another_seed(one, other):
    assert seed_of(*one) != seed_of(*other)
    assert 0 <= seed_of(*one) < 2**63
