"""Sets that are decoded once: kept in a file, mapped by later starts, made again when their files change."""

from __future__ import annotations

import os
import pickle
import resource
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.data.toys import at_once, jpeg, shard_card, write_shards, write_tar

from unlabeled.config.card import Card
from unlabeled.data.sources import memory
from unlabeled.data.sources.base import CorruptSample, Source
from unlabeled.data.sources.memory import InMemory
from unlabeled.data.sources.open import open_source
from unlabeled.data.sources.tar.shards import ShardSource

STORE = "toy-train.images"


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the list to which every decoding of a whole set is added."""
    made: list[str] = []
    original = memory.decode_all
    monkeypatch.setattr(memory, "decode_all", lambda source: (made.append(source.split), original(source))[1])
    return made


def opened(root: Path, **more: Any) -> Source:
    return open_source(shard_card(root, **{"in_memory": True, **more}), "train")


def with_a_bad_one(root: Path) -> Path:
    write_shards(root)
    members = {"bad.jpg": jpeg(3)[:-200], "bad.cls": b"1"}
    for i in range(4):
        members |= {f"img-{i}.jpg": jpeg(i), f"img-{i}.cls": b"0"}
    write_tar(root / "toy-000001.tar", members)
    return root


def test_a_set_is_decoded_once_and_then_mapped(tmp_path: Path, decoded: list[str]) -> None:
    root = with_a_bad_one(tmp_path / "d")
    first, again = opened(root), opened(root)
    assert decoded == ["train"]
    assert (root / STORE).is_file()
    files = open_source(shard_card(root), "train")
    for source in (first, again):
        assert source.images.shape == (10, 16, 16, 3)
        assert not source.images.flags.writeable
        assert list(source.unreadable) == [5]
        for i in set(range(10)) - {5}:
            assert np.array_equal(source.images[i], files.image(i))
        assert np.array_equal(source.image(7), files.image(7))
        with pytest.raises(CorruptSample, match=r"^bad: .*[Tt]runcated"):
            source.image(5)
        assert source.labels.tolist() == files.labels.tolist()
        assert source.key(5) == "bad"


def test_what_it_was_made_of_decides(tmp_path: Path, decoded: list[str]) -> None:
    root = write_shards(tmp_path / "d")
    opened(root)
    write_tar(root / "toy-000001.tar", {"new.jpg": jpeg(99), "new.cls": b"0"})
    changed = opened(root)
    assert len(decoded) == 2
    assert np.array_equal(changed.images[5], open_source(shard_card(root), "train").image(5))
    stat = (root / "toy-000000.tar").stat()
    os.utime(root / "toy-000000.tar", ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    opened(root)
    assert len(decoded) == 3
    opened(root, source={"kind": "shards", "label": "cls", "image": ["jpg"]})
    assert len(decoded) == 4
    opened(root)
    assert len(decoded) == 5


def test_a_damaged_store_is_made_again(tmp_path: Path, decoded: list[str]) -> None:
    root = write_shards(tmp_path / "d")
    opened(root)
    whole = (root / STORE).read_bytes()
    for damaged in (b"", b"{}\n", b"[1]\n", b"null\n", whole[:-1], whole[:40], os.urandom(300)):
        (root / STORE).write_bytes(damaged)
        before = len(decoded)
        assert opened(root).images.shape == (10, 16, 16, 3)
        assert len(decoded) == before + 1
        assert (root / STORE).read_bytes() == whole


def test_a_read_only_folder_is_left_alone(tmp_path: Path, decoded: list[str]) -> None:
    root = write_shards(tmp_path / "d")
    root.chmod(0o555)
    try:
        opened(root)
        opened(root)
    finally:
        root.chmod(0o755)
    assert len(decoded) == 1
    assert sorted(path.name for path in root.iterdir()) == ["toy-000000.tar", "toy-000001.tar"]
    assert len(list((tmp_path / "cache" / "unlabeled" / "images").iterdir())) == 1


def test_where_nothing_can_be_written_it_goes_on_and_says_so_once(
        tmp_path: Path, decoded: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:
    root = write_shards(tmp_path / "d")
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    root.chmod(0o555)
    try:
        first, second = opened(root), opened(root)
    finally:
        root.chmod(0o755)
    assert len(decoded) == 2
    assert np.array_equal(first.images, second.images)
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert f"the decoded images of 'toy' cannot be kept in {root} or {tmp_path}/file" in said
    assert "every start decodes them again" in said


def test_a_disk_that_fills_up_leaves_nothing_behind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_shards(tmp_path / "d")
    open_source(shard_card(root), "train")  # the indexes are there
    before = sorted(root.iterdir())
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, hard))  # the array has 7,680 bytes
    try:
        source = opened(root)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert source.images.shape == (10, 16, 16, 3)
    assert sorted(root.iterdir()) == before
    assert list((tmp_path / "cache" / "unlabeled" / "images").iterdir()) == []
    assert "(File too large)" in capsys.readouterr().err


def test_copies_for_other_processes_hold_no_images(tmp_path: Path) -> None:
    root = write_shards(tmp_path / "d", shards=2, each=40)
    source = opened(root)
    assert isinstance(source, InMemory)
    assert source.images.nbytes > 60000
    copy = pickle.dumps(source)
    assert len(copy) < 10000
    restored = pickle.loads(copy)
    assert np.array_equal(restored.images, source.images)
    assert source.images is not None


def test_an_array_in_memory_is_mapped_too(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (100, 8, 8, 3), np.uint8)
    np.save(tmp_path / "x.npy", pixels)
    card = Card.model_validate({"name": "mine", "source": {"kind": "array"}, "root": str(tmp_path), "in_memory": True,
                                "splits": {"train": {"path": "x.npy"}}})
    source = open_source(card, "train")
    assert np.array_equal(source.images, pixels)
    assert not source.images.flags.writeable
    copy = pickle.dumps(source)
    assert len(copy) < 2000
    assert np.array_equal(pickle.loads(copy).images, pixels)
    source.image(3)[:] = 0  # a copy of its own


def test_processes_that_start_together_agree(tmp_path: Path) -> None:
    root = with_a_bad_one(tmp_path / "d")

    def act() -> tuple[int, list[int], bool]:
        source = opened(root)
        return source.images.sum(dtype=np.int64).item(), list(source.unreadable), source.images.flags.writeable

    found = at_once(act)
    expected = memory.decode_all(ShardSource("toy", "train", sorted(root.glob("*.tar")), ("jpg",), "cls"))[0]
    assert found == [(int(expected.sum(dtype=np.int64)), [5], False)] * 4
    assert [path.name for path in root.iterdir() if path.name.startswith(".")] == []


def test_folders_are_kept_by_their_files(tmp_path: Path, decoded: list[str]) -> None:
    root = tmp_path / "photos"
    root.mkdir()
    for i in range(3):
        (root / f"{i}.jpg").write_bytes(jpeg(i))
    card = Card.model_validate({"name": "my photos", "source": {"kind": "folder"}, "root": str(root),
                                "splits": {"train": {"path": "."}}, "in_memory": True})
    assert len(open_source(card, "train")) == 3
    open_source(card, "train")
    assert len(decoded) == 1
    assert (root / "my_photos-train.images").is_file()
    (root / "3.jpg").write_bytes(jpeg(3))
    assert open_source(card, "train").images.shape[0] == 4
    (root / "1.jpg").write_bytes(jpeg(11))
    changed = open_source(card, "train")
    assert len(decoded) == 3
    files = open_source(card.model_copy(update={"in_memory": False}), "train")
    assert np.array_equal(changed.images[1], files.image(1))
