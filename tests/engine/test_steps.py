"""The moment of training: which random numbers belong to it, and that methods see through them."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from tiny import tiny_recipe, tiny_run

from unlabeled.engine.plan import make_plan
from unlabeled.engine.steps import make_step, seed_everything


def drawn(generator: torch.Generator) -> list[int]:
    return torch.randint(2**40, (4,), generator=generator).tolist()


def test_the_generators_are_functions_of_seed_update_and_micro_and_one_of_the_rank() -> None:
    plan = make_plan(tiny_recipe("rotnet", "all"), "train", 100, 1)
    places = [(update, micro, seed, rank) for update in (0, 1, 9) for micro in (0, 1) for seed in (0, 1)
              for rank in (0, 1)]
    steps = {place: make_step(plan, *place) for place in places}
    shared = {place: tuple(drawn(step.shared)) for place, step in steps.items()}
    local = {place: tuple(drawn(step.local)) for place, step in steps.items()}
    assert len(set(local.values())) == len(places), "each of its own"
    assert len(set(shared.values())) == len(places) // 2, "all ranks the same, otherwise each of its own"
    assert all(shared[update, micro, seed, 0] == shared[update, micro, seed, 1] for update, micro, seed, _ in places)
    assert not set(local.values()) & set(shared.values())
    again = make_step(plan, 9, 1, 1, 1)
    assert (tuple(drawn(again.shared)), tuple(drawn(again.local))) == (shared[9, 1, 1, 1], local[9, 1, 1, 1])


def test_epochs_begin_after_as_many_updates_as_they_have() -> None:
    plan = make_plan(tiny_recipe("rotnet", "all"), "train", 50, 1)  # two updates of 24 images
    assert [make_step(plan, update, 0, 0, 0).epoch for update in range(6)] == [0, 0, 1, 1, 2, 2]
    assert (make_step(plan, 5, 0, 0, 0).epochs, make_step(plan, 5, 0, 0, 0).total) == (3, 6)


def test_the_learning_rate_is_that_of_the_update() -> None:
    plan = make_plan(tiny_recipe("rotnet", "all"), "train", 50, 1)
    rates = [make_step(plan, update, 0, 0, 0).lr for update in range(plan.total)]
    assert rates == [plan.lr(update) for update in range(plan.total)] and len(set(rates)) > 2


def test_the_global_generators_follow_the_parts() -> None:
    def numbers(*parts: int | str) -> list[float]:
        seed_everything(*parts)
        return [random.random(), float(np.random.random()), float(torch.rand(()))]  # noqa: NPY002

    first, other = numbers("x", 1), numbers("x", 2)
    assert numbers("x", 1) == first and all(a != b for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize(("method", "variant"), [
    ("simclrv2", "colour"), ("pixpro", "plain"), ("simmatchv2", "multicrop"), ("simmatchv2", "randaugment"),
    ("finetune", "regularised"), ("rotnet", "one"),
])  # fmt: skip
def test_equal_crops_look_different_at_two_updates_and_alike_at_one(method: str, variant: str) -> None:
    few = ["data.unlabeled.batch=6", "data.labeled.batch=4"] if method == "simmatchv2" else ["data.train.batch=6"]
    tiny = tiny_run(tiny_recipe(method, variant, few))
    batch = tiny.micros(0)[0]
    first, again, later, other = (tiny.updater.views(update, micro, batch) for update, micro in (
        (3, 0), (3, 0), (4, 0), (3, 1)))
    changing = [name for name in first if not torch.equal(first[name], later[name])]
    assert changing and all(torch.equal(first[name], again[name]) for name in first)
    assert all(not torch.equal(first[name], other[name]) for name in changing)


@pytest.mark.parametrize("method", ["pixpro", "simmatchv2"])
def test_teachers_stand_still_from_the_end_of_the_horizon_on(method: str) -> None:
    """`train.schedule_scale` shortens the rise of their momentum to 1 as it shortens the learning rate's wave."""
    rising = ["method.ema.momentum=0.9"] if method == "simmatchv2" else []
    few = ["data.unlabeled.batch=6", "data.labeled.batch=4"] if method == "simmatchv2" else ["data.train.batch=6"]
    tiny = tiny_run(tiny_recipe(method, "plain", ["train.schedule_scale=2", *rising, *few]))
    plan, trained = tiny.updater.plan, tiny.updater.method
    assert (plan.total, plan.horizon) == (6, 3)
    student, teacher = ((trained.student, trained.teacher) if method == "simmatchv2" else (trained.online, trained.key))
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(1.0)
        views = tiny.updater.views(0, 0, tiny.micros(0)[0]) if method == "simmatchv2" else {}
        carry = trained(views, make_step(plan, 0, 0, 0, 0)).carry if views else {}
    apart = []
    for update in range(5):
        trained.after_step(make_step(plan, update, 1, 0, 0), carry)
        apart.append(float((next(student.parameters()) - next(teacher.parameters())).detach().flatten()[0]))
    assert 1 > apart[0] > apart[1] > apart[2] - 1e-6 and apart[1] == apart[2] == apart[3] == apart[4]
