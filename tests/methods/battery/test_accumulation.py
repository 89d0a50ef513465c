"""However an update is cut into micro-batches and processes, gradient, loss and logged values are the whole batch's."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
import torch
from methods.battery.accumulation import (
    Logged,
    Views,
    accumulation_is_exact_or_refused,
    built,
    compare,
    cut,
    nowhere,
    uneven,
    update,
    views_of,
    whole,
)
from processes import run_processes
from tiny import BATCH, VARIANTS, Case, Tiny, tiny_case
from torch.nn import functional as F

from unlabeled.methods.finetune import Finetune

MORE = (
    tiny_case("finetune", "plain", "method.mixup=0.8", "method.smoothing=0.1", name="finetune-mixup"),
    tiny_case("finetune", "plain", "method.cutmix=1.0", name="finetune-cutmix"),
    tiny_case("pixpro", "fpn", "method.pixel={kind: contrast}", name="pixpro-contrast-fpn"),
)
CASES = {case.name: case for case in (*(tiny_case(*variant) for variant in VARIANTS), *MORE)}


@pytest.mark.battery(*MORE)
def test_accumulation_is_exact_or_refused(case: Case) -> None:
    accumulation_is_exact_or_refused(case)


PARTLY = ["distil-labels", "finetune-cutmix", "pixpro-plain", "pixpro-contrast-fpn", "probe-heads", "simclrv2-memory"]


@pytest.mark.parametrize("name", PARTLY)
def test_an_update_without_any_label_or_overlap_is_finite(name: str) -> None:
    tiny = built(CASES[name])
    views = views_of(tiny, nowhere)
    for parts in (1,) if tiny.updater.method.couples_batch else (1, 2):
        values = update(tiny, cut(views, parts)).values
        assert all(np.isfinite(x) for x in values.values())
        for key in {"loss/labels", "loss/probe", "accuracy", "probe_accuracy", "cosine_positive"} & values.keys():
            assert values[key] == 0, key


# ---- several processes

SPREAD = [
    name
    for name in CASES
    if name.startswith(("finetune", "pixpro", "probe", "distil-labels", "simclrv2-memory", "simmatchv2-plain"))
]


def on_rank(number: int, given: dict[str, dict[str, np.ndarray]]) -> dict[str, Logged]:
    found = {}
    for name, arrays in given.items():
        tiny = built(CASES[name])
        views = {key: torch.from_numpy(x) for key, x in arrays.items()}
        micros = 1 if tiny.updater.method.couples_batch else 2
        found[name] = update(tiny, cut(views, 2 * micros)[number::2])
    return found


@functools.cache
def shared_out() -> list[dict[str, Logged]]:
    """Do the update of every case in two processes, each in two micro-batches, or one where these are refused."""
    given = {name: {key: x.numpy() for key, x in whole(CASES[name])[0].items()} for name in SPREAD}
    return run_processes(2, on_rank, given)


@pytest.mark.parametrize("name", SPREAD)
def test_two_processes_with_unequal_numbers_of_labels_are_one(name: str) -> None:
    first, second = (rank[name] for rank in shared_out())
    mean = {key: (value + second.values[key]) / 2 for key, value in first.values.items()}  # as the log has it
    compare(first._replace(values=mean), whole(CASES[name])[1])
    assert all(np.array_equal(grad, second.grads[key]) for key, grad in first.grads.items())


# ---- by hand


def test_micro_batches_of_the_stream_are_its_batch() -> None:
    losses = []
    for parts in (1, 2, 4):
        tiny = built(CASES["finetune-plain"], [f"train.grad_accum={parts}"], torch.float32)
        micros = tiny.micros(0)
        label = torch.cat([micro["train"].label for micro in micros])
        assert len(micros) == parts and len(label) == BATCH
        for micro, unknown in zip(micros, (~uneven(BATCH)).chunk(parts), strict=True):
            micro["train"].label[unknown] = -1
        outcome = tiny.updater.update(0, micros, [0])
        losses.append([float(outcome.values[name]) for name in ("loss", "accuracy", "grad_norm")])
    np.testing.assert_allclose(losses[1:], [losses[0]] * 2, rtol=1e-5)


def finetuned(known: int, images: int = 40) -> tuple[Tiny, Views]:
    """Return a fine-tuning and views of `images`, of which the last `known` have labels."""
    tiny = built(CASES["finetune-plain"])
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
        values, found, _ = update(tiny, cut(views, parts))
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
