"""Images that two splits share, by their files: same split, nested folders, links, shards; copies are others."""

import os
import shutil

import numpy as np
import pytest
from PIL import Image
from tests.data.toys import write_shards

from unlabeled.config.card import Card
from unlabeled.data.overlap import twins
from unlabeled.data.sources.open import open_source
from unlabeled.data.sources.subset import Part


def photos(folder, names):
    folder.mkdir(parents=True)
    for i, name in enumerate(names):
        Image.fromarray(np.full((9, 8, 3), 10 * i + len(name), np.uint8)).save(folder / name)


def card(kind, splits, **more):
    return Card.model_validate({"name": "x", "source": {"kind": kind}, "root": None, "splits": splits, **more})


@pytest.mark.parametrize("in_memory", [False, True])
def test_a_folder_inside_another_and_links_are_seen_but_not_copies(tmp_path, in_memory):
    photos(tmp_path / "all" / "val", ["a.png", "b.png", "c.png"])
    photos(tmp_path / "all" / "other", ["d.png"])
    os.symlink(tmp_path / "all" / "other" / "d.png", tmp_path / "all" / "val" / "e.png")
    os.link(tmp_path / "all" / "other" / "d.png", tmp_path / "all" / "val" / "f.png")
    shutil.copy(tmp_path / "all" / "val" / "a.png", tmp_path / "all" / "val" / "g.png")
    found = card("folder", {"train": {"path": "all"}, "part": {"path": "all/val"}, "other": {"path": "all/other"}},
                 in_memory=in_memory)
    whole, part, other = (open_source(found, split, str(tmp_path)) for split in ("train", "part", "other"))
    places = twins(whole, part)
    assert [whole.key(i) for i in places[[0, 1, 2, 5]]] == [f"val/{name}.png" for name in "abcg"]
    assert twins(other, part).tolist() == [-1, -1, -1, 0, 0, -1]
    assert twins(Part(whole, np.array([2, 0])), Part(whole, np.array([0, 1, 2]))).tolist() == [1, -1, 0]


def test_splits_that_differ_share_nothing_and_a_split_shares_all_with_itself():
    digits = [open_source(Card.model_validate(DIGITS), split) for split in ("train", "val")]
    assert (twins(*digits) == -1).all() and len(twins(*digits)) == 500
    assert twins(digits[1], digits[1]).tolist() == list(range(500))


def test_shards_that_two_splits_name_are_the_same_images(tmp_path):
    write_shards(tmp_path, shards=3, each=4)
    names = sorted(path.name for path in tmp_path.glob("*.tar"))
    found = card("shards", {"train": {"path": "*.tar"}, "last": {"path": names[2]}, "first": {"path": names[0]}})
    train, last, first = (open_source(found, split, str(tmp_path)) for split in ("train", "last", "first"))
    assert twins(train, last).tolist() == [8, 9, 10, 11] and (twins(first, last) == -1).all()


DIGITS = {"name": "digits", "source": {"kind": "digits", "held_out": 500, "seed": 0}, "root": None,
          "splits": {"train": {}, "val": {}}}
