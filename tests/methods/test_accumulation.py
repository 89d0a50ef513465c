"""However an update is cut into micro-batches and processes, gradient, loss and logged values are the whole batch's.

What losses divide by (known labels, overlaps) is spread unevenly: nothing in the first half, everything in the last
part. In float64; BatchNorm is in evaluation mode, where it is a constant map, for statistics of a part are not the
batch's. All through the engine's own update.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from processes import run_processes
from tiny import BATCH, VARIANTS, Tiny, tiny_recipe, tiny_run
from torch import Tensor
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from unlabeled.errors import UserError
from unlabeled.methods.finetune import Finetune

Views = dict[str, Tensor]
Logged = tuple[dict[str, float], dict[str, np.ndarray]]  # values, and gradients by name

CASES: dict[str, tuple[str, str, list[str]]] = {
    **{f"{method}-{variant}": (method, variant, []) for method, variant in VARIANTS},
    "finetune-mixup": ("finetune", "plain", ["method.mixup=0.8", "method.smoothing=0.1"]),
    "finetune-cutmix": ("finetune", "plain", ["method.cutmix=1.0"]),
    "pixpro-contrast-fpn": ("pixpro", "fpn", ["method.pixel={kind: contrast}"]),
}
every_case = pytest.mark.parametrize("case", CASES)

ROWS = torch.arange(BATCH)
UNEVEN = (ROWS >= BATCH // 2) & ((ROWS % 3 == 0) | (ROWS >= BATCH * 3 // 4))  # 0, 0, 2 and 6 of 6
NOWHERE = torch.zeros(BATCH, dtype=torch.bool)


def built(case: str, more: Sequence[str] = (), dtype: torch.dtype = torch.float64) -> Tiny:
    """Return the case on weights of which none is zero."""
    method, variant, overrides = CASES[case]
    tiny = tiny_run(tiny_recipe(method, variant, [*overrides, *more]), dtype)
    random = torch.Generator().manual_seed(0)
    for module in tiny.updater.method.modules():
        if isinstance(module, _BatchNorm):
            module.eval()
    with torch.no_grad():
        for p in tiny.updater.method.parameters():
            if p.requires_grad:
                p.add_(0.05 * torch.randn(p.shape, generator=random, dtype=p.dtype))
    return tiny


def views_of(tiny: Tiny, known: Tensor) -> Views:
    """Return the first update's views in float64, with labels and overlaps where `known` alone."""
    batch = tiny.micros(0)[0]
    if "train" in batch and batch["train"].label is not None:  # SimMatchV2 refuses unknown labels
        batch["train"].label[~known] = -1
    views = tiny.updater.views(0, 0, batch)
    if "place2" in views:
        views["place2"][~known] += 9
    return {name: x.double() if x.is_floating_point() else x for name, x in views.items()}


def cut(views: Views, parts: int) -> list[Views]:
    """Cut views into equal parts."""
    chunks = {name: x.chunk(parts) for name, x in views.items()}
    return [{name: x[i] for name, x in chunks.items()} for i in range(parts)]


def update(tiny: Tiny, parts: list[Views]) -> Logged:
    """Do an update on these micro-batches, return what it logs and its gradients, and take it back."""
    updater, grads = tiny.updater, {}
    before = {name: x.clone() for name, x in updater.method.state_dict().items()}

    def keep(*_: Any) -> None:
        grads.update({n: p.grad.numpy().copy() for n, p in updater.method.named_parameters() if p.requires_grad})

    updater.views = lambda update, micro, views: views  # type: ignore[method-assign,assignment]
    handle = updater.optimizer.register_step_pre_hook(keep)
    outcome = updater.update(0, parts, [0])  # type: ignore[arg-type]
    handle.remove()
    updater.method.load_state_dict(before)
    assert not outcome.dropped and grads
    return {name: float(x) for name, x in outcome.values.items()}, grads


def compare(found: Logged, expected: Logged) -> None:
    values, grads = found
    assert values.keys() == expected[0].keys()
    for name in values.keys() - {"sigma"}:  # the deviation of the keys of a batch is not a mean
        assert values[name] == pytest.approx(expected[0][name], rel=1e-9, abs=1e-12), name
    largest = max(np.abs(g).max() for g in expected[1].values())
    assert largest > 0
    for name, grad in expected[1].items():
        np.testing.assert_allclose(grads[name], grad, rtol=0, atol=1e-9 * largest, err_msg=name)


@functools.cache
def whole(case: str) -> tuple[Views, Logged]:
    """Return the uneven views of a case, and what an update on all of them at once gives."""
    tiny = built(case)
    views = views_of(tiny, UNEVEN)
    return views, update(tiny, [views])


@every_case
def test_accumulation_is_exact_or_refused(case: str) -> None:
    tiny = built(case)
    if tiny.updater.method.couples_batch:
        with pytest.raises(UserError, match="grad_accum is 2"):
            built(case, ["train.grad_accum=2"])
        return
    views, expected = whole(case)
    for parts in (2, 3, 4):
        compare(update(tiny, cut(views, parts)), expected)


