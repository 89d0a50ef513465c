"""Entries: what is drawn, what is stored of it, and that a replay is the view that the teacher saw."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.passes.toys import CLASSES, CROPS, Pictures, keep, maker, taught
from torch import nn

from unlabeled.augment.replay.crops import StoredCrop, drawing
from unlabeled.augment.replay.entries import Law, draw_mixing, fields, numbers
from unlabeled.augment.replay.render import replay
from unlabeled.config.augment import StorableCrop, StoredResizedCrop
from unlabeled.data.batch import Stream
from unlabeled.data.records.rows import Record
from unlabeled.data.records.store import open_store
from unlabeled.data.sources.base import CorruptSample, Source
from unlabeled.data.stream import BatchShare, TrainStream
from unlabeled.errors import UserError
from unlabeled.methods.base import Input
from unlabeled.passes.entries import KIND
from unlabeled.passes.teachers import Teachers, teach

every_crop = pytest.mark.parametrize("crop", CROPS.values(), ids=CROPS)


def stream(source: Source, crop: StorableCrop, mix: bool, plain: float = 0.0) -> TrainStream:
    """Return a stream of one batch per epoch, as the method reads it."""
    crops = tuple(StoredCrop(drawing(crop), second) for second in ([False, True] if mix else [False]))
    wanted = Stream(crops, records=(Record(KIND, entry=True, plain=plain),))
    return TrainStream(source, wanted, BatchShare(len(source)), name="train", seed=3, updates_per_epoch=1)


@pytest.mark.parametrize("in_memory", [False, True], ids=["files", "memory"])
@pytest.mark.parametrize("mix", [False, True], ids=["alone", "mixed"])
@every_crop
def test_a_replay_is_the_view_that_the_teacher_saw(
    crop: StorableCrop, mix: bool, in_memory: bool, tmp_path: Path
) -> None:
    """To the bit, in whatever batch and order; no generator is drawn from, and another replay is the same."""
    source = Pictures(in_memory=in_memory)
    made = maker(source, crop, mix=mix)
    columns, views = taught(made)
    source.stores[KIND] = open_store(keep(tmp_path, made, crop, columns), source, KIND)
    state, seen = torch.get_rng_state(), set()
    for update in range(6):
        ((batch,),) = stream(source, crop, mix).updates(update, update + 1)
        rows = batch.records[KIND]
        expected = views[batch.index, rows["entry"]]
        assert torch.equal(replay(batch.crops, rows), expected)
        assert torch.equal(replay(batch.crops, rows), expected)
        seen |= set(zip(batch.index.tolist(), rows["entry"].tolist(), strict=True))
    assert torch.equal(torch.get_rng_state(), state)
    assert len(seen) > 2 * len(source), "another entry at every visit"
    assert len(views.flatten(0, 1).unique(dim=0)) == len(source) * made.entries


def test_what_is_rendered_is_what_is_stored() -> None:
    """Fields hold exactly what the views were made of: nothing is rounded behind the teacher's back."""
    for mix in (False, True):
        made = maker(Pictures(), CROPS["resized"], mix=mix)
        rows = made.make(np.arange(9)).records[KIND]
        columns, _ = taught(made)
        for name, values in rows.items():
            assert np.array_equal(columns[name], values.numpy()), name


@pytest.mark.parametrize(("topk", "bytes_of_one"), [(10, 67), (5, 47)])
def test_the_size_of_an_entry(topk: int, bytes_of_one: int) -> None:
    row = np.dtype([(name, *field) for name, field in fields(400, topk, mix=False).items()])
    assert row.itemsize == 400 * bytes_of_one
    mixed = np.dtype([(name, *field) for name, field in fields(1, topk, mix=True).items()])
    assert mixed.itemsize == bytes_of_one + 8 + 4 + 8 + 27


def test_an_entry_depends_on_seed_place_and_number_alone() -> None:
    source, crop = Pictures(), CROPS["resized"]
    whole = maker(source, crop, 4, mix=True).make(np.arange(9))
    fewer = maker(source, crop, 2, mix=True).make(np.array([7, 3]))
    for name, values in fewer.records[KIND].items():
        assert torch.equal(values, whole.records[KIND][name][[7, 3], :2]), name
    assert all(torch.equal(a, b[[7, 3], :2]) for a, b in zip(fewer.crops, whole.crops, strict=True))
    other = maker(source, crop, 4, mix=True, seed=1).make(np.arange(9)).records[KIND]
    assert not any(torch.equal(values, other[name]) for name, values in whole.records[KIND].items())
    first, second = (whole.records[KIND][name] for name in ("magnitude", "magnitude2"))
    assert not torch.equal(first, second), "the partner has parameters of its own"


