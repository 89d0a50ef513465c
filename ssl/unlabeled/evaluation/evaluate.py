"""Evaluate a run by one or several protocols: features are extracted once and shared by all of them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from unlabeled.config.base.objects import load_object, refuse_other_arguments
from unlabeled.config.files import find
from unlabeled.config.marks import Mark, marked
from unlabeled.config.protocols.dense import Dense
from unlabeled.config.protocols.vectors import Classify, Protocol, Trained
from unlabeled.config.read import read_protocol
from unlabeled.config.tables import PROTOCOLS
from unlabeled.data.sources.open import Source
from unlabeled.engine.exports.networks import open_residuals
from unlabeled.engine.launch import pick_device, pick_precision
from unlabeled.engine.passes.features import Features, extract, network_embedder
from unlabeled.engine.passes.kept_features import KeptFeatures
from unlabeled.engine.restore import Restored, load_run
from unlabeled.errors import UserError
from unlabeled.evaluation.cautions import cautions
from unlabeled.evaluation.classify import score_classifiers
from unlabeled.evaluation.neighbours import draw_neighbours
from unlabeled.evaluation.setup import Splits, check_samples, open_splits, other_cards, protocol_export, views_of
from unlabeled.evaluation.trained import train_and_score
from unlabeled.evaluation.vectors.pixels import drop_equal_channels, pixel_embedder
from unlabeled.evaluation.vectors.scores import Score
from unlabeled.methods.base import Export
from unlabeled.ops.distributed import rank
from unlabeled.ops.measures.health import collapse_warning, health
from unlabeled.report.report import Number, Report, Split
from unlabeled.report.table import print_reports

Pair = tuple[Features, Features]

_NAME = 150  # longest name of a report; what is cut off is told apart by a hash
_ARGUMENTS = ("cfg", "train", "test", "classes", "device")  # of protocols on features, and of dense ones
_DENSE_ARGUMENTS = ("name", "cfg", "restored", "run", "device")


@dataclass(frozen=True)
class Job:
    """One protocol to run: the name of its file and its settings."""

    name: str
    cfg: Protocol

    @property
    def shares(self) -> tuple[Any, ...]:
        """What must be equal for two protocols to use the same features."""
        cfg = self.cfg
        return (cfg.export, cfg.inflate, cfg.size, repr(cfg.clip), cfg.precision, cfg.card, cfg.root, cfg.train,
                cfg.test)


def evaluate(protocol: str | Path, run: Path, overrides: Sequence[str] = (), accelerator: Any = None,
             out: Path | None = None) -> Report | None:
    """Evaluate `run` (a run folder, a checkpoint or a public network) by a protocol of eval/, by name or path.

    Prints a table, writes RUN/eval/NAME-updateUUUUUUUU.json and returns the report; other ranks than 0 return None.
    out: takes the place of RUN for a public network. Raises UserError for bad input.
    """
    return next(iter(evaluate_many([protocol], run, overrides, accelerator, out)), None)


def evaluate_many(protocols: Sequence[str | Path], run: Path, overrides: Sequence[str] = (), accelerator: Any = None,
                  out: Path | None = None) -> list[Report]:
    """Evaluate `run` by several protocols, to which all `overrides` apply, and print one table.

    Returns the reports on rank 0 and nothing on the others, which are done once their features are delivered. A set
    without labels gives one report, of label-free health and nearest neighbours. Raises UserError for the protocols
    that cannot be run, once the others have been.
    """
    jobs = [_read(protocol, overrides) for protocol in protocols]
    device = pick_device(accelerator)
    restored = load_run(Path(run), device=device, out=out)
    if rank() == 0 and any(job.cfg.card is None for job in jobs) and (line := other_cards(restored)):
        print(line)
    work = _Work(restored, Path(run), device, several=len(jobs) > 1)
    try:
        work.do(jobs)
    finally:  # what is there is shown and kept, whatever became of the others
        ordered = _deliver(jobs, work.reports, restored.run) if rank() == 0 and work.reports else []
    if work.refused:
        raise UserError("\n".join(dict.fromkeys(work.refused)))
    return ordered


class _Work:
    """Runs protocols one after another; a UserError of one is kept and does not stop the others."""

    def __init__(self, restored: Restored, run: Path, device: torch.device, several: bool) -> None:
        self.restored, self.run, self.device, self.several = restored, run, device, several
        self.reports: dict[str, Report] = {}
        self.refused: list[str] = []

    def do(self, jobs: list[Job]) -> None:
        """Refuse all that can be refused before anything is extracted, then run the others."""
        together: dict[tuple[Any, ...], list[Job]] = {}
        for job in jobs:
            if not isinstance(job.cfg, Dense):
                together.setdefault(job.shares, []).append(job)
        opened: list[tuple[Splits, list[Job]]] = []
        for group in together.values():
            with self._keeping(group[0]):
                splits = open_splits(group[0].cfg, self.restored)
                opened.append((splits, [job for job in group if self._fits(job, splits)]))
        for splits, group in opened:
            frozen = [job for job in group if splits.test is None or not isinstance(job.cfg, Trained | Classify)]
            if frozen:
                with self._keeping(frozen[0]):
                    self._frozen(frozen, splits)
            for job in group:
                if job not in frozen:
                    with self._keeping(job):
                        self.reports[job.name] = _evaluate_classifiers(job, self.restored, splits, self.device)
        for job in jobs:
            if isinstance(job.cfg, Dense):
                with self._keeping(job):
                    report = _runner(job.cfg)(job.name, job.cfg, self.restored, self.run, self.device)
                    self.reports |= {} if report is None else {job.name: report}

    @contextmanager
    def _keeping(self, job: Job) -> Iterator[None]:
        try:
            yield
        except UserError as error:
            self.refused.append(f"{job.name}: {error}" if self.several else str(error))

    def _fits(self, job: Job, splits: Splits) -> bool:
        with self._keeping(job):
            pick_precision(job.cfg.precision, self.device.type)
            splits.check(job.cfg)
            if isinstance(job.cfg, Trained) and not (self.restored.public or self.run.is_dir()):
                raise UserError(f"protocol '{job.name}' starts from a finished run's export; give the run's folder")
            return True
        return False

    def _frozen(self, jobs: list[Job], splits: Splits) -> None:
        """Extract once for protocols on the same export and splits, then run each on rank 0."""
        restored = self.restored
        name, export, features = _extract(jobs, restored, splits, self.run, self.device)
        if rank() != 0:
            return
        scored = _split((splits.test or splits.train).split, features["network"][1])
        used = (_split(splits.train.split, features["network"][0]) if _learns(jobs) else scored, scored)
        measured = {name: _health(pair) for name, pair in features.items() if name != "raw_pixels"}
        if splits.test is None:
            job = Job("health", jobs[0].cfg)
            sheet = None
            try:
                sheet = draw_neighbours(splits.train, features["network"][0], export.crop, restored.run / "eval",
                                        restored.update)
            except UserError as error:  # the numbers count more
                print(f"no picture of nearest neighbours: {error}")
            self.reports["health"] = _report(job, restored, splits, name, used, [], measured, self.device, sheet)
            return
        for job in jobs:
            with self._keeping(job):
                numbers = _run(job.cfg, features, splits, self.device)
                self.reports[job.name] = _report(job, restored, splits, name, used, numbers, measured, self.device)


def _deliver(jobs: list[Job], reports: dict[str, Report], folder: Path) -> list[Report]:
    """Print the reports in the order of the jobs, then write them; return them."""
    if "health" in reports:
        print(f"data '{reports['health'].card}' has no labels: the health of the features stands in for the protocols; "
              "card=CARD root=FOLDER scores on another set")
    ordered = [reports[name] for name in dict.fromkeys([*(job.name for job in jobs), *reports]) if name in reports]
    print_reports(ordered)
    # what was computed is shown first: a full or read-only disk must not throw it away
    lost = [str(error) for report in ordered if (error := _unwritten(report, folder))]
    if lost:
        raise UserError(f"the results above are not kept: {lost[0]}")
    return ordered


def _unwritten(report: Report, run: Path) -> UserError | None:
    try:
        report.write(run)
    except UserError as error:
        return error
    return None


def _read(protocol: str | Path, overrides: Sequence[str]) -> Job:
    cfg = read_protocol(protocol, overrides)
    # what differs from the file is part of the name, so that no report takes the place of the standard one
    given = {text.partition("=")[0] for text in overrides}
    export = cfg.export if "export" in given else None
    card = Path(cfg.card).stem if cfg.card and "card" in given else None
    unnamed = {"export", "card", *marked(type(cfg), Mark.FREE)}
    other = [text for text in overrides if text.partition("=")[0] not in unnamed]
    special = (export, card, *(re.sub(r"[^\w=.+-]+", "_", text) for text in other))
    name = "-".join([find("eval", protocol).stem, *(part for part in special if part)])
    if len(name) > _NAME:  # it becomes the name of a file and of a folder
        digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()
        name = f"{name[:_NAME]}-{digest[:8]}"
    return Job(name, cfg)


def _extract(jobs: list[Job], restored: Restored, splits: Splits, run: Path, device: torch.device,
             ) -> tuple[str, Export, dict[str, Pair]]:
    """Return the name of the export, itself, and train and test features of every network that a protocol asks for."""
    first = jobs[0].cfg
    name, export = protocol_export(first, restored)
    check_samples([export], splits.train, splits.test)
    views = views_of(export, first.clip)
    precision = pick_precision(first.precision, device.type)
    embedders = {"network": network_embedder(export, device, precision, views)}
    if any(job.cfg.random_init for job in jobs):
        blank = load_run(run, random_init=True, device=device)
        untrained = open_residuals(protocol_export(first, blank, weights=False)[1])
        embedders["random_init"] = network_embedder(untrained, device, precision, views)
    if splits.test is not None and any(job.cfg.raw_pixels for job in jobs):
        embedders["raw_pixels"] = pixel_embedder(splits.train, export.crop)

    kept = KeptFeatures(device) if all(job.cfg.keep_features for job in jobs) else None

    def read(source: Source) -> dict[str, Features]:
        return extract(embedders, source, batch=first.batch, workers=first.workers, device=device,
                       max_corrupt=first.max_corrupt, kept=kept)

    if splits.test is None or not _learns(jobs):
        train = test = read(splits.test or splits.train)
    else:
        train, test = read(splits.train), read(splits.test)
    if kept is not None:
        kept.report()
    if splits.twins is not None:
        test = {kind: replace(part, twin=torch.from_numpy(splits.twins)[part.index]) for kind, part in test.items()}
    pairs = {kind: (train[kind], test[kind]) for kind in embedders}
    if "raw_pixels" in pairs and rank() == 0:
        a, b = pairs["raw_pixels"]
        a.x, b.x = drop_equal_channels(a.x, b.x)
    return name, export, pairs


def _learns(jobs: Sequence[Job]) -> bool:
    """Return whether any of the protocols learns from the training images; if none does, they are not read."""
    return any(job.cfg.learns for job in jobs)


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
    return _report(job, restored, splits, export, (train, _split(splits.test.split, test)), numbers, {}, device)


def _run(cfg: Protocol, features: dict[str, Pair], splits: Splits, device: torch.device) -> list[Number]:
    """Run one protocol on every kind of features that it asks for.

    Raises UserError if too few of the labelled images could be read.
    """
    runner = _runner(cfg)
    kinds = [kind for kind in features if kind == "network" or getattr(cfg, kind)]
    labelled = {kind: (features[kind][0].labelled(), _scored(features[kind][1])) for kind in kinds}
    known = labelled["network"][0].label
    assert known is not None
    splits.check_labels(cfg, known.numpy())
    scores = {kind: runner(cfg, *pair, len(splits.names), device) for kind, pair in labelled.items()}
    for found in scores.values():
        if not (isinstance(found, dict) and all(isinstance(score, Score) for score in found.values())):
            raise UserError(f"protocol '{cfg.protocol}' must give a dict of {Score.__module__}.Score by name")
    return _numbers(scores, features["network"][1])


def _runner(cfg: Protocol) -> Callable[..., Any]:
    runner: Callable[..., Any] = load_object(cfg.protocol, PROTOCOLS)
    dense = isinstance(cfg, Dense)
    refuse_other_arguments(runner, cfg.protocol, *(_DENSE_ARGUMENTS if dense else _ARGUMENTS))
    return runner


def _numbers(scores: dict[str, dict[str, Score]], test: Features) -> list[Number]:
    """Set the scores by kind and name beside chance, the best constant answer."""
    label = _scored(test).label
    assert label is not None
    chance = 100.0 * float(torch.bincount(label).max()) / len(label)
    names = scores["network"]
    return [Number(name, score.details.get("chance", chance),
                   **{kind: vars(found[name]) for kind, found in scores.items()}) for name, score in names.items()]


def _scored(test: Features) -> Features:
    """Return the test images whose label is known. Raises UserError if none of them could be read."""
    known = test.labelled()
    if len(known.x) == 0:
        raise UserError("none of the test images that have a label can be read")
    return known


def _health(pair: Pair) -> dict[str, float]:
    x = pair[1].x
    found = health(x)
    return {**found, "width": x.shape[1]} if found else {}


def _split(name: str, features: Features) -> Split:
    unlabelled = len(features.x) if features.label is None else int((features.label < 0).sum())
    return Split(name, len(features.x), unlabelled, len(features.corrupt), features.corrupt)


def _report(job: Job, restored: Restored, splits: Splits, export: str, used: tuple[Split, Split],
            numbers: list[Number], measured: dict[str, dict[str, float]], device: torch.device,
            sheet: Path | None = None) -> Report:
    shared, scored = splits.shared(job.cfg), used[1].n - used[1].unlabelled
    return Report(
        name=job.name, settings=job.cfg.model_dump(mode="json"), run=restored.name,
        method=restored.recipe.method.name, update=restored.update,
        export=export if job.cfg.inflate is None else f"{export} inflated to {job.cfg.inflate}",
        train_seed=restored.train_seed, seed=job.cfg.seed, card=splits.card, classes=len(splits.names) or None,
        train=used[0], test=used[1], numbers=numbers, health=measured,
        warning=collapse_warning(measured["network"]) if measured else None, sheet=str(sheet) if sheet else None,
        shared=shared, precision=pick_precision(job.cfg.precision, device.type),
        measure=job.cfg.measure,
        cautions=cautions(job.cfg, used[0].split, used[1].split, shared, scored, splits.trained if numbers else None),
    )
