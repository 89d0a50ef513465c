"""What holds for every method on one process: rules that make training exact, each a function that fails where a case
breaks it."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from methods.battery.python_state import changes, digest, python_state
from tiny import UPDATES, Case, Tiny, differing, snapshot, tiny_run
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from unlabeled.errors import UserError
from unlabeled.methods.base import Method

State = dict[str, Tensor]

LATE = 300  # an update at which curves have moved on and epochs have passed


@dataclass
class History:
    """A run of a case: losses of its updates, and states after 0, 1, ... of them; optimizer: after half of them.

    python: what no state holds, after the last three. late: loss of an update much later, and the state after it.
    """

    losses: list[float]
    states: list[State]
    optimizer: dict[str, Any]
    python: list[dict[str, str]]
    late: tuple[float, State]


@functools.lru_cache(maxsize=2)
def history(case: Case) -> History:
    """Train a case."""
    tiny = tiny_run(case.read())
    losses, states, python, optimizer = [], [snapshot(tiny)], [], {}
    for update in range(UPDATES):
        losses += tiny.train(update, update + 1)
        states.append(snapshot(tiny))
        if len(losses) == UPDATES // 2:
            optimizer = copy.deepcopy(tiny.updater.optimizer.state_dict())
        if len(losses) > UPDATES - 3:
            python.append(python_state(tiny.updater))
    return History(losses, states, optimizer, python, late_update(tiny, case))


def late_update(tiny: Tiny, case: Case) -> tuple[float, State]:
    """Do a late update, as of a longer run; return its loss and the state after it."""
    tiny.updater.plan = tiny_run(case.read([f"train.updates={LATE + 100}"])).updater.plan
    return tiny.train(LATE, LATE + 1)[0], snapshot(tiny)


# ---- gradients, losses, views


def gradient_reaches_every_trainable_parameter_and_nothing_else(case: Case) -> None:
    tiny = tiny_run(case.read())
    tiny.train(0, 2)  # classifiers and residual branches that start at zero let gradients pass after an update each
    sum(tiny.losses(2)[2].terms.values()).backward()
    held = {name for group in tiny.updater.method.param_groups() for name in group.names}
    for name, p in tiny.updater.method.named_parameters():
        if name in held:
            assert p.grad is not None and p.grad.abs().sum() > 0, f"no gradient reaches {name}"
        else:
            assert not p.requires_grad and p.grad is None, f"{name} is in no group, yet it is trained"


def every_loss_term_bites(case: Case) -> None:
    tiny = tiny_run(case.read())
    tiny.train(0, 1)
    params = [p for p in tiny.updater.method.parameters() if p.requires_grad]
    for name, term in tiny.losses(1)[2].terms.items():
        value = float(term.detach())
        assert math.isfinite(value) and value != 0, f"loss/{name} is {value}"
        grads = torch.autograd.grad(term, params, retain_graph=True, allow_unused=True)
        assert sum(float(g.abs().sum()) for g in grads if g is not None) > 0, f"loss/{name} moves no parameter"


def every_view_matters(case: Case) -> None:
    tiny = tiny_run(case.read())
    tiny.train(0, 1)
    views, step, whole = tiny.losses(1)
    for name, view in views.items():
        found = tiny.updater.model({**views, name: view.flip(0)}, step)
        if name == "index":  # the places of images, which matter after the update
            assert any(not torch.equal(x, whole.carry[n]) for n, x in found.carry.items()), "places change nothing"
        else:
            same = all(float(x.detach()) == float(whole.terms[n].detach()) for n, x in found.terms.items())
            assert not same, f"exchanging the images of view {name} changes no loss term"


def views_are_no_state(case: Case) -> None:
    """Views are kept until the update ends, which changes parameters and buffers in place."""
    tiny = tiny_run(case.read())
    method, taken = tiny.updater.method, {}
    views = method.views
    method.views = lambda batch, step: taken.update(views(batch, step)) or dict(taken)
    tiny.updater.views(0, 0, tiny.micros(0)[0])
    kept = {x.untyped_storage().data_ptr(): name for name, x in (*method.named_parameters(), *method.named_buffers())}
    for name, view in taken.items():
        owner = kept.get(view.untyped_storage().data_ptr()) if view.numel() else None
        assert owner is None, f"view {name} is memory of {owner}"
        assert not view.requires_grad, f"view {name} requires a gradient"


# ---- state


def forward_changes_only_batchnorm_statistics(case: Case) -> None:
    tiny = tiny_run(case.read())
    norms = {f"{prefix}." for prefix, m in tiny.updater.method.named_modules() if isinstance(m, _BatchNorm)}
    before = snapshot(tiny)
    tiny.first_gradients()
    odd = [name for name in differing(before, snapshot(tiny)) if name.rpartition(".")[0] + "." not in norms]
    assert not odd, f"forward changed {odd}"


def every_copy_moves(case: Case) -> None:
    """A network that training moves has weights and BatchNorm statistics that it moves: the averaged copy's too."""
    tiny, states = tiny_run(case.read()), history(case).states
    moved = {name for name in differing(states[0], states[UPDATES // 2]) if states[0][name].is_floating_point()}
    weights = {name for name, _ in tiny.updater.method.named_parameters()}
    for part in sorted({name.partition(".")[0] for name in moved}):
        inside = [name for name in states[0] if name.partition(".")[0] == part]
        still = [name for name in inside if _is_statistic(name) and name not in moved]
        assert not still, f"{still[0]} is what it was before {UPDATES // 2} updates"
        assert weights.isdisjoint(inside) or weights & moved.intersection(inside), f"no weight of {part} moves"


def _is_statistic(name: str) -> bool:
    return name.endswith((".running_mean", ".running_var"))


def everything_that_training_changes_is_in_the_state(case: Case) -> None:
    """A counter in Python acts late, perhaps; it moves at once. What is made once and kept has been made by then."""
    first, second, third = history(case).python
    odd = {*changes(first, second), *changes(second, third)}
    assert not odd, f"no state_dict has {sorted(odd)[:5]}, which updates change"


def three_and_three_updates_are_six_bit_for_bit(case: Case) -> None:
    known, half = history(case), UPDATES // 2
    fresh = tiny_run(case.read())
    fresh.updater.method.load_state_dict(known.states[half])
    fresh.updater.optimizer.load_state_dict(known.optimizer)
    assert fresh.train(half, UPDATES) == known.losses[half:]
    assert not (odd := differing(known.states[-1], snapshot(fresh))), odd
    loss, state = late_update(fresh, case)
    assert loss == known.late[0]
    assert not (odd := differing(known.late[1], state)), odd


# ---- dropped updates


def a_nonfinite_update_is_dropped_and_leaves_no_trace(case: Case) -> None:
    """All views or gradients alone are not finite; without BatchNorm, which spreads it, the first image alone."""
    tiny = tiny_run(case.read(["train.nonfinite=skip"]))
    _refuse_traces(tiny, _poisoned_views, _poisoned_gradients)
    tiny.updater.recipe = case.read()
    expected = pytest.raises(UserError, match=r"non-finite at update 1: loss/.*rank 0")
    with _poisoned_views(tiny.updater.method), expected:
        tiny.updater.update(1, tiny.micros(1), [0])
    _refuse_traces(tiny_run(case.read(["train.nonfinite=skip"]), change=without_batchnorm), _poisoned_image)


def _refuse_traces(tiny: Tiny, *poisons: Callable[[Method], AbstractContextManager[None]]) -> None:
    tiny.train(0, 1)
    before = _trace(tiny)
    for poison in poisons:
        with poison(tiny.updater.method), _calls_after_step(tiny.updater.method) as calls:
            outcome = tiny.updater.update(1, tiny.micros(1), [0])
        assert outcome.dropped, f"{poison.__name__}: not noticed"
        assert not calls, "after_step was called in a dropped update"
        assert not (odd := changes(before, _trace(tiny))), f"a dropped update changed {odd[:5]}"


def without_batchnorm(method: Method) -> None:
    """Put norms without statistics into the places of BatchNorms."""
    for parent in list(method.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, _BatchNorm):
                norm = nn.GroupNorm(1, child.num_features, affine=child.affine)
                if child.affine and child.bias is None:
                    norm.bias = None
                norm.requires_grad_(all(p.requires_grad for p in child.parameters()))
                setattr(parent, name, norm)


def _trace(tiny: Tiny) -> dict[str, str]:
    """Return what an update may leave, by name."""
    state = {f"state of {name}": x for name, x in tiny.updater.method.state_dict().items()}
    for number, values in tiny.updater.optimizer.state_dict()["state"].items():
        state |= {f"the optimizer's {name} {number}": torch.as_tensor(x) for name, x in values.items()}
    return {**{name: digest(x) for name, x in state.items()}, **python_state(tiny.updater)}


def _nan(x: Tensor) -> Tensor:
    return x * math.nan if x.is_floating_point() else x


def _first_nan(x: Tensor) -> Tensor:
    return torch.cat([_nan(x[:1]), x[1:]]) if x.ndim >= 4 else x


@contextmanager
def _replaced(method: Method, name: str, function: Callable[..., Any]) -> Iterator[None]:
    setattr(method, name, function)
    try:
        yield
    finally:
        delattr(method, name)


def _poisoned_views(method: Method) -> AbstractContextManager[None]:
    views = method.views
    return _replaced(method, "views", lambda batch, step: {k: _nan(x) for k, x in views(batch, step).items()})


def _poisoned_image(method: Method) -> AbstractContextManager[None]:
    views = method.views
    return _replaced(method, "views", lambda batch, step: {k: _first_nan(x) for k, x in views(batch, step).items()})


@contextmanager
def _poisoned_gradients(method: Method) -> Iterator[None]:
    handles = [p.register_hook(_nan) for p in method.parameters() if p.requires_grad]
    yield
    for handle in handles:
        handle.remove()


@contextmanager
def _calls_after_step(method: Method) -> Iterator[list[int]]:
    calls, after_step = [], method.after_step
    with _replaced(method, "after_step", lambda step, carry: calls.append(step.update) or after_step(step, carry)):
        yield calls


# ---- exports


def exports_stand_alone(case: Case) -> None:
    tiny = tiny_run(case.read())
    before = snapshot(tiny)
    for name, export in tiny.updater.method.exports().items():
        net = export.build()
        assert not any(m.training for m in net.modules()), f"{name} is not in evaluation mode"
        x = torch.rand(2, 3, export.input.size, export.input.size)
        with torch.no_grad():
            assert torch.equal(net(x), net(x)) and net(x).isfinite().all(), f"{name} gives noise or NaN"
            for p in net.parameters():
                p.zero_()
    assert not differing(before, snapshot(tiny)), "an export shares memory with the method"
    assert tiny.updater.method.training, "building an export changed the mode of the method"


RULES = (
    gradient_reaches_every_trainable_parameter_and_nothing_else,
    every_loss_term_bites,
    every_view_matters,
    views_are_no_state,
    forward_changes_only_batchnorm_statistics,
    every_copy_moves,
    everything_that_training_changes_is_in_the_state,
    three_and_three_updates_are_six_bit_for_bit,
    a_nonfinite_update_is_dropped_and_leaves_no_trace,
    exports_stand_alone,
)
