"""Only one start at a time trains in a run's folder."""

from __future__ import annotations

import fcntl
import os
import socket
import time
from pathlib import Path

from unlabeled.errors import UserError
from unlabeled.ops.machine.files import disk_error

PATIENCE = 60.0  # seconds; one that was told to end first finishes its update and saves


class RunLock:
    """A lock on RUN/lock that ends with its process, and that loader processes do not inherit (POSIX record lock)."""

    def __init__(self, run: Path) -> None:
        self.run, self.file = run, run / "lock"
        self._descriptor: int | None = None

    @property
    def held(self) -> bool:
        """Return whether this process holds the lock."""
        return self._descriptor is not None

    def take(self, patience: float = PATIENCE, *, make: bool = False) -> None:
        """Take the lock of a folder, waiting up to `patience` seconds; make: create the folder where there is none.

        Without `make` nothing is locked where there is no folder. Raises UserError, naming who holds the lock, if in
        vain, and if folder or lock cannot be written.
        """
        end, notified = time.monotonic() + patience, False
        while self._descriptor is None:
            try:
                if make:
                    self.run.mkdir(parents=True, exist_ok=True)
                descriptor = os.open(self.file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            except FileNotFoundError as error:
                if not make:
                    return
                if time.monotonic() > end:  # a link to nowhere; else it was moved away at this moment
                    raise disk_error(self.file, error) from error
                time.sleep(0.02)
                continue
            except OSError as error:
                raise disk_error(self.file, error) from error
            try:
                if self._try(descriptor):
                    self._descriptor, descriptor = descriptor, -1
                    return
            finally:
                if descriptor >= 0:
                    os.close(descriptor)
            owner = self._owner()
            if time.monotonic() > end:
                raise UserError(f"{self.run} is being trained by process {owner}: end it first, or use another folder")
            if not notified:
                print(f"waiting for process {owner}, which still trains in {self.run}", flush=True)
                notified = True
            time.sleep(0.2)

    def _try(self, descriptor: int) -> bool:
        """Lock an open file, if it is still the one at its path: another start may have set its folder aside."""
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):  # either may mean that another holds it
            return False
        except OSError:  # a file system without locks
            pass
        try:
            if not os.path.samestat(os.fstat(descriptor), os.stat(self.file)):
                return False
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        except FileNotFoundError:
            return False
        except OSError as error:
            raise disk_error(self.file, error) from error
        return True

    def _owner(self) -> str:
        """Return who wrote the lock; its file may be gone, or of any form."""
        try:
            return self.file.read_bytes()[:200].decode("utf-8", "replace").strip() or "unknown"
        except OSError:
            return "unknown"

    def release(self) -> None:
        """Give the lock up; nothing happens if it is not held."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