def test_partners_are_drawn_over_the_whole_split() -> None:
    which = np.concatenate([numbers(place, 50) for place in range(400)])
    drawn = draw_mixing(Law(32, 9, 0.0, mix=True), 1000, which, seed=0)
    mixed = drawn["partner"] >= 0
    assert abs(mixed.mean() - 0.75) < 0.02
    counts = np.bincount(drawn["partner"][mixed], minlength=1000)
    assert len(counts) == 1000 and counts.min() > 0 and counts.std() < 1.2 * np.sqrt(counts.mean())
    shares = drawn["mixup"][drawn["mixup"] < 1]
    assert abs(len(shares) / len(which) - 0.5) < 0.02 and shares.min() >= 0 and shares.max() <= 0.5
    assert abs(shares.mean() - 0.25) < 0.01, "Beta(1, 1) / 2: the partner has the larger part"
    cut = drawn["cut"][drawn["cut"][:, 0] < 65535].astype(int)
    assert abs(len(cut) / len(which) - 0.5) < 0.02 and cut.min() >= 0 and cut.max() <= 32
    assert (cut[:, 2] >= cut[:, 0]).all() and (cut[:, 3] >= cut[:, 1]).all()
    whole = cut[(cut[:, :2] > 0).all(1) & (cut[:, 2:] < 32).all(1)]
    assert (whole[:, 2] - whole[:, 0] == whole[:, 3] - whole[:, 1]).all(), "a square unless it is clipped"
    none = drawn["partner"] < 0
    assert (drawn["mixup"][none] == 1).all() and (drawn["cut"][none] == 65535).all()


def test_images_that_cannot_be_read() -> None:
    """As samples they are named; as partners others take their place."""
    source = Pictures(bad=[2, 5])
    batch = maker(source, CROPS["resized"], 40, mix=True).make(np.arange(9))
    assert batch.index.tolist() == [0, 1, 3, 4, 6, 7, 8] and batch.corrupt == ["picture 2", "picture 5"]
    assert batch.corrupt[0].reason == "it is torn"
    partner = batch.records[KIND]["partner"]
    assert not np.isin(partner.numpy(), [2, 5]).any()
    alone = maker(Pictures(bad=range(1, 9)), CROPS["resized"], 200, mix=True).make(np.arange(1)).records[KIND]
    left = alone["partner"][0] < 0
    assert (alone["mixup"][0][left] == 1).all() and (alone["cut"][0].long()[left] == 65535).all()
    assert set(alone["partner"].unique().tolist()) <= {-1, 0}
    assert maker(source, CROPS["resized"]).make(np.array([2])).index.tolist() == []
    some = maker(Pictures(bad=range(4, 9)), CROPS["resized"], 40, mix=True)
    mixed = draw_mixing(some.law, 9, np.concatenate([numbers(place, 40) for place in range(4)]), 0)["partner"] >= 0
    found = some.make(np.arange(4)).records[KIND]["partner"].flatten() >= 0
    assert np.array_equal(found.numpy(), mixed), "of ten others one is readable"
    source.unreadable = {3: "it was gone at the start"}
    with pytest.raises(CorruptSample, match="gone at the start"):
        maker(source, CROPS["resized"])._image(3)


def test_larger_images_than_numbers_hold_are_refused() -> None:
    source = Pictures(1)
    source._images[0] = np.broadcast_to(np.zeros((), np.uint8), (65_536, 8, 3))
    with pytest.raises(UserError, match=r"65536 x 8 pixels: stored crops count up to 65535 a side; make .*short_side"):
        maker(source, StoredResizedCrop(size=12)).make(np.array([0]))


def test_teachers_see_their_own_statistics_and_probabilities_are_averaged() -> None:
    views = torch.rand(6, 3, 8, 8)
    networks = [nn.Sequential(nn.Flatten(), nn.Linear(192, CLASSES)) for _ in range(2)]
    inputs = [Input(8, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)), Input(8)]
    found = Teachers(networks, inputs)(views)
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (inputs[0].mean, inputs[0].std))
    expected = (networks[0]((views - mean) / std).softmax(1) + networks[1](views).softmax(1)) / 2
    torch.testing.assert_close(found, expected)


def test_the_most_probable_classes_are_kept_in_order() -> None:
    made = maker(Pictures(), CROPS["resized"])
    batch = made.make(np.arange(9))
    table = torch.rand(36, CLASSES).softmax(1)
    position = iter(range(36))
    rows = teach(batch, lambda views: table[[next(position) for _ in views]], 2, together=5)
    expected = table.topk(2, 1)
    assert torch.equal(rows["prob"].flatten(0, 1), expected.values)
    assert torch.equal(rows["class"].flatten(0, 1), expected.indices)


def test_a_plain_visit_draws_a_new_crop(tmp_path: Path) -> None:
    source, crop = Pictures(), CROPS["resized"]
    made = maker(source, crop)
    columns, _ = taught(made)
    source.stores[KIND] = open_store(keep(tmp_path, made, crop, columns), source, KIND)
    batches = [batch for (batch,) in stream(source, crop, mix=False, plain=0.5).updates(0, 30)]
    entry = torch.cat([batch.records[KIND]["entry"] for batch in batches])
    assert abs(float((entry < 0).double().mean()) - 0.5) < 0.12
    for batch in batches:
        rows, boxes = batch.records[KIND], batch.boxes[0]
        assert boxes is not None
        stored = rows["entry"] >= 0
        assert torch.equal(boxes[stored][:, :4].long(), rows["crop"].long()[stored])
    first, second = (batch.boxes[0][batch.index.argsort()][:, :4] for batch in batches[:2])
    plain = [batch.records[KIND]["entry"][batch.index.argsort()] < 0 for batch in batches[:2]]
    both = plain[0] & plain[1]
    assert both.any() and not torch.equal(first[both], second[both])
    json.dumps(source.records_about())
