"""Tar shards: index, random access, errors that name the file."""

from __future__ import annotations

import os
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset
from tests.data.toys import Corner, jpeg, shard_card, write_shards, write_tar

from unlabeled.config.card import Card
from unlabeled.config.read import read_file
from unlabeled.data.batch import Stream
from unlabeled.data.sources.base import CorruptSample
from unlabeled.data.sources.open import open_source
from unlabeled.data.sources.tar import index as tar_index
from unlabeled.data.sources.tar.shards import ShardSource, expand
from unlabeled.data.stream import BatchShare, TrainStream
from unlabeled.errors import UserError

REPOSITORY = Path(__file__).resolve().parents[4]


def opened(root: Path, **more: object) -> ShardSource:
    source = open_source(shard_card(root, **more), "train")
    assert isinstance(source, ShardSource)
    return source


def raw_of_webdataset(tars: list[str]) -> list[tuple[str, bytes, int]]:
    samples = webdataset.WebDataset(tars, shardshuffle=False, empty_check=False)
    return [(s["__key__"], s["jpg"], int(s["cls"])) for s in samples]


def test_our_reader_and_webdataset_read_the_same_bytes(tmp_path: Path) -> None:
    source = opened(write_shards(tmp_path / "d"))
    ours = [(source.key(i), source.raw(i), int(source.labels[i])) for i in range(len(source))]
    assert ours == raw_of_webdataset([str(tar) for tar in source.tars])
    assert source.image(7).shape == (16, 16, 3)


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_folders_and_dots_in_every_tar_format(tmp_path: Path, form: int) -> None:
    folder = "deep/" + "x" * 60
    names = [f"{folder}/{'y' * 60 if form != tarfile.USTAR_FORMAT else 'y' * 50}{i}" for i in range(3)]
    members = {"readme": b"no extension", **{f"{name}.seg.v2.png": b"other" for name in names[:1]}}
    for i, name in enumerate(names):
        members |= {f"{name}.JPG": jpeg(i), f"{name}.cls": b"1\n"}
    root = tmp_path / "d"
    root.mkdir()
    for shard in range(2):
        write_tar(root / f"toy-{shard:06d}.tar", members, form)
    source = opened(root)
    assert [source.key(i) for i in range(3)] == names
    assert source.labels.tolist() == [1] * 6
    assert source.raw(5) == jpeg(2)


def test_labels_from_json_and_samples_without_label(tmp_path: Path) -> None:
    root = tmp_path / "d"
    root.mkdir()
    members = {"a.png": jpeg(0, form="PNG"), "a.json": b'{"y": 2}', "b.png": jpeg(1, form="PNG")}
    for shard in range(2):
        write_tar(root / f"toy-{shard:06d}.tar", members)
    source = opened(root, source={"kind": "shards", "label": "json:y"})
    assert source.labels.tolist() == [2, -1, 2, -1]
    with pytest.raises(UserError, match=r"toy-000000.tar, sample a: no class number \(json:z\)"):
        opened(root, source={"kind": "shards", "label": "json:z"})


