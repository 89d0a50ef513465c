"""Standard output and error that never end a run: without a reader, on a full disk, in any encoding."""

from __future__ import annotations

import io
import os
import select
import sys
from typing import TextIO

from unlabeled.errors import UserError

_PATIENCE = 5.0  # seconds that a reader who takes nothing may hold up the program


def safe_streams(*, strict: bool) -> None:
    """Put streams into `sys.stdout` and `sys.stderr` that write what an encoding lacks as escapes, and never raise.

    What cannot be written, since the reader has gone, the disk is full or the stream was closed, goes nowhere; that is
    said on standard error, once. strict: standard output is all that the command gives, so that BrokenPipeError or
    UserError is raised. Streams that were replaced before, by tests or notebooks, only learn to write escapes.
    """
    while (spare := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass  # one was closed: the next file that is opened would be printed to
    os.close(spare)
    for name, descriptor in (("stderr", 2), ("stdout", 1)):
        stream: TextIO | None = getattr(sys, name)
        if stream is not None and stream is not getattr(sys, f"__{name}__"):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")
            continue
        safe = io.TextIOWrapper(
            _Output(descriptor, strict and name == "stdout"),  # type: ignore[type-var]
            stream.encoding if stream is not None else "utf-8",
            "backslashreplace",
            line_buffering=name == "stderr" or os.isatty(descriptor),
            write_through=isinstance(stream, io.TextIOWrapper) and stream.write_through,  # python -u
        )
        setattr(sys, name, safe)
        setattr(sys, f"__{name}__", safe)


class _Output(io.RawIOBase):
    """Writes to a descriptor; after an error, or while the reader takes nothing, to nowhere."""

    def __init__(self, descriptor: int, strict: bool) -> None:
        self.descriptor, self.strict = descriptor, strict
        self.lost = False
        self.patience = _PATIENCE

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self.descriptor

    def isatty(self) -> bool:
        return os.isatty(self.descriptor)

    def write(self, data: object) -> int:
        """Return that all was written."""
        whole = memoryview(data).cast("B")  # type: ignore[arg-type]
        rest = whole
        while rest.nbytes and not self.lost and self._writable():
            try:
                rest = rest[os.write(self.descriptor, rest[: select.PIPE_BUF]) :]
            except BlockingIOError:
                continue
            except OSError as error:
                self._lose(error)
        return whole.nbytes

    def _writable(self) -> bool:
        """Return whether there is a reader, or a file. One who came to a stop, Ctrl-S perhaps, is waited for once."""
        poll = select.poll()
        poll.register(self.descriptor, select.POLLOUT)
        ready = bool(poll.poll(None if self.strict else self.patience * 1000))
        self.patience = _PATIENCE if ready else 0.0
        return ready

    def _lose(self, error: OSError) -> None:
        self.lost = True
        if self.strict and isinstance(error, BrokenPipeError):  # the reader, such as head, has seen enough
            raise error
        if self.strict:
            raise UserError(f"cannot write to standard output: {error.strerror}") from error
        if self.descriptor != 2:
            print(f"standard output: {error.strerror}; going on without it", file=sys.stderr, flush=True)
