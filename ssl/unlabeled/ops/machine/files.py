"""Files that are written whole or not at all, their checksums, and what killed processes left of them."""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import json
import os
import re
import shutil
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from unlabeled.errors import UserError

_LEFT = re.compile(r"\..+\.(?:([0-9a-f]{8})-)?(\d+)\.(?:tmp|part)")  # .NAME.[MACHINE-]PROCESS.tmp
_DAY = 86400.0


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Let `write` fill a file so that `path` holds either its old content or all of the new, also after a power cut.

    Makes the folder, and clears it of what processes that were killed while they wrote there have left. Raises
    UserError if the disk is full or not writable; what stood at `path` is then untouched.
    """
    beside = temporary(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(beside, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
        folder = os.open(path.parent, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)
    except (OSError, RuntimeError) as error:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)
        cause = _os_error(error)
        if cause is None:
            raise
        raise disk_error(path, cause) from error
    sweep(path.parent)


def _os_error(error: BaseException | None) -> OSError | None:
    # torch.save reports a failed write as a RuntimeError raised while handling the OSError
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__ or error.__context__
    return error


def disk_error(path: Path, error: OSError) -> UserError:
    """Return the message for a failed write."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        cure = "the disk is full; free some space and run the same command again, it goes on from what was saved"
    else:
        cure = error.strerror or str(error)
    return UserError(f"cannot write {path}: {cure}")


def refuse_unwritable(path: Path, cure: str) -> None:
    """Raise UserError, ending in `cure`, if no file can be written at `path`: for results that take long to compute."""
    beside = temporary(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside.touch()
        beside.unlink()
    except OSError as error:
        raise UserError(f"{disk_error(path, error)}; {cure}") from error


def temporary(path: Path, ending: str = "tmp") -> Path:
    """Return the name beside `path` under which this process writes it; `sweep` knows it. ending: tmp or part."""
    return path.with_name(f".{path.name}.{_machine()}-{os.getpid()}.{ending}")


def sweep(folder: Path, *, owned: bool = False) -> None:
    """Remove temporary files and folders that killed processes left in `folder`; what cannot be removed stays.

    owned: nobody else may write there now (a run's lock is held). Otherwise those of living processes are left alone,
    and those of other machines for a day.
    """
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            found = _LEFT.fullmatch(entry.name)
            if found and _left_behind(entry, found[1], int(found[2]), owned):
                if entry.is_dir(follow_symlinks=False):
                    shutil.rmtree(entry.path, ignore_errors=True)
                else:
                    with contextlib.suppress(OSError):
                        os.unlink(entry.path)


def _left_behind(entry: os.DirEntry[str], machine: str | None, process: int, owned: bool) -> bool:
    here = machine in (None, _machine())
    if here and process == os.getpid():
        return False
    if owned:
        return True
    if not here:
        with contextlib.suppress(OSError):
            return time.time() - entry.stat(follow_symlinks=False).st_mtime > _DAY
        return False
    return not _lives(process)


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # somebody else's
        return True
    try:  # one that has ended, and whose parent has not taken notice
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[:1] != ["Z"]
    except OSError:
        return True


@functools.cache
def _machine() -> str:
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]


def read_json(file: Path, most: int = 1 << 28) -> Any:
    """Return what a small JSON file says, which may be of anybody's making.

    Raises OSError; raises ValueError if it is no JSON, has more than `most` bytes, or is nested too deeply.
    """
    with open(file, "rb") as stream:
        text = stream.read(most + 1)
    if len(text) > most:
        raise ValueError(f"it is larger than {most >> 20} MiB")
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def sha256(path: Path) -> str:
    """Return the checksum of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
