"""Collectives and synchronised BatchNorm: several processes with different data against one with all of it."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from processes import run_processes
from torch import nn

from unlabeled.ops import batchnorm
from unlabeled.ops.distributed import gather_with_grad, leave_group, rank, sum_over_ranks

CPU = torch.device("cpu")


def rows(count: int, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)


def gathered_loss(own: torch.Tensor) -> torch.Tensor:
    everyone = gather_with_grad(own)
    return (own @ everyone.T).logsumexp(1).mean()


def gather_on_rank(number: int, per_rank: int) -> torch.Tensor:
    own = rows(2 * per_rank, (5,), torch.float64)[number * per_rank : (number + 1) * per_rank].requires_grad_()
    gathered_loss(own).backward()
    return own.grad.numpy()


def test_gather_passes_the_gradient_of_all_ranks() -> None:
    x = rows(6, (5,), torch.float64).requires_grad_()
    gathered_loss(x).backward()
    parts = run_processes(2, gather_on_rank, 3)
    # each rank's loss is a mean over half as many rows, and DDP averages: together a factor of 2
    got = torch.cat([torch.as_tensor(p) for p in parts]) / 2
    torch.testing.assert_close(got, x.grad, rtol=1e-12, atol=1e-14)


def network(dtype: torch.dtype) -> nn.Sequential:
    torch.manual_seed(0)
    conv = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten()]
    net = nn.Sequential(*conv, nn.Linear(16, 6), nn.BatchNorm1d(6))
    net[5].register_parameter("bias", None)
    return net.to(dtype).train()


def bn_on_rank(number: int, bounds: list[int], dtype: torch.dtype) -> dict[str, object]:
    net = batchnorm.convert(network(dtype), CPU)
    assert not batchnorm.unsynchronised_buffers(net)
    x = rows(bounds[-1], (3, 4, 4), dtype)[bounds[number] : bounds[number + 1]].requires_grad_()
    y = net(x)
    y.sin().sum().backward()
    grads = {name: sum_over_ranks(p.grad).numpy() for name, p in net.named_parameters()}
    buffers = {name: b.numpy() for name, b in net.named_buffers()}
    assert number == rank()
    return {"y": y.detach().numpy(), "dx": x.grad.numpy(), "grads": grads, "buffers": buffers}


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-4)], ids=["f64", "f32"])
def test_batchnorm_over_unequal_ranks_equals_one_process(dtype: torch.dtype, tolerance: float) -> None:
    bounds = [0, 5, 7, 12]
    net, x = network(dtype), rows(12, (3, 4, 4), dtype).requires_grad_()
    y = net(x)
    y.sin().sum().backward()
    parts = run_processes(3, bn_on_rank, bounds, dtype)
    close = lambda a, b: torch.testing.assert_close(torch.as_tensor(a), b, rtol=tolerance, atol=tolerance)  # noqa: E731
    for key, whole in (("y", y.detach()), ("dx", x.grad)):
        close(torch.cat([torch.as_tensor(p[key]) for p in parts]), whole)
    for part in parts:
        for name, p in net.named_parameters():
            close(part["grads"][name], p.grad)
        for name, b in net.named_buffers():
            close(part["buffers"][name], b)


def test_a_group_is_left_once() -> None:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    leave_group()
    assert not dist.is_initialized()
    leave_group()  # nothing is left to leave
