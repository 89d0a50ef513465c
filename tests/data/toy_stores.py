"""Stores of rows that tests make by hand."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from unlabeled.data.records.store import HEADER, Header, keys_digest, write_block
from unlabeled.data.sources.base import Source
from unlabeled.ops.machine.files import write_atomically


def write_store(folder: Path, source: Source, kind: str, columns: Mapping[str, np.ndarray], block: int = 7,
                unreadable: Mapping[int, str] | None = None, **about: Any) -> Path:
    """Keep columns [n, ...] of the samples of `source` as a pass would have."""
    fields = {name: (values.dtype.newbyteorder("<").str, values.shape[1:]) for name, values in columns.items()}
    header = Header(kind, fields, len(source), block, source.name, source.split, keys_digest(source),
                    {"classes": None, "num_classes": None, **about})
    write_atomically(folder / HEADER, lambda file: file.write(header.to_json()))
    rows = np.zeros(len(source), header.dtype)
    for name, values in columns.items():
        rows[name] = values
    for number in range(header.blocks):
        places = header.places(number)
        gaps = {place: reason for place, reason in (unreadable or {}).items() if place in places}
        write_block(folder, header, number, rows[places.start : places.stop], gaps)
    return folder
