"""Containers that are damaged or of another kind: one line with the file and the cure; no code of a pickle runs."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import signal
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.io import savemat
from tests.data.sources.test_torchvision_sets import tv_card

from unlabeled.config.card import Card
from unlabeled.data.sources.open import open_source
from unlabeled.errors import UserError

IMAGES = np.random.default_rng(0).integers(0, 256, (4, 6, 6, 3), np.uint8)


def npz(**arrays: Any) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def npy(array: Any, **more: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, **more)
    return buffer.getvalue()


def header(text: str) -> bytes:
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode("latin1") + bytes(500)


def zipped(name: str, data: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(name, data)
    return buffer.getvalue()


def refused(card: Card, root: Path, file: str, text: str = "", split: str = "train") -> None:
    with pytest.raises(UserError) as error:
        open_source(card, split, str(root))
    message = str(error.value)
    assert file in message
    assert text in message
    assert "\n" not in message
    assert len(message) < 600


WHOLE = npz(images=IMAGES, labels=np.arange(4))
ZIP = "it is a zip archive, as .npz files are; give it that ending"
ARRAYS = [
    ("npz", WHOLE[:-40], ""), ("npz", WHOLE[: len(WHOLE) // 2], ""), ("npz", WHOLE[:10], ""),
    ("npz", b"", "empty; get it again"),
    ("npz", WHOLE[:80] + bytes(40) + WHOLE[120:], ""), ("npz", npy(IMAGES),
                                                        "it is an array of NumPy; give it the ending .npy"),
    ("npz", npz(images=IMAGES, labels=np.array([{}] * 4)), "allow_pickle"),
    ("npz", npz(images=np.array([{}])), "allow_pickle"),
    ("npz", gzip.compress(WHOLE), "compressed (gzip); unpack it with gunzip"),
    ("npz", b"<!DOCTYPE html><p>", "a web page"),
    ("npz", zipped("images.npy", b"\x93NUMPY"), ""), ("npz", zipped("images.npy", header("{'descr': '|u1'")), ""),
    ("npz",
     zipped("images.npy", header("{'descr': '|u1', 'fortran_order': False, 'shape': (1000000000000, 9, 9, 3)}")), ""),
    ("npz", zipped("images", b"nothing"), ""), ("npz", zipped("other.npy", b""), "no array 'images' (it has: other)"),
    ("npz", pickle.dumps(IMAGES), ""), ("npz", npz(), "no array 'images' (it has: none)"),
    ("npy", WHOLE, ZIP), ("npy", npy(IMAGES)[:-20], ""), ("npy", npy(IMAGES)[:40], ""),
    ("npy", b"", "empty; get it again"),
    ("npy", npy(np.array([{}, None])), "allow_pickle|Array can't be memory-mapped"), ("npy", pickle.dumps(IMAGES), ""),
    ("npy", header("{'descr': '|u1', 'fortran_order': False, 'shape': (-1, 6, 6, 3)}"), ""),
    ("npy", header("{'descr': '|u1', 'fortran_order': False, 'shape': (10000000000000000000000, 6, 6, 3)}"), ""),
    ("npy", header("{'descr': '|u1', 'fortran_order': False, 'shape': (1000000000, 6, 6, 3)}"), ""),
    ("npy", header("__import__('os').system('false')"), ""), ("npy", header("(" * 200), ""),
    ("npy", header("\0" * 50), ""),
    ("npy", b"\x93NUMPY\xff\xff" + bytes(100), ""), ("npy", gzip.compress(npy(IMAGES)), "gunzip"),
    ("npy", npy(IMAGES[:0]), "holds no images"), ("npy", npy(IMAGES[:, :0]), "holds no images"),
    ("npy", npy(IMAGES[0]), "which is one image; allowed: [n, H, W, 3] or [n, H, W]; save images[None]"),
    ("npy", npy(IMAGES.transpose(0, 3, 1, 2)), "save images.transpose(0, 2, 3, 1)"),
    ("npy", npy(np.uint8(3)), "uint8 []"),
    ("npy", npy(IMAGES.astype(complex)), "images are complex128"), ("npy", npy(np.array(["a"])), "images are <U1"),
    ("npy", b"version https://git-lfs.github.com/spec/v1\noid", "git lfs pull"),
    ("npy", b"\x89HDF\r\n\x1a\n" + bytes(99), "HDF5"),
]


@pytest.mark.parametrize("number", range(len(ARRAYS)))
def test_arrays(tmp_path: Path, number: int) -> None:
    ending, data, text = ARRAYS[number]
    card = Card.model_validate({"name": "mine", "source": {"kind": "array"},
                                "splits": {"train": {"path": f"x.{ending}"}}})
    (tmp_path / f"x.{ending}").write_bytes(data)
    for memory in (False, True):
        refused(card.model_copy(update={"in_memory": memory}), tmp_path, f"x.{ending}",
                text.partition("|")[0] * ("|" not in text))


@pytest.mark.parametrize("path", ["x.npz", "x.npy"])
def test_a_folder_in_the_place_of_an_array(tmp_path: Path, path: str) -> None:
    (tmp_path / path).mkdir()
    card = Card.model_validate({"name": "mine", "source": {"kind": "array"}, "splits": {"train": {"path": path}}})
    refused(card, tmp_path, path, "it is a folder")
    (tmp_path / path).rmdir()
    os.mkfifo(tmp_path / path)  # it would wait for a writer
    signal.setitimer(signal.ITIMER_REAL, 20)
    try:
        refused(card, tmp_path, path, "it is no plain file")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


@pytest.mark.parametrize("data", [WHOLE, npy(np.array([{}]), allow_pickle=True), b"", b"0 1 2",
                                  npy(np.arange(4))[:100]])
def test_labels_beside_an_array(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "x.npy").write_bytes(npy(IMAGES))
    (tmp_path / "y.npy").write_bytes(data)
    card = Card.model_validate({"name": "mine", "source": {"kind": "array"},
                                "splits": {"train": {"path": "x.npy", "labels": "y.npy"}}})
    refused(card, tmp_path, "y.npy")


class Evil:
    """A pickle that would run code."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def cifar(**change: Any) -> dict[str, Any]:
    return {"data": np.zeros((2, 3072), np.uint8), "labels": [0, 1], **change}


