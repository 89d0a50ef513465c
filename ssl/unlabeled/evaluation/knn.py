"""kNN on frozen features."""

from __future__ import annotations

import torch

from unlabeled.config.protocol import Knn
from unlabeled.engine.features import Features
from unlabeled.evaluation.scores import Score, accuracy, plain
from unlabeled.ops import knn


def run(cfg: Knn, train: Features, test: Features, classes: int, device: torch.device) -> dict[str, Score]:
    """Return `knn20@.07` and so on; features are compared as they are, not standardised (arXiv 2104.14294)."""
    assert train.label is not None and test.label is not None
    found = knn.predict(train.x.to(device), train.label, test.x, cfg.k, cfg.temperature, classes, cfg.search)
    return {f"knn{k}@{plain(cfg.temperature)}": Score(accuracy(found[k], test.label)) for k in cfg.k}
