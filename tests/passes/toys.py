"""Small sets, teachers and stores that the tests of entries share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from tests.data.toy_stores import write_store
from torch import Tensor, nn

from unlabeled.augment.replay.crops import drawing
from unlabeled.augment.replay.entries import Law, fields
from unlabeled.config.augment import PaddedCrop, StorableCrop, StoredResizedCrop
from unlabeled.data.sources.base import CorruptSample, Source
from unlabeled.passes.entries import KIND, EntryMaker
from unlabeled.passes.teachers import teach

CLASSES = 5
CROPS: dict[str, StorableCrop] = {
    "resized": StoredResizedCrop(size=12, area=(0.2, 1.0)),
    "padded": PaddedCrop(kind="padded", size=16, pad=2, resize=16),
}


class Pictures(Source):
    """n coloured images of different sizes, or (in memory) of one; some may be unreadable."""

    def __init__(self, n: int = 9, bad: Sequence[int] = (), in_memory: bool = False) -> None:
        super().__init__("pictures", "train")
        rng = np.random.default_rng(0)
        sizes = [(20, 20) if in_memory else (18 + 3 * i, 30 - 2 * i) for i in range(n)]
        self._images = [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]
        self.bad = set(bad)
        self.classes = [f"class {i}" for i in range(CLASSES)]
        self.labels = np.arange(n) % CLASSES
        if in_memory:
            self.images = np.stack(self._images)

    def __len__(self) -> int:
        return len(self._images)

    def key(self, index: int) -> str:
        return f"picture {index}"

    def image(self, index: int) -> np.ndarray:
        if index in self.bad:
            raise CorruptSample(self.key(index), "it is torn")
        return self._images[index]


class Listening(nn.Module):
    """A teacher that remembers the views that it sees."""

    def __init__(self, size: int) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.linear = nn.Linear(3 * size * size, CLASSES)
        self.seen: list[Tensor] = []

    def forward(self, views: Tensor) -> Tensor:
        """Return probabilities [n, C]."""
        self.seen.append(views.clone())
        return self.linear(views.flatten(1)).softmax(1)


def maker(source: Source, crop: StorableCrop, entries: int = 4, *, mix: bool = False, seed: int = 0,
          magnitude: int | None = 9, erasing: float = 0.5) -> EntryMaker:
    """Return what draws entries of the set."""
    return EntryMaker(source, drawing(crop), Law(crop.size, magnitude, erasing, mix), entries, seed)


@torch.inference_mode()
def taught(made: EntryMaker, topk: int = 3) -> tuple[dict[str, np.ndarray], Tensor]:
    """Return the columns of the store of a whole set, and the views [n, entries, 3, S, S] that its teacher saw."""
    teacher = Listening(made.crop.size)
    batch = made.make(np.arange(len(made.source)))
    rows = teach(batch, teacher, topk, together=7)
    views = torch.cat(teacher.seen).unflatten(0, (len(batch.index), made.entries))
    stored = fields(made.entries, topk, made.law.mix)
    return {name: rows[name].numpy().astype(stored[name][0]) for name in stored}, views


def keep(folder: Path, made: EntryMaker, crop: StorableCrop, columns: dict[str, np.ndarray]) -> Path:
    """Write a store of these columns."""
    about = {"crop": crop.model_dump(), "mix": made.law.mix, "num_classes": CLASSES}
    return write_store(folder, made.source, KIND, columns, **about)
