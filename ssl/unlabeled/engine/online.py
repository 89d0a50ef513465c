"""What is measured while training: the health of the features and, where there are labels, kNN on held-out images.

Of a classifier: its accuracy on images of the clock stream, whose labels a semi-supervised method never sees.
"""

from __future__ import annotations

import numpy as np
import torch

from unlabeled.config.recipe import Recipe
from unlabeled.data.base import Source
from unlabeled.data.subset import Part
from unlabeled.engine.features import Embedder, Features, extract, network_embedder
from unlabeled.engine.plan import Plan
from unlabeled.methods.base import Method
from unlabeled.ops import knn
from unlabeled.ops.distributed import rank
from unlabeled.ops.health import collapse_warning, health
from unlabeled.ops.random import permutation

K, TEMPERATURE = 20, 0.07
KNN_NAME = "online_knn20@.07"
ACCURACY_NAME = "online_train_accuracy"


class Online:
    """Measurements on two fixed parts of the training split: a bank, and queries that are not in it."""

    def __init__(self, recipe: Recipe, plan: Plan, source: Source, device: torch.device) -> None:
        self.every = round(recipe.eval.every * plan.updates_per_epoch)
        self.total, self.batch = plan.total, plan.batch_per_process
        self.device, self.workers = device, recipe.data.workers
        if self.every > 0 and not source.random_access:
            self.every = 0
            if rank() == 0:
                print(f"no health or kNN while training: split '{source.split}' of '{source.name}' is streamed")
        picks = permutation(len(source), recipe.train.seed, "online")
        queries = min(recipe.eval.queries, len(source) // 4)
        self.queries = Part(source, np.sort(picks[:queries]))
        self.bank = Part(source, np.sort(picks[queries : queries + recipe.eval.bank]))

    def due(self, done: int) -> bool:
        """Return whether to measure after `done` updates."""
        return self.every > 0 and (done % self.every == 0 or done == self.total)

    def measure(self, method: Method) -> dict[str, float]:
        """Return the measurements of the method's first export; call it on all ranks, only rank 0 gets numbers."""
        export = next(iter(method.exports().values()))
        embedder = network_embedder(export, self.device)
        if export.gives == "logits":
            return self._accuracy(embedder)
        bank, queries = self._extract(embedder, self.bank), self._extract(embedder, self.queries)
        if rank() != 0:
            return {}
        measured = {f"health/{name}": value for name, value in health(bank.x).items()}
        if bank.label is not None and queries.label is not None and self.bank.classes:
            known = queries.label >= 0
            k = min(K, int((bank.label >= 0).sum()))
            found = knn.predict(bank.x, bank.label, queries.x[known], [k], TEMPERATURE, len(self.bank.classes))[k]
            measured[KNN_NAME] = 100.0 * float((found.cpu() == queries.label[known]).double().mean())
        return measured

    def _accuracy(self, embedder: Embedder) -> dict[str, float]:
        if self.queries.labels is None or not (self.queries.labels >= 0).any():
            return {}
        found = self._extract(embedder, self.queries)
        if rank() != 0:
            return {}
        known = found.labelled()
        assert known.label is not None
        return {ACCURACY_NAME: 100.0 * float((known.x.argmax(1) == known.label).double().mean())}

    def _extract(self, embedder: Embedder, part: Source) -> Features:
        found = extract(
            {"export": embedder},
            part,
            batch=self.batch,
            workers=self.workers,
            device=self.device,
            max_corrupt=1.0,
        )
        return found["export"]

    def report(self, done: int, measured: dict[str, float]) -> list[str]:
        """Return the measurements in words, and the warning if the features have collapsed."""
        if not measured:
            return []
        parts = [f"{name.removeprefix('health/')} {value:.3g}" for name, value in measured.items()]
        plain = {name.removeprefix("health/"): value for name, value in measured.items()}
        warning = collapse_warning(plain)
        return [f"after {done} updates: " + ", ".join(parts), *([f"WARNING: {warning}"] if warning else [])]
