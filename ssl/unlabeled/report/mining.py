"""The page that shows what was mined: thresholds, counts, and pictures of the pairs nearest to the line."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from unlabeled.ops.machine.files import write_atomically

PAGE = "report.html"
_SIDE = 160  # pixels of the longest side of a picture
_STYLE = ("body { font: 14px sans-serif; margin: 2em; max-width: 70em } table { border-collapse: collapse } "
          "td, th { padding: 2px 8px; text-align: left; border-bottom: 1px solid #ddd; vertical-align: top } "
          "img { margin: 2px } .key { color: #666; word-break: break-all; max-width: 24em }")


@dataclass(frozen=True)
class Rows:
    """The tables of the page: settings, counts by what they count, images chosen by class."""

    settings: Mapping[str, Any]
    counts: Mapping[str, int]
    classes: Mapping[str, int]


@dataclass(frozen=True)
class Pictured:
    """A pair of images, uint8 [H, W, 3], their keys, and what is to be said of them."""

    images: Sequence[np.ndarray]
    keys: Sequence[str]
    lines: Sequence[str]


def draw_mining(path: Path, teacher: str, rows: Rows, removed: Sequence[Pictured], kept: Sequence[Pictured]) -> Path:
    """Write a page of HTML that needs no other file. Raises UserError if it cannot be written."""
    least = f"{len(removed)} pairs that were taken for one picture on the least evidence"
    most = f"{len(kept)} pairs that were taken for two pictures though they came nearest to being one"
    parts = [
        f"<h1>Mined by {escape(teacher)}</h1>", _table("counts", rows.counts), _table("settings", rows.settings),
        *_section(f"Removed: {least}", removed), *_section(f"Kept: {most}", kept),
        _table("images chosen for each class", rows.classes),
    ]
    page = (f'<!DOCTYPE html>\n<html><head><meta charset="utf-8"><title>Mined by {escape(teacher)}</title>'
            f"<style>{_STYLE}</style></head><body>\n" + "\n".join(parts) + "\n</body></html>\n")
    write_atomically(path, lambda file: file.write(page.encode("utf-8", "backslashreplace")))
    return path


def _table(title: str, values: Mapping[str, Any]) -> str:
    lines = "".join(f"<tr><td>{escape(str(key))}</td><td>{escape(str(value))}</td></tr>\n"
                    for key, value in values.items() if value is not None)
    return f"<h2>{escape(title)}</h2>\n<table>\n{lines}</table>"


def _section(title: str, pairs: Sequence[Pictured]) -> list[str]:
    lines = [f"<h2>{escape(title)}</h2>"]
    if not pairs:
        return [*lines, "<p>none</p>"]
    rows = [f"<tr><td>{''.join(map(_picture, pair.images))}</td><td>{'<br>'.join(map(escape, pair.lines))}</td>"
            f"<td class=key>{'<br>'.join(escape(repr(key)[1:-1]) for key in pair.keys)}</td></tr>" for pair in pairs]
    head = "<tr><th>evaluation set, pool</th><th></th><th>keys</th></tr>"
    return [*lines, "<table>", head, *rows, "</table>"]


def _picture(image: np.ndarray) -> str:
    picture = Image.fromarray(image)
    scale = _SIDE / max(picture.size)
    size = [max(1, round(side * scale)) for side in picture.size]
    picture = picture.resize((size[0], size[1]), Image.Resampling.BICUBIC)
    buffer = BytesIO()
    picture.save(buffer, "JPEG", quality=90)
    return f'<img src="data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}">'
