"""Where float32 means float32: neither autocast nor TF32, and all as before afterwards."""

from __future__ import annotations

import pytest
import torch

from unlabeled.ops.precision import autocast, full_precision


@pytest.mark.parametrize("tf32", [True, False])
def test_products_and_convolutions_are_exact_inside_and_as_before_outside(tf32: bool) -> None:
    kept = torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    try:
        torch.backends.cudnn.allow_tf32 = tf32
        torch.set_float32_matmul_precision("high" if tf32 else "highest")
        with pytest.raises(KeyError), torch.autocast("cpu", torch.bfloat16), full_precision(torch.device("cpu")):
            assert not torch.backends.cudnn.allow_tf32
            assert torch.get_float32_matmul_precision() == "highest"
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32
            raise KeyError
        assert torch.backends.cudnn.allow_tf32 == tf32
        assert torch.get_float32_matmul_precision() == ("high" if tf32 else "highest")
    finally:
        torch.backends.cudnn.allow_tf32, before = kept
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize(("precision", "kind"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_a_network_runs_in_its_precision_whatever_surrounds_it(precision: str, kind: torch.dtype) -> None:
    x = torch.randn(3, 3)
    with torch.autocast("cpu", torch.float16), autocast(torch.device("cpu"), precision):
        assert (x @ x).dtype == kind
