"""Which images are chosen for each class."""

import numpy as np
import pytest
import torch

from unlabeled.errors import UserError
from unlabeled.ops.selection import likeliest_classes as likeliest
from unlabeled.ops.selection import top_per_class


def prob_of(n=200, classes=5, seed=0):
    return np.random.default_rng(seed).dirichlet(np.full(classes, 0.3), n)


def likeliest_classes(prob, p=1):
    return [x.numpy() for x in likeliest(torch.from_numpy(prob), p)]


def naive(prob, k, removed=(), top_p=1):
    """Choose image by image, as the text says it: per class (place, score) in rank order."""
    result = []
    for label in range(prob.shape[1]):
        served = [i for i in range(len(prob)) if i not in removed
                  and label in sorted(range(prob.shape[1]), key=lambda c: (-prob[i, c], c))[:top_p]]  # fmt: skip
        result.append(sorted(served, key=lambda i: (-prob[i, label], i))[:k])
    return result


@pytest.mark.parametrize("top_p", [1, 2, 5])
@pytest.mark.parametrize("removed", [(), (3, 17, 17, 150)])
def test_selection_is_that_of_the_text(top_p, removed):
    prob = prob_of().round(2)  # many equal scores
    selection = top_per_class(*likeliest_classes(prob, top_p), k=30, total=5, removed=np.array(removed, dtype=int))
    expected = naive(prob, 30, removed, top_p)
    for label, places in enumerate(expected):
        assert selection.places[label][: len(places)].tolist() == places
        assert (selection.places[label][len(places):] == -1).all()
        assert selection.scores[label][: len(places)].tolist() == prob[places, label].tolist()
    assert selection.counts.tolist() == [len(places) for places in expected]
    assert selection.images.tolist() == sorted({place for places in expected for place in places})


def test_an_image_serves_one_class_unless_more_are_asked_for():
    prob = prob_of()
    one, two = (top_per_class(*likeliest_classes(prob, p), k=40, total=5) for p in (1, 2))
    assert one.counts.sum() == len(one.images)
    assert two.counts.sum() > len(two.images)


def test_equal_scores_go_by_place_and_equal_classes_by_number():
    classes, scores = likeliest_classes(np.full((4, 3), 1 / 3))
    assert classes.tolist() == [[0]] * 4
    assert top_per_class(classes, scores, k=2, total=3).places.tolist() == [[0, 1], [-1, -1], [-1, -1]]


def test_the_order_of_the_pool_matters_to_equal_scores_alone():
    prob, shuffled = prob_of(), np.random.default_rng(1).permutation(200)
    first, other = (top_per_class(*likeliest_classes(p), k=7, total=5) for p in (prob, prob[shuffled]))
    assert np.array_equal(first.places, np.where(other.places < 0, -1, shuffled[other.places]))


def test_scores_that_are_not_finite_are_refused_with_their_place():
    scores = np.full(5, 0.5)
    scores[3] = np.nan
    with pytest.raises(UserError, match="scores of 1 images are not finite, the first at place 3"):
        top_per_class(np.zeros(5, dtype=int), scores, k=2, total=2)
    top_per_class(np.zeros(5, dtype=int), scores, k=2, total=2, removed=np.array([3]))  # it is not asked for
