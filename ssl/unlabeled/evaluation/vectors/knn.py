"""kNN on frozen features, and what protocols share that look at nearest neighbours."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from unlabeled.config.protocols.vectors import Knn, Nearest
from unlabeled.engine.passes.features import Features
from unlabeled.engine.run.progress import LongPass
from unlabeled.evaluation.vectors.scores import Score, accuracy, plain
from unlabeled.ops.measures import knn

_AT_ONCE = 8192  # test images between two looks at the clock


def run(cfg: Knn, train: Features, test: Features, classes: int, device: torch.device) -> dict[str, Score]:
    """Return `knn20@.07` and so on; features are compared as they are, not standardised (arXiv 2104.14294).

    A test image that stands in the training split too does not vote on itself.
    """
    assert train.label is not None and test.label is not None
    bank, label = train.x.to(device), train.label

    def predict(rows: Tensor, own: Tensor | None) -> dict[int, Tensor]:
        return knn.predict(bank, label, test.x[rows], cfg.k, cfg.temperature, classes, cfg.search, own)

    found = in_parts(cfg, train, test, predict)
    return {f"knn{k}@{plain(cfg.temperature)}": Score(accuracy(found[k], test.label)) for k in cfg.k}


def in_parts(cfg: Nearest, train: Features, test: Features, judge: Callable[[Tensor, Tensor | None], dict[int, Tensor]],
             ) -> dict[int, Tensor]:
    """Return for every k what `judge` says of all test images, [m].

    It gets rows of test, int64 [c], and the row of train that holds each of them itself, or None (see `own_rows`).
    """
    own = own_rows(train, test)
    parts: list[dict[int, Tensor]] = []
    with LongPass("kNN", len(test.x), shown=True) as progress:
        for rows in torch.arange(len(test.x)).split(_AT_ONCE):
            parts.append(judge(rows, None if own is None else own[rows]))
            progress.advance(int(rows[-1]) + 1)
    return {k: torch.cat([part[k] for part in parts]) for k in cfg.k}


def own_rows(train: Features, test: Features) -> Tensor | None:
    """Return the row of `train` that holds each row of `test` itself, int64 [m], -1 where none does; None if none does.
    """
    if test.twin is None or not bool((test.twin >= 0).any()):
        return None
    row = torch.full((int(train.index.max()) + 1,), -1)
    row[train.index] = torch.arange(len(train.index))
    inside = (test.twin >= 0) & (test.twin < len(row))
    return torch.where(inside, row[test.twin.clamp(0, len(row) - 1)], -1)
