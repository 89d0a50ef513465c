"""Updates of methods that lack what others have: BatchNorm, buffers, gradients of a part."""

from __future__ import annotations

import math

import pytest
import torch
from tiny import differing, snapshot, tiny_recipe, tiny_run
from torch import nn

from unlabeled.methods.base import Group
from unlabeled.ops.ema import ema_update

PLAIN = ["backbone={name: convnext_atto}", "method.crop={kind: padded, size: 32}", "data.train.batch=4"]


def poison(tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    views = tiny.updater.method.views
    monkeypatch.setattr(tiny.updater.method, "views", lambda batch, step: {
        name: x * math.nan if x.is_floating_point() else x for name, x in views(batch, step).items()})


def test_an_update_without_batchnorm_is_dropped_and_leaves_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = tiny_run(tiny_recipe("finetune", "plain", [*PLAIN, "train.nonfinite=skip"]))
    assert not tiny.updater.statistics and not list(tiny.updater.method.buffers())
    tiny.train(0, 1)
    before = snapshot(tiny)
    poison(tiny, monkeypatch)
    assert tiny.updater.update(1, tiny.micros(1), [0]).dropped
    assert not differing(before, snapshot(tiny))


@pytest.mark.parametrize("clip", ["null", "1.0"])
def test_a_part_without_gradients_is_left_alone(clip: str) -> None:
    tiny = tiny_run(tiny_recipe("rotnet", "all", ["data.train.batch=4", f"optim.clip={clip}"]))
    method, updater = tiny.updater.method, tiny.updater
    method.idle = nn.Linear(3, 2)
    names = tuple(name for name, _ in method.named_parameters())
    idle = tuple(name for name in names if name.startswith("idle."))
    method.param_groups = lambda: [Group(tuple(name for name in names if name not in idle)), Group(idle, part="idle")]
    again = type(updater)(method, updater.recipe, updater.plan, updater.accelerator)
    before = snapshot(tiny)
    outcome = again.update(0, tiny.micros(0), [0])
    assert not outcome.dropped and float(outcome.values["grad_norm"]) > 0
    assert set(idle).isdisjoint(differing(before, snapshot(tiny))) and differing(before, snapshot(tiny))


def test_no_gradient_at_all_is_a_norm_of_zero() -> None:
    from unlabeled.engine.optimizer import clip_and_norm

    norm = clip_and_norm(torch.optim.SGD([nn.Parameter(torch.ones(2))], lr=0.1), 1.0)
    assert norm.shape == () and float(norm) == 0


def test_a_network_without_parameters_has_an_average_too() -> None:
    teacher, student = nn.BatchNorm1d(2, affine=False), nn.BatchNorm1d(2, affine=False)
    student.running_mean.fill_(1.0)
    ema_update(teacher, student, 0.75, "average")
    assert torch.equal(teacher.running_mean, torch.full((2,), 0.25))
    ema_update(nn.Identity(), nn.Identity(), 0.5)
