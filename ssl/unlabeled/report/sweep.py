"""The table of a sweep: what differs between the runs, and their numbers over seeds."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from unlabeled.report.terminal import open_console, print_line, print_table

SEED = "train.seed"


@dataclass(frozen=True)
class Row:
    """A finished run: its folder's name, what it was given where runs differ, and its numbers by name."""

    name: str
    values: dict[str, str]
    numbers: dict[str, float]


def print_sweep(rows: Sequence[Row], console: Console | None = None) -> None:
    """Print one line per combination of settings, with mean and standard deviation over the seeds."""
    console = console or open_console()
    print_line(console, "")  # apart from what the runs printed
    print_table(console, sweep_table(rows))
    if any(SEED in row.values for row in rows):
        print_line(console, "mean ± standard deviation over train.seed")


def sweep_table(rows: Sequence[Row]) -> Table:
    """Return the table: settings that differ, numbers, how many seeds; seeds are no setting."""
    keys = [key for key in rows[0].values if key != SEED]
    names = list(dict.fromkeys(name for row in rows for name in row.numbers))
    table = Table(*keys, *names, "seeds")
    for column in table.columns[len(keys) :]:
        column.justify = "right"
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row.values[key] for key in keys), []).append(row)
    for settings, group in groups.items():
        cells = [_mean([row.numbers[name] for row in group if name in row.numbers]) for name in names]
        table.add_row(*settings, *cells, str(len(group)))
    return table


def sweep_csv(rows: Sequence[Row]) -> str:
    """Return one line per run: folder, settings, numbers in full."""
    names = list(dict.fromkeys(name for row in rows for name in row.numbers))
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(["run", *rows[0].values, *names])
    lines.writerows([row.name, *row.values.values(), *(row.numbers.get(name, "") for name in names)] for row in rows)
    return text.getvalue()


def _mean(values: Sequence[float]) -> str:
    if not values:
        return ""
    form = ".1f" if max(map(abs, values)) >= 10 else ".3g"
    text = format(statistics.fmean(values), form)
    return text if len(values) == 1 else f"{text} ± {format(statistics.stdev(values), form)}"
