"""What a set of images is to the rest of the program."""

from __future__ import annotations

import errno
import functools
import json
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np

from unlabeled.data.sources.files.lists import one_line
from unlabeled.data.sources.fingerprint import Names, digest, fingerprint
from unlabeled.data.sources.truth import Truth


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


class Stored(Protocol):
    """What is kept of every sample of a split (see `data.records.store`)."""

    unreadable: dict[int, str]

    @property
    def identity(self) -> str:
        """Return what tells its rows from others."""

    @property
    def about(self) -> dict[str, Any]:
        """Return what readers of its rows must know."""

    def rows(self, places: np.ndarray, entries: np.ndarray | None = None) -> np.ndarray:
        """Return the rows, structured [n], of the samples at `places`, int64 [n]; or one entry of each, int64 [n]."""


class Source(Truth):
    """One split of a set, with random access: its samples, their labels, and what tells it from a changed one.

    labels: int64 [n], -1 where unknown; None if the set has none. images: uint8 [n, H, W, 3] if it lives in memory,
    read-only if it is mapped from a file. unreadable: index and reason of images that could not be read into memory;
    their rows in `images` are black; or of videos of which no frame could be found. has_clips: whether samples are
    videos, whose `image` is the middle frame. pixels: how its image files are read. stores: what is kept of every
    sample, by name. Masks and objects: see `Truth`.
    """

    name: str
    split: str
    classes: list[str] | None = None
    labels: np.ndarray | None = None
    images: np.ndarray | None = None
    pixels = Pixels()
    unreadable: dict[int, str]
    has_clips = False
    random_access = True  # False: `data.remote.StreamSource`, which is read in its own order and only to train
    _file: FileArray | None = None

    def __init__(self, name: str, split: str) -> None:
        self.name = name
        self.split = split
        self.unreadable = {}
        self.stores: dict[str, Stored] = {}

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

    def labels_of(self, indices: np.ndarray) -> np.ndarray | None:
        """Return the labels of samples, int64 [n], of `indices`, int64 [n]; None if the set has none."""
        return None if self.labels is None else self.labels[indices]

    def map_images(self, file: FileArray) -> None:
        """Take `images` from a file; copies of the source sent to other processes map it again."""
        self._file, self.images = file, file.whole()

    def key(self, index: int) -> str:
        """Return the name under which people find the sample again."""
        raise NotImplementedError

    def image(self, index: int) -> np.ndarray:
        """Return one image, uint8 [H, W, 3]. Raises CorruptSample."""
        raise NotImplementedError

    def length(self, index: int) -> int:
        """Return the number of frames of a video. Only of sources with clips."""
        raise NotImplementedError

    def rate(self, index: int) -> float:
        """Return the frames per second of a video, 0 where nobody knows. Only of sources with clips."""
        return 0.0

    def clip(self, index: int, frames: np.ndarray) -> np.ndarray:
        """Return frames of a video, uint8 [..., H, W, 3], by their numbers `frames` [...], each below its length.

        Only of sources with clips. Raises CorruptSample.
        """
        raise NotImplementedError

    def raw(self, index: int) -> bytes | None:
        """Return the bytes of the image's file; None if images do not stand in files. Raises CorruptSample."""
        return None

    def has_record(self, name: str) -> bool:
        """Return whether there is a store of this name."""
        return name in self.stores

    def record(self, name: str, indices: np.ndarray, entries: np.ndarray | None = None) -> np.ndarray:
        """Return the stored rows, structured [n], of the samples `indices`, int64 [n]; or one entry of each."""
        return self.stores[name].rows(indices, entries)

    def without_record(self, name: str) -> dict[int, str]:
        """Return the samples that have no row in a store, which could not read them, with the reasons."""
        return self.stores[name].unreadable

    def records_about(self) -> dict[str, dict[str, Any]]:
        """Return what readers of the stored rows must know, by the name of their store."""
        return {name: store.about for name, store in self.stores.items()}

    def records_digest(self) -> dict[str, str]:
        """Return what tells the stored rows from others, by the name of their store."""
        return {name: store.identity for name, store in sorted(self.stores.items())}

    def neighbour(self, name: str, index: int, place: int) -> np.ndarray:
        """Return the image at a `place` that the stored row of sample `index` names. Raises CorruptSample."""
        return self.image(place)

    def fingerprint(self) -> dict[str, Any]:
        """Return what tells this split from a changed one (see `fingerprint`).

        No image is read for it, and where the set stands does not count. A subclass adds what it knows by `names` and
        `traces`.
        """
        return fingerprint(len(self), self.names(), self.traces(), self.labels, self.classes)

    def names(self) -> Names | None:
        """Return the keys of all samples; None where they are numbers only."""
        return Names(self.key(i) for i in range(len(self)))

    def traces(self) -> np.ndarray | None:
        """Return what is cheaply known of the images: sizes of their files, pixels of some rows; None if nothing."""
        return None

    @functools.cached_property
    def images_digest(self) -> str | None:
        """Return what tells these images from changed ones for certain; None where nothing cheaper than reading does.

        That is the folder with names, sizes and times of all files, or all pixels that live in memory.
        """
        origin = self.made_of()
        if origin is None and self.images is None:
            return None
        files = origin and (str(origin[0].resolve()), origin[1])  # two sets may have files of equal names and times
        about = {"n": len(self), "pixels": astuple(self.pixels), "files": files,
                 "unreadable": sorted(self.unreadable)}
        return digest(json.dumps(about).encode(), *(() if self.images is None else (self.images,)))

    def made_of(self) -> tuple[Path, list[tuple[str, int, int]]] | None:
        """Return the folder of the set and its files (name, bytes, time in ns); None if no file is decoded."""
        return None
