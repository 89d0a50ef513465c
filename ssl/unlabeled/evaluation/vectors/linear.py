"""The linear probe: a grid of learning rates and weight decays trained at once on cached features.

The setting is chosen on a held-out part of train, the classifier is then trained again on all of train with it, and the
test set is scored once, at the end.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from unlabeled.config.protocols.vectors import Linear
from unlabeled.engine.passes.features import Features
from unlabeled.engine.run.progress import LongPass
from unlabeled.evaluation.vectors.scores import Scale, Score, accuracy
from unlabeled.ops.distributed import rank
from unlabeled.ops.precision import full_precision
from unlabeled.ops.random import permutation

_ROWS = 4096  # images whose logits are held at once


def run(cfg: Linear, train: Features, test: Features, classes: int, device: torch.device) -> dict[str, Score]:
    """Return the score `linear` with the setting that was chosen."""
    assert train.label is not None and test.label is not None
    settings = list(product(cfg.lr, cfg.weight_decay))
    chosen, held_out = choose(cfg, train.x, train.label, classes, device)
    lr, decay = settings[chosen]
    probe, scale = fit_rows(cfg, train.x, train.label, np.arange(len(train.x)), classes, [(lr, decay)], device)
    value = accuracy(predict(probe, test.x, scale)[:, 0], test.label)
    details: dict[str, Any] = {"lr": lr, "weight_decay": decay, "held_out": round(held_out, 2)}
    if len(cfg.lr) > 1 and lr in (min(cfg.lr), max(cfg.lr)):
        details["note"] = "the chosen lr is at the end of the grid"
    return {"linear": Score(value, details=details)}


def choose(cfg: Linear, x: Tensor, label: Tensor, classes: int, device: torch.device) -> tuple[int, float]:
    """Return the setting (place in lr x weight_decay) that is best on held-out rows of x [n, F], and its accuracy in %.

    Of settings with equal accuracy the one with the lowest loss is taken.
    """
    held = hold_out(label.numpy(), cfg.held_out, cfg.seed)
    rest = np.setdiff1d(np.arange(len(label)), held)
    probe, scale = fit_rows(cfg, x, label, rest, classes, list(product(cfg.lr, cfg.weight_decay)), device)
    right, loss = _measure(probe, scale(x[held]), label[held])
    best = max(range(len(right)), key=lambda s: (right[s], -loss[s]))
    return best, 100.0 * right[best] / len(held)


def hold_out(label: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Return the rows held out, sorted: `share` of every class, at least one of a class with two or more."""
    held = []
    for kind in np.unique(label):
        rows = np.flatnonzero(label == kind)
        count = min(max(1, round(share * len(rows))), len(rows) - 1)
        held.append(rows[permutation(len(rows), seed, "linear", "held-out", int(kind))[:count]])
    return np.sort(np.concatenate(held))


class Probe:
    """Linear classifiers of S settings: weight [F, S * C], bias [S * C]."""

    def __init__(self, width: int, settings: int, classes: int, device: torch.device) -> None:
        self.weight = torch.zeros(width, settings * classes, device=device)
        self.bias = torch.zeros(settings * classes, device=device)
        self.settings = settings

    def __call__(self, x: Tensor) -> Tensor:
        """Map x [b, F] to logits [b, S, C]."""
        return torch.addmm(self.bias, x.to(self.bias.device), self.weight).unflatten(1, (self.settings, -1))


def fit(cfg: Linear, x: Tensor, label: Tensor, classes: int, settings: list[tuple[float, float]],
        device: torch.device) -> Probe:
    """Train one classifier per (lr, weight decay) on standardised x [n, F], label int64 [n], from zero.

    SGD with momentum and a cosine to zero over cfg.epochs, or cfg.min_updates if that is more; biases do not decay.
    """
    return fit_rows(cfg, x, label, np.arange(len(x)), classes, settings, device, Scale.none(x))[0]


