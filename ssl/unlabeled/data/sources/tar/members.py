"""The members of a tar file that make samples, read from its headers alike for random access and for streams.

Read are ustar, GNU and PAX headers with long names and large sizes, and hard links, which GNU tar writes by itself for
a file that it meets twice. What would be left out or read as something else is refused by name: symbolic links, sparse
files, devices, and whatever follows the end mark.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeVar

from unlabeled.data.sources.files.reading import kind_of
from unlabeled.errors import UserError

T = TypeVar("T")

_BLOCK = 512
_LONGEST = 1 << 24  # bytes of a name or a PAX record; more is damage
_LARGEST = 1 << 62  # bytes of a member; file systems hold no more
_MOST = 1 << 32  # bytes of a file that belongs to a sample: it is read as a whole
_FILES, _FOLDERS = b"0\x007", b"5DV"  # the latter hold no content of a sample
_OCTAL = re.compile(rb"[0-7]*")
_ODD = re.compile(r"^[./]|/[./]|/$|^$")
_RECORD = re.compile(rb"([0-9]{1,9}) ([^=]+)=")
_REFUSED = {
    b"2": "a symbolic link; pack what it points to, with tar --dereference",
    b"S": "a sparse file; pack it without --sparse",
    b"3": "a device", b"4": "a device", b"6": "a named pipe",
    b"M": "a part of a file that another volume begins; join the volumes first",
}


class Truncated(EOFError):
    """The tar file ends where more was to come; said without its name."""


class Bytes(Protocol):
    """What a tar file is read from, front to back. at: how many bytes were read or passed over."""

    at: int

    def take(self, count: int) -> bytes:
        """Return the next bytes, fewer at the end."""

    def skip(self, count: int) -> bool:
        """Pass over bytes; return whether there were as many."""

    def rest_is_empty(self) -> bool:
        """Read to the end and return whether only zeros were left."""


class File(NamedTuple):
    """A member that holds a file. start: of its content, `size` bytes. link: an earlier file that is the same."""

    name: str
    start: int
    size: int
    link: str | None = None


@dataclass
class _Extras:
    """What headers before a member's own say of it."""

    name: str = ""
    link: str = ""
    size: int | None = None
    sparse: bool = False


_NONE = _Extras()


def files(source: Bytes, tar: str) -> Iterator[File]:
    """Yield the files in order; the content of one may be taken from `source` before the next is asked for.

    Raises Truncated; raises UserError for damage, for data after the end mark and for members that are refused.
    """
    extras = _NONE
    while any(header := _header(source, tar)):
        start = source.at
        size = _number(header[124:136])
        if size is None or _number(header[148:156]) != sum(header) - sum(header[148:156]) + 8 * 32:
            raise UserError(_no_header(tar, header, start - _BLOCK))
        kind = header[156:157]
        if kind in b"LKxXg":
            extras = _Extras() if extras is _NONE else extras
            _read_extras(kind, _long(source, size, tar), extras, f"shard {tar}", start - _BLOCK)
            continue
        if extras.size is not None and kind in _FILES:
            size = extras.size
        file = File(extras.name or _name(header), start, size,
                    place(extras.link or _text(header[157:257])) if kind == b"1" else None)
        what = _REFUSED[b"S"] if extras.sparse else _refusal(kind, size) or _odd(file)
        if what is not None and split(file.name) is not None:
            raise UserError(f"shard {tar}: member {file.name} is {what}")
        if what is None and kind not in _FOLDERS:
            yield file
        if not source.skip(start + size + -size % _BLOCK - source.at):
            raise Truncated("unexpected end of data")
        extras = _NONE
    end = source.at - _BLOCK
    if not source.rest_is_empty():
        raise UserError(f"shard {tar} goes on after its end mark at byte {end}, as files do that cat has joined; use "
                        "the parts themselves, or join them with tar --concatenate")


def exactly(source: Bytes, count: int) -> bytes:
    """Return the next bytes. Raises Truncated if there are not as many."""
    data = source.take(count)
    if len(data) < count:
        raise Truncated("unexpected end of data")
    return data


def split(name: str) -> tuple[str, str] | None:
    """Return key and extension of a member, by webdataset's rule: a name up to its first dot; None if it is no part."""
    folder, slash, base = name.rpartition("/")
    stem, _, extension = base.partition(".")
    if not stem or not extension or (base.startswith("__") and base.endswith("__")):
        return None
    return folder + slash + stem, extension.lower()


def grouped(members: Iterable[tuple[str, T]], tar: str) -> Iterator[tuple[str, dict[str, T]]]:
    """Yield key and content by extension of every sample: a run of members with one key, other names left out.

    Raises UserError if a sample has two members of one extension.
    """
    last: str | None = None
    fields: dict[str, T] = {}
    for name, content in members:
        parts = split(name)
        if parts is None:
            continue
        key, extension = parts
        if key != last:
            if last is not None:
                yield last, fields
            last, fields = key, {}
        if extension in fields:
            raise UserError(f"shard {tar} holds {name} twice")
        fields[extension] = content
    if last is not None:
        yield last, fields


