"""Stored rows in training: the row of the sample that is shown, on any number of processes and workers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tests.data.toy_stores import write_store
from tests.data.toys import Corner, Numbered

from unlabeled.data.batch import Batch, Stream
from unlabeled.data.records.rows import Record
from unlabeled.data.records.store import open_store
from unlabeled.data.sources.base import Source
from unlabeled.data.sources.mixed import Mixed
from unlabeled.data.sources.subset import Part
from unlabeled.data.stream import BatchShare, Reading, TrainStream
from unlabeled.errors import UserError

N, ENTRIES = 40, 5


class StoredCorner(Corner):
    """The crop at the stored corner; with `image`, of another sample."""

    record = "kept"

    def __init__(self, image: str | None = None) -> None:
        self.image = image

    def draw(self, uniforms: np.ndarray, sizes: np.ndarray, rows: dict[str, np.ndarray]) -> np.ndarray:
        """Return boxes [n, 7]."""
        boxes = super().draw(uniforms, sizes)
        boxes[:, :2] = rows["corner"]
        boxes[:, 6] = 0
        return boxes


def columns() -> dict[str, np.ndarray]:
    random = np.random.default_rng(1)
    return {"corner": random.integers(0, 5, (N, ENTRIES, 2)).astype("<u2"),
            "partner": random.integers(-1, N, (N, ENTRIES)).astype("<i8")}


KEPT = columns()
STREAM = Stream((StoredCorner(), StoredCorner("partner")), labels=True, records=(Record("kept", True, 0.2),))


def with_store(source: Source, folder: Path, unreadable: dict[int, str] | None = None) -> Source:
    source.stores["kept"] = open_store(write_store(folder, source, "kept", KEPT, unreadable=unreadable), source, "kept")
    return source


def stream(source: Source, rank: int = 0, world: int = 1, workers: int = 0, wanted: Stream = STREAM) -> TrainStream:
    return TrainStream(source, wanted, BatchShare(12, rank, world), Reading(workers), name="train", seed=3,
                       updates_per_epoch=3)


def check(source: Source, batch: Batch, originals: Numbered, place: np.ndarray) -> None:
    rows = batch.records["kept"]
    for row, index in enumerate(batch.index.tolist()):
        own, entry = int(place[index]), max(0, int(rows["entry"][row]))
        corner, partner = KEPT["corner"][own, entry], int(KEPT["partner"][own, entry])
        assert rows["corner"][row].tolist() == corner.tolist() and int(rows["partner"][row]) == partner
        top, left = corner
        second = own if partner < 0 or rows["entry"][row] < 0 else partner  # a plain visit shows no partner
        for crop, shown in zip(batch.crops, (own, second), strict=True):
            image = originals._make(shown)[top : top + 4, left : left + 4]
            assert torch.equal(crop[row], torch.from_numpy(image).permute(2, 0, 1))


@pytest.mark.parametrize("in_memory", [False, True])
def test_crops_and_rows_are_those_of_the_sample(tmp_path: Path, in_memory: bool) -> None:
    source = with_store(Numbered(N, in_memory=in_memory), tmp_path)
    entries = []
    for (batch,) in stream(source).updates(0, 30):
        check(source, batch, Numbered(N), np.arange(N))
        entries += batch.records["kept"]["entry"].tolist()
    counts = np.bincount(np.array(entries) + 1, minlength=ENTRIES + 1)
    assert abs(counts[0] / 360 - 0.2) < 0.07 and (counts[1:] / 360 > 0.1).all(), "plain, and every entry evenly"


def test_parts_and_mixes_read_the_rows_of_their_sets(tmp_path: Path) -> None:
    whole = with_store(Numbered(N), tmp_path / "a")
    places = np.arange(3, 33, 2)
    part = Part(whole, places)
    for (batch,) in stream(part).updates(0, 2):
        check(part, batch, Numbered(N), places)
    mixed = Mixed([part, with_store(Numbered(N), tmp_path / "b")], [True, True])
    for (batch,) in stream(mixed).updates(0, 6):
        check(mixed, batch, Numbered(N), np.concatenate([places, np.arange(N)]))


def test_a_mix_may_have_a_store_of_its_own(tmp_path: Path) -> None:
    members = [Part(Numbered(N), np.arange(10)), Part(Numbered(N), np.arange(10, N))]
    mixed = with_store(Mixed(members, [True, True]), tmp_path, {7: "was broken"})
    assert mixed.records_about().keys() == mixed.records_digest().keys() == {"kept"}
    for (batch,) in stream(mixed).updates(0, 6):
        assert 7 not in batch.index
        check(mixed, batch, Numbered(N), np.arange(N))


@pytest.mark.parametrize("workers", [0, 2])
def test_processes_and_workers_change_nothing(tmp_path: Path, workers: int) -> None:
    source = with_store(Numbered(N, bad=(4,)), tmp_path)
    alone = [micro for (micro,) in stream(source).updates(0, 4)]
    parts = [list(stream(source, rank, 2, workers).updates(0, 4)) for rank in range(2)]
    for update, batch in enumerate(alone):
        for field, values in batch.records["kept"].items():
            assert torch.equal(values, torch.cat([part[update][0].records["kept"][field] for part in parts]))
        assert torch.equal(batch.crops[1], torch.cat([part[update][0].crops[1] for part in parts]))


@pytest.mark.parametrize("in_memory", [False, True])
def test_a_sample_without_a_row_or_with_an_unreadable_partner_is_replaced(tmp_path: Path, in_memory: bool) -> None:
    source = with_store(Numbered(N, bad=(4, 5), in_memory=in_memory), tmp_path, {7: "was broken"})
    keys: list[str] = []
    for (batch,) in stream(source).updates(0, 9):
        assert not {4, 5, 7} & set(batch.index.tolist())
        check(source, batch, Numbered(N), np.arange(N))
        keys += batch.corrupt
    assert {"sample-4", "sample-5", "sample-7"} <= set(keys)


def test_a_stream_without_the_store_says_how_to_make_it() -> None:
    wanted = Stream((Corner(),), records=(Record("labelmap"),))
    with pytest.raises(UserError, match=r"make them with unlabeled labelmaps, then give their folder with "
                                        r"data.train.records.labelmap=FOLDER"):
        stream(Numbered(N), wanted=wanted)
    streamed = Numbered(N)
    streamed.random_access = False
    with pytest.raises(UserError, match="kept by place, and split 'train' of data card 'numbered' is streamed"):
        stream(streamed, wanted=wanted)


def test_a_batch_moves_without_its_rows() -> None:
    batch = Batch([torch.zeros(1, 3, 2, 2)], [None], torch.zeros(1), records={"kept": {"x": torch.ones(1)}})
    moved = batch.to(torch.device("meta"))
    assert moved.crops[0].is_meta
    assert torch.equal(moved.records["kept"]["x"], torch.ones(1)), "methods move what they use"
