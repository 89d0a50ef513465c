"""What tells a split from a changed one, without reading its images."""

from __future__ import annotations

import hashlib
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unlabeled.config.card import Card
from unlabeled.config.recipe import Subset
from unlabeled.data.sources import fingerprint as fingerprints
from unlabeled.data.sources.fingerprint import Names, digest
from unlabeled.data.sources.folder import FolderSource
from unlabeled.data.sources.open import open_source
from unlabeled.data.sources.subset import open_part
from unlabeled.data.sources.tar.shards import ShardSource


def photos(folder: Path, count: int = 6) -> Path:
    rng = np.random.default_rng(0)
    for i in range(count):
        (folder / f"{i % 2}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(folder / f"{i % 2}" / f"{i}.png")
    return folder


def card(kind: str, root: Path, path: str = ".", **more: object) -> Card:
    return Card.model_validate({"name": "x", "source": {"kind": kind, **more}, "root": str(root),
                                "splits": {"train": {"path": path, **({"samples": 4} if kind == "stream" else {})}}})


def found(made: Card) -> dict:
    return open_source(made, "train", in_order=True).fingerprint()


def test_a_folder_that_moved_is_the_same_and_one_that_changed_is_not(tmp_path: Path) -> None:
    root = photos(tmp_path / "a")
    before = found(card("classfolder", root))
    assert before["n"] == 6 and {"names", "traces", "labels", "classes"} < before.keys()
    moved = root.rename(tmp_path / "b")
    made = card("classfolder", moved)
    assert found(made) == before == found(made.model_copy(update={"in_memory": True}))
    (moved / "0" / "0.png").rename(moved / "1" / "0.png")
    assert found(made)["labels"] != before["labels"]
    (moved / "1" / "0.png").rename(moved / "0" / "0.png")
    Image.new("RGB", (8, 8)).save(moved / "0" / "2.png")
    changed = found(made)
    assert [key for key in before if changed[key] != before[key]] == ["traces"]


def test_shards_know_names_sizes_and_labels_and_may_be_dealt_out_anew(tmp_path: Path) -> None:
    from unlabeled.config.pack import PackSettings
    from unlabeled.data.packing.split import pack

    root = photos(tmp_path / "a")
    prints = []
    for number, samples in enumerate((6, 2)):
        pack(str(root), tmp_path / f"packed{number}", PackSettings(shard_samples=samples, workers=0, classes=True))
        tars = sorted((tmp_path / f"packed{number}").glob("*.tar"))
        assert len(tars) == 6 // samples
        prints.append(ShardSource("x", "train", tars, ("png",), "cls").fingerprint())
    assert prints[0] == prints[1] and prints[0]["n"] == 6 and "labels" in prints[0]
    Image.new("RGB", (8, 8)).save(root / "0" / "2.png")
    pack(str(root), tmp_path / "other", PackSettings(workers=0, classes=True))
    other = ShardSource("x", "train", sorted((tmp_path / "other").glob("*.tar")), ("png",), "cls").fingerprint()
    assert [key for key in prints[0] if other[key] != prints[0][key]] == ["traces"]


@pytest.mark.parametrize("form", ["npz", "npy"])
def test_arrays_are_told_apart_by_their_pixels_and_labels(tmp_path: Path, form: str) -> None:
    rows, labels = np.arange(5 * 4 * 4 * 3, dtype=np.uint8).reshape(5, 4, 4, 3), np.arange(5)

    def saved(rows: np.ndarray, labels: np.ndarray) -> dict:
        if form == "npz":
            np.savez(tmp_path / "x.npz", images=rows, labels=labels)
        else:
            np.save(tmp_path / "x.npy", rows)
        return found(card("array", tmp_path, f"x.{form}"))

    before = saved(rows, labels)
    assert saved(rows.copy(), labels.copy()) == before and before["shape"] == [5, 4, 4, 3]
    other = rows.copy()
    other[3, 0, 0, 0] ^= 1
    assert saved(other, labels) != before
    assert (saved(rows, labels[::-1].copy()) != before) == (form == "npz")


def test_a_part_knows_its_places_and_a_stream_its_shards(tmp_path: Path) -> None:
    made = Card.model_validate({"name": "x", "source": {"kind": "digits"}, "splits": {"train": {}, "val": {}}})
    whole = open_source(made, "train")
    parts = [open_part(whole, made, Subset(per_class=2, seed=seed)).fingerprint() for seed in (0, 0, 1)]
    assert parts[0] == parts[1] != parts[2] and parts[0]["n"] == 20 and parts[0]["of"] == 1297
    for name in ("0.tar", "1.tar"):
        (tmp_path / name).write_bytes(bytes(1024))
    streamed = card("stream", tmp_path, "{0,1}.tar")
    before = found(streamed)
    shutil.copytree(tmp_path, tmp_path / "moved")
    assert found(card("stream", tmp_path / "moved", "{0,1}.tar")) == before
    (tmp_path / "1.tar").write_bytes(bytes(2048))
    assert found(streamed) != before
    assert found(card("stream", tmp_path, "{0,0}.tar"))["names"] != before["names"]


def test_a_million_names_take_less_than_a_second(tmp_path: Path) -> None:
    source = FolderSource("x", "train", tmp_path, [])
    source.paths = Names.from_buffers(b"n01440764/n01440764_10026.JPEG" * 1_000_000, np.arange(1, 1_000_001) * 30)
    source.labels, source.classes = np.arange(1_000_000) % 1000, [str(i) for i in range(1000)]
    begin = time.process_time()
    assert source.fingerprint()["n"] == 1_000_000
    assert time.process_time() - begin < 1.0


def test_digests_of_large_arrays_and_names_are_those_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    table = np.arange(60).reshape(10, 6)
    arrays = [table, table[:, 1], table[::2].T, np.array(3.5), np.empty((0, 3)), np.arange(7, dtype=np.uint8)]
    names = Names(["one", "", "twenty-two", "é", "five", "x" * 40, "seven"])
    for array in arrays:  # as digests were made when they were one piece
        whole = hashlib.blake2b(f"{array.dtype.str}{array.shape}".encode() + array.tobytes(), digest_size=16)
        for together in (1 << 20, 3, 1):
            monkeypatch.setattr(fingerprints, "_TOGETHER", together)
            assert digest(array) == whole.hexdigest()
            assert names.digest() == digest(np.diff(names.ends, prepend=0), names.text)
    view = Names.from_buffers(memoryview(names.text), names.ends)
    assert view.digest() == names.digest() and [*(view[i] for i in range(7))] == [*(names[i] for i in range(7))]
