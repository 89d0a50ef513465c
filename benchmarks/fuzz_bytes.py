"""Damage for files: bytes flipped, cut, zeroed, doubled, removed; values of text put at their extremes."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np

Random = np.random.Generator

_EXTREMES = [bytes(4), b"\xff" * 4, b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0\0\0\1", b"\1\0\0\0", b"\x80\0\0\0"]
_TOKEN = re.compile(rb'-?\d+(?:\.\d+)?|"[^"]*"|null|true|false|\[\]|>[^<>]+<')
_VALUES = [b"0", b"-1", b"1e400", b"NaN", b"-Infinity", b"99999999999999999999", b"1.5", b"null", b"[]", b"{}", b'""',
           b'"7"', b"true", b"[[]]", b'"\\ud800"', b"1e9", b"", b"9" * 5000]


def damaged(data: bytes, random: Random) -> bytes:
    """Return the bytes of a file with one to three kinds of damage."""
    for _ in range(int(random.integers(1, 4))):
        data = _KINDS[int(random.integers(len(_KINDS)))](data, random)
    return data


def damaged_text(data: bytes, random: Random) -> bytes:
    """Return a text of JSON, XML or lines with some of its values replaced, or damaged as bytes are."""
    if random.random() < 0.3:
        return damaged(data, random)
    tokens = list(_TOKEN.finditer(data))
    for _ in range(int(random.integers(1, 3))):
        if not tokens:
            break
        token = tokens[int(random.integers(len(tokens)))]
        value = _VALUES[int(random.integers(len(_VALUES)))] if random.random() < 0.6 else \
            tokens[int(random.integers(len(tokens)))].group()
        if token.group()[:1] == b">":
            value = b">" + value.strip(b'"><') + b"<"
        data = data[: token.start()] + value + data[token.end() :]
        tokens = list(_TOKEN.finditer(data))
    return data


def _span(data: bytes, random: Random) -> slice:
    start = int(random.integers(len(data) + 1))
    longest = int(random.choice([1, 4, 16, 64, 512, 4096]))
    return slice(start, start + int(random.integers(1, longest + 1)))


def _flipped(data: bytes, random: Random) -> bytes:
    changed = bytearray(data)
    for _ in range(int(random.integers(1, 9)) if data else 0):
        near = len(data) if random.random() < 0.5 else min(len(data), 600)  # headers matter most
        changed[int(random.integers(near))] ^= 1 << int(random.integers(8))
    return bytes(changed)


def _set(data: bytes, random: Random) -> bytes:
    near = len(data) if random.random() < 0.5 else min(len(data), 600)
    start = int(random.integers(near + 1))
    value = _EXTREMES[int(random.integers(len(_EXTREMES)))][: int(random.choice([1, 2, 4]))]
    return data[:start] + value + data[start + len(value) :]


def _cut(data: bytes, random: Random) -> bytes:
    return data[: int(random.integers(len(data) + 1))]


def _zeroed(data: bytes, random: Random) -> bytes:
    span = _span(data, random)
    return data[: span.start] + bytes(len(data[span])) + data[span.stop :]


def _removed(data: bytes, random: Random) -> bytes:
    span = _span(data, random)
    return data[: span.start] + data[span.stop :]


def _doubled(data: bytes, random: Random) -> bytes:
    span = _span(data, random)
    return data[: span.stop] + data[span] + data[span.stop :]


def _inserted(data: bytes, random: Random) -> bytes:
    span = _span(data, random)
    return data[: span.start] + random.bytes(span.stop - span.start) + data[span.start :]


_KINDS: list[Callable[[bytes, Random], bytes]] = [
    _flipped, _flipped, _set, _cut, _zeroed, _removed, _doubled, _inserted]
