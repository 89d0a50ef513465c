import numpy as np
import pytest
import torch

from unlabeled.passes.mining import candidates
from unlabeled.passes.mining.candidates import NO_HASH, compared, near_features, near_pictures

ROW = np.dtype([("embedding", "<f2", (6,)), ("thumbnail", "<i8"), ("waves", "|u1", (32,))])
CPU = torch.device("cpu")


class Rows:
    """What the searches use of a store."""

    def __init__(self, rows, unreadable=()):
        self.all, self.unreadable = rows, dict.fromkeys(unreadable, "damaged")

    def __len__(self):
        return len(self.all)

    def rows(self, places):
        return self.all[places]


def made(n, seed):
    rng = np.random.default_rng(seed)
    rows = np.zeros(n, ROW)
    x = rng.normal([2, 0, 0, 0, 0, 0], size=(n, 6))
    rows["embedding"] = x / np.linalg.norm(x, axis=1, keepdims=True)
    rows["thumbnail"] = rng.integers(-(2**60), 2**60, n)
    rows["waves"] = rng.integers(0, 256, (n, 32))
    return rows


@pytest.fixture(params=[1 << 14, 7], ids=["one block", "blocks of 7"], autouse=True)
def rows_at_once(request, monkeypatch):
    monkeypatch.setattr(candidates, "_ROWS", request.param)


def brute(pool, against, allowed, most, cosine):
    """The same by sorting everything."""
    pairs = []
    similarity = against.all["embedding"].astype(np.float32) @ pool.all["embedding"].astype(np.float32).T
    for query in range(len(against)):
        if query not in against.unreadable:
            near = sorted((-similarity[query, place], place) for place in range(len(pool)) if allowed[place])[:most]
            pairs += [(query, place) for value, place in near if -value >= cosine]
    return sorted(pairs)


@pytest.mark.parametrize("most, cosine", [(3, 0.8), (20, 0.9), (20, 0.1), (1, 0.5)])
def test_near_features_are_those_of_all_comparisons(most, cosine):
    pool, against = Rows(made(60, 0), [3, 4]), Rows(made(11, 1), [2])
    allowed = np.random.default_rng(2).random(60) < 0.7
    found = near_features(pool, against, allowed, most, cosine, CPU)
    assert sorted(map(tuple, found.tolist())) == brute(pool, against, allowed, most, cosine)
    assert len(found) > 5


def test_of_equal_features_the_first_are_candidates():
    rows, one = made(30, 0), made(1, 1)
    rows["embedding"][[5, 9, 17, 23]] = one["embedding"][0]
    found = near_features(Rows(rows), Rows(one), np.ones(30, bool), 3, 0.999, CPU)
    assert found.tolist() == [[0, 5], [0, 9], [0, 17]]


def test_fewer_images_than_candidates():
    found = near_features(Rows(made(2, 0)), Rows(made(3, 1)), np.ones(2, bool), 20, 0.01, CPU)
    assert len(found) <= 6 and found[:, 1].max() < 2


def flipped(waves, count):
    bits = np.unpackbits(waves)
    bits[10 : 10 + count] ^= 1
    return np.packbits(bits)


def test_pictures_are_equal_or_of_near_hashes():
    pool, against = made(40, 0), made(9, 1)
    pool["thumbnail"][31] = against["thumbnail"][4]
    pool["waves"][20] = flipped(against["waves"][7], 12)
    pool["waves"][21] = flipped(against["waves"][7], 13)
    pool["thumbnail"][3], pool["waves"][5] = against["thumbnail"][2], against["waves"][2]  # of an unreadable image
    pool["waves"][38] = against["waves"][0]  # itself unreadable
    found = near_pictures(Rows(pool, [38]), Rows(against, [2]), 12)
    assert sorted(map(tuple, found.tolist())) == [(4, 31), (7, 20)]


def test_flat_images_are_near_to_none_but_equal_ones():
    pool, against = made(20, 0), made(5, 1)
    pool["waves"][[2, 3]] = against["waves"][[0, 1]] = 0
    pool["thumbnail"][3] = against["thumbnail"][1]
    assert near_pictures(Rows(pool), Rows(against), 60).tolist() == [[1, 3]]
    assert compared(np.array([[0, 2], [1, 3]]), Rows(pool), Rows(against))["bits"].tolist() == [NO_HASH, NO_HASH]


def test_an_unreadable_evaluation_set_has_no_copies():
    against = Rows(made(3, 1), range(3))
    assert len(near_pictures(Rows(made(5, 0)), against, 200)) == 0
    assert len(near_features(Rows(made(5, 0)), against, np.ones(5, bool), 2, 0.1, CPU)) == 0


def test_pairs_say_how_near_their_images_are():
    pool, against = made(20, 0), made(5, 1)
    pool["thumbnail"][8] = against["thumbnail"][3]
    pool["waves"][8] = flipped(against["waves"][3], 5)
    pairs = compared(np.array([[3, 8], [1, 2], [3, 8]]), Rows(pool), Rows(against))
    assert pairs["against"].tolist() == [1, 3] and pairs["pool"].tolist() == [2, 8]
    assert pairs["bits"][1] == 5 and pairs["equal"].tolist() == [False, True]
    expected = (pool["embedding"][8].astype(float) * against["embedding"][3]).sum()
    assert pairs["cosine"][1] == pytest.approx(expected, abs=1e-6)
