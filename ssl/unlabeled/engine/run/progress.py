"""What a user sees while a long command works: a bar on a terminal, a line now and then in a log file."""

from __future__ import annotations

import sys
import time

from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Column

LINE_EVERY = 30.0  # seconds between lines where there is no terminal
PASS_AFTER = 2.0  # seconds after which a pass is long enough to be told of


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
        self._text, self._noted = "", start
        self._begin = self._last = time.perf_counter()
        self._bar: Progress | None = None
        if shown and sys.stdout.isatty():
            self._bar = Progress(
                TextColumn("{task.completed}/{task.total}", table_column=Column(min_width=2 * len(f"{total}") + 1)),
                BarColumn(bar_width=10),
                TextColumn("{task.description}", markup=False, table_column=Column()),  # goes on in a second line
            )
            self._task = self._bar.add_task("", total=total, completed=start)
            self._bar.start()

    def note(self, done: int, values: dict[str, float]) -> None:
        """Take the newest logged values for the display, those of the update that is the `done`-th."""
        self._noted = done
        self._text = (
            f"loss {values['loss']:.4f}  lr {values['lr']:.3g}  {values['images_per_s']:.0f} images/s  "
            f"waiting for data {values['data_wait']:.0%}"
        )

    def advance(self, done: int) -> None:
        """Show that `done` updates are finished, and of which of them the values are."""
        now = time.perf_counter()
        left = duration((self.total - done) * (now - self._begin) / max(1, done - self.start))
        text = f"{self._text}  (at update {self._noted})" if self._text and self._noted != done else self._text
        if self._bar:
            self._bar.update(self._task, completed=done, description=f"{left} left  {text}")
        elif self.shown and text and now - self._last >= LINE_EVERY:
            self._last = now
            print(f"update {done}/{self.total}  {text}  {left} left", flush=True)

    def say(self, text: str) -> None:
        """Print a line without breaking the bar."""
        if self._bar:
            self._bar.console.print(text, highlight=False, markup=False, soft_wrap=True)
        elif self.shown:
            print(text, flush=True)

    def close(self) -> None:
        """Take the bar away."""
        if self._bar:
            self._bar.stop()


class LongPass:
    """Tell how far a long pass is, how fast and for how long: in a bar on a terminal, else in a line now and then.

    Use it as a context, which takes the bar away. A short pass is not told of. unit: what is counted.
    """

    def __init__(self, what: str, total: int, shown: bool, unit: str = "images") -> None:
        self.what, self.total, self.shown, self.unit = what, total, shown, unit
        self._done = 0
        self._begin = time.perf_counter()
        self._last: float | None = None
        self._bar: Progress | None = None

    def __enter__(self) -> LongPass:
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar:
            self._bar.stop()

    def advance(self, done: int) -> None:
        """Take notice that `done` of `total` are finished."""
        self._done = done
        now = time.perf_counter()
        seconds = now - self._begin
        if not self.shown or done >= self.total or seconds < PASS_AFTER:
            return
        text = f"{done} of {self.total} {self.unit}"
        if done:
            left = duration((self.total - done) * seconds / done)
            text += f", {_rate(done / seconds)} {self.unit}/s, {left} left"
        if sys.stdout.isatty():
            self._show(text)
        elif self._last is None or now - self._last >= LINE_EVERY:
            self._last = now
            print(f"{self.what}: {text}", flush=True)

    def step(self) -> None:
        """Take notice that the pass is alive, within one of what is counted."""
        self.advance(self._done)

    def _show(self, text: str) -> None:
        if self._bar is None:
            self._bar = Progress(TextColumn("{task.description}", markup=False, table_column=Column()),
                                 BarColumn(bar_width=10), transient=True)
            self._task = self._bar.add_task("", total=self.total)
            self._bar.start()
        self._bar.update(self._task, completed=self._done, description=f"{self.what}: {text}")


def _rate(per_second: float) -> str:
    return f"{per_second:.0f}" if per_second >= 10 else f"{per_second:.2g}"


def volume(size: float) -> str:
    """Write a number of bytes as people say it: 2.4 kB, 0.3 MB, 12.0 GB."""
    if size >= 1e9:
        return f"{size / 1e9:.1f} GB"
    return f"{size / 1e6:.1f} MB" if size >= 1e5 else f"{size / 1e3:.1f} kB"


def duration(seconds: float) -> str:
    """Write a time as people say it: 40 s, 12 min, 2 h 5 min, 1 d 3 h."""
    seconds = max(0.0, seconds)
    minutes = round(seconds / 60)
    if round(seconds) < 60:
        return f"{round(seconds)} s"
    if minutes < 60:
        return f"{minutes} min"
    whole, part, units = (*divmod(minutes, 60), ("h", "min")) if minutes < 1440 else (
        *divmod(round(seconds / 3600), 24), ("d", "h"))
    return f"{whole} {units[0]} {part} {units[1]}" if part else f"{whole} {units[0]}"
