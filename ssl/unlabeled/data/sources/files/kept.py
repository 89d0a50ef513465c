"""Files made from a set's own files and kept for the next start: beside them, else in the user's cache folder."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO

from unlabeled.config.base.cache import cache_folder
from unlabeled.ops.machine.files import sweep, temporary

_STATS = 16  # at once: on a network disk each takes a millisecond
Stamp = tuple[int, int]  # bytes and time in ns of a file; (-1, -1) of one that is not there


def places(beside: Path) -> list[Path]:
    """Return where the file `beside` may be kept: there and, for read-only folders, in the user's cache folder."""
    cache = cache_folder(beside.suffix[1:])
    if cache is None:
        return [beside]
    name = hashlib.blake2b(os.fsencode(beside.absolute()), digest_size=16).hexdigest()
    return [beside, cache / f"{name}{beside.suffix}"]


def keep(where: Sequence[Path], fill: Callable[[IO[bytes]], None]) -> OSError | None:
    """Write a file, whole or not at all, to the first of these places that takes it; return the reason if none does.

    Several processes may do so at once: the last one's file stays.
    """
    refused: OSError | None = None
    for place in where:
        try:
            _write(place, fill)
        except OSError as error:
            refused = error
        else:
            return None
    return refused


def _write(place: Path, fill: Callable[[IO[bytes]], None]) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    if not place.parent.stat().st_mode & 0o222:  # read-only by its owner's wish, also for root
        raise PermissionError(13, "read-only", str(place.parent))
    beside = temporary(place)
    try:
        with open(beside, "wb") as file:
            fill(file)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(beside, 0o644)
        os.replace(beside, place)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    sweep(place.parent)


@contextlib.contextmanager
def in_turn(folder: Path) -> Iterator[None]:
    """Wait until no other process is in here for `folder`; where its file system knows no locks, do not.

    The lock is the folder's own, so that no file is left, and ends with the process.
    """
    with contextlib.ExitStack() as held:
        with contextlib.suppress(OSError):
            descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
            held.callback(os.close, descriptor)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield


def stamps_of(files: Sequence[str]) -> list[Stamp]:
    """Return the stamps of files."""
    with ThreadPoolExecutor(_STATS) as threads:
        return list(threads.map(_stamp, files))


def _stamp(file: str) -> Stamp:
    try:
        status = os.stat(file)
    except (OSError, ValueError):
        return -1, -1
    return status.st_size, status.st_mtime_ns
