"""Updates of methods that lack what others have: BatchNorm, buffers, gradients of a part."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import torch
from processes import run_processes
from tiny import differing, snapshot, tiny_recipe, tiny_run
from torch import nn

from unlabeled.engine.optim.optimizer import clip_and_norm
from unlabeled.errors import UserError
from unlabeled.methods.base import Group
from unlabeled.ops.ema import ema_update

VIT = "name: vit_tiny_patch16_224, options: {img_size: 8, patch_size: 4, depth: 1, embed_dim: 8, num_heads: 1}"


def poison(tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    views = tiny.updater.method.views
    monkeypatch.setattr(tiny.updater.method, "views", lambda batch, step: {
        name: x * math.nan if x.is_floating_point() else x for name, x in views(batch, step).items()})


def test_an_update_without_batchnorm_is_dropped_and_leaves_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = tiny_run(tiny_recipe("finetune", "plain", [f"backbone={{{VIT}}}", "train.nonfinite=skip"]))
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
    norm = clip_and_norm(torch.optim.SGD([{"params": [nn.Parameter(torch.ones(2))], "part": "all"}], lr=0.1), 1.0)
    assert norm.shape == () and float(norm) == 0


# the last map has one cell
SINGLE = ["backbone={name: resnet18, width: 0.125}", "method.crop={kind: resized, size: 32}"]


@pytest.mark.parametrize(("overrides", "message"), [
    (["data.train.batch=1"], r"data.train.batch is 1, but a BatchNorm .* single value .* at least 2 images, or larger"),
    (["data.train.batch=2", "train.grad_accum=2"], r"is 2, shared by 2 train.grad_accum, but .* at least 4 images"),
], ids=["batch", "micro-batch"])  # fmt: skip
def test_a_single_value_for_batchnorm_is_refused(overrides: list[str], message: str) -> None:
    tiny = tiny_run(tiny_recipe("finetune", "plain", [*SINGLE, *overrides]))
    with pytest.raises(UserError, match=message) as caught:
        tiny.train(0, 1)
    assert "\n" not in str(caught.value)


def single_on_rank(number: int) -> tuple[str, int]:
    """Return what is said of one image per process, and updates with synchronised norms."""
    recipe = [*SINGLE, "data.train.batch=2"]
    apart = tiny_run(tiny_recipe("finetune", "plain", [*recipe, "train.sync_bn=false"]))
    try:
        apart.train(0, 1)
        said = "nothing"
    except UserError as error:
        said = str(error)
    return said, len(tiny_run(tiny_recipe("finetune", "plain", recipe)).train(0, 1))


def test_one_image_per_process_needs_synchronised_norms() -> None:
    for said, updates in run_processes(2, single_on_rank):
        assert "is 2, shared by 2 processes, but" in said and "at least 4 images or train.sync_bn=true" in said
        assert updates == 1


def test_a_network_without_parameters_has_an_average_too() -> None:
    teacher, student = nn.BatchNorm1d(2, affine=False), nn.BatchNorm1d(2, affine=False)
    student.running_mean.fill_(1.0)
    ema_update(teacher, student, 0.75, "average")
    assert torch.equal(teacher.running_mean, torch.full((2,), 0.25))
    ema_update(nn.Identity(), nn.Identity(), 0.5)


@pytest.mark.parametrize(("buffers", "mean", "count"), [("keep", 1.0, 3), ("copy", 5.0, 7), ("average", 2.0, 7)])
def test_an_average_keeps_copies_or_averages_the_buffers(buffers: str, mean: float, count: int) -> None:
    teacher, student = nn.BatchNorm1d(2), nn.BatchNorm1d(2)
    for norm, weight, running, number in ((teacher, 0.0, 1.0, 3), (student, 8.0, 5.0, 7)):
        nn.init.constant_(norm.weight, weight)
        norm.running_mean.fill_(running)
        norm.num_batches_tracked.fill_(number)
    ema_update(teacher, student, 0.75, buffers)
    assert teacher.weight.tolist() == [2.0, 2.0] and student.weight.tolist() == [8.0, 8.0]
    assert (teacher.running_mean.tolist(), int(teacher.num_batches_tracked)) == ([mean, mean], count)


def test_no_gradient_is_left_for_the_next_update_and_the_step_is_that_of_the_clipped_one() -> None:
    """Plain SGD: the step is lr times the gradient, which the recipe's clip bounds."""
    sgd = "optim={name: sgd, lr: {base: 0.5}, schedule: constant, momentum: 0.0, clip: 0.01}"
    tiny = tiny_run(tiny_recipe("rotnet", "all", [sgd]))
    parameters = list(tiny.updater.method.parameters())
    for update in range(3):
        before = [p.detach().clone() for p in parameters]
        outcome = tiny.updater.update(update, tiny.micros(update), [0])
        step = torch.stack([(a - p).detach().norm() for a, p in zip(before, parameters, strict=True)]).norm()
        assert float(outcome.values["grad_norm"]) > 0.02
        assert float(step) == pytest.approx(0.5 * 0.01, rel=1e-3)
        assert all(p.grad is None or not p.grad.any() for p in parameters)


def test_a_dropped_update_leaves_the_running_statistics_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = tiny_run(tiny_recipe("rotnet", "all", ["train.nonfinite=skip"]))
    tiny.train(0, 1)
    before = snapshot(tiny)
    poison(tiny, monkeypatch)
    outcome = tiny.updater.update(1, tiny.micros(1), [0])
    assert outcome.dropped and tiny.updater.statistics and not differing(before, snapshot(tiny))


def test_what_views_draw_from_the_global_generators_is_a_function_of_the_update_and_micro_batch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tiny = tiny_run(tiny_recipe("rotnet", "all", ["data.train.batch=4"]))
    monkeypatch.setattr(tiny.updater.method, "views", lambda batch, step: {
        "torch": torch.rand(2), "numpy": torch.tensor(np.random.random()),  # noqa: NPY002 - as libraries draw
        "python": torch.tensor(random.random())})

    def drawn(update: int, micro: int) -> list[float]:
        views = tiny.updater.views(update, micro, {})
        return [float(x.flatten()[0]) for x in views.values()]

    first = drawn(3, 0)
    for other in (drawn(4, 0), drawn(3, 1)):
        assert all(a != b for a, b in zip(first, other, strict=True))
    assert drawn(3, 0) == first
