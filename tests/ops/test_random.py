"""Seeds, permutations and uniform numbers: what they are for decides them, on every machine and in every version."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
import torch

from unlabeled.ops import random
from unlabeled.ops.random import KeyedPermutation, generator, permutation, seed_of, uniforms


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


@pytest.mark.parametrize("n", [1, 2, 3, 5, 64, 257, 1000, 4097, 65536, 65537, 1_000_000])
def test_a_keyed_permutation_has_every_number_once(n):
    keyed = KeyedPermutation(n, 0, "train", "order", n)
    assert keyed[np.arange(n)].dtype == np.int64
    np.testing.assert_array_equal(np.sort(keyed[np.arange(n)]), np.arange(n))


@pytest.mark.parametrize("n", [(1 << 26) + 1, 150_000_000, (1 << 28) + 1, 10**12])
def test_a_large_keyed_permutation_gives_no_number_twice(n):
    far = (uniforms(np.arange(100_000), 1, n)[:, 0] * n).astype(np.int64)
    positions = np.unique(np.concatenate([far, np.arange(50_000)]))
    places = KeyedPermutation(n, 0, "train")[positions]
    assert places.min() >= 0 and places.max() < n and len(np.unique(places)) == len(positions)
    np.testing.assert_array_equal(KeyedPermutation(n, 0, "train")[positions[[70, 3]]], places[[70, 3]])
    assert abs((places < n / 3).mean() - 1 / 3) < 0.006


def chi_square(counts):
    """Return how far counts are from equal ones, in deviations of what chance gives."""
    expected = counts.sum() / counts.size
    return (((counts - expected) ** 2 / expected).sum() - (counts.size - 1)) / np.sqrt(2 * (counts.size - 1))


@pytest.mark.parametrize("n", [97, 1000, (1 << 26) + 1, 150_000_000])
def test_where_numbers_come_to_stand_is_even_over_keys_and_so_is_the_distance_of_neighbours(n):
    """16 x 16 cells of place and number; the step from one place to the next; the parities of both."""
    rows = min(n, 2000)
    first = np.arange(rows) if rows == n else np.arange(rows) + n // 3
    cells, steps, bits = np.zeros((16, 16)), np.zeros(32), np.zeros((2, 2))
    spread = np.unique(np.linspace(0, n - 1, 2000).astype(np.int64))
    for key in range(200):
        keyed = KeyedPermutation(n, "uniform", key)
        places = keyed[spread]
        np.add.at(cells, (spread * 16 // n, places * 16 // n), 1)
        places = keyed[first]
        np.add.at(steps, ((places[1:] - places[:-1]) % n - 1) * 32 // (n - 1), 1)
        np.add.at(bits, (first & 1, places & 1), 1)
    edges = np.bincount(np.arange(n) * 16 // n) if n <= 2000 else None
    if edges is not None:  # cells of small sets differ in size
        cells /= np.outer(edges, edges) * 256 / n**2
        sizes = np.bincount(np.arange(n - 1) * 32 // (n - 1))
        steps /= sizes * 32 / (n - 1)
        halves = np.bincount(np.arange(n) & 1)
        bits /= np.outer(halves, halves) * 4 / n**2
    assert chi_square(cells) < 5, "places"
    assert abs(chi_square(steps)) < 5, "neighbours"
    assert chi_square(bits) < 5, "parities"


def test_all_orders_of_a_few_numbers_come_up_alike():
    counts = {}
    for key in range(24 * 200):
        order = tuple(KeyedPermutation(4, "few", key)[np.arange(4)].tolist())
        counts[order] = counts.get(order, 0) + 1
    assert len(counts) == 24 and abs(chi_square(np.array(list(counts.values())))) < 5


def feistel(position, n, seed):
    """Six rounds over halves of equally many bits, in whole numbers, again while the number is outside."""
    half = next(bits for bits in range(1, 40) if 4**bits >= n)
    left, right = divmod(position, 2**half)
    for number in range(6):
        key = next(split_mix((seed + number * 0x9E3779B97F4A7C15) % 2**64))  # which adds the constant once itself
        mixed = next(split_mix((right + key - 0x9E3779B97F4A7C15) % 2**64))
        left, right = right, left ^ mixed % 2**half
    number = left * 2**half + right
    return number if number < n else feistel(number, n, seed)


@pytest.mark.parametrize("n", [10, 1000, 150_000_000, 2**28, 2**28 + 1])
def test_a_keyed_permutation_is_a_feistel_network_that_walks_its_cycles(n):
    positions = [0, 1, n // 2, n - 1]
    expected = [feistel(position, n, seed_of(0, "train", "order", 1)) for position in positions]
    assert KeyedPermutation(n, 0, "train", "order", 1)[np.array(positions)].tolist() == expected


def test_keyed_permutations_are_pinned_and_refuse_places_outside():
    assert KeyedPermutation(10, 0, "train")[np.arange(10)].tolist() == [9, 4, 2, 3, 8, 0, 5, 7, 6, 1]
    assert KeyedPermutation(150_000_000, 0, "train")[np.arange(3)].tolist() == [62535528, 115420066, 45495445]
    for place in (-1, 10):
        with pytest.raises(IndexError, match="of a permutation of 10"):
            KeyedPermutation(10, 0)[np.array([3, place])]
    assert len(KeyedPermutation(10, 0)[np.empty(0, np.int64)]) == 0


def test_large_sets_are_shuffled_by_a_key_and_others_by_the_permutation_they_always_had(monkeypatch):
    monkeypatch.setattr(random, "LARGE", 100)
    np.testing.assert_array_equal(random.shuffled(100, 0, "online"), permutation(100, 0, "online"))
    keyed, places = random.shuffled(101, 0, "online"), np.arange(101)
    np.testing.assert_array_equal(keyed[places], KeyedPermutation(101, 0, "online")[places])
