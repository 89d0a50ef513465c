"""Logistic regression on cached features: C chosen on held-out training images, then fitted on all of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from unlabeled.config.protocols.vectors import Logistic
from unlabeled.engine.features import Features
from unlabeled.evaluation.vectors.few_labels import logistic
from unlabeled.evaluation.vectors.linear import hold_out
from unlabeled.evaluation.vectors.scores import Scale, Score, accuracy


def run(cfg: Logistic, train: Features, test: Features, classes: int, device: torch.device) -> dict[str, Score]:
    """Return the score `logistic` with the C that was chosen; equal accuracy goes to the smaller C."""
    assert train.label is not None and test.label is not None
    held = hold_out(train.label.numpy(), cfg.held_out, cfg.seed)
    rest = np.setdiff1d(np.arange(len(train.label)), held)
    part = Features(train.x[rest], train.index[rest], train.label[rest])
    kept = Features(train.x[held], train.index[held], train.label[held])
    found = {c: _score(part, kept, classes, c, device) for c in sorted(cfg.c)}
    best = max(found, key=lambda c: found[c])
    details: dict[str, Any] = {"c": best, "held_out": round(found[best], 2)}
    if len(cfg.c) > 1 and best in (min(cfg.c), max(cfg.c)):
        details["note"] = "the chosen c is at the end of the grid"
    return {"logistic": Score(_score(train, test, classes, best, device), details=details)}


def _score(train: Features, test: Features, classes: int, c: float, device: torch.device) -> float:
    assert train.label is not None and test.label is not None
    scale = Scale.of(train.x)
    weight, bias = logistic(scale(train.x)[None].to(device), train.label[None].to(device), classes, c)
    return accuracy((scale(test.x).to(device).double() @ weight[0] + bias[0]).argmax(1), test.label)
