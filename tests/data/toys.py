"""Small stand-ins that the tests of data share."""

from __future__ import annotations

import io
import multiprocessing
import struct
import tarfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from unlabeled.config.card import Card
from unlabeled.data.sources.base import CorruptSample, Source


class Corner:
    """A crop whose top left corner is drawn: exact arithmetic, so equality is equality of bits."""

    size = 4
    draws = 3
    boxes = True

    def draw(self, uniforms: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        """Return boxes [n, 7]."""
        top, left = (np.floor(uniforms[:, i] * (sizes[:, i] - self.size + 1)) for i in (0, 1))
        side = np.full(len(sizes), float(self.size))
        return np.column_stack([top, left, side, side, sizes, np.floor(uniforms[:, 2] * 2)])

    def apply(self, image: np.ndarray, parameters: np.ndarray) -> np.ndarray:
        """Cut one image."""
        top, left = int(parameters[0]), int(parameters[1])
        crop = image[top : top + self.size, left : left + self.size].transpose(2, 0, 1)
        return np.ascontiguousarray(crop[:, :, ::-1] if parameters[6] else crop)

    def apply_batch(self, images: Tensor, parameters: np.ndarray) -> Tensor:
        """Cut every image."""
        return torch.stack([torch.from_numpy(self.apply(image.permute(1, 2, 0).numpy(), row))
                            for image, row in zip(images, parameters, strict=True)])


class Whole(Corner):
    """The top left corner, nothing drawn."""

    draws = 0

    def draw(self, uniforms: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        """Return boxes [n, 7]."""
        place = np.tile([0.0, 0.0, self.size, self.size], (len(sizes), 1))
        return np.column_stack([place, sizes, np.zeros(len(sizes))])


class Numbered(Source):
    """n images of 8 x 8 made from their number; some may be unreadable."""

    def __init__(self, n: int, bad: Sequence[int] = (), in_memory: bool = False) -> None:
        super().__init__("numbered", "train")
        self.n, self.bad = n, frozenset(bad)
        self.labels = np.arange(n, dtype=np.int64) % 7
        if in_memory:
            self.unreadable = dict.fromkeys(bad, "broken")
            self.images = np.stack([self._make(i) for i in range(n)])

    def __len__(self) -> int:
        return self.n

    def key(self, index: int) -> str:
        """Return the number."""
        return f"sample-{index}"

    def image(self, index: int) -> np.ndarray:
        """Return one image."""
        if index in self.bad:
            raise CorruptSample(self.key(index), "broken")
        return self._make(index)

    def _make(self, index: int) -> np.ndarray:
        return np.random.default_rng(index).integers(0, 256, (8, 8, 3), np.uint8)


def jpeg(number: int, size: int = 16, form: str = "JPEG") -> bytes:
    """Return a small real image file."""
    pixels = np.random.default_rng(number).integers(0, 256, (size, size, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form)
    return buffer.getvalue()


def png(rows: np.ndarray, width: int, bits: int, colour: int) -> bytes:
    """Return a PNG file of kinds that PIL does not write.

    rows: uint8 [H, bytes], packed. colour: 0 gray, 2 RGB, 4 gray and alpha, 6 RGBA.
    """
    data = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    head = struct.pack(">IIBBBBB", width, len(rows), bits, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(part)) + name + part + struct.pack(">I", zlib.crc32(name + part))
        for name, part in ((b"IHDR", head), (b"IDAT", data), (b"IEND", b"")))


def write_tar(path: Path, members: dict[str, bytes], form: int = tarfile.USTAR_FORMAT) -> Path:
    """Write a tar file of these members."""
    with tarfile.open(path, "w", format=form) as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def write_shards(folder: Path, shards: int = 2, each: int = 5) -> Path:
    """Write shards toy-000000.tar and so on; the label of a sample is its number modulo 3."""
    folder.mkdir(parents=True, exist_ok=True)
    for shard in range(shards):
        members = {}
        for i in range(shard * each, (shard + 1) * each):
            members[f"img-{i:03d}.jpg"] = jpeg(i)
            members[f"img-{i:03d}.cls"] = str(i % 3).encode()
        write_tar(folder / f"toy-{shard:06d}.tar", members)
    return folder


def shard_card(root: Path, **more: object) -> Card:
    """Return the card of what write_shards wrote."""
    return Card.model_validate({
        "name": "toy", "source": {"kind": "shards", "label": "cls"}, "root": str(root), "classes": ["a", "b", "c"],
        "splits": {"train": {"path": "toy-{000000..000001}.tar"}}, **more})


def at_once(act: Callable[[], Any], count: int = 4) -> list[Any]:
    """Return what `act` gives in each of several processes that begin it together."""
    context = multiprocessing.get_context("fork")
    barrier, answers = context.Barrier(count), context.Queue()

    def begin() -> None:
        barrier.wait()
        answers.put(act())

    processes = [context.Process(target=begin) for _ in range(count)]
    for process in processes:
        process.start()
    given = [answers.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    return given
