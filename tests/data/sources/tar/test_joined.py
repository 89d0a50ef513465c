"""The joined index of large splits: what it says, when it is made; damage, lack of space, other processes."""

from __future__ import annotations

import os
import pickle
import resource
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.data.toys import at_once, jpeg, shard_card, write_shards, write_tar

from unlabeled.data.overlap import twins
from unlabeled.data.records.store import keys_digest
from unlabeled.data.sources.files import said
from unlabeled.data.sources.files.kept import in_turn
from unlabeled.data.sources.open import open_source
from unlabeled.data.sources.subset import Part
from unlabeled.data.sources.tar import joined
from unlabeled.data.sources.tar.shards import ShardSource
from unlabeled.errors import UserError

FILE = "toy-train.index"


@pytest.fixture
def fills(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every split of more than 9 samples is large; return the stamps of the joined indexes that are made."""
    made: list[str] = []
    original = joined._fill

    def counted(file: object, shards: joined.ShardSet, stamp: str) -> None:
        made.append(stamp)
        original(file, shards, stamp)

    monkeypatch.setattr(joined, "_LARGE", 9)
    monkeypatch.setattr(joined, "_fill", counted)
    said.say_once.cache_clear()
    return made


def opened(root: Path, **more: object) -> ShardSource:
    source = open_source(shard_card(root, **more), "train")
    assert isinstance(source, ShardSource)
    return source


def all_of(source: ShardSource) -> dict[str, object]:
    return {"samples": [(source.key(i), source.raw(i)) for i in range(len(source))], "traces": source.traces().tolist(),
            "labels": None if source.labels is None else source.labels.tolist(), "print": source.fingerprint(),
            "names": [*(source.names()[i] for i in range(len(source)))], "keys": keys_digest(source),
            "of": None if (few := source.labels_of(np.array([5, 0, 5]))) is None else few.tolist(),
            "spots": source.spots(np.arange(len(source)))}


@pytest.mark.parametrize("label", ["cls", None])
def test_a_large_split_is_what_it_is_when_it_is_small(
        tmp_path: Path, fills: list[str], monkeypatch: pytest.MonkeyPatch, label: str | None) -> None:
    rule = {"source": {"kind": "shards", "label": label}}
    root = write_shards(tmp_path / "d")
    write_tar(root / "toy-000001.tar", {f"{key}.jpg": jpeg(number) for number, key in enumerate(("é", "x" * 90, "9"))}
              | {f"{number}.jpg": jpeg(number, 24) for number in range(4)})
    large, again = opened(root, **rule), opened(root, **rule)
    assert len(fills) == 1 and (root / FILE).is_file() and len(large) == 12
    monkeypatch.setattr(joined, "_LARGE", 12)
    (root / FILE).unlink()
    small = opened(root, **rule)
    assert len(fills) == 1 and not (root / FILE).exists()
    assert all_of(large) == all_of(again) == all_of(small)
    for source in (large, small):
        for index, (shard, first) in enumerate(source.spots(np.arange(12))):
            raw = source.raw(index)
            assert source.tars[shard].read_bytes()[first : first + len(raw)] == raw
    assert small._joined.file is None and large._joined.file.path == root / FILE
    assert twins(Part(large, np.array([11, 3])), Part(small, np.array([3, 0, 11]))).tolist() == [1, -1, 0]
    if label is not None:
        assert large.labels is not None and large.labels.tolist() == [0, 1, 2, 0, 1, *[-1] * 7]
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            torch.as_tensor(large.labels)[0] = 7  # of this process alone
        assert again.labels is not None and again.labels[0] == 0


def test_of_several_images_the_extension_that_comes_first_counts(tmp_path: Path, fills: list[str]) -> None:
    members = {f"{number}.{form}": jpeg(number, side, kind) for number in range(6)
               for form, side, kind in (("jpg", 16, "JPEG"), ("png", 8, "PNG"))}
    tar = write_tar(tmp_path / "x.tar", members | {"only.jpg": jpeg(6)})
    for image, side in ((("png", "jpg"), 8), (("jpg", "png"), 16)):
        source = ShardSource("x", "train", [tar], image, None)
        assert [source.image(index).shape[0] for index in range(7)] == [side] * 6 + [16]


def test_it_is_made_once_and_again_when_a_shard_or_a_rule_changes(tmp_path: Path, fills: list[str],
                                                                 capsys: pytest.CaptureFixture[str]) -> None:
    root = write_shards(tmp_path / "d")
    for _ in range(3):
        assert opened(root).key(7) == "img-007"
    assert len(fills) == 1
    assert capsys.readouterr().err == f"{root}: the indexes of 2 shards are joined in one file, once\n"
    write_tar(root / "toy-000001.tar", {f"new-{i}.jpg": jpeg(i) for i in range(6)})
    assert opened(root).key(7) == "new-2" and len(fills) == 2
    stat = (root / "toy-000000.tar").stat()
    os.utime(root / "toy-000000.tar", ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert opened(root).key(4) == "img-004" and len(fills) == 3
    assert opened(root, source={"kind": "shards"}).labels is None and len(fills) == 4
    assert opened(root).labels is not None and len(fills) == 5
    (root / "toy-000000.tar").rename(root / "other.tar")
    (root / "toy-000001.tar").rename(root / "toy-000000.tar")
    (root / "other.tar").rename(root / "toy-000001.tar")
    assert opened(root).key(0) == "new-0" and len(set(fills)) == 5, "the order of the shards"
    assert opened(root.rename(tmp_path / "elsewhere")).key(0) == "new-0" and len(fills) == 6, "a folder may move"


def test_other_shards_of_equal_size_and_time_are_others(tmp_path: Path, fills: list[str]) -> None:
    root = write_shards(tmp_path / "d", shards=3)
    for tar in root.glob("*.tar"):
        os.utime(tar, ns=(0, 10**18))
    assert len({tar.stat().st_size for tar in root.glob("*.tar")}) == 1
    for path, key in (("toy-{000000..000001}.tar", "img-005"), ("toy-{000000,000002}.tar", "img-010")):
        assert opened(root, splits={"train": {"path": path}}).key(5) == key
    assert len(set(fills)) == 2


@pytest.mark.parametrize("damage", [
    lambda data: b"", lambda data: b"half an ind", lambda data: data[:-1], lambda data: data[: len(data) // 2],
    lambda data: data + b"\0", lambda data: bytes(len(data)), lambda data: b"\0" * 64 + data,
    lambda data: data.replace(b'"highest": 2', b'"highest": 7'), lambda data: data[64:],
    lambda data: data[:-8] + b"\xff" * 8,
])  # fmt: skip
def test_a_damaged_one_is_made_again(tmp_path: Path, fills: list[str], damage) -> None:
    root = write_shards(tmp_path / "d")
    before = all_of(opened(root))
    data = (root / FILE).read_bytes()
    assert damage(data) != data
    (root / FILE).write_bytes(damage(data))
    assert all_of(opened(root)) == before and len(fills) == 2
    assert (root / FILE).read_bytes() == data


def test_a_kept_index_of_one_shard_that_is_damaged_is_read_anew(tmp_path: Path, fills: list[str]) -> None:
    root = write_shards(tmp_path / "d")
    before = all_of(opened(root))
    (root / FILE).unlink()
    (root / "toy-000001.tar.index").write_bytes(b"PK")
    assert all_of(opened(root)) == before


def test_where_the_folder_is_read_only_it_stands_in_the_cache_and_else_in_memory(
        tmp_path: Path, fills: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_shards(tmp_path / "d")
    cache = Path(os.environ["XDG_CACHE_HOME"])
    (tmp_path / "file").touch()
    root.chmod(0o555)
    try:
        first, second = opened(root), opened(root)
        assert first._joined.file.path == second._joined.file.path
        assert first._joined.file.path.parent == cache / "unlabeled" / "index"
        assert len(fills) == 1
        capsys.readouterr()
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
        third = opened(root)
    finally:
        root.chmod(0o755)
    assert third._joined.file is None and all_of(third) == all_of(first)
    said = capsys.readouterr().err.splitlines()
    assert said[-1].startswith(f"the joined index of 'toy-train' cannot be kept in {root} or {tmp_path}/file")
    assert said[-1].endswith("every process holds all of it in memory")


def test_a_disk_that_fills_up_leaves_nothing_behind(tmp_path: Path, fills: list[str]) -> None:
    root = write_shards(tmp_path / "d", shards=2, each=40)
    assert len(opened(root)) == 80
    (root / FILE).unlink()
    before = sorted(root.iterdir())
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        source = opened(root)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert source._joined.file is None and source.key(79) == "img-079"
    assert sorted(root.iterdir()) == before


def test_one_that_is_cut_while_it_is_used_is_named(tmp_path: Path, fills: list[str]) -> None:
    root = write_shards(tmp_path / "d")
    source = opened(root)
    os.truncate(root / FILE, 100)
    assert source.raw(3) == jpeg(3)
    for wrong in (lambda: source.raw(8), lambda: source.labels_of(np.array([2, 9]))):
        with pytest.raises(UserError, match=r"toy-train.index has become shorter since it was opened; start again"):
            wrong()
    assert opened(root).raw(8) == jpeg(8) and len(fills) == 2


def test_copies_for_other_processes_hold_no_data(tmp_path: Path, fills: list[str]) -> None:
    source = opened(write_shards(tmp_path / "d", shards=2, each=60))
    copy = pickle.dumps(source)
    assert len(copy) < 1500
    assert all_of(pickle.loads(copy)) == all_of(source)


def test_labels_beyond_the_classes_are_named_with_their_shard(tmp_path: Path, fills: list[str]) -> None:
    root = write_shards(tmp_path / "d")
    members = {f"new-{i}.jpg": jpeg(i) for i in range(5)} | {"new-3.cls": b"3"}
    write_tar(root / "toy-000001.tar", {name: members[name] for name in sorted(members)})
    for _ in range(2):
        with pytest.raises(UserError, match=r"toy-000001.tar, sample new-3: label 3 found, but only 3 classes are nam"):
            opened(root)
    write_tar(root / "toy-000001.tar", {f"a{i}.txt": b"no image" for i in range(5)})
    with pytest.raises(UserError, match=r"sample a0: no image member .* the shard has: txt"):
        opened(root)
    assert sorted(path.name for path in root.iterdir() if path.name.startswith(".")) == []


def test_processes_that_start_together_agree_and_one_makes_it(tmp_path: Path, fills: list[str]) -> None:
    root = write_shards(tmp_path / "d")

    def act() -> tuple[str, str, bool, int]:
        source = opened(root)
        return source.key(9), source.fingerprint()["names"], source._joined.file is not None, len(fills)

    answers = at_once(act)
    expected = opened(root).fingerprint()["names"]
    assert {answer[:3] for answer in answers} == {("img-009", expected, True)}
    assert sum(answer[3] for answer in answers) == 1 and fills == []
    assert [path.name for path in root.iterdir() if path.name.startswith(".")] == []


def test_two_that_write_it_at_once_leave_a_whole_one(tmp_path: Path, fills: list[str],
                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    """As where the file system knows no locks: another process finishes while this one writes."""
    root = write_shards(tmp_path / "d")
    counted, others = joined._fill, []

    def overtaken(file: object, shards: joined.ShardSet, stamp: str) -> None:
        if not others:
            others.append(os.fork())
            if others == [0]:
                os._exit(0 if opened(root).key(9) == "img-009" and (root / FILE).is_file() else 1)
            assert os.waitpid(others[0], 0)[1] == 0
        counted(file, shards, stamp)

    monkeypatch.setattr("fcntl.flock", _no_locks)
    monkeypatch.setattr(joined, "_fill", overtaken)
    source = opened(root)
    assert source._joined.file.path == root / FILE and source.key(9) == "img-009" and len(fills) == 1
    assert [path.name for path in root.iterdir() if path.name.startswith(".")] == []


def _no_locks(*_: object) -> None:
    raise OSError(38, "Function not implemented")


def test_a_turn_waits_for_the_one_before(tmp_path: Path) -> None:
    order, told = os.pipe()
    go, begin = os.pipe()
    child = os.fork()  # before the lock is taken, which the copy of its descriptor would hold
    if child == 0:
        os.read(go, 1)
        with in_turn(tmp_path):
            os.write(told, b"second")
        os._exit(0)
    with in_turn(tmp_path):
        os.write(begin, b"!")
        time.sleep(0.3)
        os.write(told, b"first ")
    assert os.waitpid(child, 0)[1] == 0
    assert os.read(order, 100) == b"first second"
    assert list(tmp_path.iterdir()) == []
    with in_turn(tmp_path / "nowhere"):
        pass
