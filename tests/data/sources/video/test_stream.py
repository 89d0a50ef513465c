"""Batches of clips that are decoded from files: the same in any processes, and after a resume."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.data.toy_videos import numbered, write_sound, write_video
from tests.data.toys import Corner

from unlabeled.config.card import Card
from unlabeled.data.batch import Batch, Stream
from unlabeled.data.clips import ClipPair
from unlabeled.data.sources.base import Source
from unlabeled.data.sources.open import open_source
from unlabeled.data.stream import BatchShare, Reading, TrainStream


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of twelve videos of two kinds, of which three are damaged in different ways."""
    folder = tmp_path_factory.mktemp("videos")
    for number in range(12):
        options = {"g": "4"} if number % 2 else {"codec": "mpeg4", "bf": "2"}
        write_video(folder / f"{number:02d}.{'mp4' if number % 2 else 'avi'}", numbered(8 + number), **options)
    whole = (folder / "03.mp4").read_bytes()
    (folder / "03.mp4").write_bytes(whole[: len(whole) // 2])
    (folder / "05.mp4").write_bytes(b"")
    write_sound(folder / "07.mp4")
    return folder


def opened(root: Path) -> Source:
    card = Card.model_validate({"name": "mine", "source": {"kind": "videofolder"}, "splits": {"train": {"path": "."}}})
    return open_source(card, "train", str(root))


def stream(source: Source, rank: int = 0, world: int = 1, workers: int = 0) -> TrainStream:
    return TrainStream(source, Stream((Corner(), Corner()), clips=ClipPair(4, 2)), BatchShare(4, rank, world),
                       Reading(workers), name="train", seed=0, updates_per_epoch=3)


def same(a: Batch, b: Batch) -> bool:
    tensors = zip([*a.crops, *a.boxes, a.index], [*b.crops, *b.boxes, b.index], strict=True)
    return all(torch.equal(x, y) for x, y in tensors) and a.corrupt == b.corrupt


def test_a_resume_in_the_middle_of_an_epoch_repeats_the_rest_whoever_decodes(root: Path) -> None:
    straight = [batch for (batch,) in stream(opened(root)).updates(0, 8)]
    assert {key for batch in straight for key in batch.corrupt} == {"03.mp4", "05.mp4", "07.mp4"}
    for workers in (0, 2):
        again = stream(opened(root), workers=workers)
        rest = [batch for (batch,) in again.updates(4, 8)]
        again.close()
        assert all(same(a, b) for a, b in zip(straight[4:], rest, strict=True))


def test_two_processes_decode_what_one_would(root: Path) -> None:
    straight = [batch for (batch,) in stream(opened(root)).updates(0, 4)]
    shares = [[batch for (batch,) in stream(opened(root), rank, 2).updates(0, 4)] for rank in (0, 1)]
    for whole, *parts in zip(straight, *shares, strict=True):
        for number in (0, 1):
            assert torch.equal(whole.crops[number], torch.cat([part.crops[number] for part in parts]))
        assert whole.corrupt == [key for part in parts for key in part.corrupt]


def test_a_file_that_changes_after_it_was_listed_is_replaced(root: Path, tmp_path: Path) -> None:
    for file in root.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    source = opened(tmp_path)
    write_video(tmp_path / "11.mp4", numbered(2))
    (tmp_path / "09.mp4").unlink()
    keys = {key: key.reason for (batch,) in stream(source).updates(0, 6) for key in batch.corrupt}
    assert set(keys) == {"03.mp4", "05.mp4", "07.mp4", "09.mp4", "11.mp4"}
    assert keys["09.mp4"].endswith("No such file or directory")
    assert keys["11.mp4"].endswith("of 19 cannot be decoded")
