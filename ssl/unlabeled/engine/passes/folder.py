"""The folder of a pass: which blocks it has, which are missing, and whether it is of this very pass."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from unlabeled.config.passes.shared import Part
from unlabeled.data.records.store import HEADER, Header, Store, block_file, keys_digest, read_ending, whole_block
from unlabeled.data.sources.base import Source
from unlabeled.data.workers import Maker
from unlabeled.engine.run.progress import volume
from unlabeled.errors import UserError
from unlabeled.ops.distributed import on_rank0, rank
from unlabeled.ops.machine.files import disk_error, sweep, temporary, write_atomically

VERSIONS = "versions"  # key of `Header.about`; other ones go on with a pass all the same
_PACKAGES = ("unlabeled", "torch", "torchvision", "timm", "numpy", "pillow", "simplejpeg")
_FEWEST, _MOST = 64, 1024  # samples of a block: some seconds of work on a CPU, and on a GPU
_BYTES = 4 << 20  # of a block, at most
_FILES = 8192  # of a pass, about
_LATE = 60.0  # seconds until a network file system shows what another machine has written


class Begun(NamedTuple):
    """The header of a pass, its blocks that are to be made, and the unreadable samples of those that are there."""

    header: Header
    missing: list[int]
    unreadable: dict[int, str]


def header_of(kind: str, fields: Mapping[str, tuple[str, tuple[int, ...]]], about: Mapping[str, Any], source: Source,
              block: int | None = None) -> Header:
    """Return the header of rows of all samples of `source`, `block` of them in a file, or as many as is usual."""
    row = np.dtype([(name, *field) for name, field in fields.items()]).itemsize
    known = json.loads(json.dumps({**about, VERSIONS: _versions()}))
    return Header(kind, dict(fields), len(source), block or block_rows(len(source), row), source.name, source.split,
                  keys_digest(source), known)


def block_rows(rows: int, itemsize: int) -> int:
    """Return how many of `rows` rows of `itemsize` bytes a block holds: a power of two.

    About a 64th of small sets, so that processes and jobs have something to share.
    """
    block = _MOST
    while block > _FEWEST and (64 * block > rows or block * itemsize > _BYTES):
        block //= 2
    while rows > _FILES * block and 2 * block * itemsize <= _BYTES:
        block *= 2
    return block


def begin(out: Path, header: Header, source: Source, maker: Maker, part: Part, more: int) -> Begun:
    """Make the folder, or find out what is there; say what is to come, `more` bytes beside the rows among it.

    Blocks that are damaged are missing, and those with samples that can be read by now. Raises UserError for a folder
    of something else, and where the disk has not the room.
    """
    header = _opened(out, header)
    missing: list[int] = []
    unreadable: dict[int, str] = {}
    damaged = mended = 0
    for number in part.of(header.blocks):
        if not block_there(out, header, number):
            damaged += block_file(out, number).exists()
        elif not whole_block(out, header, number):
            damaged += 1
        elif _readable_again(source, maker, reasons := _unreadable(out, header, number)):
            mended += 1
        else:
            unreadable |= reasons
            continue
        missing.append(number)
        _remove(block_file(out, number))  # what is there when its turn comes is another job's
    if damaged:
        print(f"{damaged} blocks in {out} are damaged: they are made anew")
    if mended:
        print(f"{mended} blocks in {out} name unreadable samples that can be read by now: they are made anew")
    _say(out, header, part, missing, more)
    return Begun(header, missing, unreadable)


def block_there(out: Path, header: Header, number: int) -> bool:
    """Return whether a block is there and not cut short; its rows are not looked at."""
    return read_ending(block_file(out, number), _size(header, number)) is not None


def removed(out: Path) -> bool:
    """Return whether the folder of a pass that has begun is no longer there: some take their rows away at the end."""
    return not (out / HEADER).exists()


def refuse_removed(out: Path) -> None:
    """Raise UserError if the folder of the pass is no longer there."""
    if removed(out):
        raise UserError(f"{out} was removed meanwhile, perhaps by another job that finished; look for its result, or "
                        "give the command again")


def finished(out: Path, header: Header, part: Part) -> Store | None:
    """Return what is kept in the folder, on all processes; None, and a line, if blocks are missing yet.

    Raises UserError, perhaps on some processes alone, if the folder was removed.
    """

    def count() -> int:
        refuse_removed(out)
        missing = sum(not block_there(out, header, number) for number in range(header.blocks))
        if missing:
            print(f"part {part} of {out} is complete; {missing} of {header.blocks} blocks are missing yet, those of "
                  "other parts")
        return missing

    if on_rank0(count):
        return None
    begun = time.monotonic()
    while True:
        try:
            return Store(out)
        except UserError:
            if rank() == 0 or time.monotonic() - begun > _LATE:
                raise
            time.sleep(1)


def _remove(block: Path) -> None:
    try:
        block.unlink(missing_ok=True)
    except OSError as error:
        raise disk_error(block, error) from error


def _say(out: Path, header: Header, part: Part, missing: list[int], more: int) -> None:
    """Print what there is and what comes. Raises UserError if it does not fit on the disk."""
    others = set(range(header.blocks)) - set(part.of(header.blocks))
    absent = [*missing, *(number for number in others if not block_there(out, header, number))]
    coming = sum(_size(header, number) for number in absent) + more * bool(absent)
    free = shutil.disk_usage(out).free
    mine = "" if part.count == 1 else f" (part {part}: {len(part.of(header.blocks))})"
    there = f"{header.blocks - len(absent)} of them are there, " if len(absent) < header.blocks else ""
    print(f"{header.kind} of '{header.split}' of '{header.card}': {header.rows} images, "
          f"{volume(header.rows * header.dtype.itemsize)} in {header.blocks} blocks{mine}; {there}"
          f"{volume(coming)} to come, {volume(free)} free in {out}", flush=True)
    if coming > free:
        raise UserError(f"{out}: {volume(coming)} are to come, but the disk has only {volume(free)} free; free some "
                        "space, or name a folder on another disk with out=")


def _opened(out: Path, header: Header) -> Header:
    """Return the header of the folder: `header`, or that of whoever came first. Raises UserError if it is of another
    pass.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        sweep(out)
        if not (out / HEADER).exists():
            if any(not entry.name.startswith(".") for entry in out.iterdir()):
                raise UserError(f"{out} is not empty and holds no rows of a pass; name another folder with out=")
            _write_once(out / HEADER, header.to_json())
    except OSError as error:
        raise disk_error(out, error) from error
    there = Header.read(out)
    differ = _differences(there, header)
    if differ:
        raise UserError(f"{out} holds the rows of another pass ({'; '.join(differ)}); name another folder with out=, "
                        "or remove that one")
    return replace(header, block=there.block, about=there.about)


