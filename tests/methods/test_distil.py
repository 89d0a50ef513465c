"""Fine-tuning and distillation: closed forms, what starts at zero, and what is refused."""

from __future__ import annotations

import math

import pytest
import torch
from tiny import teacher, tiny_recipe, tiny_run

from unlabeled.errors import UserError
from unlabeled.methods.distil import distillation_loss
from unlabeled.ops.labels import known, known_accuracy, known_cross_entropy


def logits(seed: int) -> torch.Tensor:
    return torch.randn(6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("temperature", [0.1, 1.0, 2.0])
def test_a_student_that_equals_its_teacher_has_no_gradient_and_the_teachers_entropy(temperature: float) -> None:
    taught = logits(0)
    student = taught.clone().requires_grad_()
    loss = distillation_loss(student, taught, temperature, scale_by_t2=True)
    loss.backward()
    p = (taught / temperature).softmax(1)
    assert float(loss.detach()) == pytest.approx(temperature**2 * float(-(p * p.log()).sum(1).mean()))
    assert student.grad.abs().max() < 1e-12


def test_the_gradient_of_a_row_is_the_difference_of_the_softened_classes() -> None:
    student, t = logits(1).requires_grad_(), 2.0
    distillation_loss(student, logits(2), t, scale_by_t2=False).backward()
    expected = ((student.detach() / t).softmax(1) - (logits(2) / t).softmax(1)) / t / 6
    torch.testing.assert_close(student.grad, expected)


def test_unknown_labels_do_not_count() -> None:
    label = torch.tensor([3, -1, 0, -1, 2, 4])
    rows = label >= 0
    expected = torch.nn.functional.cross_entropy(logits(3)[rows], label[rows])
    assert known(label) == 4
    torch.testing.assert_close(known_cross_entropy(logits(3), label, known(label)), expected)
    assert float(known_cross_entropy(logits(3), torch.full((6,), -1), torch.tensor(1))) == 0
    right = (logits(3)[rows].argmax(1) == label[rows]).double().mean()
    assert float(known_accuracy(logits(3), label, known(label))) == pytest.approx(float(right))


def test_fine_tuning_starts_from_zero_logits_and_first_moves_the_classifier_only() -> None:
    tiny = tiny_run(tiny_recipe("finetune", "plain"))
    _, loss, grads = tiny.first_gradients()
    assert float(loss) == pytest.approx(math.log(10))
    for name, grad in grads.items():
        assert bool(grad.any()) == name.startswith("classifier.linear."), name


def test_alpha_zero_is_training_on_labels() -> None:
    tiny = tiny_run(tiny_recipe("distil", "labels", ["method.alpha=0.0", "method.labels=null"]))
    views = tiny.updater.views(0, 0, tiny.micros(0)[0])
    _, loss, _ = tiny.first_gradients()
    logits = tiny.updater.method.student(views["view"]).detach()
    expected = torch.nn.functional.cross_entropy(logits, views["label"])
    assert float(loss) == pytest.approx(float(expected), rel=1e-5)


def test_only_the_chosen_images_show_their_labels() -> None:
    tiny = tiny_run(tiny_recipe("distil", "labels", ["method.labels={per_class: 3, seed: 1}"]))
    method = tiny.updater.method
    assert int(method.label_mask.sum()) == 30
    for update in range(6):
        batch = tiny.micros(update)[0]["train"]
        label = tiny.updater.views(update, 0, {"train": batch})["label"]
        assert torch.equal(label >= 0, method.label_mask[batch.index])


def test_the_teacher_is_left_alone() -> None:
    tiny = tiny_run(tiny_recipe("distil", "plain"))
    network = tiny.updater.method.teacher.network
    before = {name: value.clone() for name, value in network.state_dict().items()}
    tiny.train(0, 3)
    assert not network.training and not any(p.requires_grad or p.grad is not None for p in network.parameters())
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert not any("network" in name for name in tiny.updater.method.state_dict() if name.startswith("teacher."))


def test_a_teacher_without_a_classifier_and_idle_labels_are_refused() -> None:
    with pytest.raises(UserError, match="gives no logits"):
        tiny_run(tiny_recipe("distil", "plain", [f"method.teacher={teacher()}:backbone"]))
    with pytest.raises(UserError, match="'labels' has no effect with alpha 1"):
        tiny_recipe("distil", "labels", ["method.alpha=1.0"])
