"""Evaluate a run by one or several protocols: features are extracted once and shared by all of them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from unlabeled.config.files import find
from unlabeled.config.protocol import Classify, Protocol, Trained
from unlabeled.config.protocol_dense import Dense
from unlabeled.config.read import read_protocol
from unlabeled.config.tables import PROTOCOLS
from unlabeled.data.source import Source
from unlabeled.engine.export import open_residuals
from unlabeled.engine.features import Features, extract, network_embedder
from unlabeled.engine.restore import Restored, load_run
from unlabeled.errors import UserError
from unlabeled.evaluation.classify import score_classifiers
from unlabeled.evaluation.neighbours import draw_neighbours
from unlabeled.evaluation.pixels import drop_equal_channels, pixel_embedder
from unlabeled.evaluation.scores import Score
from unlabeled.evaluation.setup import Splits, open_splits, pick_device, pick_export
from unlabeled.evaluation.trained import train_and_score
from unlabeled.ops.distributed import rank
from unlabeled.ops.health import collapse_warning, health
from unlabeled.report.report import Number, Report, Split
from unlabeled.report.table import print_reports

Pair = tuple[Features, Features]

_NAME = 150  # longest name of a report; what is cut off is told apart by a hash
_SAME_NUMBER = ("batch", "workers", "max_corrupt", "random_init", "raw_pixels")  # settings that change no number


@dataclass(frozen=True)
class Job:
    """One protocol to run: the name of its file and its settings."""

    name: str
    cfg: Protocol

    @property
    def shares(self) -> tuple[Any, ...]:
        """What must be equal for two protocols to use the same features."""
        cfg = self.cfg
        return cfg.export, cfg.size, cfg.card, cfg.root, cfg.train, cfg.test


def evaluate(protocol: str | Path, run: Path, overrides: Sequence[str] = (), accelerator: Any = None) -> Report | None:
    """Evaluate `run` (a run folder or a checkpoint) by a protocol of eval/, by name or path.

    Prints a table, writes RUN/eval/NAME-updateUUUUUUUU.json and returns the report; other ranks than 0 return None.
    Raises UserError for bad input.
    """
    return next(iter(evaluate_many([protocol], run, overrides, accelerator)), None)


def evaluate_many(protocols: Sequence[str | Path], run: Path, overrides: Sequence[str] = (), accelerator: Any = None,
                  ) -> list[Report]:
    """Evaluate `run` by several protocols, to which all `overrides` apply, and print one table.

    Returns the reports on rank 0 and nothing on the others, which are done once their features are delivered. A set
    without labels gives one report, of label-free health and nearest neighbours.
    """
    jobs = [_read(protocol, overrides) for protocol in protocols]
    device = pick_device(accelerator)
    restored = load_run(Path(run), device=device)
    together: dict[tuple[Any, ...], list[Job]] = {}
    for job in jobs:
        if not isinstance(job.cfg, Dense):
            together.setdefault(job.shares, []).append(job)
    opened = {}
    for key, group in together.items():  # all that can be refused is refused before anything is extracted
        opened[key] = open_splits(group[0].cfg, restored)
        for job in group:
            opened[key].check(job.cfg)
            if isinstance(job.cfg, Trained) and not Path(run).is_dir():
                raise UserError(f"protocol '{job.name}' starts from a finished run's export; give the run's folder")
    reports: dict[str, Report] = {}
    for key, group in together.items():
        frozen = [job for job in group if opened[key].test is None or not isinstance(job.cfg, Trained | Classify)]
        if frozen:
            reports |= _evaluate_group(frozen, restored, opened[key], Path(run), device)
        for job in group:
            if job not in frozen:
                reports[job.name] = _evaluate_classifiers(job, restored, opened[key], device)
    for job in jobs:
        if isinstance(job.cfg, Dense):
            report = _runner(job.cfg)(job.name, job.cfg, restored, Path(run), device)
            reports |= {} if report is None else {job.name: report}
    if rank() != 0:
        return []
    for report in reports.values():
        report.write(restored.run)
    if "health" in reports:
        print(f"data '{reports['health'].card}' has no labels: the health of the features stands in for the protocols")
    ordered = [reports[name] for name in dict.fromkeys([*(job.name for job in jobs), *reports]) if name in reports]
    print_reports(ordered)
    return ordered


def _read(protocol: str | Path, overrides: Sequence[str]) -> Job:
    cfg = read_protocol(protocol, overrides)
    # what differs from the file is part of the name, so that no report takes the place of the standard one
    given = {text.partition("=")[0] for text in overrides}
    export = cfg.export if "export" in given else None
    card = Path(cfg.card).stem if cfg.card and "card" in given else None
    other = [text for text in overrides if text.partition("=")[0] not in ("export", "card", "root", *_SAME_NUMBER)]
    special = (export, card, *(re.sub(r"[^\w=.+-]+", "_", text) for text in other))
    name = "-".join([find("eval", protocol).stem, *(part for part in special if part)])
    if len(name) > _NAME:  # it becomes the name of a file and of a folder
        digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()
        name = f"{name[:_NAME]}-{digest[:8]}"
    return Job(name, cfg)


def _evaluate_group(jobs: list[Job], restored: Restored, splits: Splits, run: Path, device: torch.device,
                    ) -> dict[str, Report]:
    """Extract once for protocols on the same export and splits, then run each on rank 0; reports by name."""
    export, features = _extract(jobs, restored, splits, run, device)
    if rank() != 0:
        return {}
    used = (_split(splits.train.split, features["network"][0]),
            _split((splits.test or splits.train).split, features["network"][1]))
    measured = {name: _health(pair) for name, pair in features.items() if name != "raw_pixels"}
    if splits.test is None:
        cfg = jobs[0].cfg
        sheet = draw_neighbours(splits.train, features["network"][0], restored.run / "eval", restored.update)
        return {"health": _report(Job("health", cfg), restored, splits, export, used, [], measured, sheet)}
    reports = {}
    for job in jobs:
        numbers = _run(job.cfg, features, len(splits.names), device)
        reports[job.name] = _report(job, restored, splits, export, used, numbers, measured)
    return reports


def _extract(jobs: list[Job], restored: Restored, splits: Splits, run: Path, device: torch.device,
             ) -> tuple[str, dict[str, Pair]]:
    """Return the name of the export, and train and test features of every network that a protocol asks for."""
    first = jobs[0].cfg
    name, export = pick_export(restored.method, first.export, first.size)
    embedders = {"network": network_embedder(export, device)}
    size = export.input.size
    if any(job.cfg.random_init for job in jobs):
        blank = load_run(run, random_init=True, device=device)
        untrained = open_residuals(pick_export(blank.method, first.export, first.size)[1])
        embedders["random_init"] = network_embedder(untrained, device)
    if splits.test is not None and any(job.cfg.raw_pixels for job in jobs):
        embedders["raw_pixels"] = pixel_embedder(splits.train, size)

    def read(source: Source) -> dict[str, Features]:
        return extract(embedders, source, batch=first.batch, workers=first.workers, device=device,
                       max_corrupt=first.max_corrupt)

    train = read(splits.train)
    test = train if splits.test is None else read(splits.test)
    pairs = {kind: (train[kind], test[kind]) for kind in embedders}
    if "raw_pixels" in pairs and rank() == 0:
        a, b = pairs["raw_pixels"]
        a.x, b.x = drop_equal_channels(a.x, b.x)
    return name, pairs


def _evaluate_classifiers(job: Job, restored: Restored, splits: Splits, device: torch.device) -> Report:
    """Score the run's own classifiers, or those that the protocol trains on top of it."""
    assert splits.test is not None and splits.train.labels is not None
    if isinstance(job.cfg, Trained):
        export, scores, test = train_and_score(job.name, job.cfg, restored, splits, device)
    else:
        found, test = score_classifiers(restored.method, job.cfg, splits.test, device)
        export, scores = job.cfg.export or "all classifiers", {"network": found}
    labels = splits.train.labels
    train = Split(splits.train.split, len(labels), int((labels < 0).sum()), len(splits.train.unreadable))
    numbers = _numbers(scores, test) if rank() == 0 else []
    return _report(job, restored, splits, export, (train, _split(splits.test.split, test)), numbers, {})


