"""Which images of a pool a teacher chooses for each class (arXiv 2103.05959 section 3.2; the exact rules are ours).

The class of an image is the most probable one, its score that probability. Images of a class are ranked by score,
equal ones by their place in the pool, and the first k are chosen. What was removed, such as a duplicate, is gone before
ranking.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from unlabeled.errors import UserError


@dataclass(frozen=True)
class Selection:
    """Per class the places [C, k] and scores [C, k] of its images in rank order; -1 and 0 behind the last."""

    places: np.ndarray
    scores: np.ndarray

    @property
    def counts(self) -> np.ndarray:
        """Return how many images each class has, int64 [C]."""
        return (self.places >= 0).sum(1)

    @property
    def images(self) -> np.ndarray:
        """Return the places of all chosen images in ascending order, each once, int64 [n]."""
        return np.unique(self.places[self.places >= 0])


def likeliest_classes(prob: Tensor, p: int = 1) -> tuple[Tensor, Tensor]:
    """Return the `p` most probable classes of `prob` [n, C], of equal ones the first, and their values: [n, p]."""
    value, classes = prob.sort(dim=1, descending=True, stable=True)
    return classes[:, :p], value[:, :p]


def top_per_class(
    classes: np.ndarray, scores: np.ndarray, *, k: int, total: int, removed: np.ndarray | None = None
) -> Selection:
    """Choose at most `k` images for each of `total` classes.

    classes, scores: [n] or [n, p], what `likeliest_classes` gives: with p > 1 an image may serve several classes, as in
    arXiv 1905.00546, and is still one image of the selection. removed: places that may not be chosen, [m]. Raises
    UserError for a score that is not finite.
    """
    classes, scores = classes.reshape(len(classes), -1), scores.reshape(len(scores), -1)
    place = np.repeat(np.arange(len(classes)), classes.shape[1])
    allowed = np.ones(len(classes), dtype=bool)
    if removed is not None:
        allowed[removed] = False
    nonfinite = ~np.isfinite(scores).all(1) & allowed
    if nonfinite.any():
        raise UserError(f"the teacher's scores of {int(nonfinite.sum()):,} images are not finite, the first at place "
                        f"{int(nonfinite.argmax())}: nothing can be ranked by them; see whether its weights are finite")
    candidate = allowed[place]
    place, label, score = place[candidate], classes.reshape(-1)[candidate], scores.reshape(-1)[candidate]
    order = np.lexsort((place, -score, label))
    place, label, score = place[order], label[order], score[order]
    rank = np.arange(len(label)) - np.searchsorted(label, label)  # within its class, from 0
    chosen = rank < k
    selection = Selection(np.full((total, k), -1, dtype=np.int64), np.zeros((total, k), dtype=scores.dtype))
    selection.places[label[chosen], rank[chosen]] = place[chosen]
    selection.scores[label[chosen], rank[chosen]] = score[chosen]
    return selection
