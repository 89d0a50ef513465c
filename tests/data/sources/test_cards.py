"""The cards that come with the program, and what a card refuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from unlabeled.config.card import Card
from unlabeled.config.read import read_file
from unlabeled.data.sources.open import open_source

CARDS = sorted((Path(__file__).resolve().parents[3] / "data").glob("*.yaml"))


@pytest.mark.parametrize("path", CARDS, ids=lambda path: path.stem)
def test_a_card_reads_and_says_what_where_and_under_which_terms(path: Path) -> None:
    card = read_file(path, Card)
    assert card.name == path.stem
    assert "train" in card.splits or list(card.splits) == ["test"]  # a set that is only scored on
    assert path.read_text().startswith("# ")
    if card.source.kind not in ("folder", "classfolder"):
        assert "Terms:" in path.read_text()


@pytest.mark.parametrize("name", ["digits", "shapes"])
def test_statistics_are_those_of_the_training_images(name: str) -> None:
    card = read_file(next(path for path in CARDS if path.stem == name), Card)
    source = open_source(card, "train")
    for channel in range(3):
        counts = np.bincount(source.images[..., channel].ravel(), minlength=256)
        values = np.arange(256) / 255
        mean = np.average(values, weights=counts)
        assert abs(mean - card.mean[channel]) < 1e-4
        assert abs(np.average((values - mean) ** 2, weights=counts) ** 0.5 - card.std[channel]) < 1e-4
    assert source.classes == card.classes
    assert source.images.shape[1] == card.image_size


@pytest.mark.parametrize(("change", "text"), [
    ({"root": "x"}, "'root' has no effect with digits"),
    ({"splits": {"test": {}}}, "digits has the splits train and val, not test"),
    ({"mean": (0.5, 0.5, 0.5)}, "both mean and std"),
    ({"splits": {"train": {"labels": "y.npy"}}}, "belongs to source kind array"),
    ({"source": {"kind": "shapes"}}, "needs 'samples' in every split"),
    ({"source": {"kind": "shapes", "objects": (3, 2)}}, "fewest, most"),
    ({"source": {"kind": "shards", "label": "class"}}, "allowed: cls, json:KEY"),
])
def test_what_makes_no_sense_is_refused(change: dict, text: str) -> None:
    good = {"name": "x", "source": {"kind": "digits"}, "splits": {"train": {}}}
    Card.model_validate(good)
    with pytest.raises(ValidationError, match=text):
        Card.model_validate(good | change)
