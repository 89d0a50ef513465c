"""Every process of a run tells the others that it is alive, and how far it is; one that stands still ends the run.

Without it the others would wait in a collective, silently and for the half hour that the process group has by default.
"""

from __future__ import annotations

import atexit
import datetime
import os
import socket
import sys
import threading
import time
from dataclasses import dataclass, field

import torch.distributed as dist

from unlabeled.ops.distributed import meeting_place, rank, world

PATIENCE = 600.0
_ENDED = "ended"
_FAREWELL = 10.0  # seconds that the last word to the store may take
_TELLING = 2.0  # seconds in which the first process speaks before the launcher ends it


def group_timeout(patience: float) -> datetime.timedelta:
    """Return what the process group is given: longer than what is waited here, so that the rank is named first."""
    return datetime.timedelta(seconds=max(1800.0, 2 * patience))


@dataclass
class Watch:
    """What this process knows of the others. Seconds are counted in looks: time when it is stopped itself is none.

    begun: updates that this process has begun, in all its trainings. checkpoint: the update to go on from.
    """

    patience: float
    begun: int = 0
    checkpoint: int = 0
    _told: dict[int, str] = field(default_factory=dict)  # rank -> beats, updates begun, host, as it told them last
    _seen: dict[int, str] = field(default_factory=dict)
    _silent: dict[int, float] = field(default_factory=dict)  # seconds since that changed
    _waited: float = 0.0  # seconds since this process began an update
    _begun_before: int = 0
    _ending: threading.Event = field(default_factory=threading.Event)
    _teller: threading.Thread | None = None

    @property
    def interval(self) -> float:
        """Return the seconds between looks."""
        return min(5.0, self.patience / 20)

    def begin(self) -> None:
        """Start to tell and to look, in threads of their own: the main one may be deep in a collective."""
        self._teller = threading.Thread(target=self._tell, name="watch", daemon=True)
        self._teller.start()
        threading.Thread(target=self._look, name="watch", daemon=True).start()
        atexit.register(self._end)

    def explain(self, error: Exception) -> bool:
        """Say which process is gone, if that is what an error of a collective means; return whether it is."""
        text = str(error)
        if not isinstance(error, dist.DistError) and not ("gloo" in text or "NCCL" in text):
            return False
        for _ in range(10):  # three looks would do, but on a busy machine they come late
            time.sleep(self.interval)
            gone = [r for r in range(world()) if self._told.get(r, "").startswith(_ENDED)
                    or self._silent.get(r, 0.0) > 2 * self.interval]
            if gone:
                break
        else:
            return False
        self._say([0] if rank() in gone else gone, "ended, or cannot be reached")  # without rank 0 nobody is heard
        return True

    def _end(self) -> None:
        """Say that this process ended, before Python does: a thread that then comes back from torch aborts it.

        (pytorch issue 38228.) Where the store does not answer there is nobody left to wait for.
        """
        self._ending.set()
        if self._teller is not None:
            self._teller.join(_FAREWELL)

    def _tell(self) -> None:
        beats, host = 0, socket.gethostname()
        try:
            store = meeting_place(self.patience)
            while True:
                beats += 1
                ending = self._ending.is_set()
                store.set(f"watch/{rank()}", f"{_ENDED if ending else beats} {self.begun} {host}")
                if ending:
                    return
                for other in range(world()):
                    if other in self._told or store.check([f"watch/{other}"]):
                        self._told[other] = store.get(f"watch/{other}").decode()
                self._ending.wait(self.interval)
        except (RuntimeError, ValueError, KeyError):
            return  # who keeps the store is gone, or is ending: all beats have come to a stop

    def _look(self) -> None:
        while not self._ending.wait(self.interval):
            self._count()
            lost, problem = self._lost()
            if lost:
                self._give_up(lost, problem)

    def _count(self) -> None:
        self._waited = self._waited + self.interval if self._begun_before == self.begun else 0.0
        self._begun_before = self.begun
        for other in range(world()):
            beat = self._told.get(other, "")
            same = self._seen.get(other, "") == beat and not beat.startswith(_ENDED)
            self._silent[other] = self._silent.get(other, 0.0) + self.interval if same else 0.0
            self._seen[other] = beat

    def _lost(self) -> tuple[list[int], str]:
        """Return the ranks that do not come, and what is wrong with them."""
        silent = [r for r in range(world()) if self._silent[r] >= self.patience]
        if rank() in silent:  # not even what this process tells comes back
            keeper = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
            return [0], f"the processes' meeting place at {keeper} has been silent for {self.patience:.0f} s"
        if silent:
            return silent, f"silent for {self.patience:.0f} s: stopped, killed or out of reach"
        # a stopped one is behind as well, and the two clocks tick apart: only who is still heard is behind
        heard = [r for r in self._told if self._silent[r] <= 2 * self.interval]
        behind = [r for r in heard if int(self._told[r].split()[1]) < self.begun]
        if behind and self._waited >= self.patience:
            return behind, f"has not come to the update in which the others have waited for {self.patience:.0f} s"
        return [], ""

    def _say(self, lost: list[int], problem: str) -> None:
        """Let the first process that is left say one line."""
        if rank() != min(set(range(world())) - set(lost), default=rank()):
            time.sleep(_TELLING)
            return
        hosts = {r: (self._told.get(r, "").split() or ["", "", "?"])[2] for r in lost}
        names = ", ".join(f"rank {r} on {host}" for r, host in hosts.items())
        there = f"update {self.checkpoint}" if self.checkpoint else "the start"
        print(f"{names}: {problem}. End what is left of the run; the same command goes on from {there}",
              file=sys.stderr, flush=True)

    def _give_up(self, lost: list[int], problem: str) -> None:
        self._say(lost, f"{problem} (train.patience)")
        os._exit(1)  # the main thread cannot be reached: it waits in a collective


_watch: Watch | None = None


def watch(patience: float | None = None) -> Watch:
    """Return this process's watch, which begins with the first call if there are others; patience: a new one."""
    global _watch
    if _watch is None:
        _watch = Watch(patience or PATIENCE)
        if world() > 1:
            _watch.begin()
    _watch.patience = patience or _watch.patience
    return _watch
