"""AdamP: which weights count as scale-invariant, what is then left of a step, and that a resume repeats it."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from unlabeled.config.base.optim import Optim
from unlabeled.engine.optim.adamp import AdamP

LR, DECAY = 0.1, 0.5


def step(weight: Tensor, grad: Tensor, **switches) -> Tensor:
    """Return the weight after one step."""
    p = nn.Parameter(weight.clone())
    p.grad = grad
    AdamP([p], lr=LR, weight_decay=DECAY, **switches).step()
    return p.detach()


def adam(weight: Tensor, grad: Tensor) -> Tensor:
    """Return the first step of Adam with decoupled decay: the signs of the gradient."""
    return weight * (1 - LR * DECAY) - LR * grad / (grad.abs() + 1e-8)


def weights(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


def orthogonal(grad: Tensor, weight: Tensor, rows: int) -> Tensor:
    """Take from the gradient what lies along the weights, row by row."""
    g, w = grad.reshape(rows, -1), weight.reshape(rows, -1)
    return (g - w * ((g * w).sum(1, keepdim=True) / w.square().sum(1, keepdim=True))).view(weight.shape)


def cosines(change: Tensor, weight: Tensor, rows: int) -> Tensor:
    return torch.cosine_similarity(change.reshape(rows, -1), weight.reshape(rows, -1), dim=1)


def test_output_channels_are_asked_first_then_the_whole_tensor() -> None:
    weight, grad = weights(4, 3, 3, 3), weights(4, 3, 3, 3).flip(0)
    for rows, others in ((4, 1), (1, 4)):
        right = orthogonal(grad, weight, rows)
        moved = step(weight, right) - weight * (1 - LR * DECAY * 0.1)  # without the smaller decay
        assert cosines(moved, weight, rows).abs().max() < 1e-6
        if rows == 1:  # the channels themselves are not orthogonal to their gradient
            assert cosines(right, weight, others).abs().max() > 0.1 / 27**0.5
            assert cosines(moved, weight, others).abs().max() > 1e-2


def test_one_channel_along_its_gradient_leaves_the_step_as_adams() -> None:
    weight = weights(4, 9)
    grad = orthogonal(weights(4, 9).flip(0), weight, 4)
    grad[2] += weight[2]
    torch.testing.assert_close(step(weight, grad), adam(weight, grad), rtol=0, atol=1e-12)


def test_vectors_are_never_projected() -> None:
    weight = weights(8)
    grad = orthogonal(weights(8).flip(0), weight, 1)
    torch.testing.assert_close(step(weight, grad), adam(weight, grad), rtol=0, atol=1e-12)


@pytest.mark.parametrize("angle", [0.9, 1.1])
def test_the_bound_is_delta_by_the_root_of_the_numbers(angle: float) -> None:
    """One weight of 16 numbers, whose gradient has a cosine a tenth below or above delta / 4."""
    weight = nn.functional.normalize(weights(1, 16))
    across = nn.functional.normalize(orthogonal(weights(1, 16).flip(1), weight, 1))
    cosine = angle * 0.4 / 4
    grad = cosine * weight + (1 - cosine**2) ** 0.5 * across
    adams = torch.allclose(step(weight, grad, delta=0.4), adam(weight, grad), rtol=0, atol=1e-9)
    assert adams == (angle > 1)


def test_weights_of_zero_do_not_become_nan() -> None:
    assert step(torch.zeros(3, 4, dtype=torch.float64), weights(3, 4)).isfinite().all()


def test_a_resume_repeats_the_bits() -> None:
    p = nn.Parameter(weights(4, 6))
    optimizer = AdamP([p], lr=LR, nesterov=True, delta=0.5)
    grads = [weights(4, 6).roll(k) for k in range(6)]
    kept = None
    for k, grad in enumerate(grads):
        if k == 3:
            kept = copy.deepcopy(optimizer.state_dict()), p.detach().clone()
        p.grad = grad
        optimizer.step()
    assert kept is not None
    again = nn.Parameter(kept[1])
    resumed = AdamP([again], lr=0.0)
    resumed.load_state_dict(kept[0])
    for grad in grads[3:]:
        again.grad = grad
        resumed.step()
    assert torch.equal(p, again)


def test_its_options_belong_to_it() -> None:
    with pytest.raises(ValueError, match="'adamp' has no effect with adamw; it belongs to adamp"):
        Optim(name="adamw", lr={"base": 1.0}, adamp={"delta": 0.2})
    assert "adamp" not in Optim(name="adamw", lr={"base": 1.0}).model_dump()
