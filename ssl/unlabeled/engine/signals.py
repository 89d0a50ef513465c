"""Signals that ask for an end: Ctrl-C, and TERM or USR1 of a scheduler."""

from __future__ import annotations

import signal
from types import FrameType
from typing import Any


class Signals:
    """Remember the first of INT, TERM, USR1; the loop looks at `received` once per update and saves."""

    watched = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)

    def __init__(self) -> None:
        self.received = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        for number in self.watched:
            self._before[number] = signal.signal(number, self._remember)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.received = self.received or number
