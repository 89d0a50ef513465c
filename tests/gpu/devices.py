"""The device of the GPU tests, and runs on it and on the CPU in one process.

`GPU_TESTS_ON=cpu` runs these tests on a CPU: nothing is learned of a GPU, but that the tests themselves work.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import torch
from accelerate.state import PartialState

DEVICE = torch.device(os.environ.get("GPU_TESTS_ON", "cuda"))
CPU = torch.device("cpu")


@contextlib.contextmanager
def computing_on(device: torch.device) -> Iterator[None]:
    """Let runs that start here compute on `device`."""
    before = os.environ.get("ACCELERATE_USE_CPU")
    os.environ["ACCELERATE_USE_CPU"] = str(device.type == "cpu").lower()
    PartialState._reset_state()
    try:
        yield
    finally:
        PartialState._reset_state()
        if before is None:
            del os.environ["ACCELERATE_USE_CPU"]
        else:
            os.environ["ACCELERATE_USE_CPU"] = before


@contextlib.contextmanager
def ieee_float32() -> Iterator[None]:
    """Switch TF32 off, in convolutions too."""
    before = torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    torch.backends.cudnn.allow_tf32 = False
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before[0]
        torch.set_float32_matmul_precision(before[1])
