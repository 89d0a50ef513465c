"""Checkpoints: written beside, fsynced, renamed, checked by hash when read."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import torch

from unlabeled.errors import UserError
from unlabeled.ops.distributed import on_rank0, rank


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Let `write` fill a file so that `path` holds either its old content or all of the new, also after a power cut.

    Raises UserError if the disk is full or not writable; what stood at `path` is then untouched.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(beside, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
        folder = os.open(path.parent, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)
    except (OSError, RuntimeError) as error:
        beside.unlink(missing_ok=True)
        cause = _os_error(error)
        if cause is None:
            raise
        raise disk_error(path, cause) from error


def _os_error(error: BaseException | None) -> OSError | None:
    # torch.save reports a failed write as a RuntimeError raised while handling the OSError
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__ or error.__context__
    return error


def disk_error(path: Path, error: OSError) -> UserError:
    """Return the message for a failed write."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        cure = "the disk is full; free some space and run the same command again, it goes on from the last checkpoint"
    else:
        cure = error.strerror or str(error)
    return UserError(f"cannot write {path}: {cure}")


class Checkpoints:
    """The checkpoints of one run: `update-00001000.pt` with its hash in `update-00001000.json`, newest `keep` kept."""

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder, self.keep = folder, keep

    def save(self, update: int, state: dict[str, Any]) -> Path:
        """Write `state` as the checkpoint after `update` updates, then remove the oldest ones."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"update-{update:08d}.pt"
        write_atomically(path, lambda file: torch.save(state, file))
        # the hash comes last: a checkpoint without it was not finished
        about = json.dumps({"update": update, "sha256": _sha256(path)}).encode()
        write_atomically(path.with_suffix(".json"), lambda file: file.write(about))
        for old in self.complete()[: -self.keep]:
            old.with_suffix(".json").unlink(missing_ok=True)
            old.unlink(missing_ok=True)
        return path

    def complete(self) -> list[Path]:
        """Return the finished checkpoints, oldest first."""
        return sorted(p for p in self.folder.glob("update-*.pt") if p.with_suffix(".json").exists())

    def load_newest(self) -> tuple[dict[str, Any] | None, list[str]]:
        """Return the newest undamaged state (None if there is none) and a message per damaged one passed over.

        Rank 0 chooses it: another process may write a newer one in the meantime. Call it on all ranks. Raises UserError
        if checkpoints exist and all of them are damaged.
        """
        path, passed = on_rank0(self._newest)
        if path is None:
            return None, passed
        return _load(path) if rank() == 0 else read_checkpoint(path), passed  # rank 0 has checked it already

    def _newest(self) -> tuple[Path | None, list[str]]:
        passed: list[str] = []
        for path in reversed(self.complete()):
            try:
                check(path)
                return path, passed
            except UserError as error:
                passed.append(str(error))
        if passed:
            lines = [f"no checkpoint in {self.folder} can be read; start anew with fresh=true", *passed]
            raise UserError("\n".join(lines))
        return None, []


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read one checkpoint onto the CPU; raises UserError if it is missing, incomplete or altered."""
    check(path)
    return _load(path)


def check(path: Path) -> None:
    """Raise UserError if a checkpoint is missing, incomplete or altered."""
    try:
        written = json.loads(path.with_suffix(".json").read_bytes())["sha256"]
        found = _sha256(path)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"checkpoint {path} cannot be read: {error}") from error
    if found != written:
        raise UserError(f"checkpoint {path} is damaged: its hash differs from the one written beside it")


def _load(path: Path) -> dict[str, Any]:
    return torch.load(path, map_location="cpu", weights_only=True)


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