PARTLY = ["distil-labels", "finetune-cutmix", "pixpro-plain", "pixpro-contrast-fpn", "probe-heads", "simclrv2-memory"]


@pytest.mark.parametrize("case", PARTLY)
def test_an_update_without_any_label_or_overlap_is_finite(case: str) -> None:
    tiny = built(case)
    views = views_of(tiny, NOWHERE)
    for parts in (1,) if tiny.updater.method.couples_batch else (1, 2):
        values, _ = update(tiny, cut(views, parts))
        assert all(np.isfinite(x) for x in values.values())
        for name in {"loss/labels", "loss/probe", "accuracy", "probe_accuracy", "cosine_positive"} & values.keys():
            assert values[name] == 0, name


# ---- several processes

SPREAD = [
    case
    for case, (method, _, _) in CASES.items()
    if method in ("finetune", "pixpro", "probe") or case in ("distil-labels", "simclrv2-memory", "simmatchv2-plain")
]


def on_rank(number: int, given: dict[str, dict[str, np.ndarray]]) -> dict[str, Logged]:
    found = {}
    for case, arrays in given.items():
        tiny = built(case)
        views = {name: torch.from_numpy(x) for name, x in arrays.items()}
        micros = 1 if tiny.updater.method.couples_batch else 2
        found[case] = update(tiny, cut(views, 2 * micros)[number::2])
    return found


@functools.cache
def shared_out() -> list[dict[str, Logged]]:
    """Do the update of every case in two processes, each in two micro-batches, or one where these are refused."""
    return run_processes(2, on_rank, {case: {name: x.numpy() for name, x in whole(case)[0].items()} for case in SPREAD})


@pytest.mark.parametrize("case", SPREAD)
def test_two_processes_with_unequal_numbers_of_labels_are_one(case: str) -> None:
    (values, grads), (others, same) = (rank[case] for rank in shared_out())
    mean = {name: (value + others[name]) / 2 for name, value in values.items()}  # as the log has it
    compare((mean, grads), whole(case)[1])
    assert all(np.array_equal(grad, same[name]) for name, grad in grads.items())


# ---- by hand


def test_micro_batches_of_the_stream_are_its_batch() -> None:
    losses = []
    for parts in (1, 2, 4):
        tiny = built("finetune-plain", [f"train.grad_accum={parts}"], torch.float32)
        micros = tiny.micros(0)
        label = torch.cat([micro["train"].label for micro in micros])
        assert len(micros) == parts and len(label) == BATCH
        for micro, unknown in zip(micros, (~UNEVEN).chunk(parts), strict=True):
            micro["train"].label[unknown] = -1
        outcome = tiny.updater.update(0, micros, [0])
        losses.append([float(outcome.values[name]) for name in ("loss", "accuracy", "grad_norm")])
    np.testing.assert_allclose(losses[1:], [losses[0]] * 2, rtol=1e-5)


def finetuned(known: int, images: int = 40) -> tuple[Tiny, Views]:
    """Return a fine-tuning and views of `images`, of which the last `known` have labels."""
    tiny = built("finetune-plain")
    random = torch.Generator().manual_seed(1)
    label = torch.randint(10, (images,), generator=random)
    target = F.one_hot(label, 10).double()
    target[: images - known] = 0
    return tiny, {"view": torch.randn(images, 3, 8, 8, generator=random, dtype=torch.float64), "target": target}


def test_five_labels_among_forty_images_count_as_five() -> None:
    tiny, views = finetuned(5)
    method = tiny.updater.method
    assert isinstance(method, Finetune)
    logits, label = method.classifier(views["view"][35:]), views["target"][35:].argmax(1)
    loss = F.cross_entropy(logits, label)
    params = {name: p for name, p in method.named_parameters() if p.requires_grad}
    grads = dict(zip(params, torch.autograd.grad(loss, list(params.values())), strict=True))
    right = (logits.argmax(1) == label).double().mean()
    for parts in (1, 2, 4, 8):  # of eight the last one has all labels
        values, found = update(tiny, cut(views, parts))
        assert values["loss"] == pytest.approx(loss.item(), rel=1e-9)
        assert values["accuracy"] == pytest.approx(float(right))
        for name, grad in grads.items():
            np.testing.assert_allclose(found[name], grad.numpy(), rtol=0, atol=1e-9)


def test_a_scaler_changes_no_gradient() -> None:
    tiny, views = finetuned(5)
    expected = update(tiny, [views])
    tiny.updater.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    compare(update(tiny, cut(views, 2)), expected)


def test_counts_are_added_once_per_update(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny, views = finetuned(5)
    seen, forward = [], tiny.updater.method.forward

    def watched(views: Views, step: Any) -> Any:
        seen.append({name: float(x) for name, x in step.counts.items()})
        return forward(views, step)

    monkeypatch.setattr(tiny.updater.method, "forward", watched)
    update(tiny, cut(views, 4))
    assert seen == [{"mass": 1.25, "labels": 1.25}] * 4  # per micro-batch
