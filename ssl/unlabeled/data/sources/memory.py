"""Small sets whose images are all decoded once and kept in a file, which later starts map instead of decoding."""

from __future__ import annotations

import functools
import hashlib
import json
import math
import os
import re
from pathlib import Path
from typing import IO, Any

import numpy as np

from unlabeled.config.card import Card
from unlabeled.data.sources.base import CorruptSample, FileArray, Source
from unlabeled.data.sources.files.kept import keep, places
from unlabeled.data.sources.files.said import say_once
from unlabeled.errors import UserError

_VERSION = 2
_Decoded = tuple[FileArray, dict[int, str]]


class InMemory(Source):
    """A source whose images are all decoded.

    The decoded images stand in CARD-SPLIT.images in the folder of the set or, where that is read-only, in the user's
    cache folder: a line of JSON (stamp, shape, unreadable images), then the array. They are decoded again when a file
    of the set has changed its name, size or time, or the card its rule. Where the file cannot be written they live in
    this process.
    """

    def __init__(self, source: Source, card: Card) -> None:
        super().__init__(source.name, source.split)
        self.source, self.labels, self.classes = source, source.labels, source.classes
        origin = source.made_of()
        if origin is None:
            self.images, self.unreadable = decode_all(source)
            return
        folder, files = origin
        stamp = _stamp(card, files)
        where = places(folder / re.sub(r"[^\w.-]", "_", f"{card.name}-{source.split}.images"))
        copy = _find(where, stamp)
        if copy is None:
            images, unreadable = decode_all(source)
            copy = _find(where, stamp)  # of a process that began at the same time and was faster
            if copy is None:
                refused = keep(where, functools.partial(_fill, stamp=stamp, images=images, unreadable=unreadable))
                if refused is not None:
                    folders = " or ".join(str(place.parent) for place in where)
                    say_once(f"the decoded images of '{card.name}' cannot be kept in {folders} ({refused.strerror}): "
                              "every start decodes them again")
                copy = _find(where, stamp)
        if copy is None:
            self.images, self.unreadable = images, unreadable
        else:
            self.map_images(copy[0])
            self.unreadable = copy[1]

    def __len__(self) -> int:
        return len(self.source)

    def key(self, index: int) -> str:
        """Return the name under which people find the sample again."""
        return self.source.key(index)

    def fingerprint(self) -> dict[str, Any]:
        """Return that of the set which was decoded."""
        return self.source.fingerprint()

    def image(self, index: int) -> np.ndarray:
        """Return one image, uint8 [H, W, 3]. Raises CorruptSample."""
        if index in self.unreadable:
            raise CorruptSample(self.key(index), self.unreadable[index])
        assert self.images is not None
        return np.array(self.images[index])


def decode_all(source: Source) -> tuple[np.ndarray, dict[int, str]]:
    """Return all images, uint8 [n, H, W, 3], and the reasons why some are unreadable; their rows are black.

    Raises UserError if the images differ in size, or none is readable.
    """
    images: np.ndarray | None = None
    unreadable: dict[int, str] = {}
    for index in range(len(source)):
        try:
            image = source.image(index)
        except CorruptSample as error:
            unreadable[index] = error.reason
            continue
        if images is None:
            images = np.zeros((len(source), *image.shape), np.uint8)
        if image.shape != images.shape[1:]:
            raise UserError(
                f"data card '{source.name}' says in_memory, but its images differ in size: '{source.key(index)}' is "
                f"{image.shape[0]} x {image.shape[1]}, others {images.shape[1]} x {images.shape[2]}; "
                "set in_memory: false"
            )
        images[index] = image
    if images is None:
        raise UserError(f"data card '{source.name}', split '{source.split}': none of {len(source)} images is readable, "
                        f"the first: {source.key(0)}: {unreadable.get(0)}")
    return images, unreadable


def _stamp(card: Card, files: list[tuple[str, int, int]]) -> str:
    rule = [_VERSION, card.source.model_dump(mode="json"), card.upright, card.levels, files]
    return hashlib.blake2b(json.dumps(rule).encode(), digest_size=16).hexdigest()


def _find(where: list[Path], stamp: str) -> _Decoded | None:
    return next((found for found in (_read(place, stamp) for place in where) if found is not None), None)


def _read(place: Path, stamp: str) -> _Decoded | None:
    try:
        with open(place, "rb") as file:
            head = file.readline()
            about = json.loads(head)
            size = os.fstat(file.fileno()).st_size
        shape = tuple(about["shape"])
        if about["stamp"] != stamp or size != len(head) + math.prod(shape):
            return None
        return FileArray(place, shape, "u1", len(head)), {int(i): reason for i, reason in about["unreadable"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None  # missing or damaged: the images are decoded again


def _fill(file: IO[bytes], *, stamp: str, images: np.ndarray, unreadable: dict[int, str]) -> None:
    head = json.dumps({"stamp": stamp, "shape": images.shape, "unreadable": unreadable})
    file.write(head.encode() + b"\n")
    file.write(images.data)