def _write_once(file: Path, content: bytes) -> None:
    """Write a file whole, unless another job was faster."""
    beside = temporary(file)
    try:
        with open(beside, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        with contextlib.suppress(FileExistsError):
            os.link(beside, file)
    except PermissionError:  # a file system without links
        write_atomically(file, lambda stream: stream.write(content))
    finally:
        beside.unlink(missing_ok=True)


def _differences(there: Header, now: Header) -> list[str]:
    """Return in words what tells two passes apart; blocks may be of another size, as an earlier version made them."""
    lines = []
    if there.keys != now.keys and there.rows == now.rows:
        lines.append("its samples have other names, or another order")
    for key, (old, new) in {key: (_plain(there).get(key), _plain(now).get(key))
                            for key in sorted({*_plain(there), *_plain(now)})}.items():
        if old != new:
            lines.append(f"{key} {_short(old)} there, {_short(new)} now")
    return lines


def _plain(header: Header) -> dict[str, Any]:
    about = {key: value for key, value in header.about.items() if key != VERSIONS}
    known = {key: value for key, value in asdict(header).items() if key not in ("about", "block", "keys")}
    plain: dict[str, Any] = json.loads(json.dumps({**about, **known}))
    return plain


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


def _size(header: Header, number: int) -> int:
    return len(header.places(number)) * header.dtype.itemsize


def _unreadable(out: Path, header: Header, number: int) -> dict[int, str]:
    """Return place and reason of the samples without a row in a block."""
    about = read_ending(block_file(out, number), _size(header, number)) or {"unreadable": {}}
    return {int(place): reason for place, reason in about["unreadable"].items()}


def _readable_again(source: Source, maker: Maker, unreadable: Mapping[int, str]) -> bool:
    """Return whether one of these samples can be made now: a disk or a permission was mended, or a file came."""
    return any(place not in source.unreadable and len(maker.make(np.array([place])).index) for place in unreadable)


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found
