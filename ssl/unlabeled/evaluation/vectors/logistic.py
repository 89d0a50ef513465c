"""Logistic regression on cached features: C chosen on held-out training images, then fitted on all of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from unlabeled.config.protocols.vectors import Logistic
from unlabeled.engine.passes.features import Features
from unlabeled.engine.run.progress import LongPass
from unlabeled.evaluation.vectors.few_labels import logistic, predict
from unlabeled.evaluation.vectors.linear import hold_out
from unlabeled.evaluation.vectors.scores import Scale, Score, accuracy

_ROWS = 4096  # that are standardised at once


def run(cfg: Logistic, train: Features, test: Features, classes: int, device: torch.device) -> dict[str, Score]:
    """Return the score `logistic` with the C that was chosen; equal accuracy goes to the smaller C."""
    assert train.label is not None and test.label is not None
    held = hold_out(train.label.numpy(), cfg.held_out, cfg.seed)
    rest = np.setdiff1d(np.arange(len(train.label)), held)
    kept = Features(train.x[held], train.index[held], train.label[held])
    found: dict[float, float] = {}
    with LongPass("logistic regression", len(cfg.c) + 1, True, "fits") as progress:
        for c in sorted(cfg.c):
            found[c] = _score(train, rest, kept, classes, c, device, progress.step)
            progress.advance(len(found))
        best = max(found, key=lambda c: found[c])
        value = _score(train, np.arange(len(train.label)), test, classes, best, device, progress.step)
    details: dict[str, Any] = {"c": best, "held_out": round(found[best], 2)}
    if len(cfg.c) > 1 and best in (min(cfg.c), max(cfg.c)):
        details["note"] = "the chosen c is at the end of the grid"
    return {"logistic": Score(value, details=details)}


def _score(train: Features, rows: np.ndarray, test: Features, classes: int, c: float, device: torch.device,
           step: Callable[[], None]) -> float:
    """Fit on the `rows`, int64, of train, and return the accuracy on test in percent."""
    assert train.label is not None and test.label is not None
    scale, places = Scale.of(train.x, rows), torch.from_numpy(rows)
    x = torch.empty(len(rows), train.x.shape[1], dtype=torch.float64, device=device)  # the one copy
    for part in torch.arange(len(rows)).split(_ROWS):
        x[part] = scale(train.x[places[part]]).to(device).double()
    weight, bias = logistic(x[None], train.label[places][None].to(device), classes, c, step)
    return accuracy(predict(weight, bias, scale, test.x)[0], test.label)
