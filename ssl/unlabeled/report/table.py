"""Reports as a table for people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from unlabeled.report.report import Number, Report
from unlabeled.report.terminal import open_console, print_line, print_table

_COLUMNS = (("network", "pretrained"), ("random_init", "random init"), ("raw_pixels", "raw pixels"))


def print_reports(reports: Sequence[Report], console: Console | None = None) -> None:
    """Print the numbers of reports on one network in one table, and what was measured on."""
    console = console or open_console()
    first = reports[0]
    trained = "" if first.train_seed is None else f", update {first.update}, train seed {first.train_seed}"
    print_line(console, f"  {first.method}, export {first.export}{trained}", bold=first.run)
    if any(report.numbers for report in reports):
        print_table(console, numbers_table(reports))
    for line in notes(reports):
        print_line(console, line)


def numbers_table(reports: Sequence[Report]) -> Table:
    """Return one row per number: pretrained, random init, raw pixels, chance; empty columns are left out."""
    numbers = [number for report in reports for number in report.numbers]
    columns = [(key, title) for key, title in _COLUMNS if any(getattr(n, key) for n in numbers)]
    measured = " / ".join(dict.fromkeys(report.measure for report in reports if report.numbers))
    table = Table(f"{measured}, %", *(title for _, title in columns), "chance", "test images")
    for column in table.columns[1:]:
        column.justify = "right"
    for report in reports:
        for number in report.numbers:
            cells = [written(getattr(number, key)) for key, _ in columns]
            table.add_row(number.name, *cells, f"{number.chance:.1f}", _images(report))
    return table


def _images(report: Report) -> str:
    if not report.shared:
        return str(report.scored)
    return f"{report.scored}, {'all' if report.shared >= report.scored else report.shared} in train"


def written(score: dict[str, Any] | None) -> str:
    """Write a value with its deviation."""
    if score is None:
        return ""
    return f"{score['value']:.1f}" + (f" ± {score['deviation']:.1f}" if score["deviation"] is not None else "")


def notes(reports: Sequence[Report]) -> list[str]:
    """Return the lines below the table: data, what the names mean, health, warnings."""
    lines: list[str] = []
    for report in reports:
        lines.append(_data_line(report))
        lines += [f"{number.name}: {text}" for number in report.numbers if (text := _detail(number))]
        lines += [f"note: {text}" for text in report.cautions]
        lines += [_health_line(name, values) for name, values in report.health.items()]
        lines += [f"warning: {report.warning}"] if report.warning else []
        lines += [f"nearest neighbours: {report.sheet}"] if report.sheet else []
    return list(dict.fromkeys(lines))


def _data_line(report: Report) -> str:
    train, test = report.train, report.test
    if report.classes is None:
        return (f"data {report.card}: '{train.split}' n={train.n} without labels, unreadable {train.corrupt}, "
                f"precision {report.precision}")
    return (f"data {report.card}: train '{train.split}' n={train.n}, test '{test.split}' n={test.n}, "
            f"unreadable {train.corrupt + test.corrupt}, seed {report.seed}, precision {report.precision}")


def _detail(number: Number) -> str:
    details = number.network["details"]
    if "draws" in details:
        return f"mean ± deviation over {details['draws']} draws of the labels"
    # tables stay in the file, and chance has its column
    short = {key: value for key, value in details.items() if key != "chance" and not isinstance(value, dict)}
    written = {float: "{} {:g}", int: "{} {}"}  # anything else is a sentence
    return ", ".join(written.get(type(value), "{1}").format(key, value) for key, value in short.items())


def _health_line(name: str, values: dict[str, float]) -> str:
    title = {"network": "pretrained", "random_init": "random init"}.get(name, name)
    if not values:
        return f"{title}: one image is too few to tell the health of the features"
    return (f"{title}: effective rank {values['effective_rank']:.1f} of {values['width']:.0f}, feature deviation "
            f"{values['feature_std']:.3f}, uniformity {values['uniformity']:.2f}")
