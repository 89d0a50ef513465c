"""What tells a set from a changed one: names, and digests of what is cheaply known."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

_TOGETHER = 1 << 20  # rows of a large array that are looked at together, for copies would be as large


class Names:
    """A list of strings in two buffers: cheap for millions of names, and shared with forked workers without copies.

    text: bytes, or a view of those in a mapped file. known: the digest, where it is kept.
    """

    text: bytes | memoryview
    known: str | None = None

    def __init__(self, names: Iterable[str]) -> None:
        # not surrogateescape: what an ascii locale reads as escapes must come back as escapes, or no file has that name
        encoded = [name.encode("utf-8", "surrogatepass") for name in names]
        self.ends = np.cumsum([len(name) for name in encoded], dtype=np.int64)
        self.text = b"".join(encoded)

    @classmethod
    def from_buffers(cls, text: bytes | memoryview, ends: np.ndarray) -> Names:
        """Rebuild what `text` and `ends` held."""
        names = cls(())
        names.text, names.ends = text, ends
        return names

    @classmethod
    def joined(cls, parts: Iterable[Names]) -> Names:
        """Put lists behind one another."""
        several = list(parts)
        lengths = [np.diff(part.ends, prepend=0) for part in several]
        return cls.from_buffers(b"".join(part.text for part in several), np.cumsum(np.concatenate(lengths)))

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> str:
        if not 0 <= index < len(self.ends):
            raise IndexError(index)
        start = int(self.ends[index - 1]) if index else 0
        return bytes(self.text[start : int(self.ends[index])]).decode("utf-8", "surrogatepass")

    def digest(self) -> str:
        """Return a hash of all names in their order."""
        if self.known is not None:
            return self.known
        lengths = (np.diff(self.ends[first : first + _TOGETHER], prepend=self.ends[first - 1] if first else 0)
                   for first in range(0, len(self.ends), _TOGETHER))
        return _hash([_head(self.ends), *lengths, f"{len(self.text)}".encode(), self.text])


def fingerprint(n: int, names: Names | None, traces: np.ndarray | None, labels: np.ndarray | None,
                classes: Sequence[str] | None) -> dict[str, Any]:
    """Return n and digests of names, traces, labels and classes, as JSON knows it; of what is None there is none.

    Digests are equal if all that they were made of is.
    """
    known: dict[str, Any] = {"n": n}
    if names is not None:
        known["names"] = names.digest()
    if traces is not None:
        known["traces"] = digest(traces)
    if labels is not None:
        known["labels"] = digest(labels.astype(np.int64, copy=False))
    if classes is not None:
        known["classes"] = digest(json.dumps(classes).encode())
    return known


def digest(*parts: np.ndarray | bytes | memoryview) -> str:
    """Return a hash of arrays, with their types and shapes, and of bytes."""
    return _hash(piece for part in parts for piece in _pieces(part))


def _pieces(part: np.ndarray | bytes | memoryview) -> Iterator[np.ndarray | bytes | memoryview]:
    """Yield type and shape, then content; of an array, which need not be contiguous, in copies of some rows."""
    if not isinstance(part, np.ndarray):
        yield from (f"{len(part)}".encode(), part)
        return
    yield _head(part)
    rows = np.atleast_1d(part)
    yield from (np.ascontiguousarray(rows[first : first + _TOGETHER]) for first in range(0, len(rows), _TOGETHER))


def _head(array: np.ndarray) -> bytes:
    return f"{array.dtype.str}{array.shape}".encode()


def _hash(pieces: Iterable[bytes | memoryview | np.ndarray]) -> str:
    total = hashlib.blake2b(digest_size=16)
    for piece in pieces:
        total.update(piece.data if isinstance(piece, np.ndarray) else piece)
    return total.hexdigest()


def spread(count: int, most: int) -> np.ndarray:
    """Return at most `most` of the places [0, count), evenly spread, int64."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).astype(np.int64)) if count else np.empty(0, np.int64)
