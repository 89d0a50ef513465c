"""Only one start at a time trains in a run's folder."""

from __future__ import annotations

import fcntl
import os
import socket
import time
from pathlib import Path

from unlabeled.errors import UserError

PATIENCE = 60.0  # seconds; one that was told to end first finishes its update and saves


class RunLock:
    """A lock on RUN/lock that ends with its process, and that loader processes do not inherit (POSIX record lock)."""

    def __init__(self, run: Path) -> None:
        self.run, self.file = run, run / "lock"
        self._descriptor: int | None = None

    def take(self, patience: float = PATIENCE) -> None:
        """Take the lock, waiting up to `patience` seconds. Raises UserError, naming who holds it, if in vain."""
        if self._descriptor is not None:
            return
        descriptor = os.open(self.file, os.O_RDWR | os.O_CREAT, 0o644)
        end, told = time.monotonic() + patience, False
        while True:
            try:
                fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except (BlockingIOError, PermissionError):  # either may mean that another holds it
                owner = self.file.read_text().strip() or "unknown"
            except OSError:  # a file system without locks
                break
            if time.monotonic() > end:
                os.close(descriptor)
                raise UserError(f"{self.run} is being trained by process {owner}: end it first, or use another folder")
            if not told:
                print(f"waiting for process {owner}, which still trains in {self.run}", flush=True)
                told = True
            time.sleep(0.2)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        self._descriptor = descriptor

    def release(self) -> None:
        """Give the lock up; nothing happens if it is not held."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
