"""What published rows are compared with before they are converted: the labels of the card's own images."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from unlabeled.data.sources.base import Source
from unlabeled.errors import UserError

_ASKED = 100  # images
_FEWEST = 20  # labels by which anything is told


def spread(source: Source) -> np.ndarray:
    """Return the places of some images over the whole split, int64 [n], ascending."""
    return np.unique(np.linspace(0, len(source) - 1, _ASKED).astype(np.int64))


def refuse_other_labels(folder: Path, rows: str, source: Source, places: np.ndarray, said: np.ndarray, classes: int,
                        ) -> None:
    """Print how often published rows and labels agree; said: most probable classes [n] of the images at `places` [n].

    rows: what is published. Raises UserError if they agree hardly more often than by chance.
    """
    if source.labels is None:
        return
    label = source.labels[places]
    labelled, same = int((label >= 0).sum()), int((label == said).sum())
    if labelled:
        print(f"{rows} and labels agree for {same} of {labelled} images", flush=True)
    if labelled >= _FEWEST and same <= labelled * min(0.5, 3 / classes):
        raise UserError(f"{folder}: the most probable class of {rows} is the label of {same} of {labelled} images "
                        "only: they are of other images, or of files or classes in another order")
