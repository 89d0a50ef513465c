"""Exact kNN: against a loop, against scikit-learn, torch against faiss, and the rules for ties, masks and k."""

import math
from itertools import combinations

import numpy as np
import pytest
import torch

from unlabeled.errors import UserError
from unlabeled.ops.measures import knn

CLASSES = 5


def blobs(n: int, width: int = 16, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(CLASSES, width, generator=torch.Generator().manual_seed(7))
    labels = torch.randint(0, CLASSES, (n,), generator=generator)
    return centres[labels] + 1.2 * torch.randn(n, width, generator=generator), labels


def loop(bank, labels, queries, k, temperature):
    """The definition, one query at a time in float64."""
    bank, queries = bank.double().numpy(), queries.double().numpy()
    bank, queries = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (bank, queries))
    scores = np.zeros((len(queries), CLASSES))
    for row, query in enumerate(queries):
        cosine = bank @ query
        order = np.argsort(-cosine)[:k]
        for place in order:
            scores[row, labels[place]] += math.exp((cosine[place] - cosine[order[0]]) / temperature)
    return scores


def test_votes_equal_the_definition():
    bank, labels = blobs(300)
    queries, _ = blobs(60, seed=1)
    found = knn.votes(bank, labels, queries, [1, 20, 200], 0.07, CLASSES)
    for k, score in found.items():
        np.testing.assert_allclose(score.numpy(), loop(bank, labels, queries, k, 0.07), rtol=1e-4, atol=1e-5)


def test_neighbours_are_those_of_scikit_learn():
    neighbors = pytest.importorskip("sklearn.neighbors")
    bank, labels = blobs(400)
    queries, _ = blobs(80, seed=1)
    cosines, places = knn.neighbors(bank, queries, 20)
    model = neighbors.NearestNeighbors(n_neighbors=20, metric="cosine", algorithm="brute").fit(bank.double().numpy())
    distance, expected = model.kneighbors(queries.double().numpy())
    np.testing.assert_array_equal(np.sort(places.numpy(), 1), np.sort(expected, 1))
    np.testing.assert_allclose(1 - cosines.numpy(), distance, atol=1e-6)

    def weights(distance):
        return np.exp(-distance / 0.07)

    voter = neighbors.KNeighborsClassifier(20, metric="cosine", algorithm="brute", weights=weights)
    expected = voter.fit(bank.double().numpy(), labels.numpy()).predict(queries.double().numpy())
    np.testing.assert_array_equal(knn.predict(bank, labels, queries, [20], 0.07, CLASSES)[20].numpy(), expected)


@pytest.mark.parametrize("copies", [1, 30])
def test_faiss_gives_the_same_answer_also_with_ties(copies):
    pytest.importorskip("faiss")
    bank, labels = blobs(200)
    bank, labels = bank.repeat(copies, 1), torch.cat([(labels + c) % CLASSES for c in range(copies)])
    queries, _ = blobs(50, seed=1)
    ours = knn.votes(bank, labels, queries, [3, 20], 0.07, CLASSES)
    faiss = knn.votes(bank, labels, queries, [3, 20], 0.07, CLASSES, search="faiss")
    for k in ours:
        torch.testing.assert_close(ours[k], faiss[k], rtol=1e-4, atol=1e-5)


def test_independent_of_batch_size_and_order(monkeypatch):
    bank, labels = blobs(250)
    bank, labels = torch.cat([bank, bank[:50]]), torch.cat([labels, (labels[:50] + 1) % CLASSES])  # ties
    queries, _ = blobs(70, seed=1)
    expected = knn.votes(bank, labels, queries, [2, 21], 0.07, CLASSES)
    order = torch.randperm(len(bank), generator=torch.Generator().manual_seed(3))
    turned = knn.votes(bank[order], labels[order], queries.flip(0), [2, 21], 0.07, CLASSES)
    monkeypatch.setattr(knn, "_QUERIES", 7)
    chunked = knn.votes(bank, labels, queries, [2, 21], 0.07, CLASSES)
    for k, score in expected.items():
        torch.testing.assert_close(turned[k].flip(0), score, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(chunked[k], score, rtol=1e-4, atol=1e-6)


def test_entries_that_tie_with_the_kth_share_its_place():
    bank = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.6, 0.8], [0.6, 0.8], [0.0, 1.0]])
    labels = torch.tensor([0, 1, 2, 2, 3])
    score = knn.votes(bank, labels, torch.tensor([[2.0, 0.0]]), [2], 0.4, 4)[2][0]
    each = math.exp((0.6 - 1) / 0.4) / 3
    torch.testing.assert_close(score, torch.tensor([1.0, each, 2 * each, 0.0], dtype=torch.float64))


