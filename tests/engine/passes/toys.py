"""A pass whose network is a few sums of pixels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tests.evaluation.fakes import Noise

from unlabeled.augment.geometry import EvalCrop
from unlabeled.config.passes.shared import WHOLE
from unlabeled.data.batch import Batch
from unlabeled.data.evaluation import ImageMaker
from unlabeled.data.records.store import Store
from unlabeled.data.sources.base import Source
from unlabeled.engine.passes.run import Work, run_pass

CPU = torch.device("cpu")


def sums(batch: Batch) -> dict[str, torch.Tensor]:
    """Two fields: per channel means, as halves, and the place."""
    return {"mean": batch.crops[0].float().mean((2, 3)) / 255, "place": batch.index}


def work(source: Source, **changed: Any) -> Work:
    known = {"kind": "toys", "fields": {"mean": ("<f2", (3,)), "place": ("<u2", ())}, "about": {"teacher": "sums"},
             "maker": ImageMaker(source, [EvalCrop(8)]), "compute": sums}
    return Work(**{**known, **changed})


def toy_pass(out: Path, source: Source | None = None, *, batch: int = 16, workers: int = 0, max_corrupt: float = 0.0,
             part: Any = WHOLE, more: int = 0, **changed: Any) -> Store | None:
    source = Noise(300) if source is None else source
    return run_pass(work(source, **changed), source, out, part=part, batch=batch, workers=workers, device=CPU,
                    max_corrupt=max_corrupt, more=more)


def contents(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(out.iterdir()) if not path.name.startswith(".")}
