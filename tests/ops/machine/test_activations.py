from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from unlabeled.ops.machine.activations import branch, kept_for_backward

IMAGES, INPUTS, HIDDEN, OUTPUTS = 6, 5, 7, 3


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(INPUTS, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, OUTPUTS))


def test_a_perceptron_keeps_its_input_hidden_and_output() -> None:
    network = mlp()
    with kept_for_backward(network.parameters()) as kept:
        loss = network(torch.ones(IMAGES, INPUTS)).square().sum()
        sizes = kept.sizes()
    # the square keeps the output; weights and their views do not count
    assert sizes == {"all else": 4 * IMAGES * (INPUTS + HIDDEN + OUTPUTS)}
    loss.backward()  # what was kept is what is used
    before = [p.grad for p in network.parameters()]
    network.zero_grad()
    network(torch.ones(IMAGES, INPUTS)).square().sum().backward()
    assert all(torch.equal(p.grad, grad) for p, grad in zip(network.parameters(), before, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_keeps_copies_of_the_weights_and_halves_the_rest(dtype: torch.dtype) -> None:
    network = mlp()
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32), kept_for_backward(network.parameters()) as kept:
        loss = network(torch.ones(IMAGES, INPUTS)).sum()
        size = kept.sizes()["all else"]
    assert loss.isfinite()
    kept_apart = IMAGES * (INPUTS + HIDDEN)
    assert size == (4 * kept_apart if dtype == torch.float32 else 2 * kept_apart + 2 * HIDDEN * OUTPUTS)


def test_branches_count_apart_and_the_inner_one_wins() -> None:
    x = torch.ones(IMAGES, INPUTS)
    first, second, third = mlp(), mlp(), mlp()
    with kept_for_backward([x, *(p for n in (first, second, third) for p in n.parameters())]) as kept:
        with branch("student"):
            a = first(x).square()
            with branch("head"):
                b = second(x).square()
            c = third(x).square()
        with torch.no_grad(), branch("teacher"):
            first(x).square()
        sizes = kept.sizes()
        kept_apart = 4 * IMAGES * (HIDDEN + OUTPUTS)  # x was there anyway
        assert sizes == {"student": 2 * kept_apart, "head": kept_apart, "teacher": 0, "all else": 0}
        del b  # with the results the graph goes
        assert kept.sizes() == {"student": 2 * kept_apart, "head": 0, "teacher": 0, "all else": 0}
    assert a.shape == c.shape


def test_views_of_one_tensor_count_once_with_all_that_they_hold() -> None:
    whole = torch.ones(10, 10, requires_grad=True) * 2
    with kept_for_backward() as kept:
        result = (whole[0].exp() * whole[1]).sum()  # keeps the exponential, and two rows of the whole
        assert kept.sizes() == {"all else": 4 * (10 + 100)}
    with kept_for_backward([whole[1:]]) as kept:  # a part is there anyway, and so is the whole
        result = (whole[0].exp() * whole[1]).sum()
        assert kept.sizes() == {"all else": 4 * 10}
    assert result.isfinite()


@pytest.mark.parametrize("reentrant", [True, False])
def test_what_is_recomputed_counts_by_its_input(reentrant: bool) -> None:
    network, x = mlp(), torch.ones(IMAGES, INPUTS).requires_grad_() * 1
    with kept_for_backward(network.parameters()) as kept:
        result = checkpoint(network, x, use_reentrant=reentrant)
        assert kept.sizes() == {"all else": 4 * IMAGES * INPUTS}
    result.sum().backward()
    assert all(p.grad is not None for p in network.parameters())


def test_a_branch_is_nothing_where_nobody_measures() -> None:
    assert isinstance(branch("student"), nullcontext) and branch("student") is branch("teacher")
    with kept_for_backward():
        assert not isinstance(branch("student"), nullcontext)
    assert isinstance(branch("student"), nullcontext)
    x = torch.ones(2, requires_grad=True)
    assert x.exp().grad_fn._saved_result.data_ptr()  # no hooks are left: nothing was packed