def fit_rows(cfg: Linear, x: Tensor, label: Tensor, which: np.ndarray, classes: int,
              settings: list[tuple[float, float]], device: torch.device, scale: Scale | None = None,
              ) -> tuple[Probe, Scale]:
    """Train as `fit` does on some rows of x as they are, int64 [m]; also return their scale, by which it sees them.

    Batches are picked and standardised one by one: there is never another copy of x.
    """
    scale = scale or Scale.of(x, which)
    n, batch = len(which), min(cfg.images_per_update, len(which))
    places = torch.from_numpy(which)
    per_epoch = n // batch
    rows = torch.empty(0, dtype=torch.int64)

    def draw(update: int) -> tuple[Tensor, Tensor]:
        nonlocal rows
        epoch, place = divmod(update, per_epoch)
        if place == 0:
            rows = places[torch.from_numpy(permutation(n, cfg.seed, "linear", "order", epoch))]
        chunk = rows[place * batch : (place + 1) * batch]
        return scale(x[chunk]), label[chunk]

    probe = Probe(x.shape[1], len(settings), classes, device)
    descend(probe, settings, max(cfg.epochs * per_epoch, cfg.min_updates), draw, cfg.momentum)
    return probe, scale


@torch.no_grad()
def descend(probe: Probe, settings: list[tuple[float, float]], updates: int,
            draw: Callable[[int], tuple[Tensor, Tensor]], momentum: float) -> None:
    """Train the probe's classifiers, one per (lr, weight decay), on the batches x [b, F], label [b] of `draw(update)`.

    All settings see the same batches, so one product serves all: the gradient is written out, softmax minus one-hot.
    """
    device, classes = probe.bias.device, len(probe.bias) // len(settings)
    lr, decay = torch.tensor(settings, device=device).repeat_interleave(classes, dim=0).T
    buffers = [torch.zeros_like(probe.weight), torch.zeros_like(probe.bias)]
    with full_precision(device), LongPass("linear classifiers", updates, rank() == 0, "updates") as progress:
        for update in range(updates):
            progress.advance(update)
            x, label = draw(update)
            part, target = x.to(device), label.to(device)
            error = probe(part).softmax(2)
            error.scatter_add_(2, target[:, None, None].expand(-1, len(settings), 1), error.new_full((), -1.0).expand(
                len(part), len(settings), 1))
            error = error.flatten(1) / len(part)
            step = lr * (0.5 * (1 + math.cos(math.pi * update / updates)))
            buffers[0].mul_(momentum).addmm_(part.T, error).addcmul_(probe.weight, decay[None])
            buffers[1].mul_(momentum).add_(error.sum(0))
            probe.weight.addcmul_(buffers[0], step[None], value=-1)
            probe.bias.addcmul_(buffers[1], step, value=-1)


@torch.no_grad()
def predict(probe: Probe, x: Tensor, scale: Scale | None = None) -> Tensor:
    """Return the predicted classes of x [n, F], standardised by `scale`, under every setting, int64 [n, S]."""
    with full_precision(probe.bias.device):
        return torch.cat([probe(scale(part) if scale else part).argmax(2) for part in x.split(_ROWS)])


@torch.no_grad()
def _measure(probe: Probe, x: Tensor, label: Tensor) -> tuple[list[int], list[float]]:
    """Return right answers and summed loss per setting."""
    right = torch.zeros(probe.settings, dtype=torch.int64)
    loss = torch.zeros(probe.settings, dtype=torch.float64)
    with full_precision(probe.bias.device):
        for part, target in zip(x.split(_ROWS), label.split(_ROWS), strict=True):
            logits = probe(part).cpu()
            right += (logits.argmax(2) == target[:, None]).sum(0)
            every = target[:, None].expand(-1, probe.settings)
            losses = F.cross_entropy(logits.flatten(0, 1), every.flatten(), reduction="none")
            loss += losses.view(every.shape).double().sum(0)
    return right.tolist(), loss.tolist()
