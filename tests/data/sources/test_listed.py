import hashlib

import numpy as np
import pytest
from PIL import Image

from unlabeled.config.read import read_card
from unlabeled.data.sources import folder
from unlabeled.data.sources.arrays import ArraySource
from unlabeled.data.sources.files.lists import write_lines
from unlabeled.data.sources.open import open_source
from unlabeled.errors import UserError


def write_card(home, keys, source, root=None, content=None):
    (home / "chosen").mkdir(exist_ok=True)
    listed = write_lines(keys)
    (home / "chosen" / "list.txt").write_bytes(listed if content is None else content)
    text = (f"name: chosen\nsource: {{kind: listed, {source}, list: $CARD/list.txt, "
            f"sha256: {hashlib.sha256(listed).hexdigest()}}}\n" + (f"root: {root}\n" if root else "")
            + f"splits: {{train: {{samples: {len(keys)}}}}}\n")
    path = home / "chosen" / "chosen.yaml"
    path.write_text(text)
    return path


@pytest.fixture
def array(tmp_path):
    """A card of ten small images with labels."""
    images = np.random.default_rng(0).integers(0, 256, (10, 4, 4, 3), np.uint8)
    np.savez(tmp_path / "ten.npz", images=images, labels=np.arange(10) % 2)
    card = tmp_path / "ten.yaml"
    card.write_text(f"name: ten\nsource: {{kind: array}}\nroot: {tmp_path}\nclasses: [a, b]\n"
                    "splits: {train: {path: ten.npz}}\n")
    return card, images


def opened(path):
    return open_source(read_card(path), "train")


def test_the_samples_of_another_card_in_the_order_of_the_list(tmp_path, array):
    card, images = array
    source = opened(write_card(tmp_path, ["train-000007", "train-000002"], f"card: {card}"))
    assert [source.key(0), source.key(1)] == ["train-000007", "train-000002"]
    assert (source.image(1) == images[2]).all() and (source.images == images[[7, 2]]).all()
    assert source.labels is None and source.classes is None and (source.name, source.split) == ("chosen", "train")


def test_of_a_folder_only_the_list_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(folder, "scan", lambda *_: pytest.fail("the folder was listed"))
    names, photos = ["b/2.png", "a/1.png", "a/line\nbreak.png"], tmp_path / "photos"
    for number, name in enumerate(names):
        (photos / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((5, 6, 3), number, np.uint8)).save(photos / name)
    source = opened(write_card(tmp_path, names, "card: folder", photos))
    assert [source.key(i) for i in range(3)] == names
    assert [int(source.image(i)[0, 0, 0]) for i in range(3)] == [0, 1, 2]
    other = opened(write_card(tmp_path, names[:2], "card: folder", photos))
    assert other.fingerprint() != source.fingerprint()


def test_the_root_of_the_card_stands_for_that_of_the_other(tmp_path, array):
    card, images = array
    (tmp_path / "moved").mkdir()
    np.savez(tmp_path / "moved" / "ten.npz", images=255 - images)
    source = opened(write_card(tmp_path, ["train-000001"], f"card: {card}", tmp_path / "moved"))
    assert (source.image(0) == 255 - images[1]).all()


BAD = {
    "other keys": (["train-000001", "train-000044"], None, "1 of 2 keys of the list are not in split 'train' of data"),
    "another list": (["train-000001"], b"train-000002\n", "is not the list of data card 'chosen': its SHA-256 differs"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_lists_are_refused(tmp_path, array, name):
    keys, content, message = BAD[name]
    with pytest.raises(UserError, match=message):
        opened(write_card(tmp_path, keys, f"card: {array[0]}", content=content))


def test_a_missing_list_is_named(tmp_path, array):
    path = write_card(tmp_path, ["train-000001"], f"card: {array[0]}")
    path.with_name("list.txt").unlink()
    with pytest.raises(UserError, match=r"the list of data card 'chosen' is missing: .*list\.txt"):
        opened(path)


def test_keys_that_stand_twice_cannot_be_listed(tmp_path, array, monkeypatch):
    monkeypatch.setattr(ArraySource, "key", lambda self, index: f"image-{index % 9}")
    with pytest.raises(UserError, match=r"holds 'image-0' twice \(places 0 and 9\)"):
        opened(write_card(tmp_path, ["image-0"], f"card: {array[0]}"))
    assert len(opened(write_card(tmp_path, ["image-1"], f"card: {array[0]}"))) == 1
