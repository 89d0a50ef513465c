"""What is measured while training: the health of the features and, where there are labels, kNN on held-out images."""

from __future__ import annotations

import numpy as np
import torch

from unlabeled.config.recipe import Recipe
from unlabeled.data.base import Source
from unlabeled.engine.features import Embedder, Features, extract, network_embedder
from unlabeled.engine.plan import Plan
from unlabeled.methods.base import Method
from unlabeled.ops import knn
from unlabeled.ops.distributed import rank
from unlabeled.ops.health import collapse_warning, health
from unlabeled.ops.random import permutation

K, TEMPERATURE = 20, 0.07
KNN_NAME = "online_knn20@.07"


class Subset(Source):
    """Some samples of a source, in the given order."""

    def __init__(self, source: Source, indices: np.ndarray) -> None:
        super().__init__(source.name, source.split)
        self.source, self.indices, self.classes = source, indices, source.classes
        self.labels = None if source.labels is None else source.labels[indices]
        self.images = None if source.images is None else source.images[indices]
        self.unreadable = {i: source.unreadable[j] for i, j in enumerate(indices.tolist()) if j in source.unreadable}

    def __len__(self) -> int:
        return len(self.indices)

    def key(self, index: int) -> str:
        """Return the name under which people find the sample again."""
        return self.source.key(int(self.indices[index]))

    def image(self, index: int) -> np.ndarray:
        """Return one image, uint8 [H, W, 3]. Raises CorruptSample."""
        return self.source.image(int(self.indices[index]))


class Online:
    """Measurements on two fixed parts of the training split: a bank, and queries that are not in it."""

    def __init__(self, recipe: Recipe, plan: Plan, source: Source, device: torch.device) -> None:
        self.every = round(recipe.eval.every * plan.updates_per_epoch)
        self.total, self.batch = plan.total, plan.batch_per_process
        self.device, self.workers = device, recipe.data.workers
        picks = permutation(len(source), recipe.train.seed, "online")
        queries = min(recipe.eval.queries, len(source) // 4)
        self.queries = Subset(source, np.sort(picks[:queries]))
        self.bank = Subset(source, np.sort(picks[queries : queries + recipe.eval.bank]))

    def due(self, done: int) -> bool:
        """Return whether to measure after `done` updates."""
        return self.every > 0 and (done % self.every == 0 or done == self.total)

    def measure(self, method: Method) -> dict[str, float]:
        """Return the measurements of the method's first export; call it on all ranks, only rank 0 gets numbers."""
        export = next(iter(method.exports().values()))
        if export.gives != "vector":
            return {}
        embedder = network_embedder(export, self.device)
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
