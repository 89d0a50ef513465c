"""One table over several seeds, with the mean and its interval: of the steps of a chain, or of one protocol.

Or over the folds of a data card, with the mean alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from scipy import stats

from unlabeled.report.report import Number, Report
from unlabeled.report.terminal import open_console, print_line, print_table


def print_seeds(reports: Mapping[str, Sequence[Sequence[Report]]], first: str, console: Console | None = None) -> None:
    """Print one row per entry and number.

    reports: per step or protocol, per seed, the reports. first: title of the first column.
    """
    console = console or open_console()
    print_line(console, "")  # apart from what the steps printed
    print_table(console, seeds_table(reports, first))
    lines = [caution for runs in reports.values() for run in runs for report in run for caution in report.cautions]
    for line in dict.fromkeys(lines):
        print_line(console, f"note: {line}")
    if any(len(runs) > 1 for runs in reports.values()):
        print_line(console, "± is half the 95 % interval of the mean over seeds (Student's t); the last update is "
                   "scored")


def print_folds(reports: Sequence[Report], console: Console | None = None) -> None:
    """Print the numbers of every fold of a data card, named by its splits, and their plain means, as tables print them.
    """
    console = console or open_console()
    table = Table("train, test", "number, %", "value", "random init", "raw pixels", "chance")
    for column in table.columns[2:]:
        column.justify = "right"
    rows = [(f"{report.train.split}, {report.test.split}", [report]) for report in reports]
    for name, folds in [*rows, (f"mean of {len(reports)}", list(reports))]:
        for numbers in zip(*(report.numbers for report in folds), strict=True):
            cells = [_plain_mean(numbers, kind) for kind in ("network", "random_init", "raw_pixels")]
            chance = sum(number.chance for number in numbers) / len(numbers)
            table.add_row(name, numbers[0].name, *cells, f"{chance:.1f}")
    print_line(console, "")  # apart from what the folds printed
    print_table(console, table)


def seeds_table(reports: Mapping[str, Sequence[Sequence[Report]]], first: str) -> Table:
    """Return the table; random init and raw pixels stand beside numbers that have them."""
    table = Table(first, "number, %", "value", "random init", "raw pixels", "chance", "seeds")
    for column in table.columns[2:]:
        column.justify = "right"
    for entry, runs in reports.items():
        for numbers in zip(*([number for report in run for number in report.numbers] for run in runs), strict=True):
            cells = [_mean(numbers, kind) for kind in ("network", "random_init", "raw_pixels")]
            table.add_row(entry, numbers[0].name, *cells, f"{numbers[0].chance:.1f}", str(len(numbers)))
    return table


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean and half the width of its 95 % interval by Student's t; of one value the width is NaN."""
    n, mean = len(values), sum(values) / len(values)
    if n == 1:
        return mean, math.nan
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / (n - 1))
    return mean, float(stats.t.ppf(0.975, n - 1)) * deviation / math.sqrt(n)


def _values(numbers: Sequence[Number], kind: str) -> list[float]:
    scores: list[dict[str, Any] | None] = [getattr(number, kind) for number in numbers]
    return [score["value"] for score in scores if score is not None]


def _plain_mean(numbers: Sequence[Number], kind: str) -> str:
    values = _values(numbers, kind)
    return f"{sum(values) / len(values):.1f}" if values else ""


def _mean(numbers: Sequence[Number], kind: str) -> str:
    values = _values(numbers, kind)
    if not values:
        return ""
    mean, half = interval(values)
    return f"{mean:.1f}" if math.isnan(half) else f"{mean:.1f} ± {half:.1f}"
