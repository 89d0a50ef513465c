"""Arrays in files and scikit-learn's digits."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from unlabeled.config.card import Card
from unlabeled.data.sources.arrays import stratified
from unlabeled.data.sources.open import open_source
from unlabeled.errors import UserError

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 5, 4, 3), np.uint8)


def array_card(**split: str) -> Card:
    return Card.model_validate({"name": "mine", "source": {"kind": "array"}, "splits": {"train": split}})


def test_npz_and_npy(tmp_path: Path) -> None:
    np.savez(tmp_path / "train.npz", images=PIXELS, labels=np.arange(6, dtype=np.int32) % 2)
    np.save(tmp_path / "x.npy", PIXELS)
    np.save(tmp_path / "gray.npy", PIXELS[..., 0])
    np.save(tmp_path / "y.npy", np.arange(6))
    source = open_source(array_card(), "train", str(tmp_path))
    assert np.array_equal(source.images, PIXELS)
    assert source.labels.tolist() == [0, 1] * 3
    mapped = open_source(array_card(path="x.npy", labels="y.npy"), "train", str(tmp_path))
    assert mapped.images is None
    assert np.array_equal(mapped.image(3), PIXELS[3])
    assert mapped.labels.tolist() == list(range(6))
    assert len(pickle.dumps(mapped)) < 5000
    assert np.array_equal(pickle.loads(pickle.dumps(mapped)).image(3), PIXELS[3])
    gray = open_source(array_card(path="gray.npy"), "train", str(tmp_path))
    assert np.array_equal(gray.image(1), np.repeat(PIXELS[1, ..., :1], 3, axis=2))
    whole = open_source(array_card(path="gray.npy").model_copy(update={"in_memory": True}), "train", str(tmp_path))
    assert whole.images.shape == (6, 5, 4, 3)


def test_wrong_arrays_are_answered(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no file .*train.npz; .*data.train.root=FOLDER"):
        open_source(array_card(), "train", str(tmp_path))
    np.save(tmp_path / "x.npy", PIXELS.astype(np.float32))
    with pytest.raises(UserError, match=r"images are float32 \[6, 5, 4, 3\]; allowed: uint8"):
        open_source(array_card(path="x.npy"), "train", str(tmp_path))
    np.savez(tmp_path / "train.npz", pictures=PIXELS)
    with pytest.raises(UserError, match=r"no array 'images' \(it has: pictures\)"):
        open_source(array_card(), "train", str(tmp_path))
    np.savez(tmp_path / "train.npz", images=PIXELS, labels=np.arange(5))
    with pytest.raises(UserError, match="6 images, but labels are"):
        open_source(array_card(), "train", str(tmp_path))
    (tmp_path / "x.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(UserError, match=r"no readable .npy or .npz file"):
        open_source(array_card(path="x.npy"), "train", str(tmp_path))
    card = Card.model_validate({**array_card().model_dump(), "splits": {"train": {"samples": 7}}})
    np.savez(tmp_path / "train.npz", images=PIXELS)
    with pytest.raises(UserError, match="6 images found, but the card says 7"):
        open_source(card, "train", str(tmp_path))


def digits(split: str, seed: int = 0) -> object:
    return open_source(Card.model_validate({"name": "digits", "source": {"kind": "digits", "seed": seed},
                                            "splits": {"train": {}, "val": {}}}), split)


def test_digits_are_divided_class_by_class() -> None:
    train, val, all_ = digits("train"), digits("val"), load_digits()
    assert (len(train), len(val)) == (1297, 500)
    assert train.images.shape == (1297, 8, 8, 3)
    assert (train.images.min(), train.images.max()) == (0, 255)
    shares = np.bincount(val.labels) / np.bincount(all_.target)
    assert np.abs(shares - 500 / 1797).max() < 0.005
    joined = np.concatenate([train.images, val.images])[..., 0].reshape(1797, -1)
    assert np.array_equal(np.sort(joined.sum(1)), np.sort(np.round(all_.data * 255 / 16).astype(np.uint8).sum(1)))
    assert np.array_equal(digits("val").images, val.images)
    assert not np.array_equal(digits("val", seed=1).images, val.images)


def test_stratified_quota_adds_up() -> None:
    labels = np.repeat([0, 1, 2], [10, 5, 3])
    chosen = stratified(labels, 7, 0)
    assert np.bincount(labels[chosen]).tolist() == [4, 2, 1]
    assert len(np.unique(chosen)) == 7
