"""SSLD against arrays computed with the published code (the selection: from the text's steps)."""

from __future__ import annotations

import golden_files
import numpy as np
import pytest
import torch
from golden_files import Case, close, tensor

from unlabeled.config.base.optim import LearningRate, Optim
from unlabeled.engine.plan import learning_rate
from unlabeled.methods.ssld.method import divergences, js_loss, soft_cross_entropy
from unlabeled.ops.selection import likeliest_classes, top_per_class

KINDS = ("ssld_js_loss", "ssld_topk_selection", "ssld_lr_schedule")
DTYPES = pytest.mark.parametrize(("dtype", "name"), [(torch.float64, "float64"), (torch.float32, "float32")], ids=str)


def parametrize(kind: str):
    return golden_files.parametrize(kind, KINDS)


def logits(case: Case, prefix: str, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the student's logits, which take a gradient, and the teacher's, which would."""
    student, teacher = (tensor(case[f"{prefix}logits_{who}"], dtype) for who in ("student", "teacher"))
    return student.requires_grad_(), teacher.requires_grad_()


# ---- losses


@parametrize("ssld_js_loss")
@DTYPES
def test_js_loss_and_its_gradient(case: Case, dtype: torch.dtype, name: str) -> None:
    student, teacher = logits(case, "", dtype)
    loss = js_loss(student, teacher, float(case["eps"]))
    loss.backward()
    rel, absolute = (1e-9, 1e-9) if dtype == torch.float64 else (2e-5, 1e-6)
    assert loss.dtype == dtype and teacher.grad is None
    close(loss, case[f"js_loss_{name}"], rel=rel)
    close(student.grad, case[f"grad_student_{name}"], abs=absolute)


@parametrize("ssld_js_loss")
def test_both_directions_and_what_the_loss_is_not(case: Case) -> None:
    student, teacher = logits(case, "", torch.float64)
    eps, legacy = float(case["eps"]), float(case["eps_legacy"])
    both = divergences(student, teacher, eps)
    close(both.teacher_student, case["kl_teacher_to_student_per_sample"], rel=1e-9)
    close(both.student_teacher, case["kl_student_to_teacher_per_sample"], rel=1e-9)
    half = 0.5 * (both.teacher_student + both.student_teacher).detach()
    close(half, case["js_per_sample"], rel=1e-9)
    loss = js_loss(student, teacher, eps)
    close(loss, case["js_loss_numpy"], rel=1e-9)
    close(js_loss(teacher, student, eps), case["js_loss_swapped_float64"], rel=1e-9)
    close(js_loss(student, teacher, legacy), case["js_loss_legacy_eps_numpy"], rel=1e-9)
    close(loss * student.shape[1], case["js_loss_times_num_classes_float64"], rel=1e-9)
    assert (half.numpy() >= 2 * case["contrast_jensen_shannon_midpoint_per_sample"]).all()  # Lin 1991, theorem 3


@parametrize("ssld_js_loss")
@DTYPES
def test_soft_cross_entropy(case: Case, dtype: torch.dtype, name: str) -> None:
    student, teacher = logits(case, "", dtype)
    loss = soft_cross_entropy(student, teacher)
    loss.backward()
    rel, absolute = (1e-9, 1e-9) if dtype == torch.float64 else (2e-5, 1e-6)
    assert teacher.grad is None
    close(loss, case[f"soft_ce_loss_{name}"], rel=rel)
    close(student.grad, case["soft_ce_grad_student_float64"], abs=absolute)


@parametrize("ssld_js_loss")
def test_logits_that_differ_by_a_constant_per_row_agree(case: Case) -> None:
    student = tensor(case["logits_student"]).requires_grad_()
    loss = js_loss(student, tensor(case["identical_up_to_shift_logits_teacher"]), float(case["eps"]))
    loss.backward()
    close(loss, case["identical_up_to_shift_loss_float64"], abs=1e-12)
    close(student.grad.abs().max(), case["identical_up_to_shift_grad_absmax"], abs=1e-12)


@parametrize("ssld_js_loss")
@DTYPES
def test_saturated_rows_are_finite(case: Case, dtype: torch.dtype, name: str) -> None:
    student, teacher = logits(case, "extreme_", dtype)
    loss = js_loss(student, teacher, float(case["eps"]))
    loss.backward()
    close(loss, case[f"extreme_js_loss_{name}"], rel=1e-5)
    close(student.grad, case[f"extreme_grad_student_{name}"], rel=1e-5, abs=1e-6)
    assert student.grad.isfinite().all()


# ---- selection


@parametrize("ssld_topk_selection")
def test_selection(case: Case) -> None:
    prob = case["teacher_prob"]
    classes, scores = (x.numpy() for x in likeliest_classes(torch.from_numpy(prob)))
    assert np.array_equal(classes[:, 0], case["predicted_class"])
    assert np.array_equal(scores[:, 0], case["predicted_score"])
    removed = case["duplicate_indices"]
    selection = top_per_class(classes, scores, k=int(case["k"]), total=prob.shape[1], removed=removed)
    assert np.array_equal(selection.places, case["selected_indices_by_class"])
    assert np.array_equal(selection.images, case["selected_indices_sorted"])
    assert np.array_equal(selection.counts, case["selected_count_per_class"])


# ---- schedule


@parametrize("ssld_lr_schedule")
def test_learning_rate(case: Case) -> None:
    base, start = float(case["base_lr"]), float(case["warmup_start_lr"])
    rule = LearningRate(base=base, warmup_start=start / base, final=float(case["eta_min"]))
    optim = Optim(name="sgd", lr=rule, schedule="cosine")
    per_epoch = int(case["steps_per_epoch"])
    total, warmup = int(case["epochs"]) * per_epoch, int(case["warmup_epochs"]) * per_epoch
    curve = learning_rate(optim, 1024, total, warmup, per_epoch)
    close(np.array([curve.at(step) for step in range(total)]), case["learning_rate_per_step"], abs=1e-12)