PICKLES: list[tuple[Any, str]] = [
    (None, "it holds NoneType, not a dictionary"), ([1, 2], "it holds list"), (3, "it holds int"),
    ("text", "it holds str"),
    (IMAGES, "it holds ndarray"), ({}, "no 'data'; it has: nothing"), ({1: 2, None: 3}, "no 'data'; it has: 1, None"),
    (cifar(data=None), "'data' is object"), (cifar(data="x"), "'data' is <U1"), (cifar(data=[[1, 2], [3]]), ""),
    (cifar(data=np.zeros((2, 3072))), "'data' is float64 [2, 3072], not uint8 [n, 3072]"),
    (cifar(data=np.zeros((2, 3000), np.uint8)), "'data' is uint8 [2, 3000]"),
    (cifar(data=np.zeros((0, 3072), np.uint8)), "[0, 3072]"),
    (cifar(labels=None), "labels are object"), (cifar(labels={"a": 1}), "labels are object"),
    (cifar(labels=["a", "b"]), "labels are <U1"),
    ({"data": cifar()["data"], "fine_labels": [0, 1]}, "no 'labels'; it has: data, fine_labels"),
]


@pytest.mark.parametrize("number", range(len(PICKLES)))
def test_pickles_of_something_else(tmp_path: Path, number: int) -> None:
    base = tmp_path / "cifar-10-batches-py"
    base.mkdir()
    content, text = PICKLES[number]
    (base / "test_batch").write_bytes(pickle.dumps(content))
    refused(tv_card("cifar10", "test"), tmp_path, "test_batch", text, "test")


GOOD = pickle.dumps(cifar(), 2)


