"""kNN on frozen features."""

from __future__ import annotations

import torch
from torch import Tensor

from unlabeled.config.protocols.vectors import Knn
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
    own = own_rows(train, test)
    bank = train.x.to(device)
    parts: list[dict[int, Tensor]] = []
    with LongPass("kNN", len(test.x), shown=True) as progress:
        for rows in torch.arange(len(test.x)).split(_AT_ONCE):
            part = None if own is None else own[rows]
            parts.append(knn.predict(bank, train.label, test.x[rows], cfg.k, cfg.temperature, classes, cfg.search,
                                     part))
            progress.advance(int(rows[-1]) + 1)
    found = {k: torch.cat([part[k] for part in parts]) for k in cfg.k}
    return {f"knn{k}@{plain(cfg.temperature)}": Score(accuracy(found[k], test.label)) for k in cfg.k}


def own_rows(train: Features, test: Features) -> Tensor | None:
    """Return the row of `train` that holds each row of `test` itself, int64 [m], -1 where none does; None if none does.
    """
    if test.twin is None or not bool((test.twin >= 0).any()):
        return None
    row = torch.full((int(train.index.max()) + 1,), -1)
    row[train.index] = torch.arange(len(train.index))
    inside = (test.twin >= 0) & (test.twin < len(row))
    return torch.where(inside, row[test.twin.clamp(0, len(row) - 1)], -1)
