"""Folders and lists of videos."""

from __future__ import annotations

import os
import shutil
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.data.toy_videos import number_of, numbered, write_sound, write_video
from tests.data.toys import write_tar

from unlabeled.config.card import Card
from unlabeled.data.sources.base import CorruptSample
from unlabeled.data.sources.mixed import Mixed
from unlabeled.data.sources.open import open_source
from unlabeled.data.sources.subset import Part
from unlabeled.data.sources.video import source as video_source
from unlabeled.data.sources.video.frames import Timeline
from unlabeled.data.sources.video.source import VideoSource
from unlabeled.errors import UserError


def card(splits: dict[str, Any] | None = None, classes: list[str] | None = None, **source: Any) -> Card:
    return Card.model_validate({"name": "mine", "source": {"kind": "videofolder", **source}, "classes": classes,
                                "splits": splits or {"train": {"path": "."}}})


def opened(of: Card, root: Path, split: str = "train") -> VideoSource:
    source = open_source(of, split, str(root))
    assert isinstance(source, VideoSource)
    return source


def keys(source: VideoSource) -> list[str]:
    return [source.key(i) for i in range(len(source))]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return a folder of six videos of two classes in two splits, 20 to 25 frames, and what lies about beside them."""
    one = write_video(tmp_path / "one.mp4", numbered(20))
    for number, name in enumerate(("train/cat/a.mp4", "train/cat/b.MOV", "train/dog/c.mkv", "val/cat/d.mp4",
                                   "val/dog/e.avi", "val/dog/deep/f f.mp4")):
        if name.endswith(("avi", "mkv")):
            write_video(tmp_path / "set" / name, numbered(20 + number), "mpeg4")
        else:
            (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(one, tmp_path / "set" / name)
    (tmp_path / "set" / "notes.txt").write_text("no video")
    (tmp_path / "set" / "program.ts").write_text("const a = 1")
    return tmp_path / "set"


def test_flat_and_nested_videos(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = opened(card(), root)
    assert keys(source) == ["train/cat/a.mp4", "train/cat/b.MOV", "train/dog/c.mkv", "val/cat/d.mp4",
                            "val/dog/deep/f f.mp4", "val/dog/e.avi"]
    assert "6 videos; passed over 2 other files: 1 .ts, 1 .txt" in capsys.readouterr().err
    assert source.has_clips and source.labels is None and source.images is None and not source.unreadable
    assert [source.length(i) for i in range(6)] == [20, 20, 22, 20, 20, 24]
    assert source.rate(0) == pytest.approx(30)
    assert abs(number_of(source.image(2)) - 11) <= 1  # the middle one
    with pytest.raises(UserError, match=r"holds no videos \(looked at every depth for mp4, mov, avi, mkv and 11 more"):
        (root / "empty").mkdir()
        opened(card(), root / "empty")


def test_class_folders(root: Path) -> None:
    of = card({"train": {}, "val": {}}, labels="folders")
    train, val = opened(of, root), opened(of, root, "val")
    assert train.classes == val.classes == ["cat", "dog"]
    assert (train.labels.tolist(), val.labels.tolist()) == ([0, 0, 1], [0, 1, 1])
    with pytest.raises(UserError, match=r"no folder .*test with a folder per class; .* holds only: train$"):
        opened(card({"train": {}, "test": {}}, labels="folders"), root, "test")
    with pytest.raises(UserError, match=r"holds 'd.mp4' outside a class folder; .* set the card's source.labels to n"):
        opened(card({"train": {"path": "val/cat"}}, labels="folders"), root)


@pytest.mark.parametrize(("text", "labels", "expected"), [
    ("train/cat/a.mp4 1\nval/dog/deep/f f.mp4 2\n", "none", None),
    ("train/cat/a.mp4\r\nval/dog/deep/f f.mp4\r\n", "none", None),
    ("train/cat/a.mp4 1\nval/dog/deep/f f.mp4 0\n", "list", [1, 0]),
    ("path,label\ntrain/cat/a.mp4,tabby cat\n\"val/dog/deep/f f.mp4\",dog\n", "list", [1, 0]),
    ("train/cat/a.mp4;dog\nval/dog/deep/f f.mp4;cat", "list", [1, 0]),
])
def test_lists_of_paths(root: Path, text: str, labels: str, expected: list[int] | None) -> None:
    (root / "train.txt").write_text(text)
    source = opened(card({"train": {"path": "train.txt"}}, list="paths", labels=labels), root)
    assert keys(source) == ["train/cat/a.mp4", "val/dog/deep/f f.mp4"]
    assert (source.labels if source.labels is None else source.labels.tolist()) == expected
    assert not source.unreadable


def test_the_layout_of_ucf101(root: Path) -> None:
    """The numbers of its lists begin at 1, and test lists have none: folders are the classes of both."""
    (root / "lists").mkdir()
    (root / "lists" / "trainlist01.txt").write_text("cat/a.mp4 1\ndog/c.mkv 2\n")
    (root / "lists" / "testlist01.txt").write_text("dog/c.mkv\n")
    of = card({"train": {"path": "lists/trainlist01.txt"}, "val": {"path": "lists/testlist01.txt"}}, list="paths",
              labels="folders", videos="train")
    assert opened(of, root).labels.tolist() == [0, 1]
    assert opened(of, root, "val").labels.tolist() == [1]
    assert opened(of, root, "val").classes == ["cat", "dog"]


def test_the_layout_of_hmdb51(root: Path) -> None:
    (root / "splits").mkdir()
    (root / "splits" / "cat_test_split1.txt").write_text("a.mp4 1 \nb.MOV 2 \n")
    (root / "splits" / "dog_test_split1.txt").write_text("c.mkv 1 \nx.avi 0 \n")
    (root / "splits" / "dog_test_split2.txt").write_text("c.mkv 2 \n")
    of = card({name: {"path": f"splits/*_test_split1.txt#{number}"} for name, number in (("train", 1), ("val", 2))},
              list="hmdb51", labels="folders", videos="train")
    assert (keys(opened(of, root)), opened(of, root).labels.tolist()) == (["cat/a.mp4", "dog/c.mkv"], [0, 1])
    assert keys(opened(of, root, "val")) == ["cat/b.MOV"]


def test_the_layout_of_kinetics_leaves_out_what_is_gone(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    head = "label,youtube_id,time_start,time_end,split,is_cc\n"
    (root / "train.csv").write_text(head + "playing ball,-abc,5,15,train,0\ncooking,gone,0,10,train,0\n")
    (root / "val.csv").write_text(head + "cooking,whole,0,10,val,0\n")
    (root / "videos" / "any").mkdir(parents=True)
    shutil.copy(root / "train/cat/a.mp4", root / "videos" / "any" / "-abc_000005_000015.mp4")
    shutil.copy(root / "train/cat/a.mp4", root / "videos" / "whole.mp4")
    of = card({"train": {"path": "train.csv"}, "val": {"path": "val.csv"}}, list="kinetics", labels="list",
              videos="videos")
    source = opened(of, root)
    assert keys(source) == ["any/-abc_000005_000015.mp4"]
    assert "train.csv: 1 of 2 listed videos are in" in capsys.readouterr().err
    assert (source.labels.tolist(), opened(of, root, "val").labels.tolist()) == ([1], [0])
    assert source.classes == ["cooking", "playing ball"]
    named = of.model_copy(update={"classes": ["playing ball", "cooking"]})
    assert opened(named, root).labels.tolist() == [0]


@pytest.mark.parametrize(("text", "labels", "said"), [
    (None, "none", r"the list .*train.txt is missing; set the path of the card's split"),
    ("", "none", r"the list .*train.txt names no video; its form is 'paths'"),
    ("a.mp4\nno video", "none", r"train.txt:2: 'no video' is no path of a video"),
    ("a.mp4 5", "list", r"train.txt: label 5, but only 2 classes are named \(image 0\)"),
    ("a.mp4 fox", "list", r"names the class 'fox', which card 'mine' has not \(2 classes: cat, dog\)"),
    ("a.mp4", "list", r"names no class for 'a.mp4'; set source.labels to folders or none"),
])
def test_wrong_lists_are_answered_in_one_line(tmp_path: Path, text: str | None, labels: str, said: str) -> None:
    if text is not None:
        (tmp_path / "train.txt").write_text(text)
    with pytest.raises(UserError, match=said) as error:
        opened(card({"train": {"path": "train.txt"}}, ["cat", "dog"], list="paths", labels=labels), tmp_path)
    assert "\n" not in str(error.value)


def test_what_is_no_video_is_named_with_its_reason(root: Path) -> None:
    write_sound(root / "sound.mp4")
    (root / "empty.avi").touch()
    (root / "list.txt").write_text("sound.mp4\nempty.avi\ngone.mp4\ntrain/cat/a.mp4\nfolder.mp4\n")
    (root / "folder.mp4").mkdir()
    source = opened(card({"train": {"path": "list.txt"}}, list="paths"), root)
    assert {source.key(i): reason for i, reason in source.unreadable.items()} == {
        "sound.mp4": "holds no video, but audio", "empty.avi": "Invalid data found when processing input",
        "gone.mp4": "No such file or directory", "folder.mp4": "Is a directory"}
    with pytest.raises(CorruptSample, match=r"gone.mp4: No such file"):
        source.clip(2, np.arange(2))
    assert source.clip(3, np.arange(2)).shape == (2, 32, 48, 3)


def test_frames_are_listed_once_and_again_only_of_what_is_new(
        root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed: list[str] = []

    def measure(file: Callable[..., Any], key: str) -> Timeline:
        listed.append(key)
        return real(file, key)

    real = video_source.measure
    monkeypatch.setattr(video_source, "measure", measure)
    late = np.cumsum(np.arange(1, 21)).tolist()
    write_video(root / "late.mp4", numbered(20), times=late)
    write_video(root / "untimed.avi", numbered(20), bf="2")
    first = opened(card(), root)
    assert len(listed) == 8
    listed.clear()
    again = opened(card(), root)
    assert listed == []
    for i in range(8):
        assert np.array_equal(first.index[i].times, again.index[i].times)
        assert first.index[i].counted == again.index[i].counted == (keys(first)[i] == "untimed.avi")
        assert np.array_equal(first.clip(i, np.arange(20)), again.clip(i, np.arange(20)))
    write_video(root / "train/cat/a.mp4", numbered(9))
    write_video(root / "new.mp4", numbered(5))
    changed = opened(card(), root)
    assert sorted(listed) == ["new.mp4", "train/cat/a.mp4"]
    assert dict(zip(keys(changed), changed.index.lengths.tolist(), strict=True))["train/cat/a.mp4"] == 9
    listed.clear()
    (kept,) = (Path(os.environ["XDG_CACHE_HOME"]) / "unlabeled" / "videos").iterdir()
    kept.write_bytes(kept.read_bytes()[:500])
    assert len(opened(card(), root)) == len(listed) == 9


def test_parts_and_mixes_give_clips(root: Path) -> None:
    source = opened(card(), root)
    part = Part(source, np.array([5, 2]))
    mixed = Mixed([source, part], [False, False])
    assert part.has_clips and mixed.has_clips
    for one, index in ((part, 1), (mixed, 2), (mixed, 7)):
        assert (one.length(index), one.rate(index)) == (22, source.rate(2))
        assert np.array_equal(one.clip(index, np.array([3, 4])), source.clip(2, np.array([3, 4])))


def test_what_makes_no_sense_on_a_card_is_refused() -> None:
    for source, said in (({"labels": "list"}, "belong to lists of videos"), ({"videos": "x"}, "belong to lists")):
        with pytest.raises(ValueError, match=said):
            card(**source)
    for more, said in (({"in_memory": True}, "whose clips stay in files"), ({"levels": (0, 1)}, "no effect with v")):
        with pytest.raises(ValueError, match=said):
            Card.model_validate({**card().model_dump(), **more})


@pytest.mark.parametrize("version", [None, "17.1.0"])
def test_without_a_decoder_the_extra_is_named(
        root: Path, monkeypatch: pytest.MonkeyPatch, version: str | None) -> None:
    old = None if version is None else types.SimpleNamespace(__version__=version)
    monkeypatch.setattr("unlabeled.data.sources.video.frames.av", old)
    with pytest.raises(UserError, match=r"by PyAV \(av>=18\), which is not here: pip install 'unlabeled\[video\]'"):
        opened(card(), root)


def test_shards_hold_videos_too(root: Path, tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    folder.mkdir()
    videos = {"a": "train/cat/a.mp4", "b": "train/dog/c.mkv", "c": "val/dog/e.avi"}
    files = {name: (root / path).read_bytes() for name, path in videos.items()} | {"d": b"no video"}
    for number, names in enumerate(("ab", "cd")):
        write_tar(folder / f"train-{number:06d}.tar", {
            member: data for name in names
            for member, data in ((f"{name}{Path(videos.get(name, 'x.mp4')).suffix}", files[name]),
                                 (f"{name}.cls", str(ord(name) % 2).encode()))})
    shards = open_source(Card.model_validate({"name": "packed", "source": {"kind": "videoshards", "label": "cls"},
                                              "splits": {"train": {}}, "classes": ["x", "y"]}), "train", str(folder))
    plain = opened(card(), root)
    assert [shards.key(i) for i in range(4)] == ["a", "b", "c", "d"]
    assert (shards.labels.tolist(), list(shards.unreadable)) == ([1, 0, 1, 0], [3])
    for i, path in enumerate(videos.values()):
        there = keys(plain).index(path)
        assert (shards.length(i), shards.rate(i)) == (plain.length(there), plain.rate(there))
        assert np.array_equal(shards.clip(i, np.array([[1, 3], [5, 2]])), plain.clip(there, np.array([[1, 3], [5, 2]])))
