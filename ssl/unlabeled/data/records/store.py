"""What a pass over a split computed, kept per sample: fixed-width rows in block files beside a header.

FOLDER/header.json says what the rows are and of which samples; FOLDER/rows-000000 and so on hold the rows, one packed
structure per sample, then a line of JSON (SHA-256 of the rows; unreadable samples, whose rows are zero) and its length
as eight bytes, little endian.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from unlabeled.config.passes import reinforce
from unlabeled.data.records import labelmaps
from unlabeled.data.records.classes import WITH_THE_CARD, classes_of_card, classes_of_header, refuse_other_classes
from unlabeled.data.sources.base import Source
from unlabeled.data.sources.fingerprint import digest
from unlabeled.errors import UserError
from unlabeled.ops.machine.files import read_json, write_atomically

HEADER = "header.json"
# kind of rows -> the command that makes them
COMMANDS = {labelmaps.KIND: "unlabeled labelmaps", reinforce.KIND: "unlabeled reinforce",
            "features": "unlabeled features", "mining": "unlabeled mine", "pairs": "unlabeled mine"}
_LISTED = 5
_LENGTH = 8  # bytes that hold the length of a block's last line


@dataclass(frozen=True)
class Header:
    """What the rows of a store are.

    fields: name -> numpy's code of the type, little endian, and the shape in one row. block: rows per file. keys: the
    digest of the split's keys in order (`keys_digest`). about: what else their readers must know, as JSON: `classes`
    (their names in order, or None), `num_classes`, `public_names` (see `records.classes`), teacher, sizes.
    """

    kind: str
    fields: dict[str, tuple[str, tuple[int, ...]]]
    rows: int
    block: int
    card: str
    split: str
    keys: str
    about: dict[str, Any]

    @property
    def dtype(self) -> np.dtype:
        """Return the type of one row, without gaps."""
        return np.dtype([(name, code, shape) for name, (code, shape) in self.fields.items()])

    @property
    def entry_dtype(self) -> np.dtype:
        """Return the type of one entry of a row: all fields without their first axis."""
        return np.dtype([(name, code, shape[1:]) for name, (code, shape) in self.fields.items()])

    @property
    def blocks(self) -> int:
        """Return the number of block files."""
        return math.ceil(self.rows / self.block)

    def places(self, number: int) -> range:
        """Return the samples whose rows stand in a block."""
        return range(number * self.block, min((number + 1) * self.block, self.rows))

    def to_json(self) -> bytes:
        """Return what stands in header.json."""
        return json.dumps(asdict(self), indent=1).encode()

    @classmethod
    def read(cls, folder: Path) -> Header:
        """Return the header of a store. Raises UserError if there is none, or it is damaged."""
        file = folder / HEADER
        try:
            about = read_json(file)
            fields = {name: (str(np.dtype(code).str), tuple(shape)) for name, (code, shape) in about["fields"].items()}
            header = cls(**{**about, "fields": fields})
            if header.dtype.hasobject:  # mapped, its bytes would be taken for places in memory
                raise ValueError("a field holds objects")
            if not (header.block > 0 <= header.rows and header.dtype.itemsize):
                raise ValueError("its numbers are out of range")
        except OSError as error:
            raise UserError(f"{folder} holds no rows of a pass: {file} cannot be read: {error.strerror or error}"
                            ) from error
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise UserError(f"{file} is damaged ({error}); remove {folder} and make it anew") from error
        return header


def keys_digest(source: Source) -> str:
    """Return a digest of the keys of all samples in order; of numbered samples, of what is cheaply known of them."""
    names, traces = source.names(), source.traces()
    if names is not None:
        return names.digest()
    if traces is not None:
        return digest(str(len(source)).encode(), traces)
    return digest(json.dumps(source.fingerprint()).encode())  # rendered sets: their labels


def block_file(folder: Path, number: int) -> Path:
    """Return where a block stands."""
    return folder / f"rows-{number:06d}"


def write_block(folder: Path, header: Header, number: int, rows: np.ndarray, unreadable: dict[int, str]) -> None:
    """Write one block, whole or not at all; rows: [n] of `header.dtype`. Raises UserError if the disk is full."""
    assert rows.dtype == header.dtype and len(rows) == len(header.places(number)), "rows of another block"
    content = np.ascontiguousarray(rows).tobytes()
    about = {"sha256": hashlib.sha256(content).hexdigest(),
             "unreadable": {str(place): unreadable[place] for place in sorted(unreadable)}}
    line = json.dumps(about).encode() + b"\n"
    ending = line + len(line).to_bytes(_LENGTH, "little")

    write_atomically(block_file(folder, number), lambda file: (file.write(content), file.write(ending)))


def read_ending(file: Path, size: int) -> dict[str, Any] | None:
    """Return what stands behind the rows, `size` bytes, of a block; None if it is missing or was cut short."""
    try:
        with open(file, "rb") as stream:
            total = os.fstat(stream.fileno()).st_size
            stream.seek(size)
            ending = stream.read()
        length = int.from_bytes(ending[-_LENGTH:], "little")
        about = json.loads(ending[:-_LENGTH])
        whole = (total == size + length + _LENGTH and isinstance(about["unreadable"], dict)
                 and isinstance(about["sha256"], str))
        return about if whole else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def whole_block(folder: Path, header: Header, number: int) -> bool:
    """Return whether a block is there and has the checksum of its rows."""
    size = len(header.places(number)) * header.dtype.itemsize
    about = read_ending(block_file(folder, number), size)
    if about is None:
        return False
    content = np.fromfile(block_file(folder, number), np.uint8, size)
    return hashlib.sha256(content.data).hexdigest() == about.get("sha256")


class Store:
    """The rows of a finished store, mapped into memory where they are used; copies for other processes map again.

    unreadable: place -> reason of samples that have no row. Raises UserError for a damaged header and for blocks that
    are missing or cut short; and, when a block is first used, if its rows have another checksum.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.header = folder, Header.read(folder)
        self.unreadable: dict[int, str] = {}
        self._checksums: list[str] = []
        missing = []
        for number in range(self.header.blocks):
            size = len(self.header.places(number)) * self.header.dtype.itemsize
            about = read_ending(block_file(folder, number), size)
            if about is None:
                missing.append(number)
            else:
                self._checksums.append(about["sha256"])
                self.unreadable |= {int(place): reason for place, reason in about["unreadable"].items()}
        if missing:
            self._refuse(missing)
        self._mapped: dict[int, np.ndarray] = {}
        self._views: dict[int, list[np.ndarray]] = {}

    def _refuse(self, missing: list[int]) -> None:
        count = sum(len(self.header.places(number)) for number in missing)
        files = ", ".join(block_file(self.folder, number).name for number in missing[:_LISTED])
        more = f" and {len(missing) - _LISTED} more" if len(missing) > _LISTED else ""
        command = COMMANDS.get(self.header.kind, "the command that made it")
        raise UserError(f"{self.folder} is not finished: the rows of {count} of {self.header.rows} samples are missing "
                        f"or cut short ({files}{more}); give its command ({command} ...) again, which goes on")

    @property
    def identity(self) -> str:
        """Return a digest of the header: what was computed of which samples."""
        return digest(self.header.to_json())

    @property
    def about(self) -> dict[str, Any]:
        """Return what readers of the rows must know."""
        return self.header.about

    def __len__(self) -> int:
        return self.header.rows

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_mapped": {}, "_views": {}}

    def rows(self, places: np.ndarray, entries: np.ndarray | None = None) -> np.ndarray:
        """Return the rows, structured [n], of the samples at `places`, int64 [n]; or one entry of each, int64 [n]."""
        numbers, within = np.divmod(places, self.header.block)
        where = zip(numbers.tolist(), within.tolist(), strict=True)
        if entries is None:
            out = np.empty(len(places), self.header.dtype)
            for row, (number, place) in enumerate(where):
                out[row] = self._block(number)[place]
            return out
        out = np.empty(len(places), self.header.entry_dtype)
        columns = [out[name] for name in self.header.fields]
        for row, ((number, place), entry) in enumerate(zip(where, entries.tolist(), strict=True)):
            for column, stored in zip(columns, self._columns(number), strict=True):
                column[row] = stored[place, entry]  # of some hundred entries only one is copied
        return out

    def _columns(self, number: int) -> list[np.ndarray]:
        """Return the fields of a block, [rows, entries, ...], views of its memory that are slow to make anew."""
        columns = self._views.get(number)
        if columns is None:
            block = self._block(number)
            columns = self._views[number] = [block[name] for name in self.header.fields]
        return columns

    def _block(self, number: int) -> np.ndarray:
        block = self._mapped.get(number)
        if block is None:
            size = len(self.header.places(number)) * self.header.dtype.itemsize
            # numpy's maps keep their files open, of which a process may have no more than about a thousand
            file = block_file(self.folder, number)
            memory = torch.from_file(str(file), shared=False, size=size, dtype=torch.uint8).numpy()
            if hashlib.sha256(memory.data).hexdigest() != self._checksums[number]:
                raise UserError(f"{file} is damaged: its rows have another checksum; give the command that made it "
                                f"({COMMANDS.get(self.header.kind, 'the same one')} ...) again, which makes it anew")
            block = self._mapped[number] = memory.view(self.header.dtype)
        return block


