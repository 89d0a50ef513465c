"""Where the members of a tar shard stand, read once from its headers and kept beside it."""

from __future__ import annotations

import json
import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from unlabeled.data.sources.files.kept import keep, places
from unlabeled.data.sources.files.reading import refuse_bomb
from unlabeled.data.sources.fingerprint import Names
from unlabeled.data.sources.labels import read_label
from unlabeled.data.sources.tar.members import Truncated, files, grouped, no_target, place, split
from unlabeled.errors import UserError

_VERSION = 3
_CHUNK = 1 << 20


@dataclass
class TarIndex:
    """Samples of one shard. fields: extensions met. offsets, sizes: int64 [n, fields], -1 where a sample lacks one.

    labels: int64 [n] by the rule the index was made for, -1 where there is none; None without a rule.
    """

    keys: Names
    fields: list[str]
    offsets: np.ndarray
    sizes: np.ndarray
    labels: np.ndarray | None


def load_index(tar: Path, label: str | None) -> TarIndex:
    """Return the index of a shard, from its cache if size, time and label rule still agree, else from its headers.

    The cache is SHARD.tar.index beside the shard or, where that folder is read-only, in the user's cache folder.
    Raises UserError if the shard cannot be read, is truncated or not a tar file.
    """
    try:
        return _load_index(tar, label)
    except OSError as error:
        raise UserError(f"shard {tar} cannot be read: {error.strerror or error}") from error


def _load_index(tar: Path, label: str | None) -> TarIndex:
    stamp = stamp_of(tar, label)
    where = places(tar.with_name(tar.name + ".index"))
    for kept in where:
        index = _read(kept, stamp)
        if index is not None:
            return index
    index = make_index(tar, label)
    keep(where, lambda file: write_index(file, stamp, index))  # if nowhere, the next start reads the headers again
    return index


def stamp_of(tar: Path, label: str | None) -> str:
    """Return what changes with the size and time of a shard, and with the rule of its labels. Raises OSError."""
    stat = tar.stat()
    return json.dumps([_VERSION, stat.st_size, stat.st_mtime_ns, label])


def make_index(tar: Path, label: str | None) -> TarIndex:
    """Read the headers of a shard; hard links stand where the file stands that they are.

    Raises UserError if the shard is truncated or not a tar file, or holds a member of a sample twice.
    """
    if tar.stat().st_size == 0:
        raise UserError(f"shard {tar} is empty; copy it again")
    keys: list[str] = []
    samples: list[dict[str, tuple[int, int]]] = []
    with open(tar, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            for key, sample in grouped(_spots(_Mapped(data), tar), str(tar)):
                keys.append(key)
                samples.append(sample)
        except Truncated as error:
            raise UserError(f"shard {tar} is truncated at byte {len(data)}: {error}; copy it again") from error
        fields = sorted({field for sample in samples for field in sample})
        offsets, sizes = (np.full((len(samples), len(fields)), -1, np.int64) for _ in range(2))
        for column, field in enumerate(fields):
            for row, sample in enumerate(samples):
                if field in sample:
                    offsets[row, column], sizes[row, column] = sample[field]
        labels = None if label is None else np.array(
            [_label(data, sample, label, tar, key) for key, sample in zip(keys, samples, strict=True)], np.int64)
    return TarIndex(Names(keys), fields, offsets, sizes, labels)


class _Mapped:
    """A file that is mapped, as `tar_members.Bytes`."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data, self.at = data, 0

    def take(self, count: int) -> bytes:
        taken = self.data[self.at : self.at + count]
        self.at += len(taken)
        return taken

    def skip(self, count: int) -> bool:
        self.at += count
        return self.at <= len(self.data)

    def rest_is_empty(self) -> bool:
        return not any(self.data[at : at + _CHUNK].strip(b"\0") for at in range(self.at, len(self.data), _CHUNK))


def _spots(source: _Mapped, tar: Path) -> Iterator[tuple[str, tuple[int, int]]]:
    """Yield name, and offset and size, of every file."""
    spots: dict[str, tuple[int, int]] = {}
    for file in files(source, str(tar)):
        spot = (file.start, file.size)
        if file.link is not None:
            if file.link not in spots:
                if split(file.name) is None:
                    continue
                raise no_target(str(tar), file)
            spot = spots[file.link]
        spots[place(file.name)] = spot
        yield file.name, spot


def _label(data: mmap.mmap, sample: dict[str, tuple[int, int]], rule: str, tar: Path, key: str) -> int:
    field = rule.partition(":")[0]
    if field not in sample:
        return -1
    offset, length = sample[field]
    try:
        return read_label(data[offset : offset + length], rule)
    except ValueError as error:
        raise UserError(f"shard {tar}, sample {key}: {error}") from error


def _read(place: Path, stamp: str) -> TarIndex | None:
    try:
        with np.load(place, allow_pickle=False) as archive:
            refuse_bomb(archive.zip.infolist())
            if str(archive["stamp"]) != stamp:
                return None
            ends = archive["offsets"] + archive["sizes"]
            if ends.max(initial=0) > json.loads(stamp)[1] or ends.min(initial=0) < -2:  # not of this shard
                return None
            return TarIndex(Names.from_buffers(archive["keys"].tobytes(), archive["ends"]), list(archive["fields"]),
                            archive["offsets"], archive["sizes"], archive.get("labels"))
    except Exception:  # missing, or damaged, for which NumPy raises almost anything: the headers are read again
        return None


def write_index(file: IO[bytes], stamp: str, index: TarIndex) -> None:
    """Write the file that `load_index` reads."""
    arrays = {"stamp": np.array(stamp), "keys": np.frombuffer(index.keys.text, np.uint8), "ends": index.keys.ends,
              "fields": np.array(index.fields, dtype=np.str_), "offsets": index.offsets, "sizes": index.sizes}
    if index.labels is not None:
        arrays["labels"] = index.labels
    np.savez(file, **arrays)  # type: ignore[arg-type]