@pytest.mark.parametrize("data", [
    b"", b"\x80", b"\x80\x02", b"\x80\x63N.", b"N.", b".", b"(", b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7f",
    GOOD[:-1], GOOD[:300],
    GOOD[: len(GOOD) // 2], gzip.compress(GOOD), b"<html>", b"cos\nsystem\n(S'false'\ntR.",
    b"c__builtin__\neval\n(S'1'\ntR.",
    b"\x80\x04\x8c\x05numpy\x8c\x07fromstr\x93.", b"}\x8c\x04data.", b"I99999999999999999999\n.",
    b"\x8e\xff\xff\xff\xff\xff\xff\xff\x00."])
def test_damaged_pickles(tmp_path: Path, data: bytes) -> None:
    base = tmp_path / "cifar-10-batches-py"
    base.mkdir()
    (base / "test_batch").write_bytes(data)
    refused(tv_card("cifar10", "test"), tmp_path, "test_batch", split="test")


@pytest.mark.parametrize("name", ["test_batch", "batches.meta"])
def test_no_pickle_runs_code(tmp_path: Path, name: str) -> None:
    base = tmp_path / "cifar-10-batches-py"
    base.mkdir()
    (base / "test_batch").write_bytes(GOOD)
    for evil in (Evil(open, str(tmp_path / "made"), "w"), Evil(eval, "open('made', 'w')"),
                 Evil(np.fromfile, str(tmp_path / "x")),
                 Evil(np.memmap, str(tmp_path / "made"), "u1", "w+", 0, 4), Evil(__import__, "os")):
        (base / name).write_bytes(pickle.dumps({"data": evil, "label_names": evil}))
        refused(tv_card("cifar10", "test"), tmp_path, name, "does not belong into a file of images", "test")
    assert not list(tmp_path.glob("made"))


def mat(**content: Any) -> bytes:
    buffer = io.BytesIO()
    savemat(buffer, content)
    return buffer.getvalue()


X, Y = np.zeros((32, 32, 3, 4), np.uint8), np.ones((4, 1), np.uint8)
MATS = [
    (b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(124, b" ") + b"\x00\x02IM" + bytes(384) + b"\x89HDF\r\n\x1a\n",
     "save it with -v7"),
    (b"\x89HDF\r\n\x1a\n" + bytes(600), "save it with -v7"), (mat(images=X, y=Y), "no 'X'"), (mat(X=X), "no 'y'"),
    (b"", "empty"),
    (mat(X=X, y=Y)[:-200], ""), (mat(X=X, y=Y)[:200], ""), (mat(X=X, y=Y)[:50], ""), (b"\0" * 300, ""),
    (b"x" * 300, ""),
    (mat(X=X.astype(float), y=Y), "'X' is float64"), (mat(X=X[..., 0], y=Y), "'X' is uint8 [32, 32, 3]"),
    (mat(X=X.transpose(3, 2, 0, 1), y=Y), "'X' is uint8 [4, 3, 32, 32]"),
    (mat(X=X, y=np.ones((2, 2))), "'y' is float64 [2, 2]"),
    (mat(X=X, y="text"), ""), (mat(X={"a": 1}, y=Y), "'X' is"), (gzip.compress(mat(X=X, y=Y)), "gunzip"),
]


@pytest.mark.parametrize("number", range(len(MATS)))
def test_mat_files(tmp_path: Path, number: int) -> None:
    data, text = MATS[number]
    (tmp_path / "test_32x32.mat").write_bytes(data)
    refused(tv_card("svhn", "test"), tmp_path, "test_32x32.mat", text, "test")


PIXELS = struct.pack(">4i", 0x803, 2, 3, 3) + bytes(18)
IDX = [
    PIXELS[:-1], PIXELS + b"x", PIXELS[:3], PIXELS[:10], b"", b"\0\0\x09\x03" + PIXELS[4:],
    b"\0\0\x08\x01" + PIXELS[4:],
    struct.pack(">4i", 0x803, -2, 3, 3) + bytes(18), struct.pack(">4i", 0x803, 2**31 - 1, 2**31 - 1, 9),
    struct.pack(">4i", 0x803, 0, 3, 3),
    b"\x89PNG", gzip.compress(PIXELS),
]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("number", range(len(IDX)))
def test_idx_files(tmp_path: Path, number: int, packed: bool) -> None:
    base = tmp_path / "FashionMNIST" / "raw"
    base.mkdir(parents=True)
    name = "train-images-idx3-ubyte" + ".gz" * packed
    (base / name).write_bytes(gzip.compress(IDX[number]) if packed else IDX[number])
    (base / "train-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 0x801, 2) + bytes(2))
    refused(tv_card("fashionmnist", "train"), tmp_path, name)
    if packed:
        for data in (gzip.compress(PIXELS)[:-9], gzip.compress(PIXELS)[:15], b"\x1f\x8b" + bytes(50), b"", PIXELS):
            (base / name).write_bytes(data)
            refused(tv_card("fashionmnist", "train"), tmp_path, name)


@pytest.mark.parametrize(("dataset", "path", "split"), [
    ("cifar10", "cifar-10-batches-py/test_batch", "test"), ("svhn", "test_32x32.mat", "test"),
    ("stl10", "stl10_binary/test_X.bin", "test"), ("fashionmnist", "FashionMNIST/raw/t10k-images-idx3-ubyte", "test")])
def test_folders_and_empty_files_in_the_place_of_files(tmp_path: Path, dataset: str, path: str, split: str) -> None:
    (tmp_path / path).mkdir(parents=True)
    refused(tv_card(dataset, split), tmp_path, Path(path).name, "it is a folder", split)
    (tmp_path / path).rmdir()
    (tmp_path / path).write_bytes(b"")
    refused(tv_card(dataset, split), tmp_path, Path(path).name, split=split)
    (tmp_path / path).unlink()
    refused(tv_card(dataset, split), tmp_path, Path(path).name, "download=True", split)
    (tmp_path / "file").write_bytes(b"x")
    refused(tv_card(dataset, split), tmp_path / "file", "file", split=split)
