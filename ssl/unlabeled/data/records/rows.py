"""What a stream wants of what is stored, and the stored rows of the samples of a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from unlabeled.data.sources.base import Source
from unlabeled.ops.random import uniforms

Rows = dict[str, dict[str, np.ndarray]]  # name of the store -> field -> [b, ...]


@dataclass(frozen=True)
class Record:
    """A store whose rows a stream wants, by name.

    entry: a row holds several entries, along the first axis of all its fields, of which every visit takes one, drawn
    evenly, as if it were the row; the field `entry` says which. plain: probability with which none is taken: `entry`
    is -1, and the fields are those of entry 0.
    """

    name: str
    entry: bool = False
    plain: float = 0.0


def stored_rows(source: Source, records: Sequence[Record], indices: np.ndarray, positions: np.ndarray, *, seed: int,
                stream: str, epoch: int) -> Rows:
    """Return what `source` keeps of the samples `indices` [b] that stand at `positions` [b] of an epoch's order.

    Which entry of a row is taken depends on (seed, stream, epoch, position) alone.
    """
    rows: Rows = {}
    for record in records:
        entry = _drawn_entry(source, record, positions, seed, stream, epoch) if record.entry else None
        stored = source.record(record.name, indices, None if entry is None else np.maximum(entry, 0))
        rows[record.name] = {field: stored[field] for field in stored.dtype.names or ()}
        if entry is not None:
            rows[record.name]["entry"] = entry
    return rows


def _drawn_entry(source: Source, record: Record, positions: np.ndarray, seed: int, stream: str, epoch: int,
                 ) -> np.ndarray:
    """Return which entry every visit takes, int64 [b]; -1: none."""
    draws = uniforms(positions, 2, seed, stream, "record", record.name, epoch)
    entries = source.record(record.name, np.empty(0, np.int64)).dtype[0].shape[0]
    return np.where(draws[:, 1] < record.plain, -1, (draws[:, 0] * entries).astype(np.int64))


def joined(parts: Sequence[Rows]) -> Rows:
    """Put the rows of parts of a batch behind one another."""
    return {name: {field: np.concatenate([part[name][field] for part in parts]) for field in fields}
            for name, fields in parts[0].items()} if parts else {}
