"""Images that stand in arrays: NumPy files and scikit-learn's digits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from unlabeled.config.card import Card, Digits
from unlabeled.data.sources.base import FORGIVEN, CorruptSample, FileArray, Source
from unlabeled.data.sources.files.levels import Levels, eight_bits
from unlabeled.data.sources.files.reading import reading, refuse_bomb
from unlabeled.data.sources.fingerprint import spread
from unlabeled.data.sources.labels import class_numbers
from unlabeled.errors import UserError
from unlabeled.ops.random import permutation

_WRONG = "no readable .npy or .npz file"
_ZIP, _NPY = b"PK\x03\x04", b"\x93NUMPY"  # what the files begin with
_LOOKED_AT = 1 << 22  # bytes of rows that are part of the fingerprint


class ArraySource(Source):
    """Rows of one array, [n, H, W, 3], [n, H, W], or with `planes` [n, 3, W, H] as STL-10 keeps them.

    What is not uint8 becomes so by `levels.eight_bits` when it is read.
    """

    def __init__(self, name: str, split: str, rows: np.ndarray | FileArray, labels: np.ndarray | None = None,
                 classes: list[str] | None = None, planes: bool = False) -> None:
        super().__init__(name, split)
        self.rows, self.planes = rows, planes
        self.labels, self.classes = labels, classes
        if isinstance(rows, np.ndarray) and rows.dtype == np.uint8:
            self.images = np.repeat(rows[..., None], 3, axis=3) if rows.ndim == 3 else rows

    def __len__(self) -> int:
        return len(self.rows)

    def key(self, index: int) -> str:
        """Return split and number."""
        return f"{self.split}-{index:06d}"

    def fingerprint(self) -> dict[str, Any]:
        """Return n, the shape of the array, and digests of labels and of some rows."""
        return {**super().fingerprint(), "shape": list(self.rows.shape)}

    def names(self) -> None:
        """Return None: rows have numbers."""

    def traces(self) -> np.ndarray:
        """Return the pixels of some rows."""
        most = max(1, _LOOKED_AT // max(1, int(np.prod(self.rows.shape[1:]))))
        rows = self.rows.whole() if isinstance(self.rows, FileArray) else self.rows
        return rows[spread(len(rows), most)]

    def image(self, index: int) -> np.ndarray:
        """Return one image, uint8 [H, W, 3]. Raises CorruptSample."""
        if self.images is not None:
            return np.array(self.images[index])
        try:
            row = eight_bits(np.array(self.rows[index]), self.pixels.levels)
        except ValueError as error:
            raise CorruptSample(self.key(index), str(error)) from error
        if self.planes:
            row = row.transpose(2, 1, 0)
        return np.ascontiguousarray(row if row.ndim == 3 else np.repeat(row[..., None], 3, axis=2))


def open_array(card: Card, split: str, root: str | None) -> Source:
    """Open a .npz or .npy file. Raises UserError if it is missing, damaged, or of another type or shape."""
    spec = card.splits[split]
    path = card.folder(root) / (spec.path or f"{split}.npz")
    rows: np.ndarray | FileArray
    labels: np.ndarray | None
    try:
        if path.suffix == ".npz":
            rows, labels = _from_npz(path)
        else:
            rows, labels = _from_npy(path, card.in_memory), None
        where = path if spec.labels is None else path.parent / spec.labels
        if spec.labels is not None:
            with reading(where, _WRONG, _NPY):
                labels = _array(np.load(where, allow_pickle=False))
    except FileNotFoundError as error:
        raise UserError(f"data card '{card.name}', split '{split}': no file {error.filename}; give the folder with "
                        "data.train.root=FOLDER (root=FOLDER in an evaluation)") from error
    _refuse_shape(path, np.dtype(rows.dtype), rows.shape)
    _refuse_values(path, rows, card)
    numbers = None if labels is None else class_numbers(labels, where, len(rows), card.classes)
    source = ArraySource(card.name, split, rows, numbers, card.classes)
    if card.in_memory and isinstance(rows, FileArray) and rows.dtype == "|u1":
        source.map_images(rows)
    return source


def _from_npz(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    with reading(path, _WRONG, _ZIP), np.load(path, allow_pickle=False) as archive:
        refuse_bomb(archive.zip.infolist())
        if "images" not in archive:
            raise UserError(f"{path} has no array 'images' (it has: {', '.join(archive.files) or 'none'})")
        return _array(archive["images"]), _array(archive["labels"]) if "labels" in archive else None


def _from_npy(path: Path, in_memory: bool) -> np.ndarray | FileArray:
    with reading(path, _WRONG, _NPY):
        mapped = _array(np.load(path, mmap_mode="r", allow_pickle=False))
        gray = in_memory and mapped.ndim == 3 and mapped.dtype == np.uint8  # becomes RGB in memory
        if gray or not mapped.flags.c_contiguous or not isinstance(mapped, np.memmap):
            return np.array(mapped)
        return FileArray(path, mapped.shape, mapped.dtype.str, mapped.offset)


def _array(content: object) -> np.ndarray:
    if not isinstance(content, np.ndarray):  # an archive of several
        raise ValueError("not one array")
    return content


def _refuse_shape(path: Path, dtype: np.dtype, shape: tuple[int, ...]) -> None:
    if len(shape) == 3 and shape[2] == 3:
        raise UserError(f"{path}: images are {dtype} {list(shape)}, which is one image; allowed: [n, H, W, 3] or "
                        "[n, H, W]; save images[None]")
    if len(shape) not in (3, 4) or (len(shape) == 4 and shape[3] != 3):
        planes = len(shape) == 4 and shape[1] == 3
        raise UserError(f"{path}: images are {dtype} {list(shape)}; allowed: [n, H, W, 3] or [n, H, W]"
                        + ("; save images.transpose(0, 2, 3, 1)" if planes else ""))
    if 0 in shape:
        raise UserError(f"{path} holds no images: {dtype} {list(shape)}")


def _refuse_values(path: Path, rows: np.ndarray | FileArray, card: Card) -> None:
    """Raise UserError if the rows are not of values that the card's `levels` let read."""
    dtype = np.dtype(rows.dtype)
    if dtype == np.uint8 and card.levels is not None:
        raise UserError(f"{path}: images are uint8, on which 'levels' of data card '{card.name}' has no effect; leave "
                        "it out")
    if reason := _reason_of_all(rows, card.levels):
        raise UserError(f"{path}: images are {dtype} {list(rows.shape)}; allowed: uint8, uint16, or floats from 0 to 1"
                        f": {reason}")


