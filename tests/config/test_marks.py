"""Marks on fields: which settings leave the result as it is, found within blocks; a field without a mark matters."""

from __future__ import annotations

import pytest
from pydantic import Field

from unlabeled.config.marks import Free, Mark, Scoring, covers, marked
from unlabeled.config.pack import PackSettings
from unlabeled.config.protocols.detection import Detection
from unlabeled.config.recipe import Recipe, Strict


class Inner(Strict):
    speed: Free[int | None] = Field(None, gt=0)
    view: Scoring[int] = 3
    rate: float = 0.1


class Outer(Strict):
    one: Inner
    maybe: Inner | None = None
    whole: Free[Inner] = Inner()
    split: Scoring[str] = "test"
    seed: int = 0


def test_marked_fields_are_found_within_blocks_and_a_marked_block_counts_as_a_whole() -> None:
    assert marked(Outer, Mark.FREE) == {"one.speed", "maybe.speed", "whole"}
    assert marked(Outer, Mark.SCORING) == {"one.view", "maybe.view", "whole.view", "split"}
    assert marked(Outer, Mark.FREE, Mark.SCORING) == {
        "one.speed", "one.view", "maybe.speed", "maybe.view", "whole", "split"}  # fmt: skip
    with pytest.raises(ValueError, match="speed"):
        Inner(speed=0)  # the field keeps its bounds beside the mark


@pytest.mark.parametrize("key, inside", [("a", True), ("a.b", True), ("a.b.c", True), ("c.d", True), ("c", False),
                                         ("ab", False), ("c.dx", False), ("c.e", False)])  # fmt: skip
def test_a_key_is_covered_by_itself_or_by_its_block(key: str, inside: bool) -> None:
    assert covers(frozenset({"a", "c.d"}), key) is inside


def test_what_may_change_on_the_way_is_chosen_on_purpose() -> None:
    """Whoever marks another field says so here too: a wrong mark lets a run go on with other numbers."""
    assert marked(Recipe, Mark.FREE) == {
        "data.workers", "data.max_corrupt", "data.train.root", "data.labeled.root", "data.unlabeled.root",
        "data.train.records", "data.labeled.records", "data.unlabeled.records",
        "data.train.mix", "data.labeled.mix", "data.unlabeled.mix",
        "train.nonfinite", "train.processes", "train.patience", "train.checkpoint_every", "train.keep",
        "train.log_every", "train.sinks", "train.allow_changed_data", "train.allow_rescale",
        "eval"}  # fmt: skip
    assert marked(PackSettings, Mark.FREE) == {"workers", "max_corrupt", "root", "splits", "classes", "part"}
    assert marked(Detection, Mark.SCORING) == {"size", "test", "test_images", "recall_levels",
                                                 "clip.count", "clip.crops"}
