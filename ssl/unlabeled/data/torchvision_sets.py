"""Sets in the layout of torchvision's data-set classes, read from their files; nothing is downloaded.

The files are read here rather than by those classes, which refuse files whose sums differ (a subset, a re-packed
mirror) and hold every set in memory.
"""

from __future__ import annotations

import gzip
import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from unlabeled.config.card import Card, Torchvision
from unlabeled.data.arrays import ArraySource
from unlabeled.data.base import FileArray, Source
from unlabeled.data.folder import class_folder
from unlabeled.errors import UserError

_CLASS = {"cifar10": "CIFAR10", "cifar100": "CIFAR100", "stl10": "STL10", "svhn": "SVHN",
          "fashionmnist": "FashionMNIST"}


def open_torchvision(card: Card, split: str, root: str | None) -> Source:
    """Open one split of a torchvision set. Raises UserError that says where it looked and how to get the files."""
    rule = card.source
    assert isinstance(rule, Torchvision)
    folder, part = card.folder(root), card.splits[split].path or split
    if rule.dataset == "imagenet":
        return _imagenet(card, split, folder)
    reader = _READERS[rule.dataset]
    try:
        return reader(card, split, folder, part)
    except FileNotFoundError as error:
        name = _CLASS[rule.dataset]
        extra = f"split='{part}'" if rule.dataset in ("stl10", "svhn") else f"train={part == 'train'}"
        raise UserError(
            f"data card '{card.name}', split '{split}': no file {error.filename}; give another folder with "
            f"data.train.root=FOLDER, or get it: python -c \"from torchvision.datasets import {name}; "
            f"{name}('{folder}', {extra}, download=True)\""
        ) from error
    except (pickle.UnpicklingError, KeyError, ValueError, EOFError, OSError) as error:
        raise UserError(f"data card '{card.name}', split '{split}': the files in {folder} are damaged or not in "
                        f"torchvision's layout ({type(error).__name__}: {error}); get them again") from error


def _imagenet(card: Card, split: str, folder: Path) -> Source:
    part = folder / (card.splits[split].path or split)
    if not part.is_dir():
        raise UserError(f"data card '{card.name}', split '{split}': no folder {part}; give the folder that holds it "
                        "with data.train.root=FOLDER (ImageNet is to be had from image-net.org, after registration)")
    return class_folder(card, split, folder)


class _ArraysOnly(pickle.Unpickler):
    """Pickles of arrays, lists and strings: a pickle from the net may otherwise run any code."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("_codecs", "encode"):
            return super().find_class(module, name)
        if module.split(".")[0] == "numpy" and name in ("_reconstruct", "ndarray", "dtype", "_frombuffer"):
            home = {"_reconstruct": "numpy._core.multiarray", "_frombuffer": "numpy._core.numeric"}.get(name, "numpy")
            if home != "numpy" and np.lib.NumpyVersion(np.__version__) < "2.0.0":
                home = home.replace("_core", "core")
            return super().find_class(home, name)
        raise pickle.UnpicklingError(f"{module}.{name} does not belong into a file of images")


def _unpickle(path: Path) -> dict[str, Any]:
    content = _ArraysOnly(io.BytesIO(path.read_bytes()), encoding="latin1").load()
    return {key if isinstance(key, str) else key.decode(): value for key, value in content.items()}


def _cifar(card: Card, split: str, folder: Path, part: str) -> Source:
    rule = card.source
    assert isinstance(rule, Torchvision)
    train = _one_of(part, "train", "test") == "train"
    if rule.dataset == "cifar10":
        base, field = folder / "cifar-10-batches-py", "labels"
        names = [f"data_batch_{i}" for i in range(1, 6)] if train else ["test_batch"]
        meta, listing = "batches.meta", "label_names"
    else:
        base, field = folder / "cifar-100-python", "fine_labels"
        names, meta, listing = ["train" if train else "test"], "meta", "fine_label_names"
    parts = [_unpickle(base / name) for name in names]
    planes = np.concatenate([np.asarray(content["data"], np.uint8).reshape(-1, 3, 32, 32) for content in parts])
    labels = np.concatenate([np.asarray(content[field], np.int64) for content in parts])
    classes = card.classes
    if classes is None and (base / meta).is_file():
        classes = list(_unpickle(base / meta)[listing])
    return ArraySource(card.name, split, np.ascontiguousarray(planes.transpose(0, 2, 3, 1)), labels, classes)


def _stl10(card: Card, split: str, folder: Path, part: str) -> Source:
    part = _one_of(part, "train", "test", "unlabeled")
    base = folder / "stl10_binary"
    path = base / f"{part}_X.bin"
    if path.stat().st_size % (3 * 96 * 96):
        raise ValueError(f"{path} is not a whole number of 96 x 96 images")
    rows = FileArray(path, (path.stat().st_size // (3 * 96 * 96), 3, 96, 96))
    labels = None
    if part != "unlabeled":
        labels = np.fromfile(base / f"{part}_y.bin", np.uint8).astype(np.int64) - 1
        if len(labels) != len(rows):
            raise ValueError(f"{len(rows)} images, but {len(labels)} labels")
    classes = card.classes
    if classes is None and (base / "class_names.txt").is_file():
        classes = (base / "class_names.txt").read_text("utf-8", "surrogateescape").split()
    return ArraySource(card.name, split, rows, labels, classes, planes=True)


def _svhn(card: Card, split: str, folder: Path, part: str) -> Source:
    from scipy.io import loadmat  # only here: few sets need it

    part = _one_of(part, "train", "test", "extra")
    path = folder / f"{part}_32x32.mat"
    path.stat()
    content = loadmat(str(path))
    labels = content["y"].astype(np.int64).reshape(-1) % 10  # the files call the digit 0 class 10
    images = np.ascontiguousarray(content["X"].transpose(3, 0, 1, 2))
    return ArraySource(card.name, split, images, labels, card.classes or [str(i) for i in range(10)])


def _fashion(card: Card, split: str, folder: Path, part: str) -> Source:
    stem = {"train": "train", "test": "t10k"}[_one_of(part, "train", "test")]
    base = folder / "FashionMNIST" / "raw"
    images = _idx(base / f"{stem}-images-idx3-ubyte")
    labels = _idx(base / f"{stem}-labels-idx1-ubyte")
    if images.ndim != 3 or labels.shape != images.shape[:1]:
        raise ValueError(f"images {list(images.shape)} and labels {list(labels.shape)} do not belong together")
    return ArraySource(card.name, split, images, labels.astype(np.int64), card.classes)


def _idx(path: Path) -> np.ndarray:
    """Read a file in the format of yann.lecun.com/exdb/mnist: two zeros, type, dimensions, big-endian sizes, data."""
    packed = path.with_name(path.name + ".gz")
    data = gzip.decompress(packed.read_bytes()) if packed.is_file() and not path.is_file() else path.read_bytes()
    if data[:3] != b"\0\0\x08":
        raise ValueError(f"{path} is no idx file of bytes")
    shape = np.frombuffer(data, ">i4", data[3], 4)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * data[3]).reshape(shape).copy()


def _one_of(part: str, *allowed: str) -> str:
    if part not in allowed:
        raise UserError(f"torchvision has no part '{part}' of this set; allowed: {', '.join(allowed)}")
    return part


_READERS: dict[str, Callable[[Card, str, Path, str], Source]] = {
    "cifar10": _cifar, "cifar100": _cifar, "stl10": _stl10, "svhn": _svhn, "fashionmnist": _fashion,
}
