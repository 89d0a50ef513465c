"""Arrays of numbers in MATLAB's files of version 5 (MAT-File Format, R2024b, "Level 5"), compressed or not.

scipy reads them too, but a damaged file can end the whole process there (segmentation fault, scipy 1.17).
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

_HEADER = 128  # bytes
_MATRIX, _COMPRESSED = 14, 15
_STORED = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_CLASSES = {6: "f8", 7: "f4", 8: "i1", 9: "u1", 10: "i2", 11: "u2", 12: "i4", 13: "u4", 14: "i8", 15: "u8"}
_COMPLEX = 0x0800


def read_mat(path: Path, *names: str) -> dict[str, np.ndarray]:
    """Return the arrays of these names, as far as the file holds them. Raises OSError, ValueError and zlib.error."""
    data = memoryview(path.read_bytes())
    if len(data) < _HEADER or bytes(data[126:128]) not in (b"IM", b"MI"):
        raise ValueError("it is no MATLAB file of version 5")
    order = "<" if bytes(data[126:128]) == b"IM" else ">"
    arrays = {}
    for kind, content in _elements(data[_HEADER:], order, padded=False):
        if kind == _COMPRESSED:
            kind, content = _decompressed(content, order)
        if kind == _MATRIX:
            name, array = _matrix(content, order, names)
            if array is not None:
                arrays[name] = array
    return arrays


def _elements(data: memoryview, order: str, padded: bool = True) -> Iterator[tuple[int, memoryview]]:
    """Yield type and content of the elements; inside a matrix they are padded to 8 bytes, and small ones take no more.
    """
    while len(data):
        if len(data) < 8:
            raise ValueError("it ends inside an element")
        kind, size = (int(number) for number in np.frombuffer(data, order + "u4", 2))
        start = 8
        if kind >> 16:  # up to four bytes stand in the tag itself
            kind, size, start = kind & 0xFFFF, kind >> 16, 4
            if size > 4:
                raise ValueError("an element is damaged")
        if start + size > len(data):
            raise ValueError(f"an element of {size} bytes does not end in the file")
        yield kind, data[start : start + size]
        data = data[8 if start == 4 else start + size + (-size % 8 if padded or kind != _COMPRESSED else 0) :]


def _decompressed(data: memoryview, order: str) -> tuple[int, memoryview]:
    unpacker = zlib.decompressobj()
    tag = unpacker.decompress(data, 8)
    if len(tag) < 8:
        raise ValueError("a compressed element is damaged")
    kind, size = (int(number) for number in np.frombuffer(tag, order + "u4", 2))
    content = unpacker.decompress(unpacker.unconsumed_tail, size) if size else b""  # no more than it says
    if len(content) != size or unpacker.decompress(unpacker.unconsumed_tail, 1) or not unpacker.eof:
        raise ValueError("a compressed element is damaged")
    return kind, memoryview(content)


def _matrix(data: memoryview, order: str, names: tuple[str, ...]) -> tuple[str, np.ndarray | None]:
    """Return name and array of a matrix; None for one of another name."""
    parts = _elements(data, order)
    flags, shape, name = (content for _, content in (next(parts, (0, memoryview(b""))) for _ in range(3)))
    text = bytes(name).decode("latin1")
    if text not in names:
        return text, None
    if len(flags) != 8 or len(shape) % 4 or not len(shape):
        raise ValueError(f"'{text}' is damaged")
    flag = int(np.frombuffer(flags, order + "u4", 1)[0])
    kind, content = next(parts, (0, memoryview(b"")))
    if flag & 0xFF not in _CLASSES or flag & _COMPLEX or kind not in _STORED:
        raise ValueError(f"'{text}' is no array of numbers")
    dtype, sizes = np.dtype(order + _STORED[kind]), np.frombuffer(shape, order + "i4").tolist()
    if min(sizes) < 0 or len(content) != math.prod(sizes) * dtype.itemsize:
        raise ValueError(f"'{text}' of size {sizes} has {len(content)} bytes")
    array = np.frombuffer(content, dtype).reshape(sizes, order="F")
    return text, array.astype(_CLASSES[flag & 0xFF], copy=False)