def _run(cfg: Protocol, features: dict[str, Pair], classes: int, device: torch.device) -> list[Number]:
    """Run one protocol on every kind of features that it asks for."""
    runner = _runner(cfg)
    kinds = [kind for kind in features if kind == "network" or getattr(cfg, kind)]
    scores = {kind: runner(cfg, *(part.labelled() for part in features[kind]), classes, device) for kind in kinds}
    return _numbers(scores, features["network"][1])


def _runner(cfg: Protocol) -> Callable[..., Any]:
    module, _, function = PROTOCOLS[cfg.protocol].partition(":")
    runner: Callable[..., Any] = getattr(import_module(module), function)
    return runner


def _numbers(scores: dict[str, dict[str, Score]], test: Features) -> list[Number]:
    """Set the scores by kind and name beside chance, the best constant answer."""
    label = test.labelled().label
    assert label is not None
    chance = 100.0 * float(torch.bincount(label).max()) / len(label)
    names = scores["network"]
    return [Number(name, chance, **{kind: vars(found[name]) for kind, found in scores.items()}) for name in names]


def _health(pair: Pair) -> dict[str, float]:
    x = pair[1].x
    return {**health(x), "width": x.shape[1]} if len(x) > 1 else {}


def _split(name: str, features: Features) -> Split:
    unlabelled = len(features.x) if features.label is None else int((features.label < 0).sum())
    return Split(name, len(features.x), unlabelled, len(features.corrupt), features.corrupt)


def _report(job: Job, restored: Restored, splits: Splits, export: str, used: tuple[Split, Split],
            numbers: list[Number], measured: dict[str, dict[str, float]], sheet: Path | None = None) -> Report:
    return Report(
        name=job.name, settings=job.cfg.model_dump(mode="json"), run=str(restored.run),
        method=restored.recipe.method.name, export=export, update=restored.update,
        train_seed=restored.recipe.train.seed, seed=job.cfg.seed, card=splits.card, classes=len(splits.names) or None,
        train=used[0], test=used[1], numbers=numbers, health=measured,
        warning=collapse_warning(measured["network"]) if measured else None, sheet=str(sheet) if sheet else None,
    )
