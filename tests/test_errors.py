"""Misspelt names: the nearest known ones, and the question that ends a message."""

from __future__ import annotations

from unlabeled.errors import did_you_mean, nearest


def test_the_nearest_come_first_and_only_where_they_are_near() -> None:
    known = ("linear", "logistic", "line")
    assert nearest("linea", known, 2) == ["linear", "line"] and nearest("linea", known) == ["linear"]
    assert nearest("knn", known) == []
    assert nearest("lin", known, likeness=0.9) == []


def test_a_name_that_differs_in_capitals_alone_is_the_nearest() -> None:
    assert nearest("BF16", ("auto", "bf16", "fp16")) == ["bf16"]
    assert nearest("stripse", ("Stripes", "stripes")) == ["stripes"]


def test_the_question_ends_a_message_or_makes_way_for_what_is_known() -> None:
    assert f"no 'lnear'.{did_you_mean(['linear', 'line'])}" == "no 'lnear'. Did you mean 'linear' or 'line'?"
    assert f"no 'knn'.{did_you_mean([], 'Known: linear')}" == "no 'knn'. Known: linear"
    assert did_you_mean([]) == ""


def test_a_name_in_other_capitals_takes_the_place_of_another_suggestion() -> None:
    assert nearest("BF16", ("fp16", "bf16", "bf166")) == ["bf16"]
    assert len(nearest("Bf16", ("bf16", "Bf166", "Bf167"), 2)) == 2
