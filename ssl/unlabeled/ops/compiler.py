"""Whether torch.compile works where the program runs."""

from __future__ import annotations

import torch
from torch import Tensor


def compiler_problem(device: torch.device) -> str | None:
    """Return in one line why torch.compile does not work on `device`, or None; it compiles a trivial function."""
    try:
        torch.compile(_trivial)(torch.zeros(2, device=device))
    except Exception as error:  # a missing compiler, header or driver shows itself in many ways
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        return next((line for line in lines if not line.startswith("backend=")), type(error).__name__)
    return None


def _trivial(x: Tensor) -> Tensor:
    return x + 1
