"""Sizes of elastic networks: which are trained, how often and when, which blocks they keep, how they are written."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch

from unlabeled.backbones.build import build_backbone
from unlabeled.backbones.elastic.sizes import Grid, Size, chosen_blocks, size_of
from unlabeled.config.recipe import Backbone


@cache
def published(name: str) -> Grid:
    with torch.device("meta"):
        return build_backbone(Backbone(name=name)).grid


@pytest.mark.parametrize(("name", "count"), [
    ("elastic_vit_l", 572), ("elastic_swin_b", 88), ("elastic_resnet152", 698),
])  # fmt: skip
def test_a_round_of_draws_takes_every_candidate_but_the_whole(name: str, count: int) -> None:
    grid = published(name)
    assert len(grid.candidates) == count + 1 and grid.candidates[-1] == grid.full
    rounds = [[grid.drawn(5, block, i) for i in range(first, first + count)]
              for block, first in ((0, 0), (0, count), (1, 0))]
    for draws in rounds:
        assert sorted(draws) == sorted(grid.candidates[:-1]) and grid.full not in draws
    assert grid.largest_part in rounds[0]
    assert all((size.width, sum(size.depth)) <= (grid.largest_part.width, sum(grid.largest_part.depth))
               for size in rounds[0])
    assert rounds[0] != rounds[1] != rounds[2] != rounds[0]  # another order in the next round, and in another block
    assert [grid.drawn(5, 0, i) for i in range(count)] == rounds[0]
    assert [grid.drawn(6, 0, i) for i in range(count)] != rounds[0]


def test_copies_are_rounded_as_the_published_floats() -> None:
    grid = published("elastic_vit_l")
    copies = dict(zip(grid.sizes, grid.copies, strict=True))
    assert copies[Size(384, (12,))] == 9 and copies[Size(768, (12,))] == 5 and copies[Size(1024, (24,))] == 1
    assert copies[Size(384, (17,))] == 7  # exactly 6.5, and a hair more in floats


def test_one_width_or_depth_counts_as_the_smallest() -> None:
    assert Grid((8,), ((2,), (4,)), 3, 3).copies == [9, 3]
    assert Grid((8, 16), ((4,),), 3, 3).copies == [9, 3]
    assert Grid((8,), ((4,),), 2, 2).copies == [4]


def test_chosen_blocks() -> None:
    assert chosen_blocks(12, 24) == [0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 23]
    assert chosen_blocks(6, 18) == [0, 3, 6, 10, 13, 17] and chosen_blocks(4, 8) == [0, 2, 4, 7]
    assert chosen_blocks(1, 9) == [0] and chosen_blocks(9, 9) == list(range(9))


def test_resnets_go_through_depths_by_their_count_of_blocks() -> None:
    depths = published("elastic_resnet152").depths
    assert depths[:4] == ((4, 6), (4, 7), (5, 6), (4, 8)) and len(depths) == 155
    assert np.all(np.diff([sum(depth) for depth in depths]) >= 0)


def test_sizes_are_read_as_they_are_written() -> None:
    for size in (Size(96, (6,)), Size(64, (4, 6))):
        assert size_of(str(size)) == size
    assert [size_of(text) for text in ("96", "96x", "x6", "96x6-", "96x6x2", "-96x6")] == [None] * 6


@pytest.mark.parametrize(("name", "count", "smallest", "full"), [
    ("elastic_vit_l", 143, "384x12", "1024x24"), ("elastic_vit_b", 49, "384x6", "768x12"),
    ("elastic_vit_s", 28, "192x6", "384x12"), ("elastic_swin_b", 39, "96x6", "128x18"),
    ("elastic_resnet152", 465, "64x4-6", "128x8-36"),
])  # fmt: skip
def test_names_stand_for_published_grids(name: str, count: int, smallest: str, full: str) -> None:
    sizes = published(name).sizes
    assert (len(sizes), str(sizes[0]), str(sizes[-1])) == (count, smallest, full)
