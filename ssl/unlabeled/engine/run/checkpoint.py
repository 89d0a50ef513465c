"""Checkpoints: written beside, fsynced, renamed, checked by hash when read; and when the next one is due."""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
from pathlib import Path
from typing import Any

import torch

from unlabeled.errors import UserError
from unlabeled.ops.distributed import on_rank0, rank
from unlabeled.ops.machine.files import disk_error, read_json, sha256, write_atomically

_NAME = re.compile(r"update-(\d{8,})\.(pt|json)")
_SHARE = 0.02  # of the time that saving may take, where the interval is not given
_SHORTEST = 5.0  # seconds


class Checkpoints:
    """The checkpoints of one run: `update-00001000.pt` with its hash in `update-00001000.json`, newest `keep` kept.

    about: what else the .json holds, such as the recipe. marker: a file outside `folder` that keeps the last update
    that was saved, so that checkpoints that vanish are missed. loaded: the one that `load_newest` read.
    """

    def __init__(
        self, folder: Path, keep: int, about: dict[str, Any] | None = None, marker: Path | None = None
    ) -> None:
        self.folder, self.keep, self.about, self.marker = folder, keep, about or {}, marker
        self.loaded: Path | None = None
        self._good: set[Path] = set()  # checked by this process, or written

    def save(self, update: int, state: dict[str, Any]) -> Path:
        """Write `state` as the checkpoint after `update` updates; once `keep` good ones stand, remove all others."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise disk_error(self.folder, error) from error
        path = self.folder / f"update-{update:08d}.pt"
        write_atomically(path, lambda file: torch.save(state, file))
        # the hash comes last: a checkpoint without it was not finished
        about = json.dumps({"update": update, "sha256": sha256(path), **self.about}).encode()
        write_atomically(path.with_suffix(".json"), lambda file: file.write(about))
        if self.marker is not None:
            write_atomically(self.marker, lambda file: file.write(f"{update}\n".encode()))
        self._good.add(path)
        self._remove_old()
        return path

    def _remove_old(self) -> None:
        """Remove all but the newest `keep` good ones; damaged ones do not count, and go when enough good ones stand."""
        good: list[Path] = []
        for path in reversed(self.complete()):
            if len(good) < self.keep and self._is_good(path):
                good.append(path)
        if len(good) < self.keep:
            return
        for path in self.every():
            if path not in good:
                with contextlib.suppress(OSError):  # what cannot be removed takes room, but no run ends for it
                    path.with_suffix(".json").unlink(missing_ok=True)
                    path.unlink(missing_ok=True)

    def _is_good(self, path: Path) -> bool:
        if path not in self._good:
            try:
                check(path)
            except UserError:
                return False
            self._good.add(path)
        return True

    def every(self) -> list[Path]:
        """Return all checkpoints, oldest first, also those of which the .pt or the .json is missing.

        Raises UserError if the folder cannot be read.
        """
        try:
            with os.scandir(self.folder) as entries:
                updates = {int(name[1]) for entry in entries if (name := _NAME.fullmatch(entry.name))}
        except FileNotFoundError:
            if self.folder.is_symlink():
                raise UserError(f"{self.folder} is a link to {os.readlink(self.folder)}, which is not there; bring it "
                                "back, or remove the link") from None
            return []
        except OSError as error:
            raise UserError(f"checkpoints cannot be read: {self.folder}: {error.strerror or error}; it must be a "
                            "folder that this user may read") from error
        return [self.folder / f"update-{update:08d}.pt" for update in sorted(updates)]

    def complete(self) -> list[Path]:
        """Return the finished checkpoints, oldest first."""
        return [path for path in self.every() if path.exists() and path.with_suffix(".json").exists()]

    def any(self) -> bool:
        """Return whether a checkpoint was finished here: a first one without its .json was not."""
        every = self.every()
        return len(every) > 1 or any(path.with_suffix(".json").exists() for path in every)

    def saved(self) -> int | None:
        """Return the last update that was saved, by the marker; None if it is unknown."""
        try:
            return int(self.marker.read_text()) if self.marker is not None else None
        except (OSError, ValueError):
            return None

    def newest_about(self) -> tuple[Path | None, dict[str, Any]]:
        """Return the newest checkpoint whose .json can be read, and what that holds."""
        for path in reversed(self.every()):
            try:
                return path, read_about(path)
            except UserError:
                continue
        return None, {}

    def load_newest(self) -> tuple[dict[str, Any] | None, list[str]]:
        """Return the newest undamaged state (None if there is none) and a message per damaged one passed over.

        Rank 0 chooses it: another process may write a newer one in the meantime. Call it on all ranks. Raises UserError
        if there were checkpoints and all of them are damaged or gone.
        """
        path, passed = on_rank0(self._newest)
        self.loaded = path
        if path is None:
            return None, passed
        return _load(path) if rank() == 0 else read_checkpoint(path), passed  # rank 0 has checked it already

    def _newest(self) -> tuple[Path | None, list[str]]:
        passed: list[str] = []
        saved, every = self.saved(), self.every()
        if saved is not None and every and not any(_update(path) >= saved for path in every):
            passed.append(f"the checkpoint after update {saved} is missing in {self.folder}")
        for path in reversed(every):
            unfinished = path == every[-1] if saved is None else _update(path) > saved
            if unfinished and not path.with_suffix(".json").exists():
                continue
            try:
                check(path)
                self._good.add(path)
                return path, passed
            except UserError as error:
                passed.append(str(error))
        if passed:
            lines = [f"no checkpoint in {self.folder} can be read; {anew(self.folder.parent)}", *passed]
            raise UserError("\n".join(lines))
        if saved is not None:
            raise vanished(self.folder, saved)
        return None, []


def vanished(folder: Path, saved: int) -> UserError:
    """Return what to tell where checkpoints were, the last one after `saved` updates, and are no more."""
    return UserError(f"{folder} holds no checkpoint, but one was saved after update {saved}: bring it back, or "
                     f"{anew(folder.parent)}")


def anew(run: Path) -> str:
    """Return how to begin a run anew, as the end of a message: what an evaluation trains has no option for it."""
    if run.parent.name == "eval" and (run.parent.parent / "recipe.yaml").exists():
        return f"move {run} away to start anew"
    return "start anew with fresh=true, which sets this run aside"


class SaveClock:
    """Says when the next checkpoint is due: every so many updates, or, if `every` is None, by the time it takes.

    By time: so often that saving takes about 2 % of it, but not within 5 seconds. Ranks agree by taking what rank 0
    says.
    """

    def __init__(self, every: int | None) -> None:
        self.every = every
        self._last, self._wait = time.monotonic(), _SHORTEST

    def due(self, done: int) -> bool:
        """Return whether to save after `done` updates."""
        if self.every is not None:
            return done % self.every == 0
        return rank() == 0 and time.monotonic() - self._last >= self._wait

    def saved(self, begin: float) -> None:
        """Note that a save which began at `begin` (time.monotonic) is done."""
        self._last = time.monotonic()
        self._wait = max(_SHORTEST, (self._last - begin) / _SHARE)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read one checkpoint onto the CPU; raises UserError if it is missing, incomplete or altered."""
    check(path)
    return _load(path)


