"""What the sizes of one elastic network cost and reach: a table, a CSV file and a picture."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO, StringIO
from pathlib import Path

from rich.console import Console
from rich.table import Table

from unlabeled.ops.machine.files import write_atomically
from unlabeled.report.terminal import open_console, print_table

_LEGEND = 16  # lines that a legend can name
FLOPS = "flops (multiply-adds)"  # as the literature counts them: one for a product and its sum
_COLUMNS = ("size", "width", "depth", "parameters", FLOPS)


@dataclass(frozen=True)
class Row:
    """A size, its parameters, its multiply-adds per image, and its scores in percent, by name.

    untrained: the scores of the same size at random initialisation.
    """

    size: str
    width: int
    depth: str
    params: int
    flops: int
    scores: Mapping[str, float] = field(default_factory=dict)
    untrained: Mapping[str, float] = field(default_factory=dict)


def print_sizes(rows: Sequence[Row], console: Console | None = None) -> None:
    """Print the rows as a table; behind a score, in brackets, that of the untrained network."""
    names = _names(rows)
    table = Table("size", "parameters", FLOPS, *(f"{name}, %" for name in names))
    for column in table.columns[1:]:
        column.justify = "right"
    for row in rows:
        scores = [_beside(row, name) for name in names]
        table.add_row(row.size, short(row.params), short(row.flops), *scores)
    print_table(console or open_console(), table)


def short(number: float) -> str:
    """Return a number as 21.67M or 4.598G."""
    unit, sign = next(((unit, sign) for unit, sign in ((1e9, "G"), (1e6, "M"), (1e3, "k")) if number >= unit), (1, ""))
    return f"{number / unit:.4g}{sign}"


def has_scores(path: Path) -> bool:
    """Return whether a table that `write_csv` wrote holds scores; False if there is none."""
    try:
        return len(path.read_text().partition("\n")[0].split(",")) > len(_COLUMNS)
    except OSError:
        return False


def write_csv(rows: Sequence[Row], path: Path) -> Path:
    """Write one line per row: size, width, depth, parameters, multiply-adds, and every score with the untrained one."""
    names = _names(rows)
    text = StringIO()
    writer = csv.writer(text, lineterminator="\n")
    scored = [title for name in names for title in (name, f"{name} random init")]
    writer.writerow([*_COLUMNS, *scored])
    for row in rows:
        scores = [scores.get(name, "") for name in names for scores in (row.scores, row.untrained)]
        writer.writerow([row.size, row.width, row.depth, row.params, row.flops, *scores])
    write_atomically(path, lambda file: file.write(text.getvalue().encode()))
    return path


def draw_sizes(rows: Sequence[Row], path: Path) -> Path:
    """Write a PNG with one panel per score: the score against the parameters, one line per depth."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # 0.5 s that only drawing pays
    from matplotlib.figure import Figure

    names = _names(rows)
    figure = Figure(figsize=(5.2 * len(names), 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    for number, name in enumerate(names, 1):
        axes = figure.add_subplot(1, len(names), number)
        for depth in dict.fromkeys(row.depth for row in rows):
            line = sorted((row.params / 1e6, row.scores[name]) for row in rows
                          if row.depth == depth and name in row.scores)
            axes.plot(*zip(*line, strict=True), label=f"depth {depth}", linewidth=1, marker="o", markersize=3)
        untrained = sorted((row.params / 1e6, row.untrained[name]) for row in rows if name in row.untrained)
        if untrained:
            axes.plot(*zip(*untrained, strict=True), label="random init", color="gray", linestyle="", marker="x",
                      markersize=4)
        axes.set(title=name, xlabel="parameters, millions", ylabel="accuracy, %")
        axes.grid(alpha=0.3)
        if len(axes.lines) <= _LEGEND:
            axes.legend(fontsize="small")
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    write_atomically(path, lambda file: file.write(buffer.getvalue()))
    return path


def _names(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row.scores))


def _beside(row: Row, name: str) -> str:
    if name not in row.scores:
        return ""
    return f"{row.scores[name]:.1f}" + (f" ({row.untrained[name]:.1f})" if name in row.untrained else "")
