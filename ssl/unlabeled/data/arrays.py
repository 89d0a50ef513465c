"""Images that stand in arrays: NumPy files and scikit-learn's digits."""

from __future__ import annotations

from typing import Any

import numpy as np

from unlabeled.config.card import Card, Digits
from unlabeled.data.base import FileArray, Source, spread
from unlabeled.errors import UserError
from unlabeled.ops.random import permutation

_LOOKED_AT = 1 << 22  # bytes of rows that are part of the fingerprint


class ArraySource(Source):
    """Rows of one array, uint8 [n, H, W, 3], [n, H, W], or with `planes` [n, 3, W, H] as STL-10 keeps them."""

    def __init__(self, name: str, split: str, rows: np.ndarray | FileArray, labels: np.ndarray | None = None,
                 classes: list[str] | None = None, planes: bool = False) -> None:
        super().__init__(name, split)
        self.rows, self.planes = rows, planes
        self.labels, self.classes = labels, classes
        if isinstance(rows, np.ndarray):
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
        """Return one image, uint8 [H, W, 3]."""
        if self.images is not None:
            return np.array(self.images[index])
        row = np.array(self.rows[index])
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
            gray = card.in_memory and mapped.ndim == 3  # becomes RGB in memory
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
    if np.dtype(rows.dtype) != np.uint8 or len(shape) not in (3, 4) or (len(shape) == 4 and shape[3] != 3):
        raise UserError(f"{path}: images are {np.dtype(rows.dtype)} {list(shape)}; allowed: uint8 [n, H, W, 3] or "
                        "[n, H, W]")
    if labels is not None and (labels.shape != shape[:1] or not np.issubdtype(labels.dtype, np.integer)):
        raise UserError(f"{path}: {shape[0]} images, but labels are {labels.dtype} {list(labels.shape)}")
    source = ArraySource(card.name, split, rows, None if labels is None else labels.astype(np.int64), card.classes)
    if card.in_memory and isinstance(rows, FileArray):
        source.map_images(rows)
    return source


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
