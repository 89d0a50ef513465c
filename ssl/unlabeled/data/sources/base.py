"""What a set of images is to the rest of the program."""

from __future__ import annotations

import errno
import hashlib
import json
from collections.abc import Iterable
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from unlabeled.data.sources.files.lists import one_line


class CorruptKey(str):
    """The key of an unreadable image, which also knows why it is unreadable: lists of keys are what travels."""

    reason: str

    def __new__(cls, key: str, reason: str) -> Self:
        """Join both."""
        made = super().__new__(cls, key)
        made.reason = reason
        return made

    def __reduce__(self) -> tuple[Any, ...]:
        return CorruptKey, (str(self), self.reason)


def with_reason(key: str) -> str:
    """Return the key of an unreadable image as one line, with the reason behind it, if it is known."""
    return f"{one_line(key)}: {key.reason}" if isinstance(key, CorruptKey) else one_line(key)


class CorruptSample(Exception):
    """One unreadable image; training replaces it, evaluation leaves it out, both name it."""

    def __init__(self, key: str, reason: str) -> None:
        super().__init__(key, reason)
        self.key: str = CorruptKey(key, reason)
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


@dataclass(frozen=True)
class Pixels:
    """How a data card says that image files are read.

    levels: the values that become black and white where an image has more than 8 bits; None: what its format says.
    upright: whether images are turned as their orientation tags say.
    """

    levels: tuple[float, float] | None = None
    upright: bool = True


FORGIVEN = 10  # so that one bad file does not end a run on a small folder


def too_many(corrupt: int, samples: int, share: float) -> bool:
    """Return whether `corrupt` unreadable samples are more than the allowed share, or all there are."""
    return corrupt > max(FORGIVEN, share * samples) or 0 < corrupt == samples


@dataclass(frozen=True)
class Objects:
    """The k objects of one image.

    boxes: float32 [k, 4], left, top, right, bottom in pixels. kinds: int64 [k], places in `Source.object_classes`.
    areas: float32 [k], square pixels, of the mask where there is one. crowd: bool [k], a region of many objects, which
    is neither trained on nor counted. difficult: bool [k], trained on, but not counted. masks: bool [k, H, W], if they
    were asked for. size: height and width of the image for which all this is stated; None if it is the image's own.
    """

    boxes: np.ndarray
    kinds: np.ndarray
    areas: np.ndarray
    crowd: np.ndarray
    difficult: np.ndarray
    masks: np.ndarray | None = None
    size: tuple[int, int] | None = None


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
    object_classes: names of the kinds of objects with boxes; None if it has none. has_shapes: these have masks too,
    or else lacks_shape says which one has none.
    dropped: how many of them were left out, whose boxes enclose nothing. pixels: how its image files are read.
    """

    name: str
    split: str
    classes: list[str] | None = None
    labels: np.ndarray | None = None
    images: np.ndarray | None = None
    mask_classes: list[str] | None = None
    object_classes: list[str] | None = None
    has_shapes = False
    lacks_shape = ""
    dropped = 0
    pixels = Pixels()
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

    def fingerprint(self) -> dict[str, Any]:
        """Return what tells this split from a changed one, as JSON knows it: n, and digests of names, labels, traces.

        No image is read for it, and where the set stands does not count. A subclass adds what it knows by `names` and
        `traces`; digests are equal if all that they were made of is.
        """
        names, traces = self.names(), self.traces()
        found: dict[str, Any] = {"n": len(self)}
        if names is not None:
            found["names"] = digest(np.diff(names.ends, prepend=0), names.text)
        if traces is not None:
            found["traces"] = digest(traces)
        if self.labels is not None:
            found["labels"] = digest(self.labels.astype(np.int64))
        if self.classes is not None:
            found["classes"] = digest(json.dumps(self.classes).encode())
        return found

    def names(self) -> Names | None:
        """Return the keys of all samples; None where they are numbers only."""
        return Names(self.key(i) for i in range(len(self)))

    def traces(self) -> np.ndarray | None:
        """Return what is cheaply known of the images: sizes of their files, pixels of some rows; None if nothing."""
        return None

    def images_digest(self) -> str | None:
        """Return what tells these images from changed ones for certain; None where nothing cheaper than reading does.

        That is names, sizes and times of all files, or all pixels that live in memory.
        """
        made = self.made_of()
        if made is None and self.images is None:
            return None
        known = {"n": len(self), "pixels": astuple(self.pixels), "files": made and made[1],
                 "unreadable": sorted(self.unreadable)}
        return digest(json.dumps(known).encode(), *(() if self.images is None else (self.images,)))

    def made_of(self) -> tuple[Path, list[tuple[str, int, int]]] | None:
        """Return the folder of the set and its files (name, bytes, time in ns); None if no file is decoded."""
        return None


def digest(*parts: np.ndarray | bytes) -> str:
    """Return a hash of arrays, with their types and shapes, and of bytes."""
    total = hashlib.blake2b(digest_size=16)
    for part in parts:
        head = f"{part.dtype.str}{part.shape}" if isinstance(part, np.ndarray) else f"{len(part)}"
        total.update(head.encode())
        total.update(np.ascontiguousarray(part).data if isinstance(part, np.ndarray) else part)
    return total.hexdigest()


def spread(count: int, most: int) -> np.ndarray:
    """Return at most `most` of the places [0, count), evenly spread, int64."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).astype(np.int64)) if count else np.empty(0, np.int64)


class Names:
    """A list of strings in two buffers: cheap for millions of names, and shared with forked workers without copies."""

    def __init__(self, names: Iterable[str]) -> None:
        # not surrogateescape: what an ascii locale reads as escapes must come back as escapes, or no file has that name
        encoded = [name.encode("utf-8", "surrogatepass") for name in names]
        self.ends = np.cumsum([len(name) for name in encoded], dtype=np.int64)
        self.text = b"".join(encoded)

    @classmethod
    def from_buffers(cls, text: bytes, ends: np.ndarray) -> Names:
        """Rebuild what `text` and `ends` held."""
        names = cls(())
        names.text, names.ends = text, ends
        return names

    @classmethod
    def joined(cls, parts: Iterable[Names]) -> Names:
        """Put lists behind one another."""
        several = list(parts)
        lengths = [np.diff(part.ends, prepend=0) for part in several]
        return cls.from_buffers(b"".join(part.text for part in several), np.cumsum(np.concatenate(lengths)))

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> str:
        if not 0 <= index < len(self.ends):
            raise IndexError(index)
        start = int(self.ends[index - 1]) if index else 0
        return self.text[start : int(self.ends[index])].decode("utf-8", "surrogatepass")
