"""Logistic regression with few labels per class: mean and deviation over fixed draws, all draws solved together."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from unlabeled.config.protocols.vectors import FewLabels
from unlabeled.engine.passes.features import Features
from unlabeled.engine.run.progress import LongPass
from unlabeled.evaluation.vectors.scores import Scale, Score, accuracy, plain
from unlabeled.ops.random import permutation

_ELEMENTS = 1 << 26  # numbers of drawn features held at once (512 MB); more draws are solved in groups
_ITERATIONS = 2000
_ROWS = 4096  # images that are scored at once
_TOLERANCE = 1e-7  # largest gradient entry at which the solution stands


def run(cfg: FewLabels, train: Features, test: Features, classes: int, device: torch.device) -> dict[str, Score]:
    """Return `logistic4@C1` and so on: k labels per class, features standardised by all training images."""
    assert train.label is not None and test.label is not None
    scale = Scale.of(train.x)
    scores = {}
    for k in cfg.labels_per_class:
        rows = draws(train.label.numpy(), train.index.numpy(), k, cfg.draws, cfg.seed)
        values: list[float] = []
        with LongPass(f"logistic regression on {k} labels per class", cfg.draws, True, "draws") as progress:
            for group in rows.split(max(1, _ELEMENTS // (rows.shape[1] * train.x.shape[1]))):
                x, label = scale(train.x[group]).to(device), train.label[group].to(device)
                weight, bias = logistic(x, label, classes, cfg.c, progress.step)
                values += [accuracy(column, test.label) for column in predict(weight, bias, scale, test.x)]
                progress.advance(len(values))
        details = {"draws": cfg.draws, "min": min(values), "max": max(values)}
        scores[f"logistic{k}@C{plain(cfg.c)}"] = Score(float(np.mean(values)), float(np.std(values, ddof=1)), details)
    return scores


def draws(label: np.ndarray, index: np.ndarray, k: int, count: int, seed: int) -> Tensor:
    """Return `count` draws of k rows of every class, int64 [count, classes * k].

    A draw depends on the seed and on the images' places `index` [n] in their split, not on how the rows are ordered;
    the draw with k labels lies inside the draw with more.
    """
    found = []
    for draw in range(count):
        parts = []
        for kind in np.unique(label):
            rows = np.flatnonzero(label == kind)
            rows = rows[np.argsort(index[rows])]
            parts.append(rows[permutation(len(rows), seed, "few-labels", draw, int(kind))[:k]])
        found.append(np.concatenate(parts))
    return torch.from_numpy(np.stack(found))


@torch.no_grad()
def predict(weight: Tensor, bias: Tensor, scale: Scale, x: Tensor) -> Tensor:
    """Return the classes int64 [D, m] that D classifiers (see `logistic`) give x [m, F], which `scale` standardises."""
    parts = [torch.stack([(rows @ w + b).argmax(1) for w, b in zip(weight, bias, strict=True)])
             for rows in (scale(part).to(weight.device).double() for part in x.split(_ROWS))]
    return torch.cat(parts, 1).cpu()


@torch.no_grad()
def logistic(x: Tensor, label: Tensor, classes: int, c: float, step: Callable[[], None] = lambda: None,
             ) -> tuple[Tensor, Tensor]:
    """Fit D multinomial logistic regressions: x [D, n, F], label [D, n] -> weight [D, F, C], bias [D, C], float64.

    Minimises the summed cross-entropy + |weight|^2 / (2 c) as scikit-learn's LogisticRegression(C=c) does, with L-BFGS
    over all draws together. The weight lies in the span of the rows; where they are fewer than the features, the
    problem is solved in that span's own coordinates. step: called in every iteration.
    """
    x = x.double()
    basis = _span(x) if x.shape[1] < x.shape[2] else None
    rows = x if basis is None else x @ basis
    weight = torch.zeros(len(x), rows.shape[2], classes, dtype=torch.float64, device=x.device)
    bias = torch.zeros(len(x), 1, classes, dtype=torch.float64, device=x.device)
    hot = torch.nn.functional.one_hot(label, classes).double()
    solver = torch.optim.LBFGS([weight, bias], max_iter=_ITERATIONS, max_eval=2 * _ITERATIONS, history_size=20,
                               tolerance_grad=_TOLERANCE, tolerance_change=1e-12, line_search_fn="strong_wolfe")

    def objective() -> Tensor:
        step()
        logits = rows @ weight + bias
        error = logits.softmax(2) - hot
        weight.grad = rows.mT @ error + weight / c
        bias.grad = error.sum(1, keepdim=True)
        return logits.logsumexp(2).sum() - (logits * hot).sum() + weight.square().sum() / (2 * c)

    solver.step(objective)
    return (weight if basis is None else basis @ weight), bias[:, 0]


def _span(x: Tensor) -> Tensor:
    """Return an orthonormal basis of the row space of x [D, n, F], n < F, as [D, F, n]; directions unused are zero."""
    values, vectors = torch.linalg.eigh(x @ x.mT)
    used = values > 1e-12 * values.amax(1, keepdim=True)
    inverse = torch.where(used, values.clamp(min=1e-300).rsqrt(), 0.0)
    return x.mT @ (vectors * inverse[:, None])
