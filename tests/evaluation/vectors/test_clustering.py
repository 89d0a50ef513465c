"""Clustering: agreement with the classes by hand, what chance is, and that labels choose nothing."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
import torch

from unlabeled.config.protocols.vectors import Clustering
from unlabeled.engine.passes.features import Features
from unlabeled.errors import UserError
from unlabeled.evaluation.vectors.clustering import agreement, run

CPU = torch.device("cpu")


def cfg(**values) -> Clustering:
    return Clustering(**{"protocol": "clustering", "restarts": 3} | values)


def features(x: torch.Tensor, label: torch.Tensor) -> Features:
    return Features(x, torch.arange(len(x)), label)


def blobs(n: int, noise: float, seed: int = 0) -> Features:
    """Return images of four classes around orthogonal directions, at lengths that tell nothing."""
    generator = torch.Generator().manual_seed(seed)
    label = torch.arange(n) % 4
    x = torch.eye(6)[label] + noise * torch.randn(n, 6, generator=generator)
    return features(x * 10 ** torch.rand(n, 1, generator=generator), label)


def score(test: Features, **values) -> dict:
    return run(cfg(**values), test, test, 4, CPU)


def naive(cluster: np.ndarray, label: np.ndarray) -> dict[str, float]:
    """Return ACC over all matchings, and ARI and FMI over all pairs, one by one."""
    kinds = range(max(cluster.max(), label.max()) + 1)
    right = max(sum(names[c] == y for c, y in zip(cluster, label, strict=True)) for names in permutations(kinds))
    n = len(label)
    pairs = [(cluster[i] == cluster[j], label[i] == label[j]) for i in range(n) for j in range(i)]
    both, one, other = (sum(a and b for a, b in pairs), sum(a for a, _ in pairs), sum(b for _, b in pairs))
    expected = one * other / len(pairs)
    adjusted = (both - expected) / ((one + other) / 2 - expected)
    return {"ACC": right / n, "ARI": adjusted, "FMI": both / (one * other) ** 0.5}


def test_agreement_is_that_of_all_matchings_and_all_pairs() -> None:
    generator = np.random.default_rng(0)
    for _ in range(5):
        cluster, label = generator.integers(0, 4, 20), generator.integers(0, 3, 20)
        found = agreement(cluster, label)
        for name, value in naive(cluster, label).items():
            assert found[name] == pytest.approx(100 * value), name


def test_mutual_information_by_hand() -> None:
    cluster, label = np.array([0, 0, 1, 1]), np.array([0, 0, 1, 2])
    assert agreement(cluster, label)["NMI"] == pytest.approx(100 * np.log(2) / ((np.log(2) + 1.5 * np.log(2)) / 2))
    assert agreement(cluster, label)["ACC"] == 75.0


def test_names_of_clusters_do_not_matter_and_one_cluster_counts_for_one_class() -> None:
    label = np.arange(12) % 3
    assert agreement((label + 1) % 3, label) == {name: pytest.approx(100.0) for name in ("ACC", "ARI", "NMI", "FMI")}
    assert agreement(np.zeros(12, int), label)["ACC"] == pytest.approx(100 / 3)
    assert agreement(np.arange(12), label)["ACC"] == 25.0  # of twelve clusters three have a class


def test_directions_are_clustered_and_not_lengths() -> None:
    scores = score(blobs(80, 0.05))
    assert {name: round(found.value) for name, found in scores.items()} == dict.fromkeys(scores, 100)


def test_chance_is_what_clusters_of_these_sizes_reach_without_looking() -> None:
    scores = score(blobs(400, 0.3))
    for name, lowest, highest in (("ACC", 25, 33), ("ARI", -2, 2), ("NMI", 0, 4), ("FMI", 23, 27)):
        assert lowest <= scores[name].details["chance"] <= highest, name
        assert scores[name].value > scores[name].details["chance"] + 10, name


def test_labels_choose_nothing() -> None:
    test = blobs(120, 0.6)
    other = features(test.x, torch.arange(120) // 30)
    first, second = (score(one, restarts=4)["ACC"].details["restarts"] for one in (test, other))
    assert first["inertia"] == second["inertia"] and first["value"] != second["value"]


def test_the_restart_with_the_least_inertia_counts() -> None:
    test, places = blobs(120, 0.6), set()
    for seed in range(4):
        found = score(test, restarts=4, seed=seed)["ACC"]
        restarts = found.details["restarts"]
        best = int(np.argmin(restarts["inertia"]))
        assert found.value == restarts["value"][best]
        places.add(best)
    assert len(places) > 1


def test_the_seed_gives_the_starts_and_settings_are_followed() -> None:
    test = blobs(120, 0.6)
    inertia = [score(test, seed=seed)["ACC"].details["restarts"]["inertia"] for seed in (0, 0, 1)]
    assert inertia[0] == inertia[1] != inertia[2] and len(inertia[0]) == 3
    finer = score(test, clusters=12)["ACC"].details["restarts"]["inertia"]
    assert max(finer) < min(inertia[0])
    with pytest.raises(UserError, match=r"120 images cannot form 121 clusters; use clusters=12"):
        score(test, clusters=121)
