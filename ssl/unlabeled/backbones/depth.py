"""How deep a parameter lies in a network, and in which stage: what learning rates by layer or by stage need."""

from __future__ import annotations

from typing import Any

from timm.models import group_parameters
from torch import nn

from unlabeled.errors import UserError


def layer_depths(network: nn.Module) -> dict[str, int]:
    """Return, by parameter name, the number of layers from its layer to the output: 1 for the last one.

    Layers are those of timm's `group_matcher`: blocks, the stem below them, the last norm with the last block. What
    stands beside a timm network, such as a projection layer, is left out. Raises UserError if there is no timm network.
    """
    prefix, module = _of_timm(network)
    if module is None:
        raise UserError("method.layer_decay needs a network of timm, which knows the order of its layers; leave it at "
                        "1")
    layers = group_parameters(module, module.group_matcher(coarse=False), reverse=True)
    last = max(layers.values())
    return {f"{prefix}{name}": last - layer + 1 for name, layer in layers.items()}


def stages(network: nn.Module, count: int) -> dict[str, int]:
    """Return, by parameter name, in which of `count` stages it lies, from 0.

    Stages are the stem and what timm's `group_matcher` counts behind it, as the four stages of a ResNet; or else, as in
    MobileNetV3-large, `count` equal runs of the blocks, the stem with the first and what follows them with the last.
    Raises UserError if the network has no such number of stages.
    """
    prefix, module = _of_timm(network)
    if module is None:
        raise UserError("method.stage_lr needs a network of timm, which knows its stages; leave it out")
    layers = group_parameters(module, module.group_matcher(coarse=True), reverse=True)
    known = max(layers.values()) + 1
    blocks = [name for name, inner in module.named_modules() if hasattr(inner, "conv_dw")]
    if known != count and blocks and len(blocks) % count == 0:
        layers = _runs(layers, blocks, len(blocks) // count)
    elif known != count:
        others = f", or for {len(blocks)} blocks" if blocks else ""
        raise UserError(f"method.stage_lr has {count} values, but is for {known} stages of this network{others}; give "
                        "as many, or leave it out")
    return {f"{prefix}{name}": stage for name, stage in layers.items()}


def _runs(layers: dict[str, int], blocks: list[str], length: int) -> dict[str, int]:
    """Return the stage of every parameter if a stage is a run of `length` of the `blocks`, names in their order."""
    place = {name: next((i for i, block in enumerate(blocks) if name.startswith(f"{block}.")), None) for name in layers}
    last = (len(blocks) - 1) // length
    return {name: (0 if layers[name] == 0 else last) if i is None else i // length for name, i in place.items()}


def _of_timm(network: nn.Module) -> tuple[str, Any]:
    """Return the first network of timm within a network, None if there is none, and what its names begin with there."""
    for prefix, module in network.named_modules():
        if hasattr(module, "group_matcher"):
            return f"{prefix}." if prefix else "", module
    return "", None
