"""The indexes of all shards of a split as one; of large splits in a file, of which processes read what they need."""

from __future__ import annotations

import contextlib
import functools
import json
import mmap
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Self

import numpy as np

from unlabeled.data.sources.files.kept import in_turn, keep, places, stamps_of
from unlabeled.data.sources.files.said import say_once
from unlabeled.data.sources.fingerprint import Names, digest
from unlabeled.data.sources.tar.index import TarIndex, load_index
from unlabeled.errors import UserError

_VERSION = 1
_LARGE = 1 << 20  # samples above which the joined index is kept: fewer are read and joined within a second
_ALIGNED = 64
_SUM, _ENDING = 32, 40  # bytes at the end of the file: the sum of its description, in hex, then how long that is
_COPIED = 1 << 24


class _File:
    """A kept file, open for reads of a few bytes, and where its columns stand: first byte and bytes, by name."""

    def __init__(self, path: Path) -> None:
        self.path, self.columns = path, dict[str, tuple[int, int]]()
        self.stream = open(path, "rb", buffering=0)  # noqa: SIM115  # as long as somebody reads samples

    def __del__(self) -> None:
        if hasattr(self, "stream"):
            self.stream.close()

    def rows(self, column: str, places: Sequence[int], width: int) -> np.ndarray:
        """Return `width` numbers of a column for every place, int64 [n * width].

        Raises OSError; raises UserError if somebody has made the file shorter.
        """
        first, length = self.columns[column][0], 8 * width
        data = b"".join(os.pread(self.stream.fileno(), length, first + length * place) for place in places)
        if len(data) != length * len(places):
            raise UserError(f"{self.path} has become shorter since it was opened; start again, which makes it anew")
        return np.frombuffer(data, "<i8").astype(np.int64)


@dataclass
class Joined:
    """The samples of several shards behind one another.

    starts: int64 [shards + 1], where each shard's samples begin and the last one's end. spots: int64 [n, 2], the first
    byte of the image member in its shard, and its size. labels: int64 [n], or None without a rule. highest: the place
    of the highest one. digests: what the fingerprint says of names, traces and labels, where it is kept. file: in which
    all this stands, so that copies sent to other processes hold no data; None if it lives in this process.

    The columns of a file are mapped for those who go through all of it. Single samples are read: the system maps 16
    pages and more around each that is touched, so that a training would soon have all gigabytes mapped.
    """

    starts: np.ndarray
    spots: np.ndarray
    keys: Names
    labels: np.ndarray | None
    highest: int = 0
    digests: dict[str, str] = field(default_factory=dict)
    file: _File | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ if self.file is None else {"file": self.file.path}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state if state["file"] is None else _mapped(state["file"])[1].__dict__)

    def spot(self, index: int) -> tuple[int, int]:
        """Return the first byte of an image and its size. Raises OSError or UserError."""
        first, size = (self.spots[index] if self.file is None else self.file.rows("spots", [index], 2)).tolist()
        return first, size

    def labels_of(self, indices: np.ndarray) -> np.ndarray | None:
        """Return the labels, int64 [n], of samples, int64 [n]; None without a rule. Raises as `spot`."""
        if self.labels is None or self.file is None:
            return None if self.labels is None else self.labels[indices]
        return self.file.rows("labels", indices.tolist(), 1)

    @classmethod
    def of(cls, indexes: Sequence[TarIndex], spots: Sequence[np.ndarray]) -> Self:
        """Join indexes in memory; spots: of each, int64 [n, 2]."""
        parts = [index.labels for index in indexes if index.labels is not None]
        labels = np.concatenate(parts) if parts else None
        return cls(np.cumsum([0, *map(len, spots)]), np.concatenate(spots),
                   Names.joined(index.keys for index in indexes), labels,
                   int(labels.argmax()) if labels is not None and len(labels) else 0)


