"""Logistic regression on all labels: against scikit-learn, and how C is chosen."""

from __future__ import annotations

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression

from unlabeled.config.protocols.vectors import Logistic
from unlabeled.engine.passes.features import Features
from unlabeled.evaluation.vectors.logistic import run

CPU = torch.device("cpu")


def features(n: int, seed: int, noise: float) -> Features:
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 4, n)
    centres = np.random.default_rng(99).normal(size=(4, 12))
    x = centres[label] + noise * rng.normal(size=(n, 12))
    return Features(torch.from_numpy(x).float(), torch.arange(n), torch.from_numpy(label))


def test_the_score_is_that_of_scikit_learn_at_the_chosen_c() -> None:
    train, test = features(200, 0, 1.5), features(300, 1, 1.5)
    score = run(Logistic(protocol="logistic"), train, test, 4, CPU)["logistic"]
    mean, std = train.x.double().mean(0), train.x.double().std(0, correction=0)
    model = LogisticRegression(C=score.details["c"], max_iter=2000, tol=1e-9)
    model.fit(((train.x - mean) / std).numpy(), train.label.numpy())
    expected = 100 * model.score(((test.x - mean) / std).numpy(), test.label.numpy())
    assert abs(score.value - expected) <= 100 / 300 and 40 < score.value < 100


def test_noisy_features_get_more_regularisation_than_clean_ones() -> None:
    chosen = {noise: run(Logistic(protocol="logistic", c=[1e-4, 1.0], held_out=0.3), features(80, 0, noise),
                         features(50, 1, noise), 4, CPU)["logistic"] for noise in (0.5, 6.0)}
    assert chosen[0.5].value > chosen[6.0].value
    assert all(score.details["note"] == "the chosen c is at the end of the grid" for score in chosen.values())


def test_one_c_is_taken_as_it_is() -> None:
    score = run(Logistic(protocol="logistic", c=[0.5]), features(80, 0, 1.0), features(50, 1, 1.0), 4, CPU)["logistic"]
    assert score.details["c"] == 0.5 and "note" not in score.details


def test_test_features_are_standardised_by_those_of_train() -> None:
    train, test = features(200, 0, 1.5), features(300, 1, 1.5)
    cfg = Logistic(protocol="logistic", c=[1.0])
    shifted = Features(test.x + 5.0, test.index, test.label)
    assert run(cfg, train, shifted, 4, CPU)["logistic"].value < run(cfg, train, test, 4, CPU)["logistic"].value - 10
