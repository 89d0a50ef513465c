"""The compiled colour operations, where there is a compiler."""

from __future__ import annotations

import pytest
import torch

from unlabeled.augment.color import OPERATIONS, compile_operations, draw_jitter, jitter
from unlabeled.ops.machine.compiler import compiler_problem
from unlabeled.ops.random import generator


@pytest.fixture
def compiling():
    problem = compiler_problem(torch.device("cpu"))
    if problem:
        pytest.skip(problem)
    yield
    compile_operations(False)


@pytest.mark.slow
@pytest.mark.parametrize(("convention", "operation"), [
    ("torchvision", "contrast"), ("torchvision", "hue"), ("simclr", "contrast"), ("simclr", "saturation"),
])
def test_compiled_equals_eager(natural, convention, operation, compiling):
    """One operation at a time: a chain of four makes the last bit of the first larger."""
    strength = {name: 0.8 if name == operation else 0.0 for name in OPERATIONS}
    for n in (40, 33):
        x = torch.from_numpy(natural(n, 32, 32, seed=n)).permute(0, 3, 1, 2) / 255
        x[0, :, :8], x[0, :, 8:16] = 0, 1  # without hue
        params = draw_jitter(n, **strength | {"hue": strength["hue"] / 4}, p=1.0, generator=generator(n))
        eager = jitter(x, params, convention)
        compile_operations()
        compiled = jitter(x, params, convention)
        compile_operations(False)
        assert (compiled - eager).abs().max() <= 1e-6
        assert (eager - x).abs().max() > 0.1


def test_without_a_compiler_there_is_a_reason(monkeypatch):
    def broken(function):
        raise RuntimeError("backend='inductor' raised:\nInvalidCxxCompiler: No working C++ compiler found\nmore")

    monkeypatch.setattr(torch, "compile", broken)
    assert compiler_problem(torch.device("cpu")) == "InvalidCxxCompiler: No working C++ compiler found"