@dataclass(frozen=True)
class ShardSet:
    """Shards in their order, and which of their members are read: extensions of images, rule of the label."""

    tars: tuple[Path, ...]
    image: tuple[str, ...]
    label: str | None

    def stamp(self) -> str:
        """Return what changes with the shards, their sizes and times, and with the rules."""
        names = [os.path.relpath(tar, self.tars[0].parent) for tar in self.tars]
        stats = stamps_of([os.fspath(tar) for tar in self.tars])
        return digest(json.dumps([_VERSION, names, stats, self.image, self.label]).encode())

    def __iter__(self) -> Iterator[tuple[TarIndex, np.ndarray]]:
        """Yield the index of every shard and its spots, int64 [n, 2]. Raises UserError."""
        for tar in self.tars:
            index = load_index(tar, self.label)
            yield index, _spots(tar, index, self.image)


def join(name: str, shards: ShardSet) -> Joined:
    """Return the joined index of shards.

    That of more than `_LARGE` samples stands in NAME.index in the folder of the first shard or, where that is
    read-only, in the user's cache folder, and is mapped. It is made again when a shard has another size or time, or the
    rules differ; of processes that need it at once, one makes it. Where it cannot be written, every process holds all
    of it. Raises UserError for a shard that cannot be read, and for a sample without an image.
    """
    stamp = shards.stamp()
    folder = shards.tars[0].parent
    where = places(folder / re.sub(r"[^\w.-]", "_", f"{name}.index"))
    joined = _kept(where, stamp) or _small(shards)
    if joined is not None:
        return joined
    with in_turn(folder):
        joined = _kept(where, stamp)  # of the process whose turn was before
        if joined is not None:
            return joined
        say_once(f"{folder}: the indexes of {len(shards.tars)} shards are joined in one file, once")
        refused = keep(where, functools.partial(_fill, shards=shards, stamp=stamp))
    if refused is not None:
        folders = " or ".join(str(place.parent) for place in where)
        say_once(f"the joined index of '{name}' cannot be kept in {folders} ({refused.strerror}): every process holds "
                 "all of it in memory")
    return _kept(where, stamp) or Joined.of(*zip(*shards, strict=True))


def _small(shards: ShardSet) -> Joined | None:
    """Return the index of shards with few samples, which is joined in memory; None for more."""
    indexes: list[TarIndex] = []
    spots: list[np.ndarray] = []
    samples = 0
    for index, own in shards:
        indexes.append(index)
        spots.append(own)
        samples += len(own)
        if samples > _LARGE:
            return None
    return Joined.of(indexes, spots)


def _spots(tar: Path, index: TarIndex, image: Sequence[str]) -> np.ndarray:
    """Return where the image of every sample stands, int64 [n, 2]: of several the one whose extension comes first."""
    spots = np.full((len(index.keys), 2), -1, np.int64)
    for extension in reversed([extension for extension in image if extension in index.fields]):
        column = index.fields.index(extension)
        has = index.offsets[:, column] >= 0
        spots[has, 0], spots[has, 1] = index.offsets[has, column], index.sizes[has, column]
    lacking = np.flatnonzero(spots[:, 0] < 0)
    if len(lacking):
        raise UserError(f"shard {tar}, sample {index.keys[int(lacking[0])]}: no image member "
                        f"({', '.join(image)}); the shard has: {', '.join(index.fields)}")
    return spots


def _kept(where: Sequence[Path], stamp: str) -> Joined | None:
    for place in where:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # missing, or damaged: it is made again
            kept, joined = _mapped(place)
            if kept == stamp:
                return joined
    return None


