"""Refusing to start as something else than was asked for."""

from __future__ import annotations

import pytest
from tiny import tiny_recipe

from unlabeled.engine import launch
from unlabeled.engine.plan import make_plan
from unlabeled.errors import UserError


def test_too_few_processes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    train = tiny_recipe("simclrv2", "plain", ["train.processes=2"]).train
    with pytest.raises(UserError, match=r"train\.processes asks for 2 processes, but 1 came together"):
        launch.start(train)
    # torchrun without ACCELERATE_USE_CPU on a machine without a GPU: every rank would silently train alone
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="the launcher started 2 processes, but 1 came together"):
        launch.start(train.model_copy(update={"processes": None}))


@pytest.mark.parametrize(("amx", "asked", "given"), [
    (True, "auto", "bf16"), (False, "auto", "no"), (True, "fp32", "no"), (False, "bf16", "bf16"),
])  # fmt: skip
def test_automatic_precision_on_a_cpu(monkeypatch: pytest.MonkeyPatch, amx: bool, asked: str, given: str) -> None:
    monkeypatch.setattr(launch, "_has_amx", lambda: amx)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    train = tiny_recipe("simclrv2", "plain", [f"train.precision={asked}"]).train
    assert launch.start(train).mixed_precision == given


def test_lengths_that_cannot_be_are_refused() -> None:
    recipe = tiny_recipe("simclrv2", "plain")
    with pytest.raises(UserError, match="holds only 23 samples"):
        make_plan(recipe, "train", 23, 1)
    with pytest.raises(UserError, match="24 does not divide into 5 processes"):
        make_plan(recipe, "train", 100, 5)
    with pytest.raises(UserError, match="warmup_epochs 3 are 12 updates, but the run has only 6"):
        make_plan(tiny_recipe("simclrv2", "plain", ["optim.warmup_epochs=3"]), "train", 100, 1)


def test_the_plan_counts_whole_batches() -> None:
    plan = make_plan(tiny_recipe("simclrv2", "plain", ["train.updates=null", "train.epochs=3"]), "train", 100, 2)
    assert (plan.updates_per_epoch, plan.total, plan.batch_per_process, plan.epochs) == (4, 12, 12, 3)
