"""Parameter groups, exclusions, clipping and schedules."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from tiny import tiny_recipe
from torch import nn

from unlabeled.config.base.curve import CurveRule
from unlabeled.config.base.optim import LearningRate, Optim
from unlabeled.engine.optim.lars import LARS
from unlabeled.engine.optim.optimizer import build_optimizer, clip_and_norm, set_learning_rate
from unlabeled.engine.plan import describe, learning_rate, make_plan
from unlabeled.errors import UserError
from unlabeled.methods.base import Group, Method
from unlabeled.ops.curves import Curve


class Toy(Method):
    def __init__(self, groups: list[Group] | None = None) -> None:
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2)
        self.groups = groups

    def param_groups(self) -> list[Group]:
        return self.groups or super().param_groups()


def optim(**values) -> Optim:
    return Optim.model_validate({"name": "lars", "lr": {"base": 1.0}, "weight_decay": 0.1, **values})


def treatment(method: Method, optimizer: torch.optim.Optimizer) -> dict[str, tuple[float, bool]]:
    names = {id(p): name for name, p in method.named_parameters()}
    return {names[id(p)]: (g["weight_decay"], g["adapt"]) for g in optimizer.param_groups for p in g["params"]}


def test_norm_and_bias_are_neither_decayed_nor_adapted() -> None:
    toy = Toy()
    got = treatment(toy, build_optimizer(toy, optim()))
    weights = {"conv.weight", "fc.weight"}
    assert got == {name: (0.1, True) if name in weights else (0.0, False) for name, _ in toy.named_parameters()}


def test_patterns_one_dimensional_and_a_groups_own_word() -> None:
    toy = Toy(
        [
            Group(("conv.weight", "conv.bias", "norm.weight", "norm.bias")),
            Group(("fc.weight", "fc.bias"), lr_mult=0.1, decay=0.5, lars=False, frozen_epochs=2),
        ]
    )
    optimizer = build_optimizer(toy, optim(exclude_decay=["conv.*"], exclude_lars=["one_dimensional"]))
    got = treatment(toy, optimizer)
    assert got["conv.weight"] == (0.0, True) and got["norm.weight"] == (0.1, False)
    assert got["fc.weight"] == got["fc.bias"] == (0.5, False)
    set_learning_rate(optimizer, 2.0, epoch=1.5)
    assert sorted({g["lr"] for g in optimizer.param_groups}) == [0.0, 2.0]
    set_learning_rate(optimizer, 2.0, epoch=2.0)
    assert sorted({g["lr"] for g in optimizer.param_groups}) == [0.2, 2.0]


def test_a_pattern_that_matches_nothing_is_refused() -> None:
    with pytest.raises(UserError, match=r"optim.exclude_decay: no parameter is named like 'clasifier\*'"):
        build_optimizer(Toy(), optim(exclude_decay=["clasifier*"]))


@pytest.mark.parametrize(
    "groups",
    [
        [Group(("conv.weight",))],
        [Group(tuple(n for n, _ in Toy().named_parameters())), Group(("fc.bias",))],
    ],
    ids=["missing", "twice"],
)
def test_groups_must_hold_every_parameter_once(groups: list[Group]) -> None:
    with pytest.raises(ValueError, match="every parameter once"):
        build_optimizer(Toy(groups), optim())


def test_every_part_is_clipped_by_its_joint_norm() -> None:
    names = [n for n, _ in Toy().named_parameters()]
    toy = Toy([Group(tuple(names[:4]), part="a"), Group(tuple(names[4:]), part="b")])
    optimizer = build_optimizer(toy, optim())
    for p in toy.parameters():
        p.grad = torch.full_like(p, 3.0)
    toy.fc.weight.grad.zero_()
    toy.fc.bias.grad.fill_(0.1)
    whole = math.sqrt(sum(float(p.grad.square().sum()) for p in toy.parameters()))
    assert float(clip_and_norm(optimizer, 1.0)) == pytest.approx(whole)
    part = [p.grad for n, p in toy.named_parameters() if n in names[:4]]
    assert math.sqrt(sum(float(g.square().sum()) for g in part)) == pytest.approx(1.0, rel=1e-4)
    assert torch.allclose(toy.fc.bias.grad, torch.tensor(0.1)), "a part below the limit stays as it is"


def test_lars_without_adaptation_is_momentum_sgd() -> None:
    torch.manual_seed(0)
    a, b = (nn.Parameter(x.clone()) for x in torch.randn(5)[None].repeat(2, 1))
    lars = LARS([{"params": [a], "adapt": False}], lr=0.1, lr_in_momentum=False, weight_decay=0.01)
    sgd = torch.optim.SGD([b], lr=0.1, momentum=0.9, weight_decay=0.01)
    for _ in range(4):
        for p, o in ((a, lars), (b, sgd)):
            p.grad = p.detach().sin()
            o.step()
    torch.testing.assert_close(a, b)


def test_streams_that_are_not_the_clock_are_told() -> None:
    recipe = tiny_recipe("simmatchv2", "plain")
    assert "24 images each, 12 per process; with them 12 of data.labeled" in describe(
        make_plan(recipe, "unlabeled", 500, 2), recipe
    )[0]


def test_a_table_changes_the_rate_between_epochs_only() -> None:
    recipe = tiny_recipe("rotnet", "all")
    recipe = recipe.model_copy(update={
        "optim": recipe.optim.model_copy(update={"lr": LearningRate(table=[(1, 0.1), (3, 0.02)])}),
        "train": recipe.train.model_copy(update={"updates": None, "epochs": 4}),
    })
    plan = make_plan(recipe, "train", 50, 1)  # two updates of 24 images
    assert [plan.lr(update) for update in range(plan.total)] == [0.1, 0.1, *[0.02] * 6]
    assert "0.1 before epoch 1, 0.02 before epoch 3" in describe(plan, recipe)[1]
    within = replace(plan, table=((0.5, 0.1), (1.5, 0.05), (3, 0.02)))  # ends within an epoch hold until the next one
    assert [within.lr(update) for update in range(plan.total)] == [*[0.1] * 2, *[0.05] * 2, *[0.02] * 4]


def test_a_scale_of_the_schedule_shortens_the_wave_and_not_the_run() -> None:
    plan = make_plan(tiny_recipe("rotnet", "all", ["train.schedule_scale=1.5", "train.updates=9"]), "train", 50, 1)
    assert (plan.total, plan.horizon, plan.curve.horizon) == (9, 6, 6)
    falling = CurveRule(start=1.0, end=0.0, shape="linear")
    assert [plan.value(falling, update) for update in (0, 3, 6, 8)] == [1, 0.5, 0, 0]


def test_every_option_of_the_rule_reaches_the_curve() -> None:
    rule = LearningRate(base=0.4, scaling="linear", per=64, warmup_start=0.1, warmup_rule="(k+1)/w", final=0.01,
                        portion=0.5, count_from="start", every="epoch")
    curve = learning_rate(Optim(name="sgd", lr=rule, schedule="linear"), 128, 100, 10, 5)
    assert curve == Curve(0.8, 0.01, 100, "linear", 0.5, 10, 0.1 * 0.8, "(k+1)/w", "start", 5)


def test_epoch_samples_set_the_length_of_an_epoch() -> None:
    recipe = tiny_recipe("rotnet", "all", ["data.train.epoch_samples=100", "train.updates=null", "train.epochs=3"])
    assert make_plan(recipe, "train", 50, 1).total == 3 * (100 // 24)
