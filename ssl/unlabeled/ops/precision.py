"""The precision that networks run in, and that of losses and measures, whatever that is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Literal

import torch
from torch import Tensor

Resolved = Literal["fp32", "bf16", "fp16"]  # what a setting of precision means on this machine

_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def at_least_float32(x: Tensor) -> Tensor:
    """Return x in float32, or as it is if it is float64: half precision is for networks, not for losses."""
    return x if x.dtype == torch.float64 else x.float()


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Switch off autocast and TF32 for the products inside: a cosine of three digits would change what is nearest."""
    products, convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False  # torch's default is True, whatever the products are in
    try:
        # of shapes alone nothing is computed, and there is no autocast
        with nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(products)
        torch.backends.cudnn.allow_tf32 = convolutions


def autocast(device: torch.device, precision: Resolved) -> torch.autocast:
    """Return the region in which a network runs in `precision`: as in training, weights stay float32."""
    return torch.autocast(device.type, _TYPES.get(precision), enabled=precision != "fp32")
