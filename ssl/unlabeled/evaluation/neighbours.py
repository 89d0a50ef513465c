"""Nearest neighbours of a few images, as a picture."""

from __future__ import annotations

from pathlib import Path

import torch

from unlabeled.data.sources.open import Source
from unlabeled.engine.passes.features import Features
from unlabeled.ops.measures.health import thin
from unlabeled.ops.measures.knn import neighbors
from unlabeled.report.sheet import neighbour_sheet

QUERIES, NEIGHBOURS = 12, 7


def draw_neighbours(source: Source, features: Features, folder: Path, update: int) -> Path | None:
    """Write FOLDER/neighbours-updateUUUUUUUU.png: queries spread over the split, each with its nearest other images.

    Returns None for fewer than two images.
    """
    n = len(features.x)
    if n < 2:
        return None
    queries = thin(torch.arange(n), QUERIES)
    _, places = neighbors(features.x, features.x[queries], min(NEIGHBOURS + 1, n))
    rows = []
    for query, found in zip(queries.tolist(), places.tolist(), strict=True):
        others = [place for place in found if place != query][:NEIGHBOURS]
        rows.append([source.image(int(features.index[place])) for place in (query, *others)])
    return neighbour_sheet(rows, folder / f"neighbours-update{update:08d}.png")