def open_store(folder: str | Path, source: Source, kind: str) -> Store:
    """Open the store of rows that were computed of exactly the samples of `source`.

    Raises UserError, with the cure, for rows of another kind, of other samples or of samples in another order, for
    classes that are not those of the set, and for an unfinished store.
    """
    folder = Path(folder).expanduser()
    command = COMMANDS.get(kind, "the command that makes them")
    if not (folder / HEADER).exists():
        makes = f"make them with: {command} TEACHER card=CARD split={source.split} out={folder}, or "
        raise UserError(f"{folder} holds no {kind} rows of split '{source.split}' of data card '{source.name}'; "
                        f"{makes if kind in COMMANDS else ''}name the folder that has them with records.{kind}=FOLDER")
    header = Header.read(folder)
    if header.kind != kind:
        raise UserError(f"{folder} holds {header.kind} rows, but {kind} is asked for; make them with: {command}")
    if not source.random_access:
        raise UserError(f"split '{source.split}' of data card '{source.name}' is streamed, so its samples have no "
                        f"places at which {folder} could hold their rows; use a card with random access")
    here = f"split '{source.split}' of data card '{source.name}'"
    theirs = f"'{header.split}' of '{header.card}'"
    if header.rows != len(source):
        raise UserError(f"{folder} holds rows of {header.rows} samples of {theirs}, but {here} has {len(source)}; "
                        f"name the store of this split, or make it: {command}")
    if header.keys != keys_digest(source):
        raise UserError(f"{folder} was made of {theirs}, whose samples have other names, or another order, than those "
                        f"of {here}; name the store of this split, or make it: {command}")
    refuse_other_classes(classes_of_header(str(folder), header.about), classes_of_card(source), WITH_THE_CARD)
    return Store(folder)


def refuse_no_store(source: Source, record: str, stream: str) -> None:
    """Raise UserError, with the cure, if a stream wants rows that are not kept of its set."""
    here = f"split '{source.split}' of data card '{source.name}'"
    if not source.random_access:
        raise UserError(f"data.{stream} reads {record} rows, which are kept by place, and {here} is streamed; use a "
                        "card with random access, such as source kind shards")
    if not source.has_record(record):
        command = COMMANDS.get(record, "a command of its own")
        raise UserError(f"data.{stream} reads {record} rows of every image, and {here} has none: make them with "
                        f"{command}, then give their folder with data.{stream}.records.{record}=FOLDER")
