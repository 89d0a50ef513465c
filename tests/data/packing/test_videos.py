"""Packing videos into tar shards."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.data.toy_videos import av, number_of, numbered, write_sound, write_video

from unlabeled.config.card import Card
from unlabeled.config.pack import PackSettings
from unlabeled.config.read import read_file
from unlabeled.data.packing.split import pack
from unlabeled.data.sources.open import open_source
from unlabeled.data.sources.video.source import VideoShardSource
from unlabeled.errors import UserError

LATE = [7, 8, 10, 13, 14, 18, 19, 20, 25, 26, 27, 30, 31, 33, 34, 35, 36, 40, 41, 44]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of videos in two classes: tall, wide, of variable rate, turned, and one that is none."""
    folder = tmp_path_factory.mktemp("videos")
    write_video(folder / "cat/wide.mp4", numbered(40, 64, 96))
    write_video(folder / "cat/late.mkv", numbered(20, 64, 96), times=LATE)
    write_video(folder / "dog/turned.mp4", numbered(20, 64, 96), rotation=90)
    write_video(folder / "dog/old.avi", numbered(20, 32, 48), "mpeg4", bf="2")
    write_sound(folder / "dog/sound.mp4")
    return folder


def packed(root: Path, out: Path, **settings: object) -> VideoShardSource:
    pack(str(root), out, PackSettings.model_validate({"workers": 0, "max_corrupt": 0.5, **settings}))
    source = open_source(read_file(out / "card.yaml", Card), "train")
    assert isinstance(source, VideoShardSource)
    return source


def test_videos_become_smaller_with_many_key_frames_and_all_frames_at_their_times(root: Path, tmp_path: Path) -> None:
    source = packed(root, tmp_path / "a", short_side=32)
    assert (tmp_path / "a" / "unreadable.txt").read_text() == "train\tdog/sound.mp4\tholds no video, but audio\n"
    places = {source.key(i): i for i in range(len(source))}
    assert set(places) == {"cat/wide", "cat/late", "dog/turned", "dog/old"}
    assert source.classes == ["cat", "dog"]
    for name, index in places.items():
        assert source.labels[index] == (name[:3] == "dog")
        length = source.length(index)
        assert length == (40 if name == "cat/wide" else 20)
        clip = source.clip(index, np.arange(length))
        assert clip.shape[1:] == ((48, 32, 3) if name == "dog/turned" else (32, 48, 3))
        assert np.abs([number_of(picture) - number for number, picture in enumerate(clip)]).max() <= 1
    assert source.index[places["cat/wide"]].keys.tolist()[:1] == [0]
    assert np.diff(source.index[places["cat/wide"]].keys).max() <= 16
    late = source.index[places["cat/late"]].times
    assert np.allclose((late - late[0]) / (late[-1] - late[0]), (np.array(LATE) - 7) / 37, atol=2e-3)
    assert source.rate(places["cat/late"]) == pytest.approx(30 * 19 / 37, rel=1e-2)


def test_a_pack_is_the_same_bytes_whoever_makes_it_and_goes_on(root: Path, tmp_path: Path) -> None:
    packed(root, tmp_path / "a", short_side=32, shard_samples=2)
    packed(root, tmp_path / "b", short_side=32, shard_samples=2, workers=2)
    sums = (tmp_path / "a" / "SHA256SUMS").read_text()
    assert (tmp_path / "b" / "SHA256SUMS").read_text() == sums
    shutil.copytree(tmp_path / "a", tmp_path / "c")
    (tmp_path / "c" / "train-000001.tar").unlink()
    packed(root, tmp_path / "c", short_side=32, shard_samples=2)
    assert (tmp_path / "c" / "SHA256SUMS").read_text() == sums


def test_without_a_size_files_are_stored_as_they_are(root: Path, tmp_path: Path) -> None:
    source = packed(root, tmp_path / "a")
    stored = {source.key(i): source.raw(i) for i in range(len(source))}
    assert stored["cat/late"] == (root / "cat/late.mkv").read_bytes()
    assert stored["dog/old"] == (root / "dog/old.avi").read_bytes()


def test_videos_do_not_become_arrays(root: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"store=array holds images of one size, and '.*' holds videos; use store=shar"):
        packed(root, tmp_path / "a", store="array")


assert av


def test_a_folder_of_videos_and_images_is_packed_by_a_card_that_says_which(root: Path, tmp_path: Path) -> None:
    folder = tmp_path / "phone"
    shutil.copytree(root, folder)
    Image.new("RGB", (8, 8)).save(folder / "screenshot.png")
    with pytest.raises(UserError, match="holds videos and images: 'unlabeled pack videos OUT root="):
        pack(str(folder), tmp_path / "out", PackSettings(workers=0))
    assert not (tmp_path / "out").exists()
    pack("videos", tmp_path / "out", PackSettings(workers=0, max_corrupt=0.5, root=str(folder)))
    assert len(open_source(read_file(tmp_path / "out" / "card.yaml", Card), "train")) == 4
