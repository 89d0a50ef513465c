"""What every method must pass on several processes, which see different data: together they are one process."""

from __future__ import annotations

import pytest
import torch
from processes import run_processes
from tiny import VARIANTS, snapshot, tiny_recipe, tiny_run

TOLERANCE = {torch.float32: (1e-6, 1e-2), torch.float64: (1e-10, 1e-10)}  # of the loss, of every gradient's norm

# all variants on two processes; the first variant of every method on four too
CASES = [
    (method, variant, processes, dtype)
    for method, variant in VARIANTS
    for processes in (2, 4)
    for dtype in TOLERANCE
    if processes == 2 or (method, variant) == next(v for v in VARIANTS if v[0] == method)
]


# where channels come last, torch's BatchNorm adds up in float32 on a CPU, which puts the loss of one process 1.3e-6 off
# its value in float64; in the other layout, and in our synchronised one, it adds up in float64 and is within 1e-7
LAYOUT = ["train.channels_last=false"]


def on_rank(number: int, method: str, variant: str, dtype: torch.dtype) -> dict[str, object]:
    recipe = tiny_recipe(method, variant, LAYOUT)
    views, loss, grads = tiny_run(recipe, dtype).first_gradients()
    trained = tiny_run(recipe)
    trained.train(0, 3)
    tensors = {"views": views, "grads": grads, "state": snapshot(trained)}
    return {"loss": float(loss), **{kind: {k: x.numpy() for k, x in of.items()} for kind, of in tensors.items()}}


@pytest.mark.parametrize(
    ("method", "variant", "processes", "dtype"), CASES, ids=["-".join(map(str, case)) for case in CASES]
)
def test_processes_with_different_data_are_one_process(
    method: str, variant: str, processes: int, dtype: torch.dtype
) -> None:
    loss_tolerance, grad_tolerance = TOLERANCE[dtype]
    views, loss, grads = tiny_run(tiny_recipe(method, variant, LAYOUT), dtype).first_gradients()
    parts = run_processes(processes, on_rank, method, variant, dtype)
    for name, whole in views.items():
        got = torch.cat([torch.as_tensor(p["views"][name]) for p in parts])
        assert torch.equal(got, whole), f"view {name} depends on the number of processes"
    off = abs(sum(p["loss"] for p in parts) / processes - float(loss))
    assert off <= loss_tolerance * max(1.0, abs(float(loss)))
    largest = max(float(g.norm()) for g in grads.values())
    for part in parts:
        for name, whole in grads.items():
            error = float((torch.as_tensor(part["grads"][name]) - whole).norm())
            # a gradient that is zero in theory (a bias before BatchNorm) is rounding: compared with the largest one
            allowed = grad_tolerance * max(float(whole.norm()), 1e-4 * largest)
            assert error <= allowed, f"gradient of {name}: off by {error:.2g}, norm {float(whole.norm()):.2g}"
        for name, value in part["state"].items():
            first = torch.as_tensor(parts[0]["state"][name])
            assert torch.equal(torch.as_tensor(value), first), f"{name} differs between ranks"
