"""The pass over pairs of an evaluation image and an image of the pool that may be one picture."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from unlabeled.data.batch import Batch
from unlabeled.data.sources.base import CorruptKey, CorruptSample, Source
from unlabeled.engine.passes.run import Work
from unlabeled.ops.random import seed_of
from unlabeled.passes.mining.local_features import LocalFeatures, gray

BATCH = 32  # pairs whose images are in memory at once
_BLOCK = 16  # pairs of a file: half a minute on a CPU


class Pairs(Source):
    """Pairs of images as samples; pairs: `candidates.PAIR` [n], in the order of evaluation images."""

    def __init__(self, pairs: np.ndarray, pool: Source, against: Source) -> None:
        super().__init__(f"{against.name} and {pool.name}", against.split)
        self.pairs, self.pool, self.against = pairs, pool, against

    def __len__(self) -> int:
        return len(self.pairs)

    def key(self, index: int) -> str:
        """Return the keys of both images."""
        one, other = self.pairs[["against", "pool"]][index].tolist()
        return f"{self.against.key(one)} = {self.pool.key(other)}"

    def image(self, index: int) -> np.ndarray:
        """Return the image of the pool, uint8 [H, W, 3]. Raises CorruptSample if either of the two cannot be read."""
        one, other = self.pairs[["against", "pool"]][index].tolist()
        self.against.image(one)
        return self.pool.image(other)


class PairMaker:
    """Decodes the images of pairs (a `loader.Maker`), each once per batch."""

    def __init__(self, source: Pairs) -> None:
        self.source = source

    def make(self, unit: np.ndarray) -> Batch:
        """Return gray images in `crops`, and in `records` which two belong to each of the readable pairs in `index`."""
        pictures: list[Tensor] = []
        numbers: dict[tuple[str, int], int | str] = {}
        readable, ends, corrupt = [], [], list[str]()
        for place in unit.tolist():
            found = [self._number(side, int(self.source.pairs[side][place]), numbers, pictures)
                     for side in ("against", "pool")]
            reason = next((each for each in found if isinstance(each, str)), None)
            if reason is None:
                readable.append(place)
                ends.append(found)
            else:
                corrupt.append(CorruptKey(self.source.key(place), reason))
        both = torch.tensor(ends, dtype=torch.int64).reshape(-1, 2)
        index = torch.tensor(readable, dtype=torch.int64)
        return Batch(pictures, [], index, None, corrupt, {"pair": {"against": both[:, 0], "pool": both[:, 1]}})

    def _number(self, side: str, place: int, numbers: dict[tuple[str, int], int | str], pictures: list[Tensor],
                ) -> int | str:
        """Return the number of an image in `pictures`, where it is put, or why it cannot be read."""
        if (side, place) not in numbers:
            source: Source = getattr(self.source, side)
            try:
                pictures.append(gray(source.image(place)))
                numbers[side, place] = len(pictures) - 1
            except CorruptSample as error:
                numbers[side, place] = f"{error.key}: {error.reason}"
        return numbers[side, place]


def comparing(source: Pairs, device: torch.device) -> Work:
    """Return the pass that counts, of every pair, the matches of local features and those that agree."""
    features = LocalFeatures(device)

    def compute(batch: Batch) -> dict[str, Tensor]:
        keypoints = features.keypoints(batch.crops)
        ends = zip(*(batch.records["pair"][side].tolist() for side in ("against", "pool")), strict=True)
        counts = [features.agreement(keypoints[one], keypoints[other], _seed(source.key(place)))
                  for place, (one, other) in zip(batch.index.tolist(), ends, strict=True)]
        matches, inliers = torch.tensor(counts, dtype=torch.int32).T
        return {"matches": matches, "inliers": inliers}

    return Work("pairs", {"matches": ("<i4", ()), "inliers": ("<i4", ())}, {}, PairMaker(source), compute, _BLOCK)


def _seed(key: str) -> int:
    return seed_of("ransac", key) >> 16  # kornia adds to it