def _mapped(place: Path) -> tuple[str, Joined]:
    """Return the stamp of a kept file, and what it holds. Raises OSError or ValueError if it is missing or damaged.

    Its length and the description at its end are checked, not its gigabytes.
    """
    file = _File(place)
    about = _description(file)
    file.columns = columns = about["columns"]
    whole = mmap.mmap(file.stream.fileno(), 0, access=mmap.ACCESS_READ)
    whole.madvise(mmap.MADV_RANDOM)  # samples are read one here, one there: what stands behind one is not needed
    spots, starts, ends = (np.frombuffer(whole, "<i8", length // 8, first)
                           for first, length in (columns[name] for name in ("spots", "starts", "ends")))
    first, length = columns["text"]
    keys = Names.from_buffers(memoryview(whole)[first : first + length], ends)
    keys.known = about["digests"]["names"]
    labels = None
    if "labels" in columns:
        first, length = columns["labels"]
        # torch warns of read-only arrays; of this one, the pages that somebody writes to are copied
        labels = np.asarray(np.memmap(file.stream, "<i8", "c", first, (length // 8,)))
    joined = Joined(starts.copy(), spots.reshape(-1, 2), keys, labels, about["highest"], about["digests"], file)
    return about["stamp"], joined


def _description(file: _File) -> dict[str, Any]:
    """Return what stands at the end of a kept file. Raises OSError, and ValueError if it is not whole."""
    stream = file.stream
    end = os.fstat(stream.fileno()).st_size - _ENDING
    stream.seek(max(0, end))
    ending = stream.read()
    begin = end - int.from_bytes(ending[_SUM:], "little")
    if 0 < begin < end:
        stream.seek(begin)
        text = stream.read(end - begin)
        if digest(text).encode() == ending[:_SUM]:
            about: dict[str, Any] = json.loads(text)
            if about["end"] == begin:
                return about
    raise ValueError(f"{file.path} is damaged")


def _fill(file: IO[bytes], shards: ShardSet, stamp: str) -> None:
    """Write the columns behind one another, and behind them what they are."""
    names = ["spots", "ends", "text", *(() if shards.label is None else ("labels",))]
    columns: dict[str, tuple[int, int]] = {}
    with contextlib.ExitStack() as beside:  # files without names, which end with the process
        parts = {name: beside.enter_context(tempfile.TemporaryFile(dir=Path(file.name).parent)) for name in names}
        starts = np.array(_pour(shards, parts), "<i8")
        digests, highest = _described({name: np.memmap(part, "u1" if name == "text" else "<i8", "r")
                                       for name, part in parts.items()})
        for name, part in parts.items():
            part.seek(0)
            file.write(bytes(-file.tell() % _ALIGNED))
            first = file.tell()
            shutil.copyfileobj(part, file, _COPIED)
            columns[name] = first, file.tell() - first
    file.write(bytes(-file.tell() % _ALIGNED))
    columns["starts"] = file.tell(), file.write(starts.data)
    text = json.dumps({"stamp": stamp, "columns": columns, "digests": digests, "highest": highest,
                       "end": file.tell()}).encode()
    file.write(text + digest(text).encode() + len(text).to_bytes(_ENDING - _SUM, "little"))


def _pour(shards: ShardSet, parts: dict[str, Any]) -> list[int]:
    """Write the columns of one shard after the other; return where the samples of each begin, and the end."""
    starts, length = [0], 0
    for index, spots in shards:
        values = {"spots": spots, "ends": index.keys.ends + length, "text": index.keys.text, "labels": index.labels}
        for name, part in parts.items():
            value = values[name]
            part.write(np.ascontiguousarray(value, "<i8").data if isinstance(value, np.ndarray) else value)
        starts.append(starts[-1] + len(spots))
        length += len(index.keys.text)
    for part in parts.values():
        part.flush()
    return starts


def _described(columns: dict[str, np.ndarray]) -> tuple[dict[str, str], int]:
    """Return the digests of the columns, as `fingerprint` has them, and the place of the highest label."""
    digests = {"names": Names.from_buffers(columns["text"].data, columns["ends"]).digest(),
               "traces": digest(columns["spots"].reshape(-1, 2)[:, 1])}
    if "labels" not in columns:
        return digests, 0
    return digests | {"labels": digest(columns["labels"])}, int(columns["labels"].argmax())