def place(name: str) -> str:
    """Return a name as links give it: without ./ and the like."""
    return posixpath.normpath(name).lstrip("/") if _ODD.search(name) else name


def no_target(tar: str, file: File) -> UserError:
    """Return what to tell of a hard link to what is not there."""
    return UserError(f"shard {tar}: member {file.name} is a hard link to {file.link}, which is no file before it in "
                     "the shard; pack it with tar --hard-dereference")


def _header(source: Bytes, tar: str) -> bytes:
    header = source.take(_BLOCK)
    if not header:
        raise Truncated("it ends without an end mark")
    if len(header) < _BLOCK:
        if source.at == len(header) and kind_of(header) is not None:  # a small file of another kind
            raise UserError(_no_header(tar, header, 0))
        raise Truncated("unexpected end of data")
    return header


def _refusal(kind: bytes, size: int) -> str | None:
    """Return what a member is that is not read, with the cure; None for files, folders and hard links."""
    if kind in _FILES or kind in _FOLDERS:
        return None
    if kind == b"1":
        return "a hard link with content of its own; pack it with tar --hard-dereference" if size else None
    return _REFUSED.get(kind, f"of the unknown kind {kind.decode('latin1')!r}; pack it anew")


def _odd(file: File) -> str | None:
    """Return what is wrong with the name or size of a file, which may be made to do harm."""
    if ".." in file.name and ".." in file.name.split("/"):
        return "named to stand outside its folder; pack it anew, from inside the folder"
    if file.size > _MOST:
        return f"of {file.size} bytes; a file of a sample has at most {_MOST >> 30} GiB"
    return None


def _no_header(tar: str, header: bytes, at: int) -> str:
    kind = kind_of(header) if at == 0 else None
    if kind is not None:
        return f"shard {tar} is not a plain tar file: it is {kind}"
    return f"shard {tar} is damaged or not a plain tar file: no member header at byte {at}; copy it again"


def _long(source: Bytes, size: int, tar: str) -> bytes:
    if size > _LONGEST:
        raise UserError(f"shard {tar} is damaged: a name of {size} bytes at byte {source.at}; copy it again")
    return exactly(source, size + -size % _BLOCK)[:size]


def _name(header: bytes) -> str:
    name = _text(header[:100])
    prefix = _text(header[345:500]) if header[257:263] == b"ustar\0" else ""
    return f"{prefix}/{name}" if prefix else name


def _number(field: bytes) -> int | None:
    if field[0] & 0x80:  # GNU: base 256 for sizes from 8 GiB
        value = int.from_bytes(field[1:], "big")
        return value if field[0] == 0x80 and value < _LARGEST else None
    text = field.strip(b"\0 ")
    return int(text or b"0", 8) if _OCTAL.fullmatch(text) else None


def _text(field: bytes) -> str:
    return field.partition(b"\0")[0].decode("utf-8", "surrogateescape")


def _read_extras(kind: bytes, text: bytes, extras: _Extras, shard: str, at: int) -> None:
    """Read what a header at byte `at` says of the next member, or of all: that may be neither a name nor a size."""
    if kind == b"L":
        extras.name = _text(text)
        return
    if kind == b"K":
        extras.link = _text(text)
        return
    for key, value in _pax(text, shard, at):
        known = key in ("path", "linkpath", "size") or key.startswith("GNU.sparse.")
        if known and kind == b"g":
            raise UserError(f"{shard}: a PAX header at byte {at} gives all members one {key}; pack it anew")
        if key == "size":
            if not re.fullmatch(r"[0-9]{1,19}", value, re.ASCII) or int(value) >= _LARGEST:
                raise UserError(f"{shard} is damaged: a PAX header at byte {at} states the size {value[:40]!r}; "
                                "copy it again")
            extras.size = int(value)
        elif key in ("path", "GNU.sparse.name"):
            extras.name = value
        elif key == "linkpath":
            extras.link = value
        extras.sparse |= key.startswith("GNU.sparse.")


def _pax(text: bytes, shard: str, at: int) -> Iterator[tuple[str, str]]:
    """Yield key and value of the records LENGTH KEY=VALUE of a PAX header."""
    first = 0
    while first < len(text):
        record = _RECORD.match(text, first)
        end = first + int(record[1]) if record else 0
        if record is None or not record.end() < end <= len(text) or text[end - 1] != ord("\n"):
            raise UserError(f"{shard} is damaged: no PAX record at byte {at}; copy it again")
        value = text[record.end() : end - 1]
        yield record[2].decode("utf-8", "surrogateescape"), value.decode("utf-8", "surrogateescape")
        first = end
