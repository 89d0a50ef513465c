"""Folders of images: what is found, what is passed over, what is answered."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.data.toys import Corner, jpeg

from unlabeled.config.card import Card
from unlabeled.data.batch import Stream
from unlabeled.data.sources.base import CorruptSample
from unlabeled.data.sources.decode import decode
from unlabeled.data.sources.fingerprint import Names
from unlabeled.data.sources.open import open_source
from unlabeled.data.stream import BatchShare, Reading, TrainStream
from unlabeled.errors import UserError

FOLDER = Card.model_validate({"name": "folder", "source": {"kind": "folder"}, "splits": {"train": {"path": "."}}})
CLASSES = Card.model_validate({"name": "mine", "source": {"kind": "classfolder"}, "splits": {"train": {}, "val": {}}})


def write(root: Path, *names: str) -> Path:
    for i, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(jpeg(i))
    return root


def test_nested_images_sorted_others_passed_over(tmp_path: Path) -> None:
    write(tmp_path, "b.jpg", "a/z/c.JPEG", "a/d.Png", "ü/bild.webp", ".hidden/e.jpg", ".f.jpg", "notes.txt", "jpg")
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    source = open_source(FOLDER, "train", str(tmp_path))
    assert [source.key(i) for i in range(len(source))] == ["a/d.Png", "a/z/c.JPEG", "b.jpg", "ü/bild.webp"]
    assert source.labels is None
    assert np.array_equal(source.image(2), decode(jpeg(0), ""))


def test_a_linked_class_folder_is_followed(tmp_path: Path) -> None:
    write(tmp_path / "store", "x.jpg")
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "link").symlink_to(tmp_path / "store")
    assert open_source(FOLDER, "train", str(tmp_path / "set")).key(0) == "link/x.jpg"


def test_nothing_to_read_is_answered_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(UserError, match=r"holds no images \(looked at every depth for jpg, jpeg, png"):
        open_source(FOLDER, "train", str(tmp_path))
    with pytest.raises(UserError, match=r"nowhere is not a folder; give the folder that holds the images"):
        open_source(FOLDER, "train", str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match=r"data card 'folder' names no folder of its own: .*data.train.root=FOLDER"):
        open_source(FOLDER, "train")
    with pytest.raises(UserError, match=r"no split 'trian' \(it has: train\). Did you mean 'train'"):
        open_source(FOLDER, "trian", str(tmp_path))
    monkeypatch.delenv("PHOTOS", raising=False)
    card = FOLDER.model_copy(update={"root": "$PHOTOS/all"})
    with pytest.raises(UserError, match=r"'folder' reads from \$PHOTOS/all, but \$PHOTOS is not set.*root=FOLDER"):
        open_source(card, "train")
    monkeypatch.setenv("PHOTOS", str(write(tmp_path, "all/a.jpg")))
    assert len(open_source(card, "train")) == 1


def test_class_folders(tmp_path: Path) -> None:
    write(tmp_path, "train/cat/1.jpg", "train/cat/deep/2.jpg", "train/dog/3.jpg", "train/eel/4.jpg", "val/dog/5.jpg")
    train, val = open_source(CLASSES, "train", str(tmp_path)), open_source(CLASSES, "val", str(tmp_path))
    assert train.classes == val.classes == ["cat", "dog", "eel"]
    assert (train.labels.tolist(), val.labels.tolist()) == ([0, 0, 1, 2], [1])
    with pytest.raises(UserError, match=r"'fox' is no class|fox is no class of card 'mine'"):
        open_source(CLASSES, "val", str(write(tmp_path, "val/fox/6.jpg")))
    with pytest.raises(UserError, match=r"holds 'x.jpg' outside a class folder"):
        open_source(CLASSES, "train", str(write(tmp_path, "train/x.jpg")))


def test_class_folders_named_by_number(tmp_path: Path) -> None:
    """Folder 10 is class 10, also where others are missing; sorted by name it would be the second."""
    card = {"name": "v2", "source": {"kind": "classfolder", "order": "number"}, "splits": {"test": {"path": "."}}}
    write(tmp_path, "0/a.jpg", "2/b.jpg", "10/c.jpg", "9/d.jpg")
    source = open_source(Card.model_validate(card), "test", str(tmp_path))
    assert {source.key(i)[0]: int(label) for i, label in enumerate(source.labels)} == {"0": 0, "1": 10, "2": 2, "9": 9}
    assert source.classes == [str(i) for i in range(11)]
    named = Card.model_validate({**card, "classes": list("abcdefghijk")})
    assert open_source(named, "test", str(tmp_path)).classes == list("abcdefghijk")
    with pytest.raises(UserError, match=r"10 is no class of card 'v2', whose source.order is number; .* 0 to 4, or"):
        open_source(Card.model_validate({**card, "classes": list("abcde")}), "test", str(tmp_path))
    with pytest.raises(UserError, match=r"cat is no class of card 'v2', whose source.order is number"):
        open_source(Card.model_validate(card), "test", str(write(tmp_path, "cat/e.jpg")))


def test_a_truncated_file_is_replaced_and_a_resume_repeats_it(tmp_path: Path) -> None:
    write(tmp_path, *(f"{i}.jpg" for i in range(10)))
    (tmp_path / "4.jpg").write_bytes(jpeg(4)[:-150])
    (tmp_path / "7.jpg").write_bytes(b"")
    source = open_source(FOLDER, "train", str(tmp_path))
    (tmp_path / "2.jpg").unlink()

    def run(start: int, workers: int = 0) -> list[tuple[list[int], list[str]]]:
        stream = TrainStream(source, Stream((Corner(),)), BatchShare(5), Reading(workers), name="train", seed=0,
                             updates_per_epoch=2)
        return [(b.index.tolist(), b.corrupt) for (b,) in stream.updates(start, 6)]

    straight = run(0)
    assert {key for _, corrupt in straight for key in corrupt} == {"2.jpg", "4.jpg", "7.jpg"}
    assert run(3) == straight[3:] == run(3, workers=2)


def test_images_of_different_sizes_do_not_live_in_memory(tmp_path: Path) -> None:
    write(tmp_path, "a.jpg")
    (tmp_path / "b.jpg").write_bytes(jpeg(1, size=20))
    with pytest.raises(UserError, match=r"differ in size: 'b.jpg' is 20 x 20, others 16 x 16; set in_memory: false"):
        open_source(FOLDER.model_copy(update={"in_memory": True}), "train", str(tmp_path))


@pytest.mark.parametrize("mode", ["L", "LA", "P", "1", "CMYK", "RGBA", "YCbCr", "I;16", "I", "F"])
def test_every_kind_of_pixel_becomes_rgb(mode: str) -> None:
    gray = np.arange(0, 256, dtype=np.uint8).reshape(16, 16)
    buffer = io.BytesIO()
    if mode in ("I;16", "I"):
        Image.fromarray(gray.astype(np.uint16) * 257).save(buffer, "PNG" if mode == "I;16" else "TIFF")
    elif mode == "F":
        Image.fromarray(gray.astype(np.float32) / 255).save(buffer, "TIFF")
    else:
        Image.fromarray(gray).convert(mode).save(buffer, "TIFF" if mode in ("CMYK", "YCbCr") else "PNG")
    image = decode(buffer.getvalue(), "x")
    assert image.shape == (16, 16, 3)
    assert image.dtype == np.uint8
    if mode != "1":
        assert np.abs(image[..., 0].astype(int) - gray).max() <= 2


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "GIF"])
@pytest.mark.parametrize("share", [0, 0.02, 0.5, 0.9])
def test_truncated_bytes_are_corrupt_never_gray(form: str, share: float) -> None:
    data = jpeg(0, 32, form)
    with pytest.raises(CorruptSample) as error:
        decode(data[: int(len(data) * share)], "the key")
    assert error.value.key == "the key"
    with pytest.raises(CorruptSample):
        decode(b"\xff" * 100, "the key")


def test_names_hold_any_text() -> None:
    texts = ["", "a", "ü/b", "c\udcff"]
    names = Names(texts)
    assert [names[i] for i in range(4)] == texts
    with pytest.raises(IndexError):
        names[4]
