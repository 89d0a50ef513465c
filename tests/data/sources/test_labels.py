"""Labels that cannot be are refused by the file they stand in, in every kind of set."""

from __future__ import annotations

import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.io import savemat
from tests.data.toys import jpeg, shard_card, write_tar

from unlabeled.config.card import Card
from unlabeled.data.sources.labels import HIGHEST, class_numbers, read_label
from unlabeled.data.sources.open import open_source
from unlabeled.data.sources.tar import stream as tar_stream
from unlabeled.errors import UserError

NAMES = ["a", "b", "c"]


@pytest.mark.parametrize("values", [
    [0, 2, -1], np.array([0, 2, -1], np.int8), np.array([0.0, 2.0, -1.0], np.float32), (0, 2, -1)])
def test_whole_numbers_are_labels(values: Any) -> None:
    for classes in (None, NAMES):
        labels = class_numbers(values, Path("f.npy"), 3, classes)
        assert labels.dtype == np.int64
        assert labels.tolist() == [0, 2, -1]
    assert class_numbers(np.array([1, 3, 2], np.uint8), Path("f"), 3, NAMES, first=1).tolist() == [0, 2, 1]


@pytest.mark.parametrize(("values", "text"), [
    ([0, -5, 1], "label -5 is no class; allowed: whole numbers from 0 on, and -1 for unknown (image 1)"),
    ([0, 1, 3], "label 3, but only 3 classes are named (image 2)"),
    (np.array([0, 1, 2**64 - 1], np.uint64), "label 18446744073709551615, but only 3 classes are named"),
    ([0, 1, 2**63], "label "),
    ([0, 1, 2**70], "labels are object [3]"),
    ([0, 1, 1.7], "label 1.7 is no class"),
    ([0, 1, float("nan")], "label nan is no class"),
    ([0, 1, float("inf")], "label inf is no class"),
    ([0, 1, 1e300], "label 1e+300, but only 3"),
    ([True, False, True], "labels are bool [3]"),
    (["0", "1", "2"], "labels are <U1 [3]"),
    ([0, 1, None], "labels are object [3]"),
    ([0, [1, 2], 1], "labels are object []"),
    ([0j, 1, 2], "labels are complex128 [3]"),
    (None, "labels are object []"),
    (3, "labels are int64 []"),
    ([[0], [1], [2]], "labels are int64 [3, 1]; allowed: one whole number per image, [3]; take labels[:, 0]"),
    (np.eye(3),
     "labels are float64 [3, 3]; allowed: one whole number per image, [3]; of one-hot rows take labels.argm"),
    ([0, 1], "3 images, but labels are int64 [2]"),
    ([0, 1, 2, 0], "3 images, but labels are int64 [4]"),
    ([], "3 images, but labels are float64 [0]"),
])
def test_labels_that_cannot_be(values: Any, text: str) -> None:
    with pytest.raises(UserError) as error:
        class_numbers(values, Path("set/f.npy"), 3, NAMES)
    assert str(error.value).startswith(f"set/f.npy: {text}")
    assert "\n" not in str(error.value)


def test_ids_are_no_labels_also_where_no_class_is_named() -> None:
    for value in (-2, HIGHEST + 1, 2**40):
        with pytest.raises(UserError, match=rf"label {value} is no class"):
            class_numbers([0, value], Path("f"), 2)
    for value in (0, -1):
        with pytest.raises(UserError, match=rf"label {value} is no class; allowed: whole numbers from 1 on"):
            class_numbers([1, value], Path("f"), 2, NAMES, first=1)


@pytest.mark.parametrize(("text", "rule", "label"), [
    (b"2", "cls", 2), (b" 2\n", "cls", 2), (b"007", "cls", 7), (b"-1", "cls", -1),
    (b'{"y": 2}', "json:y", 2), (b'{"y": 2.0}', "json:y", 2), (b'{"y": "2"}', "json:y", 2),
    (b'{"y": -1}', "json:y", -1),
    (b'{"y": 1e1}', "json:y", 10),
])
def test_labels_in_members(text: bytes, rule: str, label: int) -> None:
    assert read_label(text, rule) == label


BAD_MEMBERS = [(text, "cls") for text in (
    b"", b"cat", b"1.7", b"1e3", b"1_000", b"+1", b"--1", b"-5", b"0x1", "\u0663".encode(), b"1 2", b"9" * 30, b"\xff",
    b"99999999", b"nan")]
BAD_MEMBERS += [(b'{"y": %s}' % value, "json:y") for value in (
    b"1.7", b"NaN", b"Infinity", b"-Infinity", b"true", b"null", b"[1]", b"{}", b'"cat"', b'"1_0"', b"-5", b"1e30",
    b"9" * 30,
    b'"\\u0663"')]
BAD_MEMBERS += [(text, "json:y") for text in (
    b"", b"3", b"[1]", b'{"z": 1}', b"{", b"\xff", b'{"y": ' + b"[" * 100000, b'{"y": ' + b"9" * 5000 + b"}")]


@pytest.mark.parametrize(("text", "rule"), BAD_MEMBERS)
def test_members_that_hold_no_label(text: bytes, rule: str) -> None:
    with pytest.raises(ValueError, match=r"^(no class number|label -5 is no class|label 9+ is no class)"):
        read_label(text, rule)