def check(path: Path) -> None:
    """Raise UserError if a checkpoint is missing, incomplete or altered."""
    stated = read_about(path)["sha256"]
    try:
        digest = sha256(path)
    except OSError as error:
        raise UserError(f"checkpoint {path} cannot be read: {error.strerror or error}") from error
    if digest != stated:
        raise UserError(f"checkpoint {path} is damaged: its hash differs from the one written beside it")


def read_about(path: Path) -> dict[str, Any]:
    """Return what stands beside a checkpoint. Raises UserError if that is missing or of another form."""
    beside = path.with_suffix(".json")
    try:
        about = read_json(beside)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no JSON"
        raise UserError(f"checkpoint {path} cannot be read: {beside.name}: {reason}") from error
    if not isinstance(about, dict) or not isinstance(about.get("sha256"), str):
        raise UserError(f"checkpoint {path} cannot be read: {beside.name} holds no hash")
    return about


def _update(path: Path) -> int:
    return int(path.stem.removeprefix("update-"))


def _load(path: Path) -> dict[str, Any]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        if isinstance(state, dict) and isinstance(state.get("update"), int):
            return state
        reason = "it holds something else"
    except MemoryError:
        raise
    except Exception as error:  # torch and pickle raise almost anything
        reason = str(error).partition("\n")[0]
    raise UserError(f"checkpoint {path} is none of this program: {reason}")
