"""Sets in the layout of torchvision's data-set classes, read from their files; nothing is downloaded.

The files are read here rather than by those classes, which refuse files whose sums differ (a subset, a re-packed
mirror) and hold every set in memory.
"""

from __future__ import annotations

import gzip
import io
import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from unlabeled.config.card import Card, Torchvision
from unlabeled.data.sources.arrays import ArraySource
from unlabeled.data.sources.base import FileArray, Source
from unlabeled.data.sources.files.mat import read_mat
from unlabeled.data.sources.files.reading import reading
from unlabeled.data.sources.folder import class_folder
from unlabeled.data.sources.labels import class_numbers
from unlabeled.errors import UserError, did_you_mean, nearest

_CLASS = {"cifar10": "CIFAR10", "cifar100": "CIFAR100", "stl10": "STL10", "svhn": "SVHN",
          "fashionmnist": "FashionMNIST"}
_WRONG = "damaged or not in torchvision's layout"
_CIFAR = 3 * 32 * 32  # bytes of an image
_UNPACKED = 1 << 32  # bytes of a file when it is unpacked; the largest of these sets has 50 MB


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
    except OSError as error:
        raise UserError(f"data card '{card.name}', split '{split}': {error.filename or folder} cannot be read: "
                        f"{error.strerror or error}") from error


def _imagenet(card: Card, split: str, folder: Path) -> Source:
    part = folder / (card.splits[split].path or split)
    if not part.is_dir():
        raise UserError(f"data card '{card.name}', split '{split}': no folder {part}; give the folder that holds it "
                        "with data.train.root=FOLDER (ImageNet is to be had from image-net.org, after registration)")
    return class_folder(card, split, folder)


class _Array:
    """Stands for numpy.ndarray, which takes any bytes for an array of objects: to call it is to write into memory."""


def _empty(kind: Any, shape: Any, code: Any) -> np.ndarray:
    """Make the array that a pickle then fills."""
    return np.empty(0, np.uint8)


def _plain_type(*arguments: Any) -> np.dtype:
    """Return a type of numbers. Raises pickle.UnpicklingError for one of objects."""
    dtype = np.dtype(*arguments)
    if dtype.hasobject:
        raise pickle.UnpicklingError("it holds arrays of objects")
    return dtype


