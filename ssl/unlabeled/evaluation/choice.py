"""Many classifiers of one training: the one that is best on held-out training images is scored on the test images."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from unlabeled.config.protocols.vectors import Trained
from unlabeled.config.recipe import Subset
from unlabeled.data.sources.base import Source
from unlabeled.data.sources.subset import Part, choose
from unlabeled.engine.launch import pick_precision
from unlabeled.engine.passes.features import Features, extract, network_embedder
from unlabeled.evaluation.classify import score_exports
from unlabeled.evaluation.setup import shown
from unlabeled.evaluation.vectors.scores import Score
from unlabeled.methods.base import Choosing, Export
from unlabeled.ops.distributed import on_rank0


def held_out_rule(cfg: Trained, *, complement: bool = False) -> Subset:
    """Return the part of the training images that chooses, or the one that is learnt."""
    return Subset(share=cfg.held_out, seed=cfg.seed, complement=complement)


def choose_and_score(method: Choosing, cfg: Trained, train: Source, test: Source, device: torch.device,
                     ) -> tuple[dict[str, Score], Features]:
    """Choose among the method's classifiers by the held-out part of `train`, and score that one on `test`.

    Of equally good ones the first counts, which has the simpler features or the lower learning rate. Its score holds
    the accuracies of all. Returns scores by name, empty on other ranks than 0, and the test images as they were read.
    """
    assert train.labels is not None
    held = Part(train, choose(train.labels, held_out_rule(cfg), train.classes))
    names = [f"{form} lr {lr:g}" for form, lr in method.choices]
    right = [_accuracies(method.verdicts(), cfg, part, device) for part in (held, test)]
    chosen = on_rank0(lambda: max(range(len(names)), key=lambda place: right[0][place]))
    scores, read = score_exports({"linear": method.classifier(method.choices[chosen])}, None, cfg, test, device)
    if scores:
        form, lr = method.choices[chosen]
        details: dict[str, Any] = {"features": form, "lr": lr, "held_out": round(right[0][chosen], 2)}
        details["classifiers"] = {name: {"held_out": one, "test": other}
                                  for name, one, other in zip(names, *right, strict=True)}
        rates = {rate for _, rate in method.choices}
        if len(rates) > 1 and lr in (min(rates), max(rates)):
            details["note"] = "the chosen lr is at the end of the grid"
        scores["linear"] = replace(scores["linear"], details=details)
    return scores, read


def _accuracies(verdicts: Export, cfg: Trained, source: Source, device: torch.device) -> list[float]:
    """Return the accuracy of every classifier in percent; on other ranks than 0 what they saw of it."""
    embedder = network_embedder(shown(verdicts, cfg.size, cfg.clip), device, pick_precision(cfg.precision, device.type))
    found = extract({"verdicts": embedder}, source, batch=cfg.batch, workers=cfg.workers, device=device,
                    max_corrupt=cfg.max_corrupt)["verdicts"].labelled()
    assert found.label is not None
    accuracies: list[float] = (100.0 * (found.x == found.label[:, None]).double().mean(0)).tolist()
    return accuracies
