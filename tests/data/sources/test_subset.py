"""Subsets of labels: counts, order, nesting, and what is refused."""

import hashlib

import numpy as np
import pytest
from PIL import Image

from unlabeled.config.card import Card
from unlabeled.config.files import find
from unlabeled.config.read import read_file
from unlabeled.config.recipe import Subset
from unlabeled.data.sources.open import open_source
from unlabeled.data.sources.subset import Part, choose, open_part
from unlabeled.errors import UserError

LABELS = np.random.default_rng(0).integers(0, 5, 400)


def test_first_takes_the_first_k_of_every_class():
    chosen = choose(LABELS, Subset(per_class=7, order="first"))
    assert np.bincount(LABELS[chosen]).tolist() == [7] * 5
    for each in range(5):
        assert chosen[LABELS[chosen] == each].tolist() == np.flatnonzero(each == LABELS)[:7].tolist()


def test_random_is_fixed_by_the_seed_and_nested():
    small, large = (choose(LABELS, Subset(per_class=k, seed=3)) for k in (4, 20))
    assert set(small) < set(large) and np.array_equal(small, choose(LABELS, Subset(per_class=4, seed=3)))
    assert not np.array_equal(small, choose(LABELS, Subset(per_class=4, seed=4)))
    assert not np.array_equal(small, choose(LABELS, Subset(per_class=4, order="first")))


def test_share_keeps_the_classes_in_proportion_and_every_class():
    labels = np.repeat([0, 1, 2], [300, 100, 3])
    assert np.bincount(labels[choose(labels, Subset(share=0.1))]).tolist() == [30, 10, 1]


def test_unknown_labels_are_never_chosen():
    labels = np.where(np.arange(400) % 2, LABELS, -1)
    assert (labels[choose(labels, Subset(share=1.0))] >= 0).all()


@pytest.mark.parametrize(("labels", "names", "message"), [
    (np.array([0, 0, 1]), ["cat", "dog"], "per_class is 2, but class 'dog' has only 1"),
    (np.array([0, 0]), ["cat", "dog"], "class 'dog' has only 0"),
    (np.empty(0, np.int64), None, "needs labels"),
    (np.array([-1, -1]), ["cat"], "needs labels"),
])
def test_too_few_labels_are_refused(labels, names, message):
    with pytest.raises(UserError, match=message):
        choose(labels, Subset(per_class=2), names)


def test_a_part_reads_its_own_samples():
    digits = open_source(read_file(find("data", "digits"), Card), "train")
    places = np.array([5, 900, 17])
    part = Part(digits, places)
    assert len(part) == 3 and part.labels.tolist() == digits.labels[places].tolist()
    assert part.key(1) == digits.key(900) and np.array_equal(part.image(2), digits.image(17))


@pytest.fixture
def photos(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / "train" / name).mkdir(parents=True)
        for i in range(5):
            Image.new("RGB", (8, 8), (i, 0, 0)).save(tmp_path / "train" / name / f"{name}_{i}.png")
    return tmp_path


def card_with(photos, names: list[str], **changed) -> Card:
    (photos / "few.txt").write_text("\n".join(names))
    entry = {"file": "few.txt", "sha256": hashlib.sha256((photos / "few.txt").read_bytes()).hexdigest(),
             "samples": len(names), "about": "Ask the authors", **changed}
    return Card.model_validate({"name": "pets", "source": {"kind": "classfolder"}, "root": str(photos),
                                "splits": {"train": {}}, "lists": {"few": entry}})


def test_a_list_names_its_images_without_folder_and_extension(photos):
    card = card_with(photos, ["dog_3.JPEG", "cat_1.JPEG", "dog_0.JPEG"])
    part = open_part(open_source(card, "train"), card, Subset(list="few"))
    assert [part.key(i).rsplit("/", 1)[-1] for i in range(3)] == ["cat_1.png", "dog_0.png", "dog_3.png"]
    rest = open_part(open_source(card, "train"), card, Subset(list="few", complement=True))
    assert len(rest) == 7 and not {rest.key(i) for i in range(7)} & {part.key(i) for i in range(3)}


@pytest.mark.parametrize(("names", "changed", "message"), [
    (["dog_9.png", "cat_1.png"], {}, "1 of 2 names of the list are not in split 'train'.*dog_9.png"),
    (["dog_1.png", "dog_2.png", "cat_0.png", "dog_3.png"], {}, "unequal classes: 1 of 'cat', 3 of 'dog'"),
    (["dog_1.png"], {"sha256": "0" * 64}, "is not the list 'few'.*SHA-256 differs"),
    (["dog_1.png"], {"file": "more.txt"}, "is missing: .*more.txt. Ask the authors"),
])
def test_a_bad_list_is_refused(photos, names, changed, message):
    card = card_with(photos, names, **changed)
    with pytest.raises(UserError, match=message):
        open_part(open_source(card, "train"), card, Subset(list="few"))


def test_an_unknown_list_is_refused(photos):
    card = card_with(photos, ["dog_1.png"])
    with pytest.raises(UserError, match=r"no list 'fex'.*Did you mean 'few'"):
        open_part(open_source(card, "train"), card, Subset(list="fex"))
