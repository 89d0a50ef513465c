"""What every method must pass: the rules that make training exact, whatever the method."""

from __future__ import annotations

import math

import pytest
import torch
from tiny import TINY, UPDATES, VARIANTS, differing, snapshot, tiny_recipe, tiny_run
from torch.nn.modules.batchnorm import _BatchNorm

from unlabeled.config.tables import METHODS
from unlabeled.engine.steps import make_step
from unlabeled.errors import UserError
from unlabeled.ops.distributed import rank

every_variant = pytest.mark.parametrize(("method", "variant"), VARIANTS, ids=["-".join(v) for v in VARIANTS])


def test_every_method_of_the_table_is_here() -> None:
    assert set(TINY) == set(METHODS)


@every_variant
def test_gradient_reaches_every_trainable_parameter_and_nothing_else(method: str, variant: str) -> None:
    tiny = tiny_run(tiny_recipe(method, variant))
    tiny.train(0, 2)  # classifiers and residual branches that start at zero let gradients pass after an update each
    views = tiny.updater.views(2, 0, tiny.micros(2)[0])
    losses = tiny.updater.model(views, make_step(tiny.updater.plan, 2, 0, 0, rank()))
    sum(losses.terms.values()).backward()
    held = {name for group in tiny.updater.method.param_groups() for name in group.names}
    for name, p in tiny.updater.method.named_parameters():
        if name in held:
            assert p.grad is not None and p.grad.abs().sum() > 0, f"no gradient reaches {name}"
        else:
            assert not p.requires_grad and p.grad is None, f"{name} is in no group, yet it is trained"


@every_variant
def test_every_loss_term_bites(method: str, variant: str) -> None:
    tiny = tiny_run(tiny_recipe(method, variant))
    tiny.train(0, 1)
    views = tiny.updater.views(1, 0, tiny.micros(1)[0])
    losses = tiny.updater.model(views, make_step(tiny.updater.plan, 1, 0, 0, rank()))
    params = [p for p in tiny.updater.method.parameters() if p.requires_grad]
    for name, term in losses.terms.items():
        value = float(term.detach())
        assert math.isfinite(value) and value != 0, f"loss/{name} is {value}"
        grads = torch.autograd.grad(term, params, retain_graph=True, allow_unused=True)
        assert sum(float(g.abs().sum()) for g in grads if g is not None) > 0, f"loss/{name} moves no parameter"


@every_variant
def test_every_view_matters(method: str, variant: str) -> None:
    tiny = tiny_run(tiny_recipe(method, variant))
    tiny.train(0, 1)
    views = tiny.updater.views(1, 0, tiny.micros(1)[0])
    step = make_step(tiny.updater.plan, 1, 0, 0, rank())
    whole = tiny.updater.model(views, step)
    for name, view in views.items():
        found = tiny.updater.model({**views, name: view.flip(0)}, step)
        if name == "index":  # the places of images, which matter after the update
            assert any(not torch.equal(x, whole.carry[n]) for n, x in found.carry.items()), "places change nothing"
        else:
            same = all(float(x.detach()) == float(whole.terms[n].detach()) for n, x in found.terms.items())
            assert not same, f"exchanging the images of view {name} changes no loss term"


@every_variant
def test_forward_changes_only_batchnorm_statistics(method: str, variant: str) -> None:
    tiny = tiny_run(tiny_recipe(method, variant))
    norms = {f"{prefix}." for prefix, m in tiny.updater.method.named_modules() if isinstance(m, _BatchNorm)}
    before = snapshot(tiny)
    tiny.first_gradients()
    odd = [name for name in differing(before, snapshot(tiny)) if name.rpartition(".")[0] + "." not in norms]
    assert not odd, f"forward changed {odd}"


@every_variant
def test_three_and_three_updates_are_six_bit_for_bit(method: str, variant: str) -> None:
    recipe = tiny_recipe(method, variant)
    whole = tiny_run(recipe)
    losses = whole.train(0, UPDATES)
    first = tiny_run(recipe)
    first.train(0, UPDATES // 2)
    second = tiny_run(recipe)
    second.updater.method.load_state_dict(first.updater.method.state_dict())
    second.updater.optimizer.load_state_dict(first.updater.optimizer.state_dict())
    assert second.train(UPDATES // 2, UPDATES) == losses[UPDATES // 2 :]
    assert not differing(snapshot(whole), snapshot(second))


@every_variant
def test_a_nonfinite_update_is_dropped_and_leaves_no_trace(
    method: str, variant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = tiny_run(tiny_recipe(method, variant, ["train.nonfinite=skip"]))
    tiny.train(0, 1)
    before, views = snapshot(tiny), tiny.updater.method.views

    def poisoned(batch, step):
        return {k: x * math.nan if x.is_floating_point() else x for k, x in views(batch, step).items()}

    monkeypatch.setattr(tiny.updater.method, "views", poisoned)
    assert tiny.updater.update(1, tiny.micros(1), [0]).dropped
    assert not differing(before, snapshot(tiny))
    stopping = tiny_run(tiny_recipe(method, variant))
    monkeypatch.setattr(stopping.updater.method, "views", poisoned)
    with pytest.raises(UserError, match=r"non-finite at update 1: loss/.*rank 0"):
        stopping.updater.update(1, stopping.micros(1), [0])


@every_variant
def test_exports_stand_alone(method: str, variant: str) -> None:
    tiny = tiny_run(tiny_recipe(method, variant))
    before = snapshot(tiny)
    for name, export in tiny.updater.method.exports().items():
        net = export.build()
        assert not any(m.training for m in net.modules()), f"{name} is not in evaluation mode"
        x = torch.rand(2, 3, export.input.size, export.input.size)
        with torch.no_grad():
            assert torch.equal(net(x), net(x)) and net(x).isfinite().all()
            for p in net.parameters():
                p.zero_()
    assert not differing(before, snapshot(tiny)), "an export shares memory with the method"
    assert tiny.updater.method.training
