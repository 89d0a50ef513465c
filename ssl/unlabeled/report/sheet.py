"""A picture of nearest neighbours: what a network finds alike, for sets without labels."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from unlabeled.ops.machine.files import write_atomically

_CELL, _GAP = 96, 4


def neighbour_sheet(rows: Sequence[Sequence[np.ndarray]], path: Path) -> Path:
    """Write a PNG with one line per query: the query, then its neighbours, nearest first.

    They are images, uint8 [H, W, 3], or the frames [F, H, W, 3] of clips, side by side.
    """
    cells = [[_cell(image) for image in row] for row in rows]
    widest, across = max(len(row) for row in cells), cells[0][0].width + _GAP
    # the query stands apart from its neighbours by one more gap
    width, height = widest * across + 3 * _GAP, len(rows) * (_CELL + _GAP) + _GAP
    sheet = Image.new("RGB", (width, height), "white")
    for y, row in enumerate(cells):
        for x, cell in enumerate(row):
            sheet.paste(cell, (_GAP + x * across + (2 * _GAP if x else 0), _GAP + y * (_CELL + _GAP)))
    buffer = BytesIO()
    sheet.save(buffer, "PNG")
    write_atomically(path, lambda file: file.write(buffer.getvalue()))
    return path


def _cell(image: np.ndarray) -> Image.Image:
    if image.ndim == 4:
        return Image.fromarray(np.concatenate([np.asarray(_cell(frame)) for frame in image], 1))
    side = min(image.shape[:2])
    top, left = (image.shape[0] - side) // 2, (image.shape[1] - side) // 2
    square = Image.fromarray(image[top : top + side, left : left + side])
    return square.resize((_CELL, _CELL), Image.Resampling.NEAREST if side < 24 else Image.Resampling.BICUBIC)