class _ArraysOnly(pickle.Unpickler):
    """Pickles of arrays, lists and strings: a pickle from the net may otherwise run any code."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("_codecs", "encode"):
            return super().find_class(module, name)
        if module.split(".")[0] == "numpy" and name == "_frombuffer":
            old = np.lib.NumpyVersion(np.__version__) < "2.0.0"
            return super().find_class("numpy.core.numeric" if old else "numpy._core.numeric", name)
        if module.split(".")[0] == "numpy" and name in _NUMPYS:
            return _NUMPYS[name]
        raise pickle.UnpicklingError(f"{module}.{name} does not belong into a file of images")


_NUMPYS: dict[str, Any] = {"_reconstruct": _empty, "ndarray": _Array, "dtype": _plain_type}


def _unpickle(path: Path, *keys: str) -> list[Any]:
    """Return the values of these keys of a pickled dictionary. Raises UserError."""
    with reading(path, _WRONG):
        content = _ArraysOnly(io.BytesIO(path.read_bytes()), encoding="latin1").load()
        if not isinstance(content, dict):
            raise ValueError(f"it holds {type(content).__name__}, not a dictionary")
        entries = {key.decode("latin1") if isinstance(key, bytes) else key: value for key, value in content.items()}
        missing = [key for key in keys if key not in entries]
        if missing:
            raise ValueError(f"no '{missing[0]}'; it has: {', '.join(map(str, entries)) or 'nothing'}")
        return [entries[key] for key in keys]


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
    classes = card.classes
    if classes is None and (base / meta).exists():
        classes = _unpickle(base / meta, listing)[0]
        if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
            raise UserError(f"{base / meta} holds no list of classes: '{listing}' is {classes!r:.60}; get it again")
    images, labels = [], []
    for path in (base / name for name in names):
        data, numbers = _unpickle(path, "data", field)
        images.append(_planes(path, data))
        labels.append(class_numbers(numbers, path, len(images[-1]), classes))
    pixels = np.ascontiguousarray(np.concatenate(images).transpose(0, 2, 3, 1))
    return ArraySource(card.name, split, pixels, np.concatenate(labels), classes)


def _planes(path: Path, data: Any) -> np.ndarray:
    with reading(path, _WRONG):
        planes = np.asarray(data)
        if planes.dtype != np.uint8 or planes.shape != (len(planes), _CIFAR) or not len(planes):
            raise ValueError(f"'data' is {planes.dtype} {list(planes.shape)}, not uint8 [n, {_CIFAR}]")
        return planes.reshape(-1, 3, 32, 32)


def _stl10(card: Card, split: str, folder: Path, part: str) -> Source:
    part = _one_of(part, "train", "test", "unlabeled")
    base = folder / "stl10_binary"
    path = base / f"{part}_X.bin"
    with reading(path, _WRONG):
        count, rest = divmod(path.stat().st_size, 3 * 96 * 96)
        if rest or not count:
            raise ValueError("not a whole number of 96 x 96 images")
    rows = FileArray(path, (count, 3, 96, 96))
    classes = card.classes
    names = base / "class_names.txt"
    if classes is None and names.exists():
        with reading(names, "no list of names"):
            classes = names.read_text("utf-8").split()
    labels = None
    if part != "unlabeled":
        where = base / f"{part}_y.bin"
        with reading(where, _WRONG):
            numbers = np.fromfile(where, np.uint8)
        labels = class_numbers(numbers, where, count, classes, first=1)
    return ArraySource(card.name, split, rows, labels, classes, planes=True)


def _svhn(card: Card, split: str, folder: Path, part: str) -> Source:
    part = _one_of(part, "train", "test", "extra")
    path = folder / f"{part}_32x32.mat"
    path.stat()
    with reading(path, _WRONG, b"MATLAB 5.0"):
        content = read_mat(path, "X", "y")
        missing = [key for key in ("X", "y") if key not in content]
        if missing:
            raise ValueError(f"no '{missing[0]}'")
        images, numbers = content["X"], content["y"]
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[2] != 3 or not images.size:
            raise ValueError(f"'X' is {images.dtype} {list(images.shape)}, not uint8 [H, W, 3, n]")
        if numbers.shape not in ((numbers.size, 1), (1, numbers.size)):
            raise ValueError(f"'y' is {numbers.dtype} {list(numbers.shape)}, not one number per image")
        numbers = np.where(numbers == 10, 0, numbers).reshape(-1)  # the files call the digit 0 class 10
    classes = card.classes or [str(i) for i in range(10)]
    labels = class_numbers(numbers, path, images.shape[3], classes)
    return ArraySource(card.name, split, np.ascontiguousarray(images.transpose(3, 0, 1, 2)), labels, classes)


def _fashion(card: Card, split: str, folder: Path, part: str) -> Source:
    stem = {"train": "train", "test": "t10k"}[_one_of(part, "train", "test")]
    base = folder / "FashionMNIST" / "raw"
    _, images = _idx(base / f"{stem}-images-idx3-ubyte", 3)
    path, numbers = _idx(base / f"{stem}-labels-idx1-ubyte", 1)
    return ArraySource(card.name, split, images, class_numbers(numbers, path, len(images), card.classes), card.classes)


def _idx(path: Path, dimensions: int) -> tuple[Path, np.ndarray]:
    """Read a file in the format of yann.lecun.com/exdb/mnist: two zeros, type, dimensions, big-endian sizes, data.

    Returns the file that was read, which may be the compressed one beside `path`, and its array. Raises UserError.
    """
    packed = path.with_name(path.name + ".gz")
    if packed.is_file() and not path.is_file():
        path = packed
    with reading(path, _WRONG, b"\x1f\x8b" if path == packed else b""):
        data = path.read_bytes()
        if path == packed:
            with gzip.open(path) as stream:
                data = stream.read(_UNPACKED + 1)
            if len(data) > _UNPACKED:
                raise ValueError(f"it unpacks to more than {_UNPACKED >> 30} GiB")
        if data[:4] != bytes([0, 0, 8, dimensions]):
            raise ValueError(f"it begins with {data[:4].hex(' ') or 'nothing'}, not with 00 00 08 0{dimensions}")
        shape = np.frombuffer(data, ">u4", dimensions, 4).tolist()
        if len(data) != 4 + 4 * dimensions + math.prod(shape) or 0 in shape:
            raise ValueError(f"{len(data)} bytes do not hold an array of {shape}")
        return path, np.frombuffer(data, np.uint8, offset=4 + 4 * dimensions).reshape(shape).copy()


def _one_of(part: str, *allowed: str) -> str:
    if part not in allowed:
        raise UserError(f"torchvision has no part '{part}' of this set (it has: {', '.join(allowed)})."
                        f"{did_you_mean(nearest(part, allowed))}")
    return part


_READERS: dict[str, Callable[[Card, str, Path, str], Source]] = {
    "cifar10": _cifar, "cifar100": _cifar, "stl10": _stl10, "svhn": _svhn, "fashionmnist": _fashion,
}
