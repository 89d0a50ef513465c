"""One tar file read from front to back, through webdataset's openers, with retries."""

from __future__ import annotations

import contextlib
import http.client
import re
import subprocess
import tarfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from unlabeled.errors import UserError

TRIES = 4
WAIT = 1.0  # seconds before the second try; doubled before each further one
_TIMEOUT = 60.0  # seconds without an answer of an HTTP server


@dataclass(frozen=True)
class Member:
    """One sample: its name, and the content of its files by extension, in small letters."""

    key: str
    fields: dict[str, bytes]


def read_tar(url: str) -> Iterator[Member]:
    """Yield the samples of a tar file in order: a path, an http(s) URL, or what webdataset opens, as pipe:COMMAND.

    A read that breaks off is begun again, past the samples that were given. Raises UserError that names the file if
    that fails too, or if the file holds a member of a sample twice.
    """
    given = 0
    for attempt in range(TRIES):
        if attempt:
            time.sleep(WAIT * 2 ** (attempt - 1))
        try:
            for place, member in enumerate(_samples(url)):
                if place >= given:
                    given += 1
                    yield member
            return
        except ValueError as error:  # of webdataset's grouping: the file is wrong, and stays so
            raise UserError(f"shard {url}: {error.args[0]}") from error
        except (OSError, EOFError, tarfile.TarError, http.client.HTTPException) as error:
            reason = _reason(error)
    raise UserError(f"shard {url} cannot be read, {TRIES} tries: {reason}")


def _samples(url: str) -> Iterator[Member]:
    from webdataset.tariterators import group_by_keys  # only here: a second to import, and few read streams

    stream = _Watched(_open(url))
    try:
        last: Member | None = None
        for sample in group_by_keys(_files(stream)):
            if last is not None:
                yield last
            last = Member(sample["__key__"], {k: v for k, v in sample.items() if not k.startswith("__")})
        while stream.read(1 << 16):  # a command whose output is not read to its end dies of it
            pass
        if stream.head[257:262] == b"ustar" and any(stream.tail):
            raise EOFError("it ends without an end mark")
        stream.stream.close()  # webdataset's pipes raise here if the command failed
        if last is not None:  # now it is sure that it is whole: tarfile takes a cut between two members for the end
            yield last
    except (tarfile.TarError, EOFError) as error:
        code = stream.exit_code()
        if code:
            raise OSError(f"the command ended with exit code {code}") from error
        raise
    finally:
        stream.end()


def _files(stream: _Watched) -> Iterator[dict[str, Any]]:
    with tarfile.open(fileobj=stream, mode="r|*") as tar:  # type: ignore[call-overload]
        for info in tar:
            base = info.name.rpartition("/")[2]
            content = tar.extractfile(info) if info.isreg() else None
            if content is not None and not (base.startswith("__") and base.endswith("__")):
                yield {"fname": info.name, "data": content.read(), "__url__": ""}
            tar.members = []  # else it keeps all headers


def _open(url: str) -> Any:
    if url.startswith(("http://", "https://")):  # webdataset asks curl, which answers in exit codes
        return urllib.request.urlopen(url, timeout=_TIMEOUT)
    from webdataset.gopen import gopen

    return gopen(url)


class _Watched:
    """A stream that remembers its first and last block."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream
        self.head = self.tail = b""

    def read(self, size: int) -> bytes:
        data: bytes = self.stream.read(size)
        if len(self.head) < 512:
            self.head += data[: 512 - len(self.head)]
        self.tail = (self.tail + data[-512:])[-512:]
        return data

    def exit_code(self) -> int | None:
        """Return the exit code of a command that has ended, or ends at once."""
        if not hasattr(self.stream, "proc"):
            return None
        try:
            code: int = self.stream.proc.wait(1.0)
        except subprocess.TimeoutExpired:
            return None
        return code

    def end(self) -> None:
        """Close the stream, also in the middle; a command that still runs is ended."""
        if hasattr(self.stream, "proc"):
            self.stream.proc.kill()
        with contextlib.suppress(OSError):  # the command's exit code says only that it was ended
            self.stream.close()


def _reason(error: Exception) -> str:
    exit_code = re.search(r"exit (-?\d+) \(read\)", str(error))  # of webdataset's pipes
    if exit_code is not None:
        return f"the command ended with exit code {exit_code[1]}"
    return str(error) or type(error).__name__
