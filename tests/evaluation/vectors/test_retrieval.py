"""Recall at k: against the definition, and its chance."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch

from unlabeled.config.protocols.vectors import Retrieval
from unlabeled.engine.passes.features import Features
from unlabeled.errors import UserError
from unlabeled.evaluation.vectors.retrieval import run

CPU = torch.device("cpu")
CFG = Retrieval(protocol="retrieval", k=[1, 3])


def features(n: int, seed: int, kinds: list[int]) -> Features:
    generator = torch.Generator().manual_seed(seed)
    label = torch.tensor([kinds[i % len(kinds)] for i in range(n)])
    x = torch.eye(8)[label] + 0.5 * torch.randn(n, 8, generator=generator)
    return Features(x, torch.arange(n), label)


def recalled(train: Features, test: Features, k: int, *, itself: bool) -> float:
    """Return the share in percent, one test image at a time."""
    assert train.label is not None and test.label is not None
    found = []
    for row, (x, kind) in enumerate(zip(test.x, test.label, strict=True)):
        cosine = torch.nn.functional.cosine_similarity(train.x.double(), x.double()[None])
        if not itself:
            cosine[row] = -2.0
        found.append(bool((train.label[cosine.argsort(descending=True)[:k]] == kind).any()))
    return 100 * float(np.mean(found))


def test_recall_is_that_of_a_loop_and_chance_that_of_every_order() -> None:
    train, test = features(11, 0, [0, 1, 1, 2]), features(40, 1, [0, 1, 2, 2, 3])  # nothing in train is of class 3
    scores = run(CFG, train, test, 4, CPU)
    assert list(scores) == ["recall@1", "recall@3"]
    assert train.label is not None and test.label is not None
    for k in (1, 3):
        score = scores[f"recall@{k}"]
        assert score.value == pytest.approx(recalled(train, test, k, itself=True))
        chance = np.mean([np.mean([any(train.label[i] == kind for i in order) for order in combinations(range(11), k)])
                          for kind in test.label])
        assert score.details["chance"] == pytest.approx(100 * chance)
    assert scores["recall@1"].details["chance"] + 15 < scores["recall@1"].value < scores["recall@3"].value < 85


def test_a_test_image_does_not_find_itself_in_train() -> None:
    train = features(12, 0, [0, 1, 1, 2])
    test = Features(train.x, train.index, train.label, twin=torch.arange(12))
    scores = run(CFG, train, test, 3, CPU)
    assert scores["recall@1"].value == pytest.approx(recalled(train, test, 1, itself=False))
    assert scores["recall@1"].value < 100
    # of the eleven others two are of the class of six of the images, and five of that of the other six
    assert scores["recall@1"].details["chance"] == pytest.approx(100 * (6 * 2 / 11 + 6 * 5 / 11) / 12)


def test_features_that_are_all_alike_reach_chance_and_no_more() -> None:
    train, test = features(30, 0, [0, 1, 1]), features(30, 1, [0, 1])
    scores = run(CFG, Features(torch.ones(30, 4), train.index, train.label),
                 Features(torch.ones(30, 4), test.index, test.label), 2, CPU)
    for score in scores.values():
        assert score.value == pytest.approx(score.details["chance"])


def test_fewer_training_images_than_k_are_refused() -> None:
    with pytest.raises(UserError, match=r"k is 3, but there are 2 labelled training images; use k=\[1\]"):
        CFG.check([1, 1], ["a", "b"])
    with pytest.raises(UserError, match="retrieval needs a labelled training image besides the test image itself"):
        CFG.check([0, 0], ["a", "b"])
