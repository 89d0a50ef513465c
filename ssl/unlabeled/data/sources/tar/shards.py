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
from unlabeled.data.sources.fingerprint import Names
from unlabeled.data.sources.tar.index import TarIndex, load_index
from unlabeled.errors import UserError

_OPEN_FILES = 128  # per process; systems commonly allow 1024


class ShardSource(Source):
    """The samples of several shards, in their order in the files. Files are opened where and when they are read."""

    def __init__(self, name: str, split: str, tars: list[Path], image: tuple[str, ...], label: str | None,
                 classes: list[str] | None = None) -> None:
        super().__init__(name, split)
        self.tars, self.classes = tars, classes
        indexes = [load_index(tar, label) for tar in tars]
        self._keys = [index.keys for index in indexes]
        self._starts = np.cumsum([0, *(len(keys) for keys in self._keys)])
        parts = []
        for tar, index in zip(tars, indexes, strict=True):
            columns = [index.fields.index(field) for field in image if field in index.fields]
            offsets, sizes = np.full((2, len(index.keys)), -1, np.int64)
            for column in reversed(columns):
                has = index.offsets[:, column] >= 0
                offsets[has], sizes[has] = index.offsets[has, column], index.sizes[has, column]
            lacking = np.flatnonzero(offsets < 0)
            if len(lacking):
                raise UserError(f"shard {tar}, sample {index.keys[int(lacking[0])]}: no image member "
                                f"({', '.join(image)}); the shard has: {', '.join(index.fields)}")
            parts.append((offsets, sizes))
        self._offsets, self._sizes = (np.concatenate(column) for column in zip(*parts, strict=True))
        if not len(self._offsets):
            raise UserError(f"the {len(tars)} shards of data card '{name}', split '{split}', hold no samples; "
                            f"the first is {tars[0]}")
        if label is not None:
            self.labels = np.concatenate([_labels(tar, index, classes)
                                          for tar, index in zip(tars, indexes, strict=True)])
        self._files: OrderedDict[int, int] = OrderedDict()

    def __len__(self) -> int:
        return len(self._offsets)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_files": OrderedDict()}

    def __del__(self) -> None:
        for descriptor in getattr(self, "_files", {}).values():
            os.close(descriptor)

    def key(self, index: int) -> str:
        """Return the sample's name in its shard."""
        shard = int(np.searchsorted(self._starts, index, side="right")) - 1
        return self._keys[shard][index - int(self._starts[shard])]

    def spots(self) -> list[tuple[int, int]]:
        """Return where every image stands: the place of its shard in `tars`, and its first byte there."""
        shards = np.repeat(np.arange(len(self.tars)), np.diff(self._starts))
        return list(zip(shards.tolist(), self._offsets.tolist(), strict=True))

    def raw(self, index: int) -> bytes:
        """Return the bytes of the image member. Raises CorruptSample."""
        shard = int(np.searchsorted(self._starts, index, side="right")) - 1
        offset, size = int(self._offsets[index]), int(self._sizes[index])
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
        return Names.joined(self._keys)

    def traces(self) -> np.ndarray:
        """Return the sizes of the image members."""
        return self._sizes

    def made_of(self) -> tuple[Path, list[tuple[str, int, int]]]:
        """Return the folder of the first shard and all shards."""
        stats = [(tar, tar.stat()) for tar in self.tars]
        return self.tars[0].parent, [(tar.name, stat.st_size, stat.st_mtime_ns) for tar, stat in stats]

    def _descriptor(self, shard: int) -> int:
        # After a fork the descriptors are shared, which pread allows: it leaves the file's position alone.
        if shard not in self._files:
            if len(self._files) >= _OPEN_FILES:
                os.close(self._files.popitem(last=False)[1])
            self._files[shard] = os.open(self.tars[shard], os.O_RDONLY | os.O_CLOEXEC)
        self._files.move_to_end(shard)
        return self._files[shard]


def _labels(tar: Path, index: TarIndex, classes: list[str] | None) -> np.ndarray:
    assert index.labels is not None
    if classes is not None and len(index.labels) and index.labels.max() >= len(classes):
        row = int(index.labels.argmax())
        raise UserError(f"shard {tar}, sample {index.keys[row]}: label {index.labels[row]} found, but only "
                        f"{len(classes)} classes are named")
    return index.labels


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
