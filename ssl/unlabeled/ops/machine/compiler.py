"""Where torch.compile works, and the feature maps of networks that were compiled."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor, nn


def compiler_problem(device: torch.device) -> str | None:
    """Return in one line why torch.compile does not work on `device`, or None; it compiles a trivial function."""
    try:
        torch.compile(_trivial)(torch.zeros(2, device=device))
    except Exception as error:  # a missing compiler, header or driver shows itself in many ways
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        return next((line for line in lines if not line.startswith("backend=")), type(error).__name__)
    return None


def features(network: nn.Module, x: Tensor, *, eager: bool = False) -> Tensor:
    """Return `network.forward_features(x)`, compiled after `network.compile()`, which compiles its call alone."""
    return (_compiled() if network._compiled_call_impl is not None and not eager else _features)(network, x)


def _features(network: nn.Module, x: Tensor) -> Tensor:
    out: Tensor = network.forward_features(x)  # type: ignore[operator]  # nn.Module types all attributes alike
    return out


@cache
def _compiled() -> Callable[[nn.Module, Tensor], Tensor]:
    # one for all networks: a compiled method kept in one of them would go with its copies, and use its weights there
    return torch.compile(_features)


def _trivial(x: Tensor) -> Tensor:
    return x + 1
