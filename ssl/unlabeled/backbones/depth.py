"""How deep a parameter lies in a network: what layer-wise learning rates need."""

from __future__ import annotations

from timm.models import group_parameters
from torch import nn

from unlabeled.errors import UserError


def layer_depths(network: nn.Module) -> dict[str, int]:
    """Return, by parameter name, the number of layers from its layer to the output: 1 for the last one.

    Layers are those of timm's `group_matcher`: blocks, the stem below them, the last norm with the last block. What
    stands beside a timm network, such as a projection layer, is left out. Raises UserError if there is no timm network.
    """
    for prefix, module in network.named_modules():
        if hasattr(module, "group_matcher"):
            layers = group_parameters(module, module.group_matcher(coarse=False), reverse=True)
            last = max(layers.values())
            dot = "." if prefix else ""
            return {f"{prefix}{dot}{name}": last - layer + 1 for name, layer in layers.items()}
    raise UserError("method.layer_decay needs a network of timm, which knows the order of its layers; leave it at 1")
