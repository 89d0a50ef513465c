"""Recall at k of nearest neighbours: of images and videos alike."""

from __future__ import annotations

import torch
from torch import Tensor

from unlabeled.config.protocols.vectors import Retrieval
from unlabeled.engine.passes.features import Features
from unlabeled.evaluation.vectors.knn import in_parts, own_rows
from unlabeled.evaluation.vectors.scores import Score
from unlabeled.ops.measures import knn


def run(cfg: Retrieval, train: Features, test: Features, classes: int, device: torch.device) -> dict[str, Score]:
    """Return `recall@1` and so on; features are compared as they are, not standardised.

    A test image that stands in the training split too is not found by itself. Chance is what a random order of the
    training images reaches.
    """
    assert train.label is not None and test.label is not None
    bank, known, wanted = train.x.to(device), train.label, test.label

    def hits(rows: Tensor, own: Tensor | None) -> dict[int, Tensor]:
        return knn.hits(bank, known, test.x[rows], wanted[rows], cfg.k, cfg.search, own)

    found = in_parts(cfg, train, test, hits)
    entries, right = _choices(train, test, classes)
    return {f"recall@{k}": Score(100.0 * float(found[k].mean()), details={
        "chance": 100.0 * float(knn.random_hits(entries, right, torch.full_like(entries, k)).mean())}) for k in cfg.k}


def _choices(train: Features, test: Features, classes: int) -> tuple[Tensor, Tensor]:
    """Return how many training images each test image is compared with, and how many of its class; int64 [m] both."""
    assert train.label is not None and test.label is not None
    counts = torch.bincount(train.label, minlength=classes)
    own = own_rows(train, test)
    itself = torch.zeros(len(test.label), dtype=torch.int64) if own is None else (own >= 0).long()
    return len(train.label) - itself, counts[test.label] - itself
