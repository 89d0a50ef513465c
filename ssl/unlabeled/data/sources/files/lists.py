r"""Lists of keys in files, one per line: whatever a file is called, it is one line, and reads back as it was.

Line breaks, tabs and backslashes in a key stand there as \n, \t, \\ and the like; names that are no UTF-8 keep their
bytes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

_SHORT = {"\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"}
_LONG = {c: f"\\x{ord(c):02x}" if ord(c) < 256 else f"\\u{ord(c):04x}" for c in "\v\f\x1c\x1d\x1e\x85\u2028\u2029"}
_ESCAPES = str.maketrans(_SHORT | _LONG)  # all that str.splitlines takes for the end of a line
_UNDO = {escape: text for text, escape in (_SHORT | _LONG).items()}
_ESCAPED = re.compile(r"\\(?:[\\nrt]|x[0-9a-f]{2}|u[0-9a-f]{4})")


def one_line(key: str) -> str:
    """Return a key as it stands in a list."""
    return key.translate(_ESCAPES)


def write_lines(keys: Iterable[str]) -> bytes:
    """Return the content of a list of keys."""
    return "".join(f"{one_line(key)}\n" for key in keys).encode("utf-8", "surrogateescape")


def read_lines(data: bytes) -> list[str]:
    """Undo `write_lines`."""
    lines = data.decode("utf-8", "surrogateescape").removesuffix("\n").split("\n") if data else []
    return [_ESCAPED.sub(lambda found: _UNDO.get(found[0], found[0]), line) for line in lines]
