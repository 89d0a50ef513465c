"""Torchvision's sets, on small files in their published layout."""

from __future__ import annotations

import gzip
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat
from tests.data.toys import jpeg
from torchvision import datasets

from unlabeled.config.card import Card
from unlabeled.data.sources.open import open_source
from unlabeled.errors import UserError

RNG = np.random.default_rng(0)


def tv_card(dataset: str, *names: str, **more: object) -> Card:
    return Card.model_validate({"name": dataset, "source": {"kind": "torchvision", "dataset": dataset},
                                "splits": {name: {"path": name} for name in names}, **more})


def planes(n: int, side: int = 32) -> np.ndarray:
    return RNG.integers(0, 256, (n, 3, side, side), np.uint8)


@pytest.mark.parametrize("protocol", [2, 4])
def test_cifar10(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, protocol: int) -> None:
    base = tmp_path / "cifar-10-batches-py"
    base.mkdir()
    for name in [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]:
        content = {"data": planes(4).reshape(4, -1), "labels": RNG.integers(0, 10, 4).tolist(), "filenames": ["x"] * 4}
        (base / name).write_bytes(pickle.dumps(content, protocol))
    names = [f"class{i}" for i in range(10)]
    (base / "batches.meta").write_bytes(pickle.dumps({"label_names": names}, protocol))
    monkeypatch.setattr(datasets.CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda path, md5=None: True)
    for split in ("train", "test"):
        theirs = datasets.CIFAR10(tmp_path, train=split == "train")
        ours = open_source(tv_card("cifar10", "train", "test"), split, str(tmp_path))
        assert np.array_equal(ours.images, theirs.data)
        assert ours.labels.tolist() == theirs.targets
        assert ours.classes == theirs.classes == names
    for wrong in (5, "abc", [1, 2]):
        (base / "batches.meta").write_bytes(pickle.dumps({"label_names": wrong}, protocol))
        with pytest.raises(UserError, match=r"batches.meta holds no list of classes: 'label_names' is"):
            open_source(tv_card("cifar10", "train"), "train", str(tmp_path))
    (base / "batches.meta").write_bytes(pickle.dumps({"label_names": names}, protocol))
    (base / "data_batch_3").unlink()
    with pytest.raises(UserError, match=r"no file .*data_batch_3; .*data.train.root=FOLDER.*CIFAR10\(.*download=True"):
        open_source(tv_card("cifar10", "train"), "train", str(tmp_path))


def test_pickles_as_python_2_and_old_numpy_wrote_them(tmp_path: Path) -> None:
    base = tmp_path / "cifar-100-python"
    base.mkdir()
    raw = planes(2).reshape(2, -1)
    content = pickle.dumps({"data": raw, "fine_labels": [3, 99], "coarse_labels": [0, 1]}, 2)
    (base / "train").write_bytes(content.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    source = open_source(tv_card("cifar100", "train"), "train", str(tmp_path))
    assert np.array_equal(source.images, raw.reshape(2, 3, 32, 32).transpose(0, 2, 3, 1))
    assert source.labels.tolist() == [3, 99]


def test_a_pickle_that_runs_code_is_refused(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple:
            return (open, (str(tmp_path / "made"), "w"))

    (tmp_path / "cifar-100-python").mkdir()
    (tmp_path / "cifar-100-python" / "train").write_bytes(pickle.dumps({"data": Evil()}))
    with pytest.raises(UserError, match="damaged or not in torchvision's layout"):
        open_source(tv_card("cifar100", "train"), "train", str(tmp_path))
    assert not (tmp_path / "made").exists()


def test_stl10(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = tmp_path / "stl10_binary"
    base.mkdir()
    for part in ("train", "test", "unlabeled"):
        planes(3, 96).tofile(base / f"{part}_X.bin")
        np.array([1, 10, 5], np.uint8).tofile(base / f"{part}_y.bin")
    names = [f"class{i}" for i in range(10)]
    (base / "class_names.txt").write_text("\n".join(names))
    monkeypatch.setattr(datasets.STL10, "_check_integrity", lambda self: True)
    for part in ("train", "test", "unlabeled"):
        theirs = datasets.STL10(tmp_path, split=part)
        ours = open_source(tv_card("stl10", "train", "test", "unlabeled"), part, str(tmp_path))
        for i in range(3):
            assert np.array_equal(ours.image(i), np.asarray(theirs[i][0]))
        assert ours.labels is None if part == "unlabeled" else ours.labels.tolist() == theirs.labels.tolist()
        assert ours.images is None
    (base / "train_X.bin").write_bytes(b"x" * 1000)
    with pytest.raises(UserError, match="not a whole number of 96 x 96 images"):
        open_source(tv_card("stl10", "train"), "train", str(tmp_path))


def test_svhn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = RNG.integers(0, 256, (32, 32, 3, 4), np.uint8)
    savemat(tmp_path / "test_32x32.mat", {"X": pixels, "y": np.array([[1], [10], [9], [2]], np.uint8)})
    monkeypatch.setattr(datasets.SVHN, "_check_integrity", lambda self: True)
    theirs = datasets.SVHN(tmp_path, split="test")
    ours = open_source(tv_card("svhn", "test"), "test", str(tmp_path))
    assert ours.labels.tolist() == theirs.labels.tolist() == [1, 0, 9, 2]
    assert all(np.array_equal(ours.image(i), np.asarray(theirs[i][0])) for i in range(4))
    with pytest.raises(UserError, match=r"no file .*train_32x32.mat"):
        open_source(tv_card("svhn", "train"), "train", str(tmp_path))


@pytest.mark.parametrize("packed", [False, True])
def test_fashionmnist(tmp_path: Path, packed: bool) -> None:
    base = tmp_path / "FashionMNIST" / "raw"
    base.mkdir(parents=True)
    pixels, labels = RNG.integers(0, 256, (5, 28, 28), np.uint8), np.arange(5, dtype=np.uint8)
    for stem in ("train", "t10k"):
        images = struct.pack(">4i", 0x803, 5, 28, 28) + pixels.tobytes()
        for name, data in ((f"{stem}-images-idx3-ubyte", images),
                           (f"{stem}-labels-idx1-ubyte", struct.pack(">2i", 0x801, 5) + labels.tobytes())):
            path = base / (name + ".gz" if packed else name)
            path.write_bytes(gzip.compress(data) if packed else data)
    ours = open_source(tv_card("fashionmnist", "test"), "test", str(tmp_path))
    assert np.array_equal(ours.images, np.repeat(pixels[..., None], 3, axis=3))
    assert ours.labels.tolist() == labels.tolist()
    if not packed:
        theirs = datasets.FashionMNIST(tmp_path, train=False)
        assert np.array_equal(ours.images[..., 0], theirs.data.numpy())


def test_imagenet(tmp_path: Path) -> None:
    card = tv_card("imagenet", "train", "val")
    with pytest.raises(UserError, match=r"no folder .*train; .*data.train.root=FOLDER.*image-net.org"):
        open_source(card, "train", str(tmp_path))
    for i, name in enumerate(["train/n02/n02_1.JPEG", "train/n01/n01_9.JPEG", "val/n02/ILSVRC2012_val_1.JPEG"]):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_bytes(jpeg(i))
    train, val = open_source(card, "train", str(tmp_path)), open_source(card, "val", str(tmp_path))
    assert (train.key(0), train.classes, train.labels.tolist()) == ("n01/n01_9.JPEG", ["n01", "n02"], [0, 1])
    assert val.labels.tolist() == [1]
    theirs = datasets.ImageFolder(tmp_path / "train")
    assert [label for _, label in theirs.samples] == train.labels.tolist()
