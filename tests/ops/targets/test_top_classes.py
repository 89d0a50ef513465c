"""What is kept of probabilities, and targets made of it."""

from __future__ import annotations

import pytest
import torch

from unlabeled.ops.targets.top_classes import densify, kl_divergence, mean_probability, sparsify


def probabilities(n: int = 7, classes: int = 11, sharpness: float = 3.0) -> torch.Tensor:
    return (sharpness * torch.randn(n, classes, generator=torch.Generator().manual_seed(0))).softmax(1)


@pytest.mark.parametrize("topk", [1, 4, 10, 11])
def test_targets_are_probabilities_that_keep_what_is_stored(topk: int) -> None:
    prob = probabilities()
    values, classes = sparsify(prob, topk)
    dense = densify(values, classes, 11)
    torch.testing.assert_close(dense.sum(1), torch.ones(7), rtol=0, atol=1e-6)
    torch.testing.assert_close(dense.gather(1, classes), values, rtol=0, atol=1e-6)
    others = dense[torch.ones_like(dense).scatter(1, classes, 0.0).bool()].view(7, -1)
    assert (others >= 0).all() and (others == others[:, :1]).all()
    assert topk < 11 or torch.allclose(dense, prob, atol=1e-6)


@pytest.mark.parametrize("topk", [3, 11])
def test_sixteen_bits_may_sum_to_more_than_one(topk: int) -> None:
    """The published rule takes a softmax there: of (0.75, 0.25) it makes (0.33, 0.20)."""
    prob = probabilities(500, sharpness=12.0)
    values, classes = sparsify(prob, topk)
    stored = values.half()
    assert (stored.float().sum(1) > 1).any(), "the case is there"
    dense = densify(stored, classes.to(torch.uint16), 11)
    torch.testing.assert_close(dense.sum(1), torch.ones(500), rtol=0, atol=1e-6)
    assert (dense >= 0).all() and float((dense.gather(1, classes.long()) - values).abs().max()) < 2e-3


def test_the_divergence_of_a_student_that_says_the_same_is_zero() -> None:
    target = probabilities().double()
    target /= target.sum(1, keepdim=True)  # to the last digit of float64
    logits = target.log().requires_grad_()
    loss = kl_divergence(logits, target, torch.tensor(7))
    loss.backward()
    assert abs(float(loss.detach())) < 1e-12 and float(logits.grad.abs().max()) < 1e-12


def test_the_divergence_of_a_label_is_cross_entropy_and_rows_of_zeros_do_not_count() -> None:
    logits = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))
    label = torch.tensor([0, 1, 2, 3, 0, 1])
    hot = torch.nn.functional.one_hot(label, 4).float()
    hot[4:] = 0
    loss = kl_divergence(logits, hot, torch.tensor(4))
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(logits[:4], label[:4]))
    half = kl_divergence(logits.bfloat16(), hot, torch.tensor(4))
    assert half.dtype == torch.float32


def test_probabilities_are_averaged_and_not_logits() -> None:
    a, b = torch.tensor([[10.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    expected = (a.softmax(1) + b.softmax(1)) / 2
    torch.testing.assert_close(mean_probability([a, b]), expected)
    assert float((expected - ((a + b) / 2).softmax(1)).abs().max()) > 0.3