def _reason_of_all(rows: np.ndarray | FileArray, levels: Levels | None) -> str:
    """Return why the first rows cannot be read, empty if one of them can: a bad one among others is refused alone."""
    reason = ""
    for index in range(min(FORGIVEN + 1, len(rows))):
        try:
            eight_bits(np.array(rows[index]), levels)
        except ValueError as error:
            reason = str(error)
        else:
            return ""
    return reason


def open_digits(card: Card, split: str, root: str | None) -> Source:
    """Open scikit-learn's digits (values 0 to 16, here 0 to 255), divided class by class by the card's seed."""
    from sklearn.datasets import load_digits  # only here: importing scikit-learn takes a second

    rule = card.source
    assert isinstance(rule, Digits)
    digits = load_digits()
    places = stratified(digits.target, rule.held_out, rule.seed)
    if split == "train":
        places = np.setdiff1d(np.arange(len(digits.target)), places)
    images = np.round(digits.images[places] * (255 / 16)).astype(np.uint8)
    return ArraySource(card.name, split, images, digits.target[places].astype(np.int64),
                       card.classes or [str(i) for i in range(10)])


def stratified(labels: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Choose `count` indices, sorted, from all classes in proportion (largest remainders), by `seed` alone."""
    classes, sizes = np.unique(labels, return_counts=True)
    share = sizes * count / len(labels)
    quota = np.floor(share).astype(np.int64)
    short = np.argsort(quota - share, kind="stable")[: count - int(quota.sum())]
    quota[short] += 1
    parts = [np.flatnonzero(labels == name)[permutation(size, seed, "stratified", int(name))[:take]]
             for name, size, take in zip(classes, sizes, quota, strict=True)]
    return np.sort(np.concatenate(parts))