def test_index_is_made_once_and_again_when_the_shard_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_shards(tmp_path / "d")
    made: list[str] = []
    original = tar_index.make_index
    monkeypatch.setattr(tar_index, "make_index", lambda tar, label: (made.append(tar.name), original(tar, label))[1])
    opened(root)
    assert made == ["toy-000000.tar", "toy-000001.tar"]
    assert (root / "toy-000000.tar.index").is_file()
    opened(root)
    assert len(made) == 2
    write_tar(root / "toy-000001.tar", {"new.jpg": jpeg(9), "new.cls": b"0"})
    source = opened(root)
    assert made[2:] == ["toy-000001.tar"]
    assert source.key(5) == "new"
    stat = (root / "toy-000000.tar").stat()
    os.utime(root / "toy-000000.tar", ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    opened(root)
    assert made[3:] == ["toy-000000.tar"]
    (root / "toy-000001.tar.index").write_bytes(b"half an ind")
    opened(root)
    assert made[4:] == ["toy-000001.tar"]
    assert [p.name for p in root.iterdir() if p.name.startswith(".index")] == []


def test_read_only_folders_are_left_alone(tmp_path: Path) -> None:
    root = write_shards(tmp_path / "d")
    root.chmod(0o555)
    try:
        opened(root)
        assert not list(root.glob("*.index"))
        assert len(list((tmp_path / "cache" / "unlabeled" / "index").iterdir())) == 2
    finally:
        root.chmod(0o755)


def test_missing_and_truncated_shards_are_named(tmp_path: Path) -> None:
    root = write_shards(tmp_path / "d")
    opened(root)
    whole = (root / "toy-000001.tar").read_bytes()
    (root / "toy-000001.tar").unlink()
    with pytest.raises(UserError, match=r"toy-000001.tar is missing \(1 of the 2 shards"):
        opened(root)
    end = len(whole.rstrip(b"\0"))
    for cut in (1000, end - 300, -(-end // 512) * 512):
        (root / "toy-000001.tar").write_bytes(whole[:cut])
        with pytest.raises(UserError, match=r"toy-000001.tar is truncated"):
            opened(root)
    for bad, text in ((b"", "is empty"), (os.urandom(4096), "not a plain tar file")):
        (root / "toy-000001.tar").write_bytes(bad)
        with pytest.raises(UserError, match=rf"toy-000001.tar {text}|toy-000001.tar is .*{text}"):
            opened(root)
    with pytest.raises(UserError, match=r"no shard toy-.*give the folder with data.train.root=FOLDER"):
        opened(tmp_path / "elsewhere")


def test_strange_content_is_named(tmp_path: Path) -> None:
    root = write_shards(tmp_path / "d")
    write_tar(root / "toy-000001.tar", {"a.txt": b"no image", "a.cls": b"0"})
    with pytest.raises(UserError, match=r"sample a: no image member .* the shard has: cls, txt"):
        opened(root)
    write_tar(root / "toy-000001.tar", {"a.jpg": jpeg(1), "a.cls": b"cat"})
    with pytest.raises(UserError, match=r"toy-000001.tar, sample a: no class number"):
        opened(root)
    write_tar(root / "toy-000001.tar", {"a.jpg": jpeg(1), "a.cls": b"3"})
    with pytest.raises(UserError, match=r"label 3 found, but only 3 classes"):
        opened(root)


def test_a_damaged_image_in_a_shard_is_replaced_and_a_resume_repeats_it(tmp_path: Path) -> None:
    root = write_shards(tmp_path / "d")
    members = {"bad.jpg": jpeg(3)[:-200], "bad.cls": b"1"}
    for i in range(4):
        members |= {f"img-{i}.jpg": jpeg(i), f"img-{i}.cls": b"0"}
    write_tar(root / "toy-000001.tar", members)
    for in_memory in (False, True):
        source = open_source(shard_card(root, in_memory=in_memory), "train")
        with pytest.raises(CorruptSample, match=r"^bad: "):
            source.image(5)

        def run(start: int) -> list[tuple[list[int], list[str]]]:
            stream = TrainStream(source, Stream((Corner(),)), BatchShare(5), name="train", seed=0,  # noqa: B023
                                 updates_per_epoch=2)
            return [(b.index.tolist(), b.corrupt) for (b,) in stream.updates(start, 6)]

        straight = run(0)
        assert sum(len(corrupt) for _, corrupt in straight) >= 3
        assert run(3) == straight[3:]


def test_copies_for_other_processes_open_their_own_files(tmp_path: Path) -> None:
    source = opened(write_shards(tmp_path / "d"))
    first = source.raw(0)
    copy = pickle.loads(pickle.dumps(source))
    assert copy._files == {}
    assert copy.raw(0) == first
    child = os.fork()
    if child == 0:
        os._exit(0 if source.raw(9) == copy.raw(9) else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert source.raw(0) == first


@pytest.mark.parametrize(("pattern", "names"), [
    ("x-{08..11}.tar", ["x-08.tar", "x-09.tar", "x-10.tar", "x-11.tar"]),
    ("{a,b}/{0..1}.tar", ["a/0.tar", "a/1.tar", "b/0.tar", "b/1.tar"]),
    ("pipe:awk '{print}' ${DATA}/{1..2}.tar", ["pipe:awk '{print}' ${DATA}/1.tar", "pipe:awk '{print}' ${DATA}/2.tar"]),
    ("plain.tar", ["plain.tar"]),
])
def test_braces_are_written_out_as_a_shell_does(pattern: str, names: list[str]) -> None:
    assert expand(pattern) == names


@pytest.mark.skipif(not os.environ.get("DATA"), reason="real CIFAR-10 shards: $DATA is not set")
def test_real_cifar10_shards(tmp_path: Path) -> None:
    for tar in (Path(os.environ["DATA"]) / "cifar10").glob("*.tar"):
        (tmp_path / tar.name).symlink_to(tar)
    card = read_file(REPOSITORY / "data" / "cifar10.yaml", Card).model_copy(update={"in_memory": False})
    source = open_source(card, "train", str(tmp_path))
    assert len(source) == 50000
    assert np.bincount(source.labels).tolist() == [5000] * 10
    for i in (0, 6250, 49999):
        assert source.key(i).split("-")[1] == source.classes[source.labels[i]]
    val = open_source(card, "val", str(tmp_path))
    theirs = raw_of_webdataset([str(tmp_path / "cifar10-val-000001.tar")])
    assert [(val.key(i), val.raw(i), int(val.labels[i])) for i in range(5000, 10000)] == theirs
    images = np.stack([source.image(i) for i in range(0, 50000, 25)]) / 255
    assert np.allclose(images.mean((0, 1, 2)), card.mean, atol=0.01)
    stream = TrainStream(source, Stream((Corner(),)), BatchShare(256), name="train", seed=0, updates_per_epoch=195)
    (batch,) = next(stream.updates(100, 101))
    assert batch.crops[0].dtype == torch.uint8 and not batch.corrupt


def test_a_shard_that_may_not_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_shards(tmp_path / "d")

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(tar_index, "make_index", refuse)
    with pytest.raises(UserError, match=r"shard .*toy-000000.tar cannot be read: Permission denied"):
        opened(root)


def test_shards_without_samples_are_named(tmp_path: Path) -> None:
    write_tar(tmp_path / "toy-000000.tar", {})
    with pytest.raises(UserError, match=r"1 shards of data card 'toy', split 'train', hold no samples; .*toy-000000"):
        opened(tmp_path, splits={"train": {"path": "toy-000000.tar"}})
