"""Loader processes: one that is stuck, stopped or killed is replaced, and what it had not delivered is made again.

torch's DataLoader would go on reading from a process that stands still, whatever signals say, and raises in the middle
of an update when one dies.
"""

from __future__ import annotations

import contextlib
import errno
import multiprocessing
import os
import select
import signal
import socket
import time
import traceback
import warnings
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Protocol

import torch

from unlabeled.data import parcel
from unlabeled.data.sources.base import SYSTEM_ERRORS
from unlabeled.errors import UserError

# a scheduler and a terminal send these to all processes: the training process saves, its workers end with it
LEFT_TO_THE_PARENT = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
_SLICE = 0.2  # seconds between looks at a process that gives nothing
_STOPPED = 5.0  # seconds after which one that is stopped (SIGSTOP) is replaced
_ENDING = 2.0  # seconds for what is under way when all is over
_ends: weakref.WeakSet[socket.socket] = weakref.WeakSet()


class Maker(Protocol):
    """Makes one batch (or what is packed) from the description of its samples; it is copied to the workers."""

    def make(self, unit: Any) -> Any:
        """Return the batch of `unit`."""


@dataclass(frozen=True)
class Failure:
    """Why a unit was not made. kind: the user's mistake, want of something the system gives, or a fault of the code."""

    kind: str
    text: str

    def error(self) -> Exception:
        """Return what is raised for it."""
        return RuntimeError(f"in a loader process:\n{self.text}") if self.kind == "fault" else UserError(self.text)


def failure(error: Exception) -> Failure:
    """Tell mistakes of the user and what the system lacks from faults of the code."""
    if isinstance(error, UserError):
        return Failure("user", str(error))
    number = error.errno if isinstance(error, OSError) else None
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error):  # torch raises RuntimeError for it
        number = errno.ENOMEM
    if number not in SYSTEM_ERRORS:
        return Failure("fault", traceback.format_exc()[-6000:])
    where = f" ({error.filename})" if isinstance(error, OSError) and error.filename else ""
    return Failure("system", f"images cannot be read: {os.strerror(number)}{where}; {SYSTEM_ERRORS[number]}")


class Worker:
    """A loader process and the units that it owes, in order."""

    def __init__(self, maker: Maker) -> None:
        self.maker = maker
        self.owed: deque[Any] = deque()
        self._replaced = False  # and the new one has delivered nothing yet
        self._start()

    def hand(self, unit: Any) -> None:
        """Let it make `unit` after those before."""
        self.owed.append(unit)
        self._send(unit)

    def deliver(self, patience: float, waiting: Callable[[], None]) -> Any:
        """Return the batch of the unit that has been owed longest.

        A process that gives nothing for `patience` seconds (0: for ever), is stopped, has died or lacks something is
        replaced once; raises UserError with its reason if the new one delivers nothing either. `waiting` is called
        several times a second while nothing comes, and may raise.
        """
        while True:
            problem = self._wait(patience, waiting)
            if not problem:
                try:
                    outcome = parcel.receive(self.link)
                except EOFError:
                    problem = Failure("system", self._death())
                except OSError as error:
                    problem = failure(error)
                else:
                    if not isinstance(outcome, Failure):
                        self._replaced = False
                        self.owed.popleft()
                        return outcome
                    problem = outcome
            if problem.kind != "system":
                raise problem.error()
            if self._replaced:
                self.process.kill()
                raise UserError(f"{problem.text}. A loader process started anew did no better")
            warnings.warn(f"{problem.text}: that loader process is started anew", stacklevel=2)
            self._replace()

    def waits(self) -> bool:
        """Return whether there is something to be received at once."""
        return bool(select.select([self.link], [], [], 0)[0])

    def stop(self) -> None:
        """Let it end after what it is making."""
        self.link.close()
        if self._state() == "T":
            self.process.kill()

    def end(self, until: float) -> None:
        """Wait for its end, and kill it at the time `until`, by the monotonic clock."""
        self.process.join(max(0.0, until - time.monotonic()))
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        self.process.close()

    def _start(self) -> None:
        try:
            self.link, other = parcel.link()
            self._fork(other)
        except OSError as error:
            raise failure(error).error() from error

    def _fork(self, other: socket.socket) -> None:
        _ends.add(self.link)
        self.process: BaseProcess = multiprocessing.get_context("fork").Process(
            target=_work, args=(other, self.maker), daemon=True)
        before = signal.pthread_sigmask(signal.SIG_BLOCK, LEFT_TO_THE_PARENT)  # until the process ignores them
        try:
            self.process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            other.close()

    def _replace(self) -> None:
        self.link.close()
        self.process.kill()
        self.end(time.monotonic() + _ENDING)
        self._start()
        self._replaced = True
        for unit in self.owed:
            self._send(unit)

    def _send(self, unit: Any) -> None:
        try:
            parcel.send(self.link, unit)
        except ConnectionError:
            pass  # it has died, which is noticed when its turn comes
        except OSError as error:
            raise failure(error).error() from error

    def _wait(self, patience: float, waiting: Callable[[], None]) -> Failure | None:
        """Wait until it gives something. Time in which this process is stopped itself does not count."""
        ready = select.poll()
        ready.register(self.link, select.POLLIN)
        waited = stopped = 0.0
        while not ready.poll(_SLICE * 1000):
            waiting()
            waited += _SLICE
            stopped = stopped + _SLICE if self._state() == "T" else 0.0
            if stopped >= _STOPPED:
                return Failure("system", f"a loader process is stopped (SIGSTOP), for {stopped:.0f} s now")
            if 0 < patience <= waited:
                text = f"a loader process gave nothing for {patience:.0f} s; is the file system slow?"
                return Failure("system", text)
        return None

    def _state(self) -> str:
        with contextlib.suppress(OSError, IndexError):
            return Path(f"/proc/{self.process.pid}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()[0]
        return "?"

    def _death(self) -> str:
        self.process.join(_ENDING)
        code = self.process.exitcode
        if code == -signal.SIGKILL:
            return "a loader process was killed (SIGKILL), out of memory perhaps; lower data.workers or the batch"
        return f"a loader process died ({signal.Signals(-code).name if code and code < 0 else f'exit code {code}'})"


def end_all(workers: Sequence[Worker]) -> None:
    """End loader processes: what they are making is finished if that takes no more than seconds."""
    for worker in workers:
        worker.stop()
    until = time.monotonic() + _ENDING
    for worker in workers:
        worker.end(until)


def _work(link: socket.socket, maker: Maker) -> None:
    """Make what is sent until nobody is at the other end any more."""
    for number in LEFT_TO_THE_PARENT:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, LEFT_TO_THE_PARENT)
    for other in list(_ends):  # else this process would keep the others alive when the training process is gone
        other.close()
    torch.set_num_threads(1)
    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            unit = parcel.receive(link)
            try:
                outcome = maker.make(unit)
            except Exception as error:
                outcome = failure(error)
            _give(link, outcome)
            del outcome


def _give(link: socket.socket, made: Any) -> None:
    try:
        parcel.send(link, made)
    except ConnectionError:
        raise
    except Exception as error:  # no descriptor, no memory, or nothing that can be sent
        parcel.send(link, failure(error))
