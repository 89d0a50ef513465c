"""Tables and lines on any terminal, file or pipe: what its encoding or width cannot show is written otherwise."""

from __future__ import annotations

import re

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

_ASCII = {"±": "+-"}
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")  # would break a line, or move the cursor


def open_console() -> Console:
    """Return a console on the standard output."""
    return Console(highlight=False)


def print_line(console: Console, text: str, bold: str = "") -> None:
    """Print one line, `bold` first, however long it is."""
    line = Text.assemble((writable(bold, console.encoding), "bold"), writable(text, console.encoding))
    console.print(line, soft_wrap=True)


def print_table(console: Console, table: Table) -> None:
    """Print a table of plain cells.

    A table wider than the terminal becomes one line per row, with the titles before the values. What is no terminal
    gets the whole width. Nothing is ever cut.
    """
    columns = [[writable(str(cell), console.encoding) for cell in (column.header, *column.cells)]
               for column in table.columns]
    grid = Table()
    for column, (title, *_) in zip(table.columns, columns, strict=True):
        grid.add_column(Text(title), no_wrap=True, justify=column.justify)
    rows = list(zip(*columns, strict=True))
    for row in rows[1:]:
        grid.add_row(*map(Text, row))
    wide = Measurement.get(console, console.options.update(max_width=1 << 16), grid).maximum
    if wide <= console.width or not console.is_terminal:
        console.width = max(console.width, wide)
        console.print(grid)
        return
    print_line(console, "", bold=rows[0][0])
    for row in rows[1:]:
        values = [f"{title} {cell}" for title, cell in zip(rows[0][1:], row[1:], strict=True) if cell]
        print_line(console, f": {', '.join(values)}", bold=row[0])


def writable(text: str, encoding: str) -> str:
    """Return `text` as one line that `encoding` can hold: other characters in ASCII, or as their numbers."""
    text = _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)
    return "".join(character if _holds(encoding, character) else
                   _ASCII.get(character, character.encode("ascii", "backslashreplace").decode()) for character in text)


def _holds(encoding: str, character: str) -> bool:
    try:
        character.encode(encoding)
    except UnicodeEncodeError:
        return False
    return True