def test_cosines_that_differ_by_rounding_are_equal():
    """The largest is the k-th one too, to within rounding: whichever of them is found first, both have half a place."""
    cosine = torch.tensor([0.6 + 4e-7, 0.6, 0.2], dtype=torch.float64)
    bank = torch.stack([cosine, (1 - cosine**2).sqrt()], 1)
    for k, expected in ((1, [0.5, 0.5, 0.0]), (2, [1.0, 1.0, 0.0])):
        score = knn.votes(bank, torch.arange(3), torch.tensor([[1.0, 0.0]]).double(), [k], 0.4, 3)[k][0]
        torch.testing.assert_close(score, torch.tensor(expected, dtype=torch.float64), rtol=1e-5, atol=1e-9)


def test_a_collapsed_bank_votes_by_the_class_shares():
    bank, labels = torch.ones(3000, 4), torch.arange(3000) % 3
    labels[:30] = 1
    score = knn.votes(bank, labels, torch.ones(2, 4), [20], 0.07, 3)[20]
    torch.testing.assert_close(score, (20 * torch.bincount(labels) / 3000).double().expand(2, 3))
    assert knn.predict(bank, labels, torch.ones(2, 4), [20], 0.07, 3)[20].tolist() == [1, 1]


def test_unlabelled_entries_do_not_vote():
    bank, labels = blobs(100)
    queries, _ = blobs(20, seed=1)
    masked = labels.clone()
    masked[::2] = -1
    ours = knn.votes(bank, masked, queries, [10], 0.07, CLASSES)[10]
    torch.testing.assert_close(ours, knn.votes(bank[1::2], labels[1::2], queries, [10], 0.07, CLASSES)[10])


def test_k_beyond_the_labelled_bank_is_refused_and_the_whole_bank_is_allowed():
    bank, labels = blobs(30)
    labels[:5] = -1
    with pytest.raises(UserError, match="k = 20, 26, but the bank holds 25 labelled images: allowed is 1 to 25"):
        knn.predict(bank, labels, bank, [20, 26], 0.07, CLASSES)
    assert knn.predict(bank, labels, bank[:3], [25], 0.07, CLASSES)[25].shape == (3,)


def test_low_temperature_autocast_and_no_queries():
    bank, labels = blobs(100)
    queries, _ = blobs(20, seed=1)
    expected = knn.votes(bank, labels, queries, [10], 1e-4, CLASSES)[10]
    assert torch.isfinite(expected).all()
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(knn.votes(bank, labels, queries, [10], 1e-4, CLASSES)[10], expected)
    assert knn.predict(bank, labels, queries[:0], [10], 0.07, CLASSES)[10].shape == (0,)


@pytest.mark.parametrize("search", ["torch", "faiss"])
@pytest.mark.parametrize("k", [1, 5, 59])
def test_a_query_of_the_bank_is_left_out_by_its_place_and_its_twins_vote(search, k):
    if search == "faiss":
        pytest.importorskip("faiss")
    bank, labels = blobs(60)
    bank[7], labels[7], labels[3] = bank[3], 4, 0  # equal images with different labels
    queries, own = torch.cat([bank, blobs(10, seed=5)[0]]), torch.cat([torch.arange(60), torch.full((10,), -1)])
    found = knn.votes(bank, labels, queries, [k], 0.07, CLASSES, search, own)[k]
    for row in range(60):
        rest = torch.arange(60) != row
        expected = knn.votes(bank[rest], labels[rest], bank[row : row + 1], [k], 0.07, CLASSES)[k]
        torch.testing.assert_close(found[row : row + 1], expected, rtol=1e-4, atol=1e-5)
    plain = knn.votes(bank, labels, queries[60:], [k], 0.07, CLASSES)[k]
    torch.testing.assert_close(found[60:], plain, rtol=1e-4, atol=1e-5)
    assert k > 1 or (found[3].argmax() == 4 and found[7].argmax() == 0)


def test_places_of_queries_are_those_of_the_whole_bank_with_its_unlabelled_images():
    bank, labels = blobs(30)
    labels[[0, 4, 5]] = -1
    own = torch.arange(30)
    known = labels >= 0
    found = knn.predict(bank, labels, bank, [3], 0.07, CLASSES, own=own)[3]
    expected = knn.predict(bank[known], labels[known], bank[known], [3], 0.07, CLASSES, own=torch.arange(27))[3]
    assert torch.equal(found[known], expected)
    without = knn.predict(bank[known], labels[known], bank[~known], [3], 0.07, CLASSES)[3]
    assert torch.equal(found[~known], without)  # an unlabelled query was no voter
    with pytest.raises(UserError, match=r"k = 27, but the bank holds 26 labelled images beside the query itself"):
        knn.predict(bank, labels, bank, [27], 0.07, CLASSES, own=own)


