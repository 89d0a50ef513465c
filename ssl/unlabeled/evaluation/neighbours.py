"""Nearest neighbours of a few images, as a picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from unlabeled.data.batch import Geometry
from unlabeled.data.clips import clips_of
from unlabeled.data.crops import ClipCrop
from unlabeled.data.sources.open import Source
from unlabeled.engine.passes.features import Features
from unlabeled.ops.measures.health import thin
from unlabeled.ops.measures.knn import neighbors
from unlabeled.report.sheet import neighbour_sheet

QUERIES, NEIGHBOURS = 12, 7
_FRAMES = 4  # of a clip, evenly spread: one alone would show no motion


def draw_neighbours(source: Source, features: Features, crop: Geometry, folder: Path, update: int) -> Path | None:
    """Write FOLDER/neighbours-updateUUUUUUUU.png: queries spread over the split, each with its nearest other images.

    crop: how the network got them; a clip is shown as a strip of four of its frames. Returns None for fewer than two
    images.
    """
    n = len(features.x)
    if n < 2:
        return None
    queries = thin(torch.arange(n), QUERIES)
    _, places = neighbors(features.x, features.x[queries], min(NEIGHBOURS + 1, n))
    rows = []
    for query, found in zip(queries.tolist(), places.tolist(), strict=True):
        others = [place for place in found if place != query][:NEIGHBOURS]
        rows.append([_picture(source, int(features.index[place]), crop) for place in (query, *others)])
    return neighbour_sheet(rows, folder / f"neighbours-update{update:08d}.png")


def _picture(source: Source, index: int, crop: Geometry) -> np.ndarray:
    """Return an image, uint8 [H, W, 3], or a few frames of a clip [F, H, W, 3]. Raises CorruptSample."""
    if not isinstance(crop, ClipCrop):
        return source.image(index)
    clip = clips_of(source, crop.clips, np.empty((1, 0)), index)[0]
    return clip[np.linspace(0, len(clip) - 1, min(_FRAMES, len(clip))).astype(np.int64)]