@pytest.mark.parametrize("kind", ["shards", "stream"])
@pytest.mark.parametrize(("cls", "text"), [
    (b"-5", "label -5 is no class"), (b"1.7", "no class number (cls) in b'1.7'"), (b"3", "only 3 classes are named")])
def test_both_tar_readers_name_shard_and_sample(tmp_path: Path, kind: str, cls: bytes, text: str) -> None:
    write_tar(tmp_path / "toy-000000.tar", {"a.jpg": jpeg(0), "a.cls": b"1", "b.jpg": jpeg(1), "b.cls": cls})
    card = shard_card(tmp_path, source={"kind": kind, "label": "cls"},
                      splits={"train": {"path": "toy-000000.tar", "samples": 2}})
    with pytest.raises(UserError) as error:
        source = open_source(card, "train", in_order=True)
        list(source.read(0))
    assert "toy-000000.tar, sample b: " in str(error.value)
    assert text in str(error.value)
    assert tar_stream.TRIES == 4  # and nothing was tried again


def torchvision_card(dataset: str, split: str = "train") -> Card:
    return Card.model_validate({"name": dataset, "source": {"kind": "torchvision", "dataset": dataset},
                                "splits": {split: {"path": split}}, "classes": [str(i) for i in range(10)]})


@pytest.mark.parametrize(("labels", "text"), [
    ([0, 1], "3 images, but labels are int64 [2]"), ([0, 1, 2, 3], "3 images, but labels are int64 [4]"),
    ([0, 1, 10], "label 10, but only 10 classes"), ([0, -5, 1], "label -5 is no class"),
    ([0, 1, 1.5], "label 1.5 is no class"),
])
def test_a_cifar_file_with_labels_that_cannot_be_is_named(tmp_path: Path, labels: list, text: str) -> None:
    base = tmp_path / "cifar-10-batches-py"
    base.mkdir()
    for number in range(1, 6):
        content = {"data": np.zeros((3, 3072), np.uint8), "labels": labels if number == 3 else [0, 1, 2]}
        (base / f"data_batch_{number}").write_bytes(pickle.dumps(content))
    with pytest.raises(UserError) as error:
        open_source(torchvision_card("cifar10"), "train", str(tmp_path))
    assert f"data_batch_3: {text}" in str(error.value)


@pytest.mark.parametrize(("labels", "text"), [
    ([1, 2], "3 images, but labels are uint8 [2]"), ([1, 2, 11], "label 11, but only 10 classes")])
def test_svhn_and_stl10_likewise(tmp_path: Path, labels: list[int], text: str) -> None:
    savemat(tmp_path / "train_32x32.mat", {"X": np.zeros((32, 32, 3, 3), np.uint8),
                                           "y": np.array(labels, np.uint8)[:, None]})
    (tmp_path / "stl10_binary").mkdir()
    np.zeros((3, 3, 96, 96), np.uint8).tofile(tmp_path / "stl10_binary" / "train_X.bin")
    np.array(labels, np.uint8).tofile(tmp_path / "stl10_binary" / "train_y.bin")
    for dataset, file in (("svhn", "train_32x32.mat"), ("stl10", "train_y.bin")):
        with pytest.raises(UserError) as error:
            open_source(torchvision_card(dataset), "train", str(tmp_path))
        assert f"{file}: {text}" in str(error.value)
    np.array([1, 0, 2], np.uint8).tofile(tmp_path / "stl10_binary" / "train_y.bin")
    with pytest.raises(UserError, match=r"train_y.bin: label 0 is no class; allowed: whole numbers from 1 on"):
        open_source(torchvision_card("stl10"), "train", str(tmp_path))


def test_fashionmnist_with_fewer_labels_than_images(tmp_path: Path) -> None:
    base = tmp_path / "FashionMNIST" / "raw"
    base.mkdir(parents=True)
    (base / "train-images-idx3-ubyte").write_bytes(struct.pack(">4i", 0x803, 3, 2, 2) + bytes(12))
    (base / "train-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 0x801, 2) + bytes(2))
    with pytest.raises(UserError, match=r"train-labels-idx1-ubyte: 3 images, but labels are uint8 \[2\]"):
        open_source(torchvision_card("fashionmnist"), "train", str(tmp_path))


@pytest.mark.parametrize("labels", [np.array([0, 1, -5]), np.array([[0], [1], [2]]), np.array([0, 1, 2], object),
                                    np.array([True, False, True]), np.array([0, 1, 2**64 - 1], np.uint64)])
def test_arrays_name_the_file_of_labels(tmp_path: Path, labels: np.ndarray) -> None:
    card = Card.model_validate({"name": "mine", "source": {"kind": "array"},
                                "splits": {"train": {"path": "x.npy", "labels": "y.npy"}, "val": {"path": "z.npz"}}})
    images = np.zeros((3, 4, 4, 3), np.uint8)
    np.save(tmp_path / "x.npy", images)
    np.save(tmp_path / "y.npy", labels)
    np.savez(tmp_path / "z.npz", images=images, labels=labels)
    for split, file in (("train", "y.npy"), ("val", "z.npz")):
        with pytest.raises(UserError) as error:
            open_source(card, split, str(tmp_path))
        assert f"{file}" in str(error.value)
        assert "\n" not in str(error.value)
