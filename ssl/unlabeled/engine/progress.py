"""What a user sees while training: a bar on a terminal, a line now and then in a log file."""

from __future__ import annotations

import sys
import time

from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

LINE_EVERY = 30.0  # seconds between lines where there is no terminal


class Meter:
    """Images/s over all processes and the share of time spent waiting for data, since the last reading."""

    def __init__(self, batch: int) -> None:
        self.batch = batch
        self._reset()

    def add(self, waited: float) -> None:
        """Count one update, `waited` seconds of which were spent waiting for data."""
        self._updates += 1
        self._waited += waited

    def read(self) -> dict[str, float]:
        """Return images_per_s and data_wait (0 to 1) and start anew."""
        seconds = max(1e-9, time.perf_counter() - self._since)
        values = {"images_per_s": self._updates * self.batch / seconds, "data_wait": self._waited / seconds}
        self._reset()
        return values

    def _reset(self) -> None:
        self._since, self._updates, self._waited = time.perf_counter(), 0, 0.0


class ProgressBar:
    """Show updates, loss, learning rate, images/s, data wait and the time left; silent unless `shown`."""

    def __init__(self, total: int, start: int, shown: bool) -> None:
        self.total, self.start, self.shown = total, start, shown
        self._text = ""
        self._begin = self._last = time.perf_counter()
        self._bar: Progress | None = None
        if shown and sys.stdout.isatty():
            self._bar = Progress(
                TextColumn("{task.completed}/{task.total}"),
                BarColumn(),
                TextColumn("{task.description}"),
                TimeRemainingColumn(),
            )
            self._task = self._bar.add_task("", total=total, completed=start)
            self._bar.start()

    def note(self, values: dict[str, float]) -> None:
        """Take the newest logged values for the display."""
        self._text = (
            f"loss {values['loss']:.4f}  lr {values['lr']:.3g}  {values['images_per_s']:.0f} images/s  "
            f"waiting for data {values['data_wait']:.0%}"
        )

    def advance(self, done: int) -> None:
        """Show that `done` updates are finished."""
        if self._bar:
            self._bar.update(self._task, completed=done, description=self._text)
        elif self.shown and self._text and time.perf_counter() - self._last >= LINE_EVERY:
            self._last = time.perf_counter()
            left = (self.total - done) * (self._last - self._begin) / max(1, done - self.start)
            print(f"update {done}/{self.total}  {self._text}  {left / 60:.1f} min left", flush=True)

    def say(self, text: str) -> None:
        """Print a line without breaking the bar."""
        if self._bar:
            self._bar.console.print(text, highlight=False, markup=False)
        elif self.shown:
            print(text, flush=True)

    def close(self) -> None:
        """Take the bar away."""
        if self._bar:
            self._bar.stop()
