"""The training stream: a pure function of (seed, stream, epoch, position)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.data.toys import Corner, Numbered, Whole

from unlabeled.data.batch import Batch, Stream
from unlabeled.data.order import Order
from unlabeled.data.sources.base import Source
from unlabeled.data.stream import BatchShare, Reading, TrainStream
from unlabeled.errors import UserError
from unlabeled.ops.random import permutation

STREAM = Stream((Corner(), Corner()), labels=True)


def make(source: Source, rank: int = 0, world: int = 1, accum: int = 1, workers: int = 0, batch: int = 12,
         per_epoch: int | None = None, seed: int = 3, name: str = "train") -> TrainStream:
    return TrainStream(source, STREAM, BatchShare(batch, rank, world, accum), Reading(workers), name=name, seed=seed,
                       updates_per_epoch=per_epoch or len(source) // batch)


def equal(a: Batch, b: Batch) -> bool:
    tensors = zip([*a.crops, *a.boxes, a.index, a.label], [*b.crops, *b.boxes, b.index, b.label], strict=True)
    return all(torch.equal(x, y) for x, y in tensors) and a.corrupt == b.corrupt


def whole(parts: list[Batch]) -> Batch:
    """Join the shares of all processes."""
    return Batch([torch.cat(c) for c in zip(*[p.crops for p in parts], strict=True)],
                 [torch.cat(b) for b in zip(*[p.boxes for p in parts], strict=True)],
                 torch.cat([p.index for p in parts]), torch.cat([p.label for p in parts]),
                 [key for p in parts for key in p.corrupt])


@pytest.mark.parametrize("in_memory", [False, True])
def test_an_epoch_takes_every_sample_at_most_once_and_the_next_in_another_order(in_memory: bool) -> None:
    batches = [micro for (micro,) in make(Numbered(50, in_memory=in_memory)).updates(0, 8)]
    first, second = (torch.cat([b.index for b in batches[e : e + 4]]) for e in (0, 4))
    assert len(first) == 48 == len(first.unique())
    assert len(second.unique()) == 48
    assert not torch.equal(first, second)
    for batch in batches:
        assert batch.crops[0].dtype == torch.uint8
        assert batch.crops[0].shape == (12, 3, 4, 4)
        assert batch.boxes[0].shape == (12, 7)
        assert torch.equal(batch.label, batch.index % 7)
    assert not torch.equal(batches[0].crops[0], batches[0].crops[1])


def test_crops_are_what_their_boxes_say() -> None:
    source = Numbered(30)
    ((batch,),) = make(source).updates(0, 1)
    for crop, box, index in zip(batch.crops[1], batch.boxes[1], batch.index.tolist(), strict=True):
        top, left, height, width, image_height, image_width, flip = box.int().tolist()
        assert (height, width, image_height, image_width) == (4, 4, 8, 8)
        cut = torch.from_numpy(source.image(index)[top : top + 4, left : left + 4]).permute(2, 0, 1)
        assert torch.equal(crop, cut.flip(2) if flip else cut)


@pytest.mark.parametrize("in_memory", [False, True])
@pytest.mark.parametrize("accum", [1, 2])
@pytest.mark.parametrize("world", [2, 3, 4])
def test_processes_share_what_one_would_take(world: int, accum: int, in_memory: bool) -> None:
    source = Numbered(80, bad=(5, 40, 41), in_memory=in_memory)
    alone = list(make(source, accum=accum, batch=24).updates(0, 5))
    shares = [list(make(source, rank, world, accum, batch=24).updates(0, 5)) for rank in range(world)]
    for update in range(5):
        for micro in range(accum):
            assert equal(alone[update][micro], whole([share[update][micro] for share in shares]))


def test_accumulation_does_not_change_the_samples() -> None:
    source = Numbered(80)
    once, thrice = list(make(source, batch=24).updates(0, 4)), list(make(source, accum=3, batch=24).updates(0, 4))
    for update in range(4):
        assert equal(once[update][0], whole(thrice[update]))


def test_memory_and_files_give_the_same() -> None:
    files, memory = (make(Numbered(40, (3, 9), in_memory)).updates(0, 6) for in_memory in (False, True))
    for a, b in zip(files, memory, strict=True):
        assert equal(a[0], b[0])


def test_workers_change_nothing_not_even_torchs_generator() -> None:
    source = Numbered(40, bad=(7,))
    expected = list(make(source).updates(0, 5))
    state = torch.get_rng_state()
    stream = make(source, workers=2)
    got = list(stream.updates(0, 5))
    stream.close()
    assert torch.equal(state, torch.get_rng_state())
    assert all(equal(a[0], b[0]) for a, b in zip(expected, got, strict=True))


@pytest.mark.parametrize("workers", [0, 2])
def test_resuming_mid_epoch_repeats_the_rest(workers: int) -> None:
    source = Numbered(40, bad=(7, 8, 30))
    straight = list(make(source).updates(0, 7))
    stream = make(source, workers=workers)
    early = stream.updates(0, 7)
    next(early)  # leave it with work under way
    rest = list(make(source, workers=workers).updates(5, 7)) if workers == 0 else list(stream.updates(5, 7))
    stream.close()
    assert all(equal(a[0], b[0]) for a, b in zip(straight[5:], rest, strict=True))


def test_substitutes_fill_the_batch_and_are_named() -> None:
    bad = set(range(0, 60, 3))
    source = Numbered(60, bad=tuple(bad))
    keys: list[str] = []
    for (batch,) in make(source).updates(0, 5):
        assert len(batch.index) == 12
        assert not bad & set(batch.index.tolist())
        keys += batch.corrupt
    assert {f"sample-{i}" for i in bad} <= set(keys)
    again = [key for (batch,) in make(source).updates(0, 5) for key in batch.corrupt]
    assert again == keys


def test_a_substitute_depends_on_seed_stream_epoch_and_position_alone() -> None:
    bad = tuple(range(1, 40, 4))
    base = torch.cat([b.index for (b,) in make(Numbered(40, bad)).updates(0, 3)])
    others = [make(Numbered(40, bad), seed=4), make(Numbered(40, bad), name="other")]
    assert all(not torch.equal(base, torch.cat([b.index for (b,) in other.updates(0, 3)])) for other in others)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_set_of_nothing_but_corrupt_samples_is_refused_in_one_line(workers: int) -> None:
    with pytest.raises(UserError, match="10 samples in a row are unreadable, the last one sample-") as error:
        list(make(Numbered(20, bad=range(20)), workers=workers).updates(0, 1))
    assert "\n" not in str(error.value)


def test_a_stream_that_gives_more_than_it_holds_takes_whole_permutations_first() -> None:
    stream = make(Numbered(10), batch=4, per_epoch=6)
    index = torch.cat([b.index for (b,) in stream.updates(0, 6)])
    assert len(index[:10].unique()) == 10 == len(index[10:20].unique())
    assert not torch.equal(index[:10], index[10:20])


def test_wrong_numbers_are_answered_with_the_cure() -> None:
    with pytest.raises(UserError, match=r"data.train.batch is 12, but .* holds only 5 samples; use a smaller batch"):
        TrainStream(Numbered(5), STREAM, BatchShare(12), name="train", seed=0, updates_per_epoch=5 // 12)
    with pytest.raises(UserError, match="does not divide into 5 processes"):
        make(Numbered(20), world=5)
    unlabelled = Numbered(20)
    unlabelled.labels = None
    with pytest.raises(UserError, match="needs labels"):
        make(unlabelled)


def test_positions_are_absolute() -> None:
    stream = make(Numbered(50), rank=1, world=2, accum=3)
    assert np.array_equal(stream.unit(4 + 2, 1).positions, np.arange(24 + 6, 24 + 8))


@pytest.mark.parametrize("in_memory", [False, True])
def test_index_and_label_of_a_substitute_are_those_of_its_pixels(in_memory: bool) -> None:
    source = Numbered(30, bad=tuple(range(0, 30, 2)), in_memory=in_memory)
    stream = TrainStream(source, Stream((Whole(),), labels=True), BatchShare(12), name="train", seed=3,
                         updates_per_epoch=2)
    stood_in = 0
    for (batch,) in stream.updates(0, 4):
        stood_in += len(batch.corrupt)
        for crop, index, label in zip(batch.crops[0], batch.index.tolist(), batch.label.tolist(), strict=True):
            pixels = Numbered(30).image(index)[:4, :4].transpose(2, 0, 1)
            assert np.array_equal(crop.numpy(), pixels) and label == index % 7 and index not in source.bad
    assert stood_in > 10


def test_a_position_has_another_box_in_every_epoch_and_crop() -> None:
    """One image, so that only the position, the epoch and the crop can tell boxes apart."""
    stream = TrainStream(Numbered(1), STREAM, BatchShare(40), name="train", seed=3, updates_per_epoch=1)
    first, second = (micro for (micro,) in stream.updates(0, 2))
    boxes = [box for batch in (first, second) for box in batch.boxes]
    for i, one in enumerate(boxes):
        assert len(one.unique(dim=0)) > 15, "positions differ"
        assert all((one != other).any(1).float().mean() > 0.8 for other in boxes[i + 1 :])


def test_a_substitute_is_another_one_after_every_attempt_and_in_every_epoch() -> None:
    order = Order(10_000, 3, "train")
    drawn = {order.substitute(epoch, position, attempt)
             for epoch in range(4) for position in range(4) for attempt in range(4)}
    assert len(drawn) > 60


def test_positions_of_an_epoch_are_places_in_its_permutations() -> None:
    order = Order(10, 3, "train")
    whole = [permutation(10, 3, "train", "order", 1), permutation(10, 3, "train", "order", 1, 1)]
    assert order.indices(1, np.arange(20)).tolist() == [*whole[0].tolist(), *whole[1].tolist()]
    assert order.indices(1, np.array([19, 0, 7])).tolist() == [whole[1][9], whole[0][0], whole[0][7]]
