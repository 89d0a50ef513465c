"""The accuracy of classifiers that a method exports."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from unlabeled.config.protocols.vectors import Classify, Protocol
from unlabeled.data.records.classes import Classes, classes_of_card, refuse_other_classes
from unlabeled.data.sources.base import Source
from unlabeled.engine.launch import pick_precision
from unlabeled.engine.passes.features import Features, extract, network_embedder
from unlabeled.errors import UserError
from unlabeled.evaluation.real import RealLabels
from unlabeled.evaluation.setup import check_samples, shown, views_of
from unlabeled.evaluation.vectors.scores import Score, accuracy
from unlabeled.methods.base import Export, Method
from unlabeled.ops.distributed import rank

_TOP = 5


def score_classifiers(
    method: Method, cfg: Protocol, test: Source, device: torch.device
) -> tuple[dict[str, Score], Features]:
    """Score the exports that give logits, or `cfg.export`, on the test split: top-1 and, of more classes, top-5.

    With `real` of a `Classify` protocol also by all classes that are seen in the images.

    Returns scores by name, empty on other ranks than 0, and the test images as they were read. Raises UserError if the
    method exports no classifier.
    """
    exports = {name: export for name, export in method.exports().items() if export.gives == "logits"}
    chosen = exports if cfg.export is None else {name: e for name, e in exports.items() if name == cfg.export}
    if not chosen:
        known = f"its classifiers: {', '.join(exports)}" if exports else "it has none; use knn or linear"
        raise UserError(f"the method has no classifier '{cfg.export or ''}' to score; {known}")
    return score_exports(chosen, method.taught_names, cfg, test, device)


def score_exports(
    chosen: Mapping[str, Export], taught: list[str] | None, cfg: Protocol, test: Source, device: torch.device
) -> tuple[dict[str, Score], Features]:
    """Score exports that give logits as `score_classifiers` does; taught: classes of those that name none."""
    exports = {name: shown(export, cfg.size, cfg.clip) for name, export in chosen.items()}
    check_samples([*exports.values()], test)
    precision = pick_precision(cfg.precision, device.type)
    embedders = {name: network_embedder(export, device, precision, views_of(export, cfg.clip))
                 for name, export in exports.items()}
    features = extract(embedders, test, batch=cfg.batch, workers=cfg.workers, device=device,
                       max_corrupt=cfg.max_corrupt)
    for name, logits in features.items():
        elsewhere = chosen[name].names
        told = Classes(f"classifier '{name}'", logits.x.shape[1], elsewhere or taught,
                       public=elsewhere is not None)
        refuse_other_classes(told, classes_of_card(test), "choose the set that it was trained for, or knn or linear")
    scores: dict[str, Score] = {}
    if rank() == 0:
        for name, logits in features.items():
            known_rows = logits.labelled()
            assert known_rows.label is not None
            scores[name] = Score(accuracy(known_rows.x.argmax(1), known_rows.label))
            if known_rows.x.shape[1] > _TOP:
                near = (known_rows.x.topk(_TOP).indices == known_rows.label[:, None]).any(1)
                commonest = known_rows.label.bincount().sort(descending=True).values[:_TOP]
                scores[f"{name} top-{_TOP}"] = Score(100.0 * float(near.double().mean()), details={
                    "chance": 100.0 * float(commonest.sum()) / len(known_rows.label)})
            if isinstance(cfg, Classify) and cfg.real is not None:
                labels = RealLabels(Path(cfg.real).expanduser(), test, logits.x.shape[1])
                scores[f"{name} ReaL"] = labels.score(logits.x.argmax(1), logits.index)
    return scores, next(iter(features.values()))
