"""Regions of precision: float32 means float32 inside one, and everything is as before behind it."""

import pytest
import torch

from unlabeled.ops.precision import autocast, full_precision

CPU = torch.device("cpu")


def test_products_inside_are_exact_and_the_switches_come_back():
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("medium")
    torch.backends.cudnn.allow_tf32 = True
    x = torch.randn(3, 3)
    try:
        with pytest.raises(RuntimeError), torch.autocast("cpu", torch.bfloat16), full_precision(CPU):
            assert (x @ x).dtype == torch.float32
            assert torch.get_float32_matmul_precision() == "highest" and not torch.backends.cudnn.allow_tf32
            raise RuntimeError
        assert torch.get_float32_matmul_precision() == "medium" and torch.backends.cudnn.allow_tf32
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


@pytest.mark.parametrize(("precision", "kind"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_a_network_runs_in_its_precision_whatever_surrounds_it(precision, kind):
    x = torch.randn(3, 3)
    with torch.autocast("cpu", torch.float16), autocast(CPU, precision):
        assert (x @ x).dtype == kind
