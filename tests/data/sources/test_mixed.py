"""Several sets as one stream."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.data.toy_stores import write_store
from tests.data.toys import Corner, Numbered

from unlabeled.config.read import read_recipe
from unlabeled.data.batch import Stream
from unlabeled.data.order import WeightedOrder, shares
from unlabeled.data.records.store import open_store
from unlabeled.data.sources.mixed import Mixed
from unlabeled.data.sources.subset import Part
from unlabeled.data.stream import BatchShare, TrainStream
from unlabeled.data.streams import open_streams
from unlabeled.errors import UserError
from unlabeled.ops.random import permutation


def sets(in_memory: bool = False) -> list[Numbered]:
    made = [Numbered(10, in_memory=in_memory), Numbered(30, bad=(2,), in_memory=in_memory)]
    made[1].name = "other"
    made[0].classes = made[1].classes = list("abcdefg")
    return made


def test_samples_stand_behind_one_another_and_unlabelled_ones_are_unknown() -> None:
    mixed = Mixed(sets(), [True, False])
    assert len(mixed) == 40 and mixed.name == "numbered+other" and mixed.split == "train"
    assert mixed.labels is not None and mixed.labels.tolist() == [*(i % 7 for i in range(10)), *[-1] * 30]
    assert np.array_equal(mixed.image(13), Numbered(30).image(3)) and mixed.key(13) == "sample-3"
    assert mixed.names()[13] == "other/sample-3"
    assert mixed.fingerprint() != Mixed(sets()[::-1], [True, True]).fingerprint()
    assert mixed.fingerprint() != Mixed(sets(), [True, False], [1, 1]).fingerprint()
    assert Mixed(sets(in_memory=True), [True, True]).images is not None and mixed.images is None
    assert Mixed(sets(in_memory=True), [True, True]).unreadable == {12: "broken"}


def test_an_image_that_a_row_names_is_of_the_samples_own_set() -> None:
    one, other = sets()
    part = Part(other, np.array([9, 4, 7]))
    inner = Mixed([one, part], [True, True])
    mixed = Mixed([Numbered(5), inner], [False, False])
    for index, source in ((0, Numbered(5)), (5, one), (14, one), (15, other), (17, other)):
        assert np.array_equal(mixed.neighbour("kept", index, 3), source.image(3)), index


def test_other_classes_and_streamed_sets_are_refused() -> None:
    one, other = sets()
    other.classes = ["x"]
    with pytest.raises(UserError, match=r"'numbered' and 'other' name different classes.*labels: false"):
        Mixed([one, other], [True, True])
    assert Mixed([one, other], [True, False]).classes == list("abcdefg")
    other.random_access = False
    with pytest.raises(UserError, match="is streamed, which does not go into a mix"):
        Mixed([one, other], [True, False])


def test_weights_are_shares_of_every_epoch() -> None:
    order = WeightedOrder([10, 30], [3, 1], 41, 0, "train")
    for epoch in range(3):
        indices = order.indices(epoch, np.arange(41))
        assert (indices < 10).sum() == 31
        counts = np.bincount(indices, minlength=40)
        assert set(counts[:10]) == {3, 4} and set(counts[10:]) == {0, 1}, "one permutation after the other"
        assert (order.indices(epoch, np.arange(7, 9)) == indices[7:9]).all()
    assert not np.array_equal(order.indices(0, np.arange(41)), order.indices(1, np.arange(41)))
    for position in range(41):
        own = int(order.indices(0, np.array([position]))[0])
        stands_in = {order.substitute(0, position, attempt) for attempt in range(9)}
        assert all((other < 10) == (own < 10) for other in stands_in) and len(stands_in) > 1
    assert shares([1, 1, 1], 10) == [4, 3, 3] and shares([0.5, 0.25], 3) == [2, 1]


@pytest.mark.parametrize("in_memory", [False, True])
def test_a_stream_of_weighted_sets_is_the_same_over_processes(in_memory: bool) -> None:
    def stream(rank: int, world: int) -> TrainStream:
        return TrainStream(Mixed(sets(in_memory), [True, True], [1, 1]), Stream((Corner(),), labels=True),
                           BatchShare(8, rank, world), name="train", seed=0, updates_per_epoch=5)

    alone = [batch for (batch,) in stream(0, 1).updates(0, 10)]
    parts = [list(stream(rank, 2).updates(0, 10)) for rank in range(2)]
    for update, batch in enumerate(alone):
        assert torch.equal(batch.crops[0], torch.cat([part[update][0].crops[0] for part in parts]))
    for epoch in (alone[:5], alone[5:]):
        assert sum(int((batch.index < 10).sum()) for batch in epoch) == 20


RECIPE = "demo/simclrv2"
MIX = "data.train={batch: 64, mix: [{card: digits, subset: {per_class: 5}}, {card: digits, split: val, labels: false}]}"


def test_a_recipe_names_the_sets() -> None:
    opened = open_streams(read_recipe(RECIPE, [MIX]))["train"]
    assert len(opened.source) == 550 and [card.name for card in opened.cards] == ["digits", "digits"]
    assert opened.source.labels is not None and (opened.source.labels[50:] == -1).all()
    kept = read_recipe(RECIPE, [MIX]).model_dump(mode="json")["data"]["train"]
    assert set(kept) == {"batch", "mix", "epoch_samples"}


@pytest.mark.parametrize(("given", "said"), [
    ("{batch: 8}", "give either card or mix"),
    ("{batch: 8, card: digits, mix: [{card: digits}]}", "give either card or mix"),
    ("{batch: 8, split: val, mix: [{card: digits}]}", "'split' belongs to the sets of 'mix'"),
    ("{batch: 8, mix: [{card: digits, weight: 1}, {card: digits}]}", "give every set of 'mix' a weight, or none"),
    ("{batch: 8, mix: [{card: digits, wieght: 1}]}", "Did you mean 'weight'"),
    ("{batch: 8, mix: [{card: digits}, {card: digit}]}", "Did you mean 'digits'"),
    ("{batch: 8, mix: [{card: digits, split: vall}]}", "Did you mean 'val'"),
])  # fmt: skip
def test_bad_mixes_are_refused_with_their_place(given: str, said: str) -> None:
    with pytest.raises(UserError) as refused:
        read_recipe(RECIPE, [f"data.train={given}"], check_files=True)
    assert said in str(refused.value) and "data.train" in str(refused.value)


def test_a_recipe_names_a_store_of_the_mix(tmp_path: Path) -> None:
    whole = open_streams(read_recipe(RECIPE, [MIX]))["train"].source
    store = write_store(tmp_path, whole, "kept", {"x": np.arange(550)})
    named = read_recipe(RECIPE, [MIX, f"data.train.records={{kept: {store}}}"])
    source = open_streams(named, {"train": ["kept"]})["train"].source
    assert source.record("kept", np.array([0, 549]))["x"].tolist() == [0, 549]
    assert named.model_dump(mode="json")["data"]["train"]["records"] == {"kept": str(store)}
    with pytest.raises(UserError, match=r"data.train.records.kept has no effect: the method .* reads no stored rows"):
        open_streams(named, {"train": []})
    with pytest.raises(UserError, match=r"reads other rows of every image, and split .* has none"):
        open_streams(read_recipe(RECIPE, [MIX]), {"train": ["other"]})


def test_stores_of_a_card_that_nothing_reads_are_left_alone(tmp_path: Path) -> None:
    card = tmp_path / "mine.yaml"
    card.write_text("name: mine\nsource: {kind: digits}\nsplits: {train: {}, val: {}}\n"
                    f"records: {{train: {{kept: '{tmp_path}/nowhere'}}}}\n")
    recipe = read_recipe(RECIPE, [f"data.train.card={card}"])
    assert len(open_streams(recipe, {"train": []})["train"].source) == 1297
    with pytest.raises(UserError, match="nowhere holds no kept rows of split 'train'"):
        open_streams(recipe, {"train": ["kept"]})


def test_rows_that_mean_something_else_do_not_mix(tmp_path: Path) -> None:
    def members(**about: object) -> list[Numbered]:
        two = [Numbered(10), Numbered(30)]
        for number, (one, more) in enumerate(zip(two, ({}, about), strict=True)):
            settings = {"crop": {"size": 32}, "num_classes": 7, "teacher": "a", **more}
            folder = write_store(tmp_path / f"{len(list(tmp_path.iterdir()))}-{number}", one, "kept",
                                 {"x": np.zeros(len(one), np.float32)}, **settings)
            one.stores["kept"] = open_store(folder, one, "kept")
        return two

    assert Mixed(members(teacher="b", versions={"torch": "9"}), [True, True]).has_record("kept")
    for about, said in (({"crop": {"size": 64}}, "crop {'size': 64} there, {'size': 32} here"),
                        ({"num_classes": 8}, "num_classes 8 there, 7 here")):
        with pytest.raises(UserError, match=re.escape(f"the kept rows of 'numbered' are of another kind than those of "
                                                      f"'numbered': {said}")):
            Mixed(members(**about), [True, True])


def test_large_sets_stay_in_their_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unlabeled.data.sources.mixed._JOINED", 40 * 8 * 8 * 3 - 1)
    mixed = Mixed(sets(in_memory=True), [True, True])
    assert mixed.images is None and np.array_equal(mixed.image(13), Numbered(30).image(3))


def test_a_small_set_that_repeats_costs_the_large_one_no_permutation(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []

    def counted(n: int, *parts: object) -> np.ndarray:
        made.append(n)
        return permutation(n, *parts)

    monkeypatch.setattr("unlabeled.data.order.permutation", counted)
    order = WeightedOrder([4000, 10], [1, 1], 4000, 0, "train")
    for first in range(0, 4000, 100):
        order.indices(0, np.arange(first, first + 100))
    assert made.count(4000) == 2, "the slots and the large set, once each"
