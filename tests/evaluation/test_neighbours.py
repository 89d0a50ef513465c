"""The picture of nearest neighbours shows the images whose features are nearest, and never the query itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tests.evaluation.fakes import Noise

from unlabeled.augment.geometry import EvalCrop
from unlabeled.engine.passes.features import Features
from unlabeled.evaluation import neighbours


def test_every_query_stands_before_its_nearest_other_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[list[np.ndarray]] = []
    monkeypatch.setattr(neighbours, "neighbour_sheet", lambda rows, path: drawn.extend(rows) or path)
    source = Noise(14)
    kept = [i for i in range(14) if i != 3]  # one cannot be read, so rows and places differ
    angle = torch.tensor(kept) * 0.1
    features = Features(torch.stack([angle.cos(), angle.sin()], 1), torch.tensor(kept))
    path = neighbours.draw_neighbours(source, features, EvalCrop(8), tmp_path, 7)
    assert path == tmp_path / "neighbours-update00000007.png" and len(drawn) == neighbours.QUERIES
    shown = [[next(i for i in range(14) if np.array_equal(image, source.image(i))) for image in row] for row in drawn]
    for query, *others in shown:
        expected = sorted((i for i in kept if i != query), key=lambda i: abs(i - query))
        apart = [abs(i - query) for i in others]
        assert apart == sorted(apart) == [abs(i - query) for i in expected[: neighbours.NEIGHBOURS]]
        assert 3 not in others and query not in others
    one = Features(torch.ones(1, 2), torch.tensor([0]))
    assert neighbours.draw_neighbours(source, one, EvalCrop(8), tmp_path, 0) is None
