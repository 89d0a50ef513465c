"""Reading a file of other people's making: whatever is wrong with it is said in one line that names it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from zipfile import ZipInfo

from unlabeled.errors import UserError

_UNPACKED, _RATIO = 1 << 30, 200  # bytes that may come of anything; how much more than packed ones beyond that
# first bytes -> what such a file is, and what to do with it where another kind was expected
_KINDS = (
    (b"\x1f\x8b", "compressed (gzip); unpack it with gunzip"),
    (b"BZh", "compressed (bzip2); unpack it with bunzip2"),
    (b"\xfd7zXZ\0", "compressed (xz); unpack it with unxz"),
    (b"\x28\xb5\x2f\xfd", "compressed (zstd); unpack it with unzstd"),
    (b"PK\x03\x04", "a zip archive, as .npz files are; give it that ending, or unpack it"),
    (b"\x93NUMPY", "an array of NumPy; give it the ending .npy"),
    (b"MATLAB 7.3", "a MATLAB file of version 7.3 (HDF5); save it with -v7"),
    (b"\x89HDF\r\n", "an HDF5 file, as MATLAB's version 7.3; save it with -v7"),
    (b"version https://git-lfs", "the pointer of a Git LFS file; get the file itself with git lfs pull"),
    (b"<!doctype", "a web page; the download went wrong"),
    (b"<html", "a web page; the download went wrong"),
)


def kind_of(head: bytes) -> str | None:
    """Return what a file that begins so is, with the cure where another kind was expected; None if it is unknown."""
    text = head.lstrip().lower()
    return next((kind for magic, kind in _KINDS if (text if magic[:1] == b"<" else head).startswith(magic)), None)


def kind_of_file(file: Path) -> str | None:
    """Return `kind_of` of what stands there, also for folders and empty files; None if it cannot be looked at."""
    try:
        if file.is_dir():
            return "a folder"
        if not file.is_file():  # a pipe would wait for a writer
            return "no plain file"
        with open(file, "rb") as stream:
            head = stream.read(64)
    except OSError:
        return None
    return kind_of(head) if head else "empty; get it again"


def refuse_bomb(entries: Iterable[ZipInfo]) -> None:
    """Raise ValueError for an entry of a zip archive that is made to fill the memory: huge, from next to nothing."""
    for entry in entries:
        if entry.file_size > max(_UNPACKED, _RATIO * entry.compress_size):
            raise ValueError(f"{entry.filename} unpacks from {entry.compress_size} to {entry.file_size} bytes")


@contextmanager
def reading(file: Path, wrong: str, magic: bytes = b"") -> Iterator[None]:
    """Raise what a decoder raises on other bytes than it expects as a UserError of one line, with file and cure.

    wrong: what to call such a file, as in "it is `wrong`". magic: what files of the right kind begin with. A missing
    file stays a FileNotFoundError: callers know where to get it.
    """
    try:
        if file.exists() and not file.is_file():
            raise UserError(f"{file} is {wrong}: it is {kind_of_file(file)}")
        yield
    except (UserError, FileNotFoundError):
        raise
    except OSError as error:
        if error.errno is None:  # decoders raise it on damaged bytes too
            raise _damaged(file, wrong, magic, error) from error
        raise UserError(f"{file} cannot be read: {error.strerror}") from error
    except Exception as error:  # decoders raise almost anything, and MemoryError for a size that cannot be
        raise _damaged(file, wrong, magic, error) from error


def _damaged(file: Path, wrong: str, magic: bytes, error: Exception) -> UserError:
    kind = kind_of_file(file)
    if kind is not None and kind != kind_of(magic):
        return UserError(f"{file} is {wrong}: it is {kind}")
    reason = (" ".join(str(error).split()) or type(error).__name__)[:200]
    if kind is not None:  # of the right kind by its first bytes
        reason = f"it is truncated or damaged ({reason})"
    return UserError(f"{file} is {wrong}: {reason}; get it again")
