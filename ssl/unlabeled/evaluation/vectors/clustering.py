"""Clusters of frozen features, found without labels, and how far they are the classes."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score, fowlkes_mallows_score, normalized_mutual_info_score
from sklearn.metrics.cluster import contingency_matrix

from unlabeled.config.protocols.vectors import Clustering
from unlabeled.engine.passes.features import Features
from unlabeled.engine.run.progress import LongPass
from unlabeled.errors import UserError
from unlabeled.evaluation.vectors.scores import Score
from unlabeled.ops.random import permutation, seed_of

_SHUFFLES = 10  # of the found clusters over the images, whose mean agreement is chance


def run(cfg: Clustering, train: Features, test: Features, classes: int, device: torch.device) -> dict[str, Score]:
    """Return `ACC`, `ARI`, `NMI` and `FMI` of k-means on the test features, which are brought to length 1.

    Of the restarts the one with the least inertia counts, a choice that needs no labels. Chance is what clusters of the
    same sizes with images at random reach. Raises UserError for fewer images than clusters.
    """
    assert test.label is not None
    x, label = F.normalize(test.x, dim=1).numpy(), test.label.numpy()
    clusters = cfg.clusters or classes
    if len(x) < clusters:
        raise UserError(f"{len(x)} images cannot form {clusters} clusters; use clusters={max(2, len(x) // 10)}")
    found: list[tuple[float, np.ndarray]] = []
    with LongPass(f"k-means with {clusters} clusters", cfg.restarts, shown=True, unit="restarts") as progress:
        for restart in range(cfg.restarts):
            start = seed_of(cfg.seed, "clustering", restart) % 2**32
            kmeans = KMeans(clusters, n_init=1, random_state=start).fit(x)
            found.append((kmeans.inertia_, kmeans.labels_))
            progress.advance(restart + 1)
    scores = [agreement(cluster, label) for _, cluster in found]
    inertia = [float(value) for value, _ in found]
    best = int(np.argmin(inertia))
    shuffled = [agreement(found[best][1][permutation(len(x), cfg.seed, "clustering", "chance", turn)], label)
                for turn in range(_SHUFFLES)]
    return {name: Score(value, details={
        "chance": float(np.mean([other[name] for other in shuffled])),
        "restarts": {"value": [score[name] for score in scores], "inertia": inertia},
        "note": f"least inertia of {cfg.restarts} restarts; over all of them "
                f"{np.mean([score[name] for score in scores]):.1f} ± {np.std([score[name] for score in scores]):.1f}",
    }) for name, value in scores[best].items()}


def agreement(cluster: np.ndarray, label: np.ndarray) -> dict[str, float]:
    """Return how far clusters, int [n], are the classes, int [n], in percent.

    ACC: images that are right when no two clusters stand for the same class, in the best of such matchings. ARI:
    adjusted Rand index. NMI: mutual information over the mean of both entropies. FMI: geometric mean of precision and
    recall over pairs of images.
    """
    counts = contingency_matrix(cluster, label)
    right = counts[linear_sum_assignment(counts, maximize=True)].sum()
    return {
        "ACC": 100.0 * float(right) / len(label),
        "ARI": 100.0 * float(adjusted_rand_score(label, cluster)),
        "NMI": 100.0 * float(normalized_mutual_info_score(label, cluster)),
        "FMI": 100.0 * float(fowlkes_mallows_score(label, cluster)),
    }
