"""Evaluation reads every sample once, whatever the number of processes."""

from __future__ import annotations

import pytest
import torch
from tests.data.toys import Numbered, Whole

from unlabeled.data.evaluation import eval_batches


@pytest.mark.parametrize("in_memory", [False, True])
@pytest.mark.parametrize("world", [1, 2, 3, 5, 7])
def test_every_sample_once_in_order(world: int, in_memory: bool) -> None:
    source = Numbered(23, bad=(0, 11), in_memory=in_memory)
    batches = [b for rank in range(world) for b in eval_batches(source, Whole(), rank, world, 4)]
    index = torch.cat([b.index for b in batches])
    assert index.tolist() == [i for i in range(23) if i not in (0, 11)]
    assert [key for b in batches for key in b.corrupt] == ["sample-0", "sample-11"]
    assert torch.equal(torch.cat([b.label for b in batches]), index % 7)
    crops = torch.cat([b.crops[0] for b in batches])
    expected = torch.stack([torch.from_numpy(source.image(i)[:4, :4]).permute(2, 0, 1) for i in index.tolist()])
    assert torch.equal(crops, expected)


def test_more_processes_than_samples() -> None:
    parts = [list(eval_batches(Numbered(2), Whole(), rank, 5, 4)) for rank in range(5)]
    assert sorted(i for part in parts for b in part for i in b.index.tolist()) == [0, 1]


@pytest.mark.parametrize("in_memory", [False, True])
@pytest.mark.parametrize("bad", [(0, 1, 2, 3), (4, 5, 6, 7), (8, 9)])
def test_a_batch_without_readable_samples_only_leaves_its_keys(bad: tuple[int, ...], in_memory: bool) -> None:
    batches = list(eval_batches(Numbered(10, bad, in_memory), Whole(), 0, 1, 4))
    assert all(len(b.index) for b in batches)
    assert [key for b in batches for key in b.corrupt] == [f"sample-{i}" for i in bad]


def test_nothing_readable_gives_one_empty_batch_with_the_keys() -> None:
    (batch,) = eval_batches(Numbered(6, range(6)), Whole(), 0, 1, 4)
    assert batch.crops[0].shape == (0, 3, 4, 4)
    assert len(batch.corrupt) == 6


def test_workers_change_nothing() -> None:
    alone = list(eval_batches(Numbered(23, (3,)), Whole(), 0, 1, 4))
    helped = list(eval_batches(Numbered(23, (3,)), Whole(), 0, 1, 4, workers=2))
    assert all(torch.equal(a.crops[0], b.crops[0]) and a.corrupt == b.corrupt
               for a, b in zip(alone, helped, strict=True))
