"""One tar file read from front to back, through webdataset's openers, with retries."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import http.client
import lzma
import re
import subprocess
import time
import urllib.request
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from unlabeled.data.sources.tar.members import Truncated, exactly, files, grouped, no_target, place, split
from unlabeled.errors import UserError

TRIES = 4
WAIT = 1.0  # seconds before the second try; doubled before each further one
_TIMEOUT = 60.0  # seconds without an answer of an HTTP server
_CHUNK = 1 << 20
_PADDING = 1 << 30  # bytes of zeros behind the end mark
_PACKED: dict[bytes, Any] = {b"\x1f\x8b": lambda stream: gzip.GzipFile(fileobj=stream, mode="rb"), b"BZ": bz2.BZ2File,
                             b"\xfd7": lzma.LZMAFile}  # by the first two bytes

_TARGETS: dict[str, frozenset[str]] = {}  # url -> the files that hard links in it mean, once one was met


@dataclass(frozen=True)
class Member:
    """One sample: its name, and the content of its files by extension, in small letters."""

    key: str
    fields: dict[str, bytes]


class _LinkMet(Exception):
    """A hard link to a file that nobody knew to keep."""


def read_tar(url: str) -> Iterator[Member]:
    """Yield the samples of a tar file in order: a path, an http(s) URL, or what webdataset opens, as pipe:COMMAND.

    A read that breaks off is begun again, past the samples that were given. So is the first one that meets a hard link:
    it is then read which files links mean, and their contents are kept while the samples are read. Raises UserError
    that names the file if it cannot be read, is no tar file, or holds what `tar_members` refuses.
    """
    given = failed = 0
    look = False
    while True:
        try:
            if look:
                _TARGETS[url], look = _targets(url), False
            for number, member in enumerate(_samples(url)):
                if number >= given:
                    given += 1
                    yield member
            return
        except _LinkMet as error:
            if url in _TARGETS:  # they were looked for: the file changes while it is read
                raise UserError(f"shard {url} gives other members every time it is read") from error
            look = True
        except (OSError, EOFError, zlib.error, lzma.LZMAError, http.client.HTTPException) as error:
            failed += 1
            if failed == TRIES:
                raise UserError(f"shard {url} cannot be read, {TRIES} tries: {_reason(error)}") from error
            time.sleep(WAIT * 2 ** (failed - 1))


def _samples(url: str) -> Iterator[Member]:
    for key, fields in grouped(_contents(url), url):
        yield Member(key, fields)


def _targets(url: str) -> frozenset[str]:
    with _opened(url) as stream:
        return frozenset(file.link for file in files(stream, url) if file.link is not None)


def _contents(url: str) -> Iterator[tuple[str, bytes]]:
    """Yield name and content of the files that make samples; the end comes only when it is sure that all was read."""
    targets = _TARGETS.get(url, frozenset())
    contents: dict[str, bytes] = {}
    with _opened(url) as stream:
        for file in files(stream, url):
            name = place(file.name)
            if file.link is None:
                if split(file.name) is None and name not in targets:
                    continue
                content = exactly(stream, file.size)
            elif file.link in contents:
                content = contents[file.link]
            elif split(file.name) is None:
                continue
            elif file.link in targets:
                raise no_target(url, file)
            else:
                raise _LinkMet
            if name in targets:
                contents[name] = content
            yield file.name, content


@contextlib.contextmanager
def _opened(url: str) -> Iterator[_Stream]:
    stream = _Stream(url)
    try:
        yield stream
        stream.raw.close()  # webdataset's pipes raise here if the command failed
    except (Truncated, OSError) as error:
        code = stream.exit_code()
        if code:
            raise OSError(f"the command ended with exit code {code}") from error
        raise
    finally:
        stream.end()


class _Stream:
    """What an opener gives, unpacked if it is compressed, as `tar_members.Bytes`."""

    def __init__(self, url: str) -> None:
        self.raw, self.at = _open(url), 0
        self._begin = self.raw.read(2)
        packed = _PACKED.get(self._begin)
        self._plain = self if packed is None else packed(self)

    def read(self, size: int) -> bytes:
        """Return up to `size` bytes as they come, those that were looked at first."""
        begin, self._begin = self._begin, b""
        return begin or self.raw.read(size)

    def take(self, count: int) -> bytes:
        """Return the next bytes, fewer at the end."""
        parts: list[bytes] = []
        while count > 0 and (part := self._plain.read(min(count, _CHUNK))):
            parts.append(part)
            count -= len(part)
            self.at += len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def skip(self, count: int) -> bool:
        """Pass over bytes; return whether there were as many."""
        while count > 0 and (part := self._plain.read(min(count, _CHUNK))):
            count -= len(part)
            self.at += len(part)
        return count <= 0

    def rest_is_empty(self) -> bool:
        """Read to the end, as a command whose output is not read dies of it; return whether there were only zeros.

        More of them than any tar adds are none: a small compressed file could hold zeros for days.
        """
        empty, count = True, 0
        while count <= _PADDING and (part := self._plain.read(_CHUNK)):
            empty &= not part.strip(b"\0")
            count += len(part)
        return empty and count <= _PADDING

    def exit_code(self) -> int | None:
        """Return the exit code of a command that has ended, or ends at once."""
        if not hasattr(self.raw, "proc"):
            return None
        try:
            code: int = self.raw.proc.wait(1.0)
        except subprocess.TimeoutExpired:
            return None
        return code

    def end(self) -> None:
        """Close the stream, also in the middle; a command that still runs is ended."""
        if hasattr(self.raw, "proc"):
            self.raw.proc.kill()
        with contextlib.suppress(OSError):  # the command's exit code says only that it was ended
            self.raw.close()


def _open(url: str) -> Any:
    if url.startswith(("http://", "https://")):  # webdataset asks curl, which answers in exit codes
        return urllib.request.urlopen(url, timeout=_TIMEOUT)
    if "://" not in url and not url.startswith(("pipe:", "file:")):
        return open(url, "rb")  # the name of a file may hold what means something in a URL
    from webdataset.gopen import gopen  # only here: a second to import, and few read streams

    try:
        return gopen(url)
    except ValueError as error:  # of an opener that it does not know
        raise UserError(f"shard {url} cannot be opened: {error}") from error


def _reason(error: Exception) -> str:
    exit_code = re.search(r"exit (-?\d+) \(read\)", str(error))  # of webdataset's pipes
    if exit_code is not None:
        return f"the command ended with exit code {exit_code[1]}"
    return str(error) or type(error).__name__
