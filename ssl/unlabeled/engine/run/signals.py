"""Signals that ask for an end: Ctrl-C, TERM or USR1 of a scheduler, and HUP of a terminal that is closed."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from types import FrameType
from typing import Any

from unlabeled.errors import UserError

REQUEUE = "UNLABELED_REQUEUE"


def ask_for_requeue() -> None:
    """Tell the job script, where one asks for it by the name of a file, that the same command has to go on."""
    if REQUEUE in os.environ:
        Path(os.environ[REQUEUE]).touch()


class Interrupted(UserError):
    """A signal was received while the loop had nothing to do but wait."""


class Signals:
    """Remember the first of INT, TERM, USR1, HUP; the loop looks at `received` once per update and saves.

    HUP stays ignored where `nohup` ignores it. After a signal the process ends, and further ones change nothing more.
    """

    watched = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)

    def __init__(self) -> None:
        self.received = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        for number in self.watched:
            if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._remember)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in [] if self.received else self._before.items():
            signal.signal(number, handler)

    def check(self) -> None:
        """Raise Interrupted if a signal was received."""
        if self.received:
            raise Interrupted("interrupted")

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.received = self.received or number
