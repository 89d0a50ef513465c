"""Random access to local webdataset tar shards: a sample is one pread."""

from __future__ import annotations

import os
import re
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np

from unlabeled.config.card import Card, Shards
from unlabeled.data.sources.base import CorruptSample, Source, unreadable
from unlabeled.data.sources.decode import decode
from unlabeled.data.sources.fingerprint import Names, fingerprint
from unlabeled.data.sources.tar.joined import ShardSet, join
from unlabeled.errors import UserError

_OPEN_FILES = 128  # per process; systems commonly allow 1024


class ShardSource(Source):
    """The samples of several shards, in their order in the files. Files are opened where and when they are read."""

    def __init__(self, name: str, split: str, tars: list[Path], image: tuple[str, ...], label: str | None,
                 classes: list[str] | None = None) -> None:
        super().__init__(name, split)
        self.tars, self.classes = tars, classes
        self._joined = join(f"{name}-{split}", ShardSet(tuple(tars), image, label))
        if not len(self):
            raise UserError(f"the {len(tars)} shards of data card '{name}', split '{split}', hold no samples; "
                            f"the first is {tars[0]}")
        self.labels = self._joined.labels
        self._refuse_unnamed(self._joined.highest)
        self._files: OrderedDict[int, int] = OrderedDict()

    def _refuse_unnamed(self, highest: int) -> None:
        if self.labels is None or self.classes is None or self.labels[highest] < len(self.classes):
            return
        raise UserError(f"shard {self.tars[self._shard(highest)]}, sample {self.key(highest)}: label "
                        f"{self.labels[highest]} found, but only {len(self.classes)} classes are named")

    def __len__(self) -> int:
        return len(self._joined.spots)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_files": OrderedDict(), "labels": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.labels = self._joined.labels

    def __del__(self) -> None:
        for descriptor in getattr(self, "_files", {}).values():
            os.close(descriptor)

    def key(self, index: int) -> str:
        """Return the sample's name in its shard."""
        return self._joined.keys[index]

    def spots(self, indices: np.ndarray) -> list[tuple[int, int]]:
        """Return where images stand, int64 [n]: the place of their shard in `tars`, and their first byte there."""
        shards = np.searchsorted(self._joined.starts, indices, side="right") - 1
        return list(zip(shards.tolist(), self._joined.spots[indices, 0].tolist(), strict=True))

    def labels_of(self, indices: np.ndarray) -> np.ndarray | None:
        """Return the labels of samples, int64 [n], of `indices`, int64 [n]."""
        return self._joined.labels_of(indices)

    def raw(self, index: int) -> bytes:
        """Return the bytes of the image member. Raises CorruptSample."""
        shard = self._shard(index)
        offset, size = self._joined.spot(index)
        try:
            data = os.pread(self._descriptor(shard), size, offset)
        except OSError as error:
            raise unreadable(self.key(index), error, self.tars[shard]) from error
        if len(data) != size:
            raise CorruptSample(self.key(index), f"{self.tars[shard]} ends before the sample does")
        return data

    def image(self, index: int) -> np.ndarray:
        """Return one image, uint8 [H, W, 3]. Raises CorruptSample."""
        data = self.raw(index)
        try:
            return decode(data, "", self.pixels)
        except CorruptSample as error:
            raise CorruptSample(self.key(index), error.reason) from error

    def names(self) -> Names:
        """Return the samples' names in their shards."""
        return self._joined.keys

    def traces(self) -> np.ndarray:
        """Return the sizes of the image members."""
        return self._joined.spots[:, 1]

    def fingerprint(self) -> dict[str, Any]:
        """Return what tells this split from a changed one; of large splits it is kept with the index."""
        kept = self._joined.digests
        return fingerprint(len(self), None, None, None, self.classes) | kept if kept else super().fingerprint()

    def made_of(self) -> tuple[Path, list[tuple[str, int, int]]]:
        """Return the folder of the first shard and all shards."""
        stats = [(tar, tar.stat()) for tar in self.tars]
        return self.tars[0].parent, [(tar.name, stat.st_size, stat.st_mtime_ns) for tar, stat in stats]

    def _shard(self, index: int) -> int:
        return int(np.searchsorted(self._joined.starts, index, side="right")) - 1

    def _descriptor(self, shard: int) -> int:
        # After a fork the descriptors are shared, which pread allows: it leaves the file's position alone.
        if shard not in self._files:
            if len(self._files) >= _OPEN_FILES:
                os.close(self._files.popitem(last=False)[1])
            self._files[shard] = os.open(self.tars[shard], os.O_RDONLY | os.O_CLOEXEC)
        self._files.move_to_end(shard)
        return self._files[shard]


def expand(pattern: str) -> list[str]:
    """Write out the braces of a pattern as a shell does: {000..011} counts, zeros kept, and {a,b} lists; {x} stays."""
    braces = re.search(r"\{(\d+\.\.\d+|[^{}]*,[^{}]*)\}", pattern)
    if braces is None:
        return [pattern]
    count = re.fullmatch(r"(\d+)\.\.(\d+)", braces[1])
    if count:
        first, last = count.groups()
        choices = [str(i).zfill(len(first)) for i in range(int(first), int(last) + 1)]
    else:
        choices = braces[1].split(",")
    return [name for choice in choices for name in expand(pattern[: braces.start()] + choice + pattern[braces.end() :])]


def open_shards(card: Card, split: str, root: str | None) -> Source:
    """Open the shards of a split. Raises UserError that names a missing, truncated or strange shard."""
    rule = card.source
    assert isinstance(rule, Shards)
    return ShardSource(card.name, split, shard_files(card, split, root), rule.image, rule.label, card.classes)


def shard_files(card: Card, split: str, root: str | None) -> list[Path]:
    """Return the shards of a split, in order. Raises UserError if one is missing."""
    folder = card.folder(root)
    pattern = card.splits[split].path or f"{split}-*.tar"
    tars: list[Path] = []
    for name in expand(pattern):
        tars += sorted(folder.glob(name)) if "*" in name else [folder / name]
    missing = [tar for tar in tars if not tar.is_file()]
    if not tars or len(missing) == len(tars):
        raise UserError(f"data card '{card.name}', split '{split}': no shard {pattern} in {folder}; "
                        "give the folder with data.train.root=FOLDER (root=FOLDER in an evaluation)")
    if missing:
        raise UserError(f"shard {missing[0]} is missing ({len(missing)} of the {len(tars)} shards of data card "
                        f"'{card.name}', split '{split}', are not there)")
    return tars
