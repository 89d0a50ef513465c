"""However an update is cut into micro-batches, gradient, loss, logged values and state are the whole batch's.

What losses divide by (known labels, overlaps) is spread unevenly: nothing in the first half, everything in the last
part. In float64, or the case's dtype; BatchNorm is in evaluation mode, where it is a constant map, for statistics of a
part are not the batch's, and so is dropout. A teacher whose BatchNorm goes by blocks keeps doing so: they are
those of the whole batch, however it is cut. All through the engine's own update.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from tiny import Case, Tiny, tiny_run
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from unlabeled.errors import UserError

Views = dict[str, Tensor]


class Logged(NamedTuple):
    """What an update logs, its gradients by name, and the state after it."""

    values: dict[str, float]
    grads: dict[str, np.ndarray]
    state: dict[str, np.ndarray]


def uneven(images: int) -> Tensor:
    """Return which of `images` have labels and overlaps: of 24, in quarters, 0, 0, 2 and 6 of 6."""
    rows = torch.arange(images)
    return (rows >= images // 2) & ((rows % 3 == 0) | (rows >= images * 3 // 4))


def nowhere(images: int) -> Tensor:
    return torch.zeros(images, dtype=torch.bool)


def built(case: Case, more: Sequence[str] = (), dtype: torch.dtype | None = None) -> Tiny:
    """Return the case on weights of which none is zero; dtype: another one than the case's."""
    tiny = tiny_run(case.read(more), dtype or case.dtype)
    random = torch.Generator().manual_seed(0)
    for module in tiny.updater.method.modules():
        if isinstance(module, _BatchNorm) or "drop" in type(module).__name__.lower():
            module.eval()
    with torch.no_grad():
        for p in tiny.updater.method.parameters():
            if p.requires_grad:
                p.add_(0.05 * torch.randn(p.shape, generator=random, dtype=p.dtype))
    return tiny


def views_of(tiny: Tiny, known: Callable[[int], Tensor]) -> Views:
    """Return the first update's views, with labels and overlaps where `known` alone."""
    batch = tiny.micros(0)[0]
    if "train" in batch and batch["train"].label is not None:  # SimMatchV2 refuses unknown labels
        batch["train"].label[~known(len(batch["train"].label))] = -1
    views = tiny.updater.views(0, 0, batch)
    if "place2" in views:
        views["place2"][~known(len(views["place2"]))] += 9
    return views


def cut(views: Views, parts: int) -> list[Views]:
    """Cut views into equal parts."""
    chunks = {name: x.chunk(parts) for name, x in views.items()}
    return [{name: x[i] for name, x in chunks.items()} for i in range(parts)]


def update(tiny: Tiny, parts: list[Views]) -> Logged:
    """Do an update on these micro-batches, and take it back."""
    updater, grads = tiny.updater, {}
    before = {name: x.clone() for name, x in updater.method.state_dict().items()}

    def keep(*_: Any) -> None:
        grads.update({n: p.grad.numpy().copy() for n, p in updater.method.named_parameters() if p.grad is not None})

    updater.views = lambda update, micro, views: views  # type: ignore[method-assign,assignment]
    handle = updater.optimizer.register_step_pre_hook(keep)
    outcome = updater.update(0, parts, [0])  # type: ignore[arg-type]
    handle.remove()
    state = {name: x.numpy().copy() for name, x in updater.method.state_dict().items()}
    updater.method.load_state_dict(before)
    updater.optimizer.state.clear()
    assert not outcome.dropped and grads
    return Logged({name: float(x) for name, x in outcome.values.items()}, grads, state)


def tolerance(logged: Logged) -> float:
    return 1e-9 if all(grad.dtype == np.float64 for grad in logged.grads.values()) else 1e-4


def compare(found: Logged, expected: Logged) -> None:
    assert found.values.keys() == expected.values.keys()
    exact = tolerance(expected)
    for name, value in expected.values.items():
        same = name == "sigma" or found.values[name] == pytest.approx(value, rel=exact, abs=1e-3 * exact)
        assert same, f"{name} is {found.values[name]}, not {value}"  # sigma: the deviation of a batch's keys is no mean
    largest = max(np.abs(g).max() for g in expected.grads.values())
    assert largest > 0
    for name, grad in expected.grads.items():
        np.testing.assert_allclose(found.grads[name], grad, rtol=0, atol=exact * largest, err_msg=f"gradient of {name}")


def compare_states(found: Logged, expected: Logged) -> None:
    exact = 100 * tolerance(expected)
    for name, x in expected.state.items():
        size = np.abs(x).max(initial=1e-6)
        np.testing.assert_allclose(found.state[name], x, rtol=0, atol=exact * size, err_msg=name)


@functools.cache
def whole(case: Case) -> tuple[Views, Logged]:
    """Return the uneven views of a case, and what an update on all of them at once gives."""
    tiny = built(case)
    views = views_of(tiny, uneven)
    return views, update(tiny, [views])


def accumulation_is_exact_or_refused(case: Case) -> None:
    tiny = built(case)
    if tiny.updater.method.couples_batch:
        with pytest.raises(UserError, match="grad_accum is 2"):
            built(case, ["train.grad_accum=2"])
        return
    views, expected = whole(case)
    images, recipe = min(len(x) for x in views.values()), case.read()
    blocks = (recipe.train.blocks or 1) if recipe.method.works_by_blocks() else None  # by one no cut is exact
    for parts in (2, 3, 4):
        if images % parts == 0 and (blocks is None or blocks % parts == 0):
            if blocks is not None:
                tiny = built(case, [f"train.grad_accum={parts}", f"train.blocks={blocks}"])
            found = update(tiny, cut(views, parts))
            compare(found, expected)
            compare_states(found, expected)