def test_the_query_itself_is_left_out_where_ties_go_beyond_what_was_fetched():
    bank = torch.ones(50, 4)
    labels = torch.cat([torch.zeros(26), torch.ones(24)]).long()
    found = knn.votes(bank, labels, bank, [1], 0.07, 2, own=torch.arange(50))[1]
    torch.testing.assert_close(found[0], torch.tensor([25 / 49, 24 / 49], dtype=torch.float64))
    torch.testing.assert_close(found[49], torch.tensor([26 / 49, 23 / 49], dtype=torch.float64))


def naive_hits(bank, labels, queries, wanted, k, own):
    """Whether one of the k nearest is of the query's class, one query at a time, in float64; without ties."""
    bank, queries = (x.double() / x.double().norm(dim=1, keepdim=True) for x in (bank, queries))
    found = []
    for query, kind, place in zip(queries, wanted, own.tolist(), strict=True):
        order = torch.argsort(-(bank @ query)).tolist()
        order = [entry for entry in order if entry != place and labels[entry] >= 0]
        found.append(float(any(labels[entry] == kind for entry in order[:k])))
    return torch.tensor(found, dtype=torch.float64)


@pytest.mark.parametrize("search", ["torch", "faiss"])
def test_hits_equal_the_definition(search, monkeypatch):
    monkeypatch.setattr(knn, "_QUERIES", 50)
    if search == "faiss":
        pytest.importorskip("faiss")
    bank, labels = blobs(90)
    labels[[2, 50]] = -1
    queries, wanted = (torch.cat(pair) for pair in zip((bank, labels), blobs(40, seed=3), strict=True))
    own = torch.cat([torch.arange(90), torch.full((40,), -1)])
    wanted[-1] = 77  # of no class of the bank
    found = knn.hits(bank, labels, queries, wanted, [1, 5, 30], search, own)
    for k, hit in found.items():
        assert torch.equal(hit, naive_hits(bank, labels, queries, wanted, k, own)), k
    assert 0 < float(found[1].mean()) < float(found[5].mean()) < 1 and float(found[30][-1]) == 0


def test_entries_that_tie_with_the_kth_are_equally_likely_to_be_found():
    """Every choice among the ties, one by one; more ties than are fetched at once; one entry is nearer than these."""
    bank = torch.tensor([[1.0, 0.1]] + [[0.0, 1.0]] * 6 + [[-1.0, 0.0]])
    labels = torch.tensor([0, 1, 1, 2, 2, 2, 2, 1])
    query = torch.tensor([[1.0, 1.0]])  # its cosine with entry 0 is larger than with the six
    for k, left in ((2, 1), (3, 2), (5, 4)):
        for kind in (0, 1, 2, 3):
            ways = [kind == 0 or any(labels[1 + i] == kind for i in way) for way in combinations(range(6), left)]
            hit = knn.hits(bank, labels, query, torch.tensor([kind]), [k])[k]
            torch.testing.assert_close(hit, torch.tensor([np.mean(ways)], dtype=torch.float64))


def test_hits_of_a_collapsed_bank_are_those_of_a_random_order():
    labels = torch.tensor([0] * 3 + [1] * 7)
    for k in (1, 4, 9):
        found = knn.hits(torch.ones(10, 3), labels, torch.ones(10, 3), labels, [k], own=torch.arange(10))[k]
        misses = [[math.comb(9 - same, k) / math.comb(9, k)] for same in [2] * 3 + [6] * 7]
        torch.testing.assert_close(found, 1 - torch.tensor(misses, dtype=torch.float64)[:, 0])
    assert knn.hits(torch.ones(10, 3), labels, torch.ones(0, 3), labels[:0], [2])[2].shape == (0,)
    several = knn.random_hits(torch.tensor([4, 4, 4]), torch.tensor([1, 1, 2]), torch.tensor([1, 3, 3]))
    torch.testing.assert_close(several, torch.tensor([1 / 4, 3 / 4, 1.0], dtype=torch.float64))


def test_a_bank_without_labels_is_refused_in_words():
    bank, labels = blobs(4)
    with pytest.raises(UserError, match=r"^kNN over a bank without a labelled image$"):
        knn.predict(bank, torch.full_like(labels, -1), bank, [1], 0.07, CLASSES)
    with pytest.raises(UserError, match="without a labelled image beside the query itself"):
        knn.predict(bank[:1], labels[:1], bank[:1], [1], 0.07, CLASSES, own=torch.tensor([0]))
