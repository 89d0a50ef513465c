"""Images that stand in arrays: NumPy files and scikit-learn's digits."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from unlabeled.config.card import Card, Digits
from unlabeled.data.base import FORGIVEN, CorruptSample, FileArray, Source
from unlabeled.data.levels import Levels, eight_bits
from unlabeled.errors import UserError
from unlabeled.ops.random import permutation


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
    """Open a .npz or .npy file. Raises UserError if it is missing or of another type or shape."""
    spec = card.splits[split]
    path = card.folder(root) / (spec.path or f"{split}.npz")
    labels: np.ndarray | None = None
    rows: np.ndarray | FileArray
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as saved:
                if "images" not in saved:
                    raise UserError(f"{path} has no array 'images' (it has: {', '.join(saved.files)})")
                rows, labels = saved["images"], saved.get("labels")
        else:
            mapped = np.load(path, mmap_mode="r", allow_pickle=False)
            gray = card.in_memory and mapped.ndim == 3 and mapped.dtype == np.uint8  # becomes RGB in memory
            rows = np.array(mapped) if gray or not mapped.flags.c_contiguous else FileArray(
                path, mapped.shape, mapped.dtype.str, mapped.offset)
        if spec.labels is not None:
            labels = np.load(path.parent / spec.labels, allow_pickle=False)
    except FileNotFoundError as error:
        raise UserError(f"data card '{card.name}', split '{split}': no file {error.filename}; give the folder with "
                        "data.train.root=FOLDER (root=FOLDER in an evaluation)") from error
    except (ValueError, EOFError, OSError) as error:
        raise UserError(f"{path} is no readable .npy or .npz file: {error}") from error
    shape = rows.shape
    _refuse_images(path, rows, card)
    if labels is not None and (labels.shape != shape[:1] or not np.issubdtype(labels.dtype, np.integer)):
        raise UserError(f"{path}: {shape[0]} images, but labels are {labels.dtype} {list(labels.shape)}")
    source = ArraySource(card.name, split, rows, None if labels is None else labels.astype(np.int64), card.classes)
    if card.in_memory and isinstance(rows, FileArray) and rows.dtype == "|u1":
        source.map_images(rows)
    return source


def _refuse_images(path: Path, rows: np.ndarray | FileArray, card: Card) -> None:
    """Raise UserError if the rows are no images, or not of values that the card's `levels` let read."""
    dtype, shape, reason = np.dtype(rows.dtype), list(rows.shape), ""
    if len(shape) in (3, 4) and shape[3:] in ([], [3]) and 0 not in shape[1:]:
        if dtype == np.uint8 and card.levels is not None:
            raise UserError(f"{path}: images are uint8, on which 'levels' of data card '{card.name}' has no effect; "
                            "leave it out")
        reason = _reason_of_all(rows, card.levels)
        if not reason:
            return
    raise UserError(f"{path}: images are {dtype} {shape}; allowed: uint8, uint16, or floats from 0 to 1, [n, H, W, 3] "
                    f"or [n, H, W]{reason}")


def _reason_of_all(rows: np.ndarray | FileArray, levels: Levels | None) -> str:
    """Return why the first rows cannot be read, empty if one of them can: a bad one among others is refused alone."""
    reason = ""
    for index in range(min(FORGIVEN + 1, len(rows))):
        try:
            eight_bits(np.array(rows[index]), levels)
        except ValueError as error:
            reason = f": {error}"
        else:
            return ""
    return reason


def open_digits(card: Card, split: str, root: str | None) -> Source:
    """Open scikit-learn's digits (values 0 to 16, here 0 to 255), divided class by class by the card's seed."""
    from sklearn.datasets import load_digits  # only here: importing scikit-learn takes a second

    rule = card.source
    assert isinstance(rule, Digits)
    digits = load_digits()
    chosen = stratified(digits.target, rule.held_out, rule.seed)
    if split == "train":
        chosen = np.setdiff1d(np.arange(len(digits.target)), chosen)
    images = np.round(digits.images[chosen] * (255 / 16)).astype(np.uint8)
    return ArraySource(card.name, split, images, digits.target[chosen].astype(np.int64),
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
