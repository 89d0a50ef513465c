"""What a set of images is to the rest of the program."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np


class CorruptSample(Exception):
    """One unreadable image; training replaces it, evaluation leaves it out, both name it."""

    def __init__(self, key: str, reason: str) -> None:
        super().__init__(key, reason)
        self.key = key
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.key}: {self.reason}"


class Source:
    """One split of a set, with random access.

    labels: int64 [n], -1 where unknown; None if the set has none. images: uint8 [n, H, W, 3] if it lives in memory.
    unreadable: index and reason of images that could not be read into memory; their rows in `images` are black.
    """

    name: str
    split: str
    classes: list[str] | None = None
    labels: np.ndarray | None = None
    images: np.ndarray | None = None
    unreadable: dict[int, str]

    def __init__(self, name: str, split: str) -> None:
        self.name = name
        self.split = split
        self.unreadable = {}

    def __len__(self) -> int:
        raise NotImplementedError

    def key(self, index: int) -> str:
        """Return the name under which people find the sample again."""
        raise NotImplementedError

    def image(self, index: int) -> np.ndarray:
        """Return one image, uint8 [H, W, 3]. Raises CorruptSample."""
        raise NotImplementedError


class Names:
    """A list of strings in two buffers: cheap for millions of names, and shared with forked workers without copies."""

    def __init__(self, names: Iterable[str]) -> None:
        encoded = [name.encode("utf-8", "surrogateescape") for name in names]
        self.ends = np.cumsum([len(name) for name in encoded], dtype=np.int64)
        self.text = b"".join(encoded)

    @classmethod
    def from_buffers(cls, text: bytes, ends: np.ndarray) -> Names:
        """Rebuild what `text` and `ends` held."""
        names = cls(())
        names.text, names.ends = text, ends
        return names

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> str:
        if not 0 <= index < len(self.ends):
            raise IndexError(index)
        start = int(self.ends[index - 1]) if index else 0
        return self.text[start : int(self.ends[index])].decode("utf-8", "surrogateescape")
