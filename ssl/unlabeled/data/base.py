"""What a set of images is to the rest of the program."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np


class CorruptSample(Exception):
    """One unreadable image; training replaces it, evaluation leaves it out, both name it."""

    def __init__(self, key: str, reason: str) -> None:
        super().__init__(key, reason)
        self.key = key
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.key}: {self.reason}"


# what the system lacks, and the cure: such errors say nothing of the file that was to be read
SYSTEM_ERRORS = {
    errno.EMFILE: "raise the limit on open files (ulimit -n), or lower data.workers",
    errno.ENFILE: "the whole machine has too many files open",
    errno.ENOMEM: "lower data.workers or the batch",
    errno.ENOBUFS: "lower data.workers or the batch",
    errno.EAGAIN: "lower data.workers, or raise the limit on processes (ulimit -u)",
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some space",
    errno.EINTR: "run the same command again",
    **dict.fromkeys(
        (errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETDOWN,
         errno.ENETUNREACH, errno.ECONNREFUSED, errno.ECONNABORTED, errno.ENODEV, errno.EREMOTEIO, errno.ESHUTDOWN),
        "the file system does not answer: mount it again",
    ),
}


def unreadable(key: str, error: OSError, file: Path | None = None) -> CorruptSample:
    """Return what a failed read of a sample, in `file`, means; errors of the system (`SYSTEM_ERRORS`) are raised again.

    Anything else is the file's: EIO (a bad place on the disk), ENOENT, EACCES, EISDIR, ELOOP, ENAMETOOLONG and so on.
    """
    if error.errno in SYSTEM_ERRORS:
        raise error
    reason = error.strerror or str(error)
    return CorruptSample(key, f"{file}: {reason}" if file else reason)


_BREAKS = re.compile(r"[\\\x00-\x1f\x7f-\x9f\u2028\u2029]")


def as_line(name: str) -> str:
    """Return a name as it stands in a list of one per line: backslashes and what would break a line are escaped."""
    return _BREAKS.sub(lambda found: found[0].encode("unicode_escape").decode(), name)


FORGIVEN = 10  # so that one bad file does not end a run on a small folder


def too_many(corrupt: int, samples: int, share: float) -> bool:
    """Return whether `corrupt` unreadable samples are more than the allowed share, or all there are."""
    return corrupt > max(FORGIVEN, share * samples) or corrupt == samples


@dataclass(frozen=True)
class Objects:
    """The k objects of one image.

    boxes: float32 [k, 4], left, top, right, bottom in pixels. kinds: int64 [k], places in `Source.object_classes`.
    areas: float32 [k], square pixels, of the mask where there is one. crowd: bool [k], a region of many objects, which
    is neither trained on nor counted. difficult: bool [k], trained on, but not counted. masks: bool [k, H, W], if they
    were asked for.
    """

    boxes: np.ndarray
    kinds: np.ndarray
    areas: np.ndarray
    crowd: np.ndarray
    difficult: np.ndarray
    masks: np.ndarray | None = None


class FileArray:
    """A read-only array in a file, mapped where it is used: copies sent to other processes hold no data."""

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: str = "u1", offset: int = 0) -> None:
        self.path, self.shape, self.dtype, self.offset = path, shape, dtype, offset
        self._mapped: np.ndarray | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_mapped": None}

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: int) -> np.ndarray:
        return self.whole()[index]

    def whole(self) -> np.ndarray:
        """Return the array; its pages are read when they are used, and shared by all processes of the machine."""
        if self._mapped is None:
            self._mapped = np.asarray(np.memmap(self.path, self.dtype, "r", self.offset, self.shape))
        return self._mapped


class Source:
    """One split of a set, with random access.

    labels: int64 [n], -1 where unknown; None if the set has none. images: uint8 [n, H, W, 3] if it lives in memory,
    read-only if it is mapped from a file. unreadable: index and reason of images that could not be read into memory;
    their rows in `images` are black. mask_classes: names of what masks tell apart; None if the set has no masks.
    object_classes: names of the kinds of objects with boxes; None if it has none. has_shapes: these have masks too.
    dropped: how many of them were left out, whose boxes enclose nothing.
    """

    name: str
    split: str
    classes: list[str] | None = None
    labels: np.ndarray | None = None
    images: np.ndarray | None = None
    mask_classes: list[str] | None = None
    object_classes: list[str] | None = None
    has_shapes = False
    dropped = 0
    unreadable: dict[int, str]
    random_access = True  # False: `data.remote.StreamSource`, which is read in its own order and only to train
    _file: FileArray | None = None

    def __init__(self, name: str, split: str) -> None:
        self.name = name
        self.split = split
        self.unreadable = {}

    def __len__(self) -> int:
        raise NotImplementedError

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ if self._file is None else {**self.__dict__, "images": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self._file is not None:
            self.images = self._file.whole()

    @property
    def has_labels(self) -> bool:
        """Return whether samples come with labels."""
        return self.labels is not None

    def map_images(self, file: FileArray) -> None:
        """Take `images` from a file; copies of the source sent to other processes map it again."""
        self._file, self.images = file, file.whole()

    def key(self, index: int) -> str:
        """Return the name under which people find the sample again."""
        raise NotImplementedError

    def image(self, index: int) -> np.ndarray:
        """Return one image, uint8 [H, W, 3]. Raises CorruptSample."""
        raise NotImplementedError

    def mask(self, index: int) -> np.ndarray:
        """Return the class of every pixel, uint8 [H, W], 255 where it is not counted. Raises UserError.

        Only of sets that name `mask_classes`.
        """
        raise NotImplementedError

    def objects(self, index: int, *, masks: bool = False) -> Objects:
        """Return the objects of an image, with their masks if asked for. Only of sets that name `object_classes`."""
        raise NotImplementedError

    def with_objects(self) -> np.ndarray:
        """Return the images, int64, that hold an object to train on."""
        return np.arange(len(self))

    def raw(self, index: int) -> bytes | None:
        """Return the bytes of the image's file; None if images do not stand in files. Raises CorruptSample."""
        return None

    def made_of(self) -> tuple[Path, list[tuple[str, int, int]]] | None:
        """Return the folder of the set and its files (name, bytes, time in ns); None if no file is decoded."""
        return None


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
