"""Parts of POA's networks with the weights of a golden case."""

from __future__ import annotations

import re
from collections.abc import Iterable

import numpy as np
import torch
from golden_files import Case
from torch import nn

# how names of the published code differ, dots written as underscores
_RULES = (
    (r"^stages_(\d)_downsample", lambda found: f"layers_{int(found[1]) + 1}_downsample"),  # here with the next stage
    (r"^stages_", "layers_"),
    (r"^(layer\d)_layers_", r"\1_"),
    (r"attn_w_msa_", "attn_"),
    (r"ffn_", "mlp_"),
    (r"(norm\d?)_norm_", r"\1_"),
    (r"_(linear|conv)_", "_"),
)


def ours(name: str) -> str:
    """Return the name here of a published parameter, with underscores for dots."""
    name = name.replace(".", "_")
    for pattern, by in _RULES:
        name = re.sub(pattern, by, name)
    return name


def by_name(module: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters by their names with underscores for dots."""
    return {name.replace(".", "_"): p for name, p in module.named_parameters()}


@torch.no_grad()
def fill(module: nn.Module, case: Case, prefix: str = "param_") -> None:
    """Give a module all parameters of a case whose names begin with `prefix`, no more and no less than it has."""
    given = {ours(name.removeprefix(prefix)): array for name, array in case.items() if name.startswith(prefix)}
    parameters = by_name(module)
    assert set(given) == set(parameters)
    for name, p in parameters.items():
        p.copy_(torch.from_numpy(given[name]))


def gradients(module: nn.Module, case: Case, suffix: str) -> Iterable[tuple[np.ndarray, np.ndarray]]:
    """Yield (here, published) for the parameters whose gradients a case holds; there is at least one."""
    names = [name for name in case if name.startswith("grad_param_") and name.endswith(suffix)]
    assert names
    for name in names:
        inner, parameters = ours(name.removeprefix("grad_param_").removesuffix(suffix)), by_name(module)
        yield parameters.get(inner, parameters.get(f"{inner}_weight")).grad.numpy(), case[name]
