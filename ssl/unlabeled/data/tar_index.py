"""Where the members of a tar shard stand, read once from its headers and kept beside it."""

from __future__ import annotations

import json
import mmap
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from unlabeled.data.base import Names
from unlabeled.data.kept import keep, places
from unlabeled.errors import UserError

_BLOCK = 512
_VERSION = 1


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
    Raises UserError if the shard is truncated or not a tar file.
    """
    stat = tar.stat()
    stamp = json.dumps([_VERSION, stat.st_size, stat.st_mtime_ns, label])
    where = places(tar.with_name(tar.name + ".index"))
    for place in where:
        index = _read(place, stamp)
        if index is not None:
            return index
    index = make_index(tar, label)
    keep(where, lambda file: _fill(file, stamp, index))  # if nowhere, the next start reads the headers again
    return index


def make_index(tar: Path, label: str | None) -> TarIndex:
    """Read the headers of a shard. A sample is a run of members with one name up to its first dot, as in webdataset.

    Raises UserError if the shard is truncated or not a tar file, or holds a member of a sample twice.
    """
    size = tar.stat().st_size
    if size == 0:
        raise UserError(f"shard {tar} is empty; copy it again")
    keys: list[str] = []
    samples: list[dict[str, tuple[int, int]]] = []
    with open(tar, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        for name, offset, length in _members(data, tar):
            folder, slash, base = name.rpartition("/")
            stem, _, extension = base.partition(".")
            if not stem or not extension or (base.startswith("__") and base.endswith("__")):
                continue
            key = folder + slash + stem
            if not keys or keys[-1] != key:
                keys.append(key)
                samples.append({})
            if samples[-1].setdefault(extension.lower(), (offset, length)) != (offset, length):
                raise UserError(f"shard {tar} holds {name} twice")
        fields = sorted({field for sample in samples for field in sample})
        table = np.full((len(samples), len(fields), 2), -1, np.int64)
        for column, field in enumerate(fields):
            for row, sample in enumerate(samples):
                if field in sample:
                    table[row, column] = sample[field]
        labels = None if label is None else np.array(
            [_label(data, sample, label, tar, key) for key, sample in zip(keys, samples, strict=True)], np.int64)
    return TarIndex(Names(keys), fields, table[..., 0].copy(), table[..., 1].copy(), labels)


def _members(data: mmap.mmap, tar: Path) -> Iterator[tuple[str, int, int]]:
    """Yield name, offset and size of the regular files (ustar, GNU long names, pax names and sizes)."""
    at, end, name, length = 0, len(data), "", -1
    while True:
        header = data[at : at + _BLOCK]
        if len(header) < _BLOCK:
            raise UserError(f"shard {tar} is truncated: it ends at byte {end} without an end mark; copy it again")
        if not any(header):
            return
        size = _number(header[124:136])
        if _number(header[148:156]) != sum(header) - sum(header[148:156]) + 8 * 32 or size < 0:
            raise UserError(f"shard {tar} is damaged or not a plain tar file: no member header at byte {at}; "
                            "copy it again")
        kind, start = header[156:157], at + _BLOCK
        if kind in b"0\0007" and length >= 0:
            size = length
        if start + size > end:
            raise UserError(f"shard {tar} is truncated: a member at byte {at} needs {size} bytes, the file ends at "
                            f"byte {end}; copy it again")
        at = start + -(-size // _BLOCK) * _BLOCK
        if kind == b"L":
            name = _text(data[start : start + size])
        elif kind == b"x":
            pax = _pax(data[start : start + size])
            name, length = pax.get("path", name), int(pax.get("size", length))
        elif kind in b"0\0007":
            if not name:
                name = _text(header[:100])
                if header[257:263] == b"ustar\0" and header[345]:
                    name = f"{_text(header[345:500])}/{name}"
            yield name, start, size
            name, length = "", -1
        elif kind not in b"gK":  # a folder or a link: long names that were read belong to it
            name, length = "", -1


def _number(field: bytes) -> int:
    if field[0] & 0x80:  # GNU: base 256 for sizes from 8 GiB
        return int.from_bytes(field[1:], "big") if field[0] == 0x80 else -1
    text = field.strip(b"\0 ")
    try:
        return int(text, 8) if text else 0
    except ValueError:
        return -1


def _text(field: bytes) -> str:
    return field.partition(b"\0")[0].decode("utf-8", "surrogateescape")


def _pax(record: bytes) -> dict[str, str]:
    pairs = {}
    while record:
        length = int(record.partition(b" ")[0])
        key, _, value = record[:length].partition(b" ")[2].partition(b"=")
        pairs[key.decode()] = value[:-1].decode("utf-8", "surrogateescape")
        record = record[length:]
    return pairs


def _label(data: mmap.mmap, sample: dict[str, tuple[int, int]], rule: str, tar: Path, key: str) -> int:
    field, _, name = rule.partition(":")
    if field not in sample:
        return -1
    offset, length = sample[field]
    text = data[offset : offset + length]
    try:
        return int(json.loads(text)[name]) if field == "json" else int(text)
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"shard {tar}, sample {key}: no class number ({rule}) in {text[:60]!r}") from error


def _read(place: Path, stamp: str) -> TarIndex | None:
    try:
        with np.load(place, allow_pickle=False) as saved:
            if str(saved["stamp"]) != stamp:
                return None
            return TarIndex(Names.from_buffers(saved["keys"].tobytes(), saved["ends"]), list(saved["fields"]),
                            saved["offsets"], saved["sizes"], saved.get("labels"))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None  # missing or damaged: the headers are read again


def _fill(file: IO[bytes], stamp: str, index: TarIndex) -> None:
    arrays = {"stamp": np.array(stamp), "keys": np.frombuffer(index.keys.text, np.uint8), "ends": index.keys.ends,
              "fields": np.array(index.fields, dtype=np.str_), "offsets": index.offsets, "sizes": index.sizes}
    if index.labels is not None:
        arrays["labels"] = index.labels
    np.savez(file, **arrays)  # type: ignore[arg-type]
