"""What is measured while training: the health of the features and, where there are labels, kNN on held-out images.

Of a classifier: its accuracy on images of the clock stream, whose labels a semi-supervised method never sees.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from unlabeled.config.recipe import Recipe
from unlabeled.data.sources.base import Source
from unlabeled.data.sources.subset import Part
from unlabeled.engine.launch import pick_precision
from unlabeled.engine.passes.features import Embedder, Features, extract, frames_of, network_embedder
from unlabeled.engine.plan import Plan
from unlabeled.errors import UserError
from unlabeled.methods.base import Method
from unlabeled.ops.distributed import rank
from unlabeled.ops.measures import knn
from unlabeled.ops.measures.health import collapse_warning, health
from unlabeled.ops.random import shuffled

K, TEMPERATURE = 20, 0.07
KNN_NAME = "online_knn20@.07"
ACCURACY_NAME = "online_train_accuracy"
_MEASURED = ("health/", "online_")  # how names of measurements begin
_FEWEST = 2  # images that have any health


class Online:
    """Measurements on two fixed parts of the training split: a bank, and queries that are not in it.

    last: the updates that were done at the newest measurement. What cannot be measured is said in one line and never
    ends the training.
    """

    def __init__(self, recipe: Recipe, plan: Plan, source: Source, device: torch.device, last: int = 0) -> None:
        self.every = round(recipe.eval.every * plan.updates_per_epoch)
        self.total, self.batch = plan.total, plan.batch_per_process
        self.device, self.workers = device, recipe.data.workers
        self.precision = pick_precision(recipe.train.precision, device.type, "train.precision")
        self.last = last
        self.lines: list[str] = []  # what the next report says beside the measurements
        self._told = False
        if recipe.eval.every > 0 and self.every == 0:
            self.every = 1
            self._say(f"eval.every {recipe.eval.every:g} is less than one update, of which an epoch has "
                      f"{plan.updates_per_epoch}: health and kNN are measured after every update")
        if self.every > 0 and not source.random_access:
            self.every = 0
            self._say(f"no health or kNN while training: split '{source.split}' of '{source.name}' is streamed")
        queries = min(recipe.eval.queries, len(source) // 4)
        measured = min(len(source), queries + recipe.eval.bank)
        picks = shuffled(len(source), recipe.train.seed, "online")[np.arange(measured)]
        self.queries = Part(source, np.sort(picks[:queries]))
        self.bank = Part(source, np.sort(picks[queries:]))
        if self.every > 0:
            self._say_what_is_left_out()

    def due(self, done: int) -> bool:
        """Return whether to measure after `done` updates."""
        return self.every > 0 and done > self.last and (done % self.every == 0 or done == self.total)

    def measure(self, method: Method) -> dict[str, float]:
        """Return the measurements of the method's first export; call it on all ranks, only rank 0 gets numbers.

        Raises nothing: `report` says what went wrong.
        """
        try:
            return self._measure(method)
        except Exception as error:  # whatever it is, the training is worth more than a measurement of it
            reason = " ".join(str(error).split()) or "no reason given"
            kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
            self.lines.append(f"nothing could be measured, training goes on: {kind}{reason}")
            return {}

    def report(self, done: int, measured: dict[str, float]) -> list[str]:
        """Return the measurements in words, what could not be measured, and the warning if the features collapsed."""
        lines = [f"after {done} updates {line}" for line in self.lines]
        self.last, self.lines = done, []
        if not measured:
            return lines
        parts = [f"{name.removeprefix('health/')} {value:.3g}" for name, value in measured.items()]
        plain = {name.removeprefix("health/"): value for name, value in measured.items()}
        warning = collapse_warning(plain)
        return [f"after {done} updates: " + ", ".join(parts), *lines, *([f"WARNING: {warning}"] if warning else [])]

    def _measure(self, method: Method) -> dict[str, float]:
        export = next(iter(method.exports().values()))
        embedder = network_embedder(export, self.device, self.precision)
        if export.gives == "logits":
            return self._accuracy(embedder)
        if len(self.bank) < _FEWEST:
            return {}
        voting = _known(self.bank) > 0 and _known(self.queries) > 0
        bank = self._extract(embedder, self.bank)
        queries = self._extract(embedder, self.queries) if voting else None
        if rank() != 0:
            return {}
        measured: dict[str, float] = {}
        if len(bank.x) < _FEWEST:
            self.lines.append(f"no health was measured: {len(bank.x)} of {len(self.bank)} images can be read")
        measured |= {f"health/{name}": value for name, value in health(bank.x).items()}
        if queries is not None:
            measured |= self._knn(bank.labelled(), queries.labelled())
        return measured

    def _knn(self, bank: Features, queries: Features) -> dict[str, float]:
        assert bank.label is not None and queries.label is not None
        if not len(bank.x) or not len(queries.x):
            self.lines.append("no kNN was measured: none of the labelled images of bank or queries can be read")
            return {}
        classes = len(self.bank.classes or ()) or 1 + int(max(bank.label.max(), queries.label.max()))
        k = min(K, len(bank.x))
        found = knn.predict(bank.x, bank.label, queries.x, [k], TEMPERATURE, classes)[k]
        return {KNN_NAME: 100.0 * float((found.cpu() == queries.label).double().mean())}

    def _accuracy(self, embedder: Embedder) -> dict[str, float]:
        if not _known(self.queries):
            if not self._told:
                self.lines.append(f"no accuracy is measured: split '{self.queries.split}' of '{self.queries.name}' has "
                                  "no labels")
            self._told = True
            return {}
        features = self._extract(embedder, self.queries)
        if rank() != 0:
            return {}
        labelled = features.labelled()
        if not len(labelled.x):
            self.lines.append("no accuracy was measured: none of the labelled queries can be read")
            return {}
        assert labelled.label is not None
        return {ACCURACY_NAME: 100.0 * float((labelled.x.argmax(1) == labelled.label).double().mean())}

    def _extract(self, embedder: Embedder, part: Source) -> Features:
        features = extract(
            {"export": embedder},
            part,
            batch=self.batch * frames_of(embedder.crops),  # as many clips as an update has videos
            workers=self.workers,
            device=self.device,
            max_corrupt=1.0,
        )
        return features["export"]

    def _say_what_is_left_out(self) -> None:
        source, n = self.bank.source, len(self.bank) + len(self.queries)
        counts = [_known(part) for part in (self.bank, self.queries)]
        where = f"split '{source.split}' of '{source.name}'"
        if len(self.bank) < _FEWEST:
            self._say(f"no health or kNN while training: the bank holds {len(self.bank)} image of {where}")
        elif self.bank.labels is None:
            return
        elif not len(self.queries):
            self._say(f"no kNN while training: {where} has {n} images, of which none can be held out")
        elif not all(counts):
            self._say(f"no kNN while training: of {where}, {counts[0]} of {len(self.bank)} images of the bank and "
                      f"{counts[1]} of {len(self.queries)} queries have a label")
        elif sum(counts) < n:
            self._say("images without a label are left out of kNN while training: "
                      f"{len(self.bank) - counts[0]} of {len(self.bank)} of the bank and "
                      f"{len(self.queries) - counts[1]} of {len(self.queries)} queries, in {where}")

    def _say(self, line: str) -> None:
        if rank() == 0:
            print(line, flush=True)


def last_measured(lines: Sequence[Mapping[str, Any]]) -> int:
    """Return how many updates were done at the newest measurement in the lines of a metrics file, or 0."""
    return max((line["update"] + 1 for line in lines if any(name.startswith(_MEASURED) for name in line)), default=0)


def _known(part: Source) -> int:
    """Return how many of a split's images have a label."""
    return 0 if part.labels is None else int((part.labels >= 0).sum())
