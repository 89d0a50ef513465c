"""Writing one part of a packed set: a tar shard, or a piece of an array."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import re
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image

from unlabeled.config.pack import PackSettings
from unlabeled.data.sources.base import CorruptSample, Source
from unlabeled.data.sources.decode import decode
from unlabeled.data.sources.tar.index import load_index
from unlabeled.errors import UserError
from unlabeled.ops.machine.files import sha256, temporary

_EXTENSIONS = {"JPEG": "jpg", "MPO": "jpg", "TIFF": "tif"}  # of PIL's formats; the others are called as their format
_LONGEST = 90  # a tar header holds names of 100 bytes


@dataclass
class Piece:
    """One file to write: its split, and the places there of its samples, int64 [n], in order.

    done: what was recorded of it, if an earlier call wrote it.
    """

    split: str
    file: str
    indices: np.ndarray
    done: dict[str, Any] | None = None


@dataclass
class Tally:
    """What is known of the images of a part; all whole numbers, so that sums do not depend on their order."""

    samples: int = 0
    unreadable: list[tuple[int, str, str]] = field(default_factory=list)  # place in the split, key, reason
    extensions: set[str] = field(default_factory=set)
    sizes: set[tuple[int, int]] = field(default_factory=set)  # height and width, two of them at most
    pixels: int = 0
    sums: np.ndarray = field(default_factory=lambda: np.zeros((2, 3), np.int64))  # of values and squares, per channel

    def add(self, image: Image.Image, extension: str) -> None:
        """Count one image."""
        counts = np.array(image.histogram(), np.int64).reshape(3, 256)
        values = np.arange(256)
        self.sums += np.stack([counts @ values, counts @ values**2])
        self.pixels += image.width * image.height
        self.samples += 1
        self.extensions.add(extension)
        if len(self.sizes) < 2:
            self.sizes.add((image.height, image.width))

    def record(self) -> dict[str, Any]:
        """Return everything as JSON knows it."""
        return {"samples": self.samples, "unreadable": [list(found) for found in self.unreadable],
                "extensions": sorted(self.extensions), "sizes": sorted(map(list, self.sizes)), "pixels": self.pixels,
                "sums": self.sums.tolist()}


class Packer:
    """Writes files of a pack (a `loader.Maker`); size: height and width of all images, for arrays."""

    def __init__(self, out: Path, sources: dict[str, Source], settings: PackSettings, size: tuple[int, int] | None,
                 ) -> None:
        self.out, self.sources, self.settings, self.size = out, sources, settings, size
        self.alike = {split: _alike(source) for split, source in sources.items()} if settings.store == "shards" else {}

    def make(self, unit: Piece) -> dict[str, Any]:
        """Write a file, unless it stands there with the recorded checksum, and return its record.

        Raises UserError if it cannot be written, or for an array if an image has another size than the first one.
        """
        path = self.out / unit.file
        if unit.done is not None and path.is_file() and sha256(path) == unit.done["sha256"]:
            return unit.done
        tally = Tally()
        with writing(path) as file:
            if self.settings.store == "array":
                self._array(unit, file, tally)
            else:
                self._shard(unit, file, tally)
        if self.settings.store == "shards":
            load_index(path, None if self.sources[unit.split].labels is None else "cls")
        return {"file": unit.file, "split": unit.split, "sha256": file.sum.hexdigest(), **tally.record()}

    def _shard(self, unit: Piece, file: Hashed, tally: Tally) -> None:
        source = self.sources[unit.split]
        with tarfile.open(fileobj=file, mode="w|", format=tarfile.USTAR_FORMAT, bufsize=1 << 20) as tar:  # type: ignore[call-overload]
            for index, data, extension in self._files(unit, tally):
                name = self._name(unit.split, index)
                _add(tar, f"{name}.{extension}", data)
                if source.labels is not None and source.labels[index] >= 0:
                    _add(tar, f"{name}.cls", str(source.labels[index]).encode())

    def _name(self, split: str, index: int) -> str:
        """Return the key of a sample: its own name or, where that will not do, its place in the split and its end."""
        name = plain(self.sources[split].key(index))
        encoded = name.encode()
        if index in self.alike[split] or not 0 < len(encoded) <= _LONGEST:
            name = f"{index:08d}-{encoded[10 - _LONGEST :].decode(errors='ignore')}"
        return name

    def _array(self, unit: Piece, file: Hashed, tally: Tally) -> None:
        for index, image, _ in self._images(unit, tally):
            if (image.height, image.width) != self.size:
                raise UserError(f"store=array needs images of one size, but '{self.sources[unit.split].key(index)}' is "
                                f"{image.height} x {image.width} and others {' x '.join(map(str, self.size or ()))}; "
                                "use store=shards")
            tally.add(image, "")
            file.write(image.tobytes())

    def _files(self, unit: Piece, tally: Tally) -> Iterator[tuple[int, bytes, str]]:
        for index, image, data in self._images(unit, tally):
            stored, extension = encode(image, data, self.settings)
            tally.add(image, extension)
            yield index, stored, extension

    def _images(self, unit: Piece, tally: Tally) -> Iterator[tuple[int, Image.Image, bytes | None]]:
        for index in unit.indices.tolist():
            try:
                yield index, *load(self.sources[unit.split], index, self.settings.short_side)
            except CorruptSample as error:
                tally.unreadable.append((index, error.key, error.reason))


def load(source: Source, index: int, short_side: int | None) -> tuple[Image.Image, bytes | None]:
    """Return an image, resized if its shorter side is larger, and the bytes of its file, None if resized or without.

    Raises CorruptSample.
    """
    data = source.raw(index)
    image = Image.fromarray(source.image(index) if data is None else decode(data, source.key(index), source.pixels))
    shorter = min(image.size)
    if short_side is None or shorter <= short_side:
        return image, data
    width, height = (max(1, round(side * short_side / shorter)) for side in image.size)
    return image.resize((width, height), Image.Resampling.LANCZOS), None


def encode(image: Image.Image, data: bytes | None, settings: PackSettings) -> tuple[bytes, str]:
    """Return what is stored and its extension: the file as it is, a resized image as JPEG, other pixels as PNG."""
    if data is not None:
        with Image.open(io.BytesIO(data)) as original:
            form = original.format or ""
        return data, _EXTENSIONS.get(form, form.lower())
    buffer = io.BytesIO()
    if min(image.size) == settings.short_side:
        image.save(buffer, "JPEG", quality=settings.jpeg_quality)
        return buffer.getvalue(), "jpg"
    image.save(buffer, "PNG")
    return buffer.getvalue(), "png"


def plain(key: str) -> str:
    """Return a key as every reader of tar shards understands it: without extension, dots, blanks and the like."""
    return re.sub(r"[^\w/-]", "-", os.path.splitext(key)[0]).lstrip("_/")


def _alike(source: Source) -> set[int]:
    """Return the places of the samples whose plain keys are not unique, as those of a.jpg and a.png."""
    digests = np.empty(len(source), np.uint64)
    for index in range(len(source)):
        digest = hashlib.blake2b(plain(source.key(index)).encode(), digest_size=8).digest()
        digests[index] = int.from_bytes(digest, "little")
    _, inverse, counts = np.unique(digests, return_inverse=True, return_counts=True)
    return set(np.flatnonzero(counts[inverse] > 1).tolist())


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)  # time, user and group 0: equal images give equal bytes
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


class Hashed:
    """A file being written, and the SHA-256 of what it holds."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.sum = file, hashlib.sha256()

    def write(self, data: bytes) -> int:
        """Write bytes."""
        self.sum.update(data)
        return self.file.write(data)


@contextmanager
def writing(path: Path) -> Iterator[Hashed]:
    """Write a file beside and rename it when it is whole. Raises UserError if the disk is full or refuses."""
    beside = temporary(path, "part")
    try:
        with open(beside, "wb") as file:
            yield Hashed(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        beside.unlink(missing_ok=True)


def cannot_write(path: Path, error: OSError) -> UserError:
    """Return what to tell of a failed write."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    what = "the disk is full; free some space" if full else f"{error.strerror or error}; mend it"
    return UserError(f"cannot write {path}: {what} and run the same command again, it goes on from there")

